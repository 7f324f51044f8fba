"""Peak resident memory of this process. Imports nothing heavy, and nothing of this package: any program may load it."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Final

import psutil

_INTERVAL_S: Final = 0.01


class PeakMemory:
    """Peak resident memory of this process since its start, in MB: the larger of what two sources saw.

    One is a thread that reads psutil's resident memory while this is entered; the other is the kernel's own high-water
    mark. On Linux that is VmHWM and not ``getrusage``, whose figure begins with the memory of the parent process.
    """

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._highest = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def now_mb(self) -> float:
        """Resident memory now."""
        return self._read() / 1e6

    @property
    def peak_mb(self) -> float:
        """Peak until now."""
        self._read()
        return max(self._highest, _kernel_peak_bytes()) / 1e6

    def _read(self) -> int:
        now = int(self._process.memory_info().rss)
        self._highest = max(self._highest, now)
        return now

    def _watch(self) -> None:
        while not self._stop.wait(_INTERVAL_S):
            self._read()


def _kernel_peak_bytes() -> int:
    """The kernel's high-water mark of resident memory; 0 where it keeps none."""
    status = Path("/proc/self/status")
    if status.is_file():
        lines = status.read_text(encoding="utf-8").splitlines()
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)
    try:
        import resource
    except ImportError:  # Windows, where psutil has the mark
        return int(getattr(psutil.Process().memory_info(), "peak_wset", 0))
    # macOS counts bytes, other systems KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
