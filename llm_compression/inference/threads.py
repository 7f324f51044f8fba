"""How many threads this process may use, and the one setting that lowers it."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Final

import torch

from llm_compression.errors import ConfigError

NUM_THREADS_VARIABLE: Final = "LLM_COMPRESSION_NUM_THREADS"
_counting = threading.RLock()
_workers: ThreadPoolExecutor | None = None


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
    """Lower PyTorch's intra-op threads to `available_cpus`; a lower count that the caller set stays."""
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


def _forget_workers() -> None:
    global _workers, _counting  # a fork has neither the threads nor who may hold the lock
    _workers, _counting = None, threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_workers)


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


def _cgroup_cpus(root: Path = Path("/sys/fs/cgroup")) -> int:
    """Whole processors of the cgroup's quota (version 2, then 1); a large number without a quota."""
    try:
        quota, period = (root / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (root / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (root / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return 1 << 20
    if quota == "max" or int(quota) <= 0:
        return 1 << 20
    return max(1, math.ceil(int(quota) / int(period)))
