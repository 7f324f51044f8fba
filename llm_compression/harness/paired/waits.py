"""What a process waited for a processor, and what others took of those that it may use, over a span of its life.

Linux keeps both: the time that each thread was runnable and did not run (``/proc/self/task/*/schedstat``), and the time
that each processor was busy or stolen by the host (``/proc/stat``). A process that waits for its own threads has nobody
to blame, so what counts is the smaller of the two. Imports nothing heavy, and nothing of this package.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

_INTERVAL_S: Final = 0.05
_TASKS: Final = Path("/proc/self/task")
_STAT: Final = Path("/proc/stat")


@dataclass(frozen=True)
class Waits:
    """What happened to a process over a span, in milliseconds; zero where the system keeps no such count.

    Attributes:
        wall_ms: How long the span was.
        waited_ms: Its threads were runnable and did not run, together.
        taken_ms: Other processes, and the host where this is a virtual machine, ran on its processors, together.
        stolen_ms: Of which the host.
        switches: Times that one of its threads was made to give up its processor.
    """

    wall_ms: float
    waited_ms: float
    taken_ms: float
    stolen_ms: float
    switches: int

    @property
    def part(self) -> float:
        """What others made it wait, as a part of the span."""
        return min(self.waited_ms, self.taken_ms) / self.wall_ms if self.wall_ms > 0 else 0.0


@dataclass(frozen=True)
class _Reading:
    wall_ns: int
    waited_ns: int
    own_ns: int
    busy_ns: int
    stolen_ns: int
    switches: int


class WaitClock:
    """Reads the waits of this process; entered, a thread keeps count of threads that come and go."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: dict[int, int] = {}
        self._gone_ns = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="waits", daemon=True)
        self._start = self._read()

    def __enter__(self) -> WaitClock:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def lap(self) -> Waits:
        """The waits since the last lap, or since this was made."""
        before, now = self._start, self._read()
        self._start = now
        busy, own = now.busy_ns - before.busy_ns, now.own_ns - before.own_ns
        return Waits(
            wall_ms=(now.wall_ns - before.wall_ns) / 1e6,
            waited_ms=(now.waited_ns - before.waited_ns) / 1e6,
            taken_ms=max(0, busy - own) / 1e6,
            stolen_ms=(now.stolen_ns - before.stolen_ns) / 1e6,
            switches=now.switches - before.switches,
        )

    def _read(self) -> _Reading:
        busy, stolen = _processors_ns()
        times = os.times()
        own = int((times.user + times.system) * 1e9)
        return _Reading(time.monotonic_ns(), self._waited_ns(), own, busy, stolen, _switches())

    def _waited_ns(self) -> int:
        """Of all threads that were ever seen; a thread's last tens of milliseconds may be missing."""
        found: dict[int, int] = {}
        for thread in _listed(_TASKS):
            try:
                found[int(thread)] = int((_TASKS / thread / "schedstat").read_text(encoding="utf-8").split()[1])
            except (OSError, ValueError, IndexError):
                continue  # it has just ended, or the kernel keeps no such count
        with self._lock:
            # a number that fell belongs to a new thread
            self._gone_ns += sum(last for thread, last in self._last.items() if found.get(thread, -1) < last)
            self._last = found
            return self._gone_ns + sum(found.values())

    def _watch(self) -> None:
        while not self._stop.wait(_INTERVAL_S):
            self._waited_ns()


def _listed(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)  # noqa: PTH208  # names are enough
    except OSError:
        return []


def _processors_ns() -> tuple[int, int]:
    """How long the processors that this process may use were busy since the start of the system, and stolen."""
    if not hasattr(os, "sched_getaffinity"):
        return 0, 0
    allowed = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    try:
        lines = [line.split() for line in _STAT.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return 0, 0
    tick_ns = 10**9 // os.sysconf("SC_CLK_TCK")
    busy = stolen = 0
    for name, *counts in lines:
        if name in allowed:
            user, nice, system, _idle, _waiting, irq, softirq, steal = map(int, counts[:8])
            busy += user + nice + system + irq + softirq + steal
            stolen += steal
    return busy * tick_ns, stolen * tick_ns


def _switches() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
