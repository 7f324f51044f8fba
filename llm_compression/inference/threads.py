"""How many threads this process may use, and the one setting that lowers it."""

from __future__ import annotations

import math
import os
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Final

import torch

from llm_compression.errors import ConfigError, LlmCompressionError

NUM_THREADS_VARIABLE: Final = "LLM_COMPRESSION_NUM_THREADS"
_UNLIMITED: Final = 1 << 20
_counting = threading.RLock()
_workers: ThreadPoolExecutor | None = None
_forked: int | None = None  # in a process made by fork, the thread that was there before


@cache
def available_cpus() -> int:
    """Processors that this process may use: its affinity, capped by its cgroup's limit, or by the setting if lower.

    ``LLM_COMPRESSION_NUM_THREADS`` lowers the count; it never raises it. Read once per process.

    Raises:
        ConfigError: The variable is not a positive whole number.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    allowed = max(1, min(affinity, _cgroup_cpus()))
    setting = os.environ.get(NUM_THREADS_VARIABLE)
    if setting is None:
        return allowed
    if not setting.isascii() or not setting.isdigit() or int(setting) < 1:
        raise ConfigError(f"{NUM_THREADS_VARIABLE}: {setting!r}, expected a positive whole number")
    return min(allowed, int(setting))


def limit_threads() -> None:
    """Lower PyTorch's intra-op threads to `available_cpus`; a lower count that the caller set stays.

    Raises:
        LlmCompressionError: As `require_unforked`.
    """
    require_unforked(torch.device("cpu"), os.getpid())
    with _counting:
        if torch.get_num_threads() > available_cpus():
            torch.set_num_threads(available_cpus())


@contextmanager
def single_threaded_pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads in each of which PyTorch computes with one thread; every other thread keeps its count.

    Work that is split into tasks runs faster so than with PyTorch splitting each operation, whose threads wait for each
    other at the end of each. A thread that uses PyTorch for the first time in the instant in which the pool starts may
    keep a count of one.
    """
    with _start_single_threaded(threads) as pool:
        yield pool


def workers() -> ThreadPoolExecutor:
    """The pool of this process that computes: such a thread for each processor that it may use, started once."""
    global _workers  # one for the process
    with _counting:
        if _workers is None:
            _workers = _start_single_threaded(available_cpus())
        return _workers


def require_unforked(device: torch.device, built_in: int) -> None:
    """Refuse to compute where a fork left behind what computes, which would wait for it for ever.

    Args:
        device: What computes.
        built_in: The id of the process that made the model.

    Raises:
        LlmCompressionError: The device belongs to the process before the fork, or PyTorch was set to more threads than
            the one that a fork keeps.
    """
    if device.type != "cpu" and os.getpid() != built_in:
        raise LlmCompressionError(
            f"a model on {device} of process {built_in}, used in its fork {os.getpid()}: expected a process started "
            "by spawn, or the model built in the fork"
        )
    if threading.get_ident() == _forked and torch.get_num_threads() > 1:
        raise LlmCompressionError(
            f"PyTorch set to {torch.get_num_threads()} threads in a fork, whose threads are those of the process "
            "before it: expected torch.set_num_threads(1), or a process started by spawn"
        )


def _start_anew() -> None:
    """In a fork, which has none of the threads: neither the pools' nor those of OpenMP, nor who may hold the lock."""
    global _workers, _counting, _forked
    _workers, _counting, _forked = None, threading.RLock(), threading.get_ident()
    # OpenMP would wait for the threads that it had; threads that start from here on have pools of their own
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)


def _start_single_threaded(threads: int) -> ThreadPoolExecutor:
    ready = threading.Barrier(threads + 1)

    def start() -> None:
        try:
            torch.get_num_threads()  # PyTorch sets a thread's count at its first use; this is it
            torch.set_num_threads(1)
            ready.wait()
        except BaseException:
            ready.abort()  # or the others would wait for this one for ever
            raise

    pool = ThreadPoolExecutor(threads, thread_name_prefix="single", initializer=start)
    # a count that is set holds for the thread and for those that start later: put it right for the latter
    with _counting:
        own = torch.get_num_threads()
        try:
            for _ in range(threads):
                pool.submit(int)  # each starts a thread, as none is idle before all are ready
            ready.wait()
        except BaseException:
            ready.abort()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
        finally:
            torch.set_num_threads(own)
    return pool


def _cgroup_cpus(root: Path = Path("/")) -> int:
    """Whole processors of the least quota among the cgroups that this process is in; a large number without a quota.

    A cgroup's quota holds for what is below it, so each is looked for from the process's own up to the mount
    (man 7 cgroups; ``cpu.max`` in version 2, ``cpu.cfs_quota_us`` in version 1).
    """
    least = _UNLIMITED
    for directory, mount in _cgroups(root):
        while True:
            least = min(least, _quota(directory))
            if directory in (mount, directory.parent):
                break
            directory = directory.parent
    return least


def _cgroups(root: Path) -> Iterator[tuple[Path, Path]]:
    """The directory of each cgroup of this process that may limit processors, with the mount it is below."""
    try:
        # number:controllers:path, the controllers empty in version 2
        lines = [line.split(":", 2) for line in (root / "proc/self/cgroup").read_text().splitlines()]
        # number parent device root mount options ... - type source options; see man 5 proc
        mounts = [line.split() for line in (root / "proc/self/mountinfo").read_text().splitlines()]
    except OSError:
        return
    for fields in mounts:
        kind, options = fields[fields.index("-") + 1], fields[-1].split(",")
        if kind not in ("cgroup2", "cgroup") or (kind == "cgroup" and "cpu" not in options):
            continue
        shown, mount = _unescaped(fields[3]), root / _unescaped(fields[4]).lstrip("/")
        for _, controllers, path in lines:
            if ("cpu" in controllers.split(",")) if kind == "cgroup" else not controllers:
                # a mount may show a part of the tree; what ".." says lies outside of it and is not to be seen
                inside = ".." not in f"{path}/{shown}".split("/") and Path(path).is_relative_to(shown)
                yield (mount / Path(path).relative_to(shown) if inside else mount), mount


def _unescaped(path: str) -> str:
    """A path of mountinfo, which writes a space as its number."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), path)


def _quota(cgroup: Path) -> int:
    """Whole processors that one cgroup allows."""
    try:
        if (cgroup / "cpu.max").is_file():
            quota, period = (cgroup / "cpu.max").read_text().split()
        else:
            quota, period = ((cgroup / f"cpu.cfs_{kind}_us").read_text().strip() for kind in ("quota", "period"))
        if quota == "max" or int(quota) <= 0:
            return _UNLIMITED
        return max(1, math.ceil(int(quota) / int(period)))
    # the root of a tree has no such file
    except (OSError, ValueError, ZeroDivisionError):
        return _UNLIMITED
