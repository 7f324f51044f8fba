"""`llm-compression embed` as a process that is watched: memory and processor time of its tree, and its death."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import psutil

_BETWEEN_SAMPLES: Final = 0.5  # a sample walks the page tables of a process, which is not free
Victim = Literal["parent", "tree"]


@dataclass(frozen=True)
class Ran:
    """What a run of a process took.

    Attributes:
        status: It exited with, or minus the signal that ended it.
        seconds: From its start to its end.
        processor_seconds: User and system, of it and of those it waited for.
        peak_bytes: The largest sum over its processes of their proportional set sizes.
        output: What it wrote to standard output and error.
    """

    status: int
    seconds: float
    processor_seconds: float
    peak_bytes: int
    output: str


def command(folder: Path, out: Path, model: Path, *options: str) -> list[str]:
    """The command line of a run."""
    cli = [sys.executable, "-m", "llm_compression", "embed"]
    return [*cli, str(folder), "-o", str(out), "--model", str(model), *options]


def run(arguments: Sequence[str], log: Path) -> Ran:
    """Run a process to its end.

    Args:
        arguments: Its command line.
        log: A file for what it writes.
    """
    began = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(arguments, stdout=output, stderr=subprocess.STDOUT)
        memory = _Memory(process.pid)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        peak = memory.end()
    processor = usage.ru_utime + usage.ru_stime
    return Ran(process.returncode, seconds, processor, peak, log.read_text(encoding="utf-8", errors="replace"))


def killed(arguments: Sequence[str], seconds: float, victim: Victim) -> bool:
    """Run a process and kill it after some seconds, alone or with all that it started.

    Returns:
        Whether it was killed; False where it had ended by itself.
    """
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        kill(process, victim)
        return True
    if process.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: ended with status {process.returncode}")
    return False


def kill(process: subprocess.Popen[Any], victim: Victim) -> None:
    """End a process at once, alone or with all that it started."""
    tree = psutil.Process(process.pid).children(recursive=True) if victim == "tree" else []
    process.kill()
    process.wait()
    for each in tree:
        with suppress(psutil.NoSuchProcess):
            each.kill()


def tree_bytes(process: int) -> int:
    """The sum of the proportional set sizes of a process and all that it started."""
    try:
        parent = psutil.Process(process)
        tree = [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    return sum(_pss(each.pid) for each in tree)


def _pss(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except (FileNotFoundError, ProcessLookupError, PermissionError):  # it has ended meanwhile
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


class _Memory:
    """The peak of a tree, by a thread that samples it."""

    def __init__(self, process: int) -> None:
        self._process, self._ended, self._peak = process, threading.Event(), 0
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while not self._ended.wait(_BETWEEN_SAMPLES):
            self._peak = max(self._peak, tree_bytes(self._process))

    def end(self) -> int:
        self._ended.set()
        self._thread.join()
        return self._peak
