"""What a process waited for others: seen where a neighbour took the processor, not where its own threads did."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llm_compression.harness.paired import waits
from llm_compression.harness.paired.waits import WaitClock, Waits

# so much processor time, on one processor, by so many threads that need no lock of Python's
WORK = """
import json, os, sys, threading, zlib
from llm_compression.harness.paired.waits import WaitClock
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
data = bytes(1 << 20)
def work():
    for _ in range(400):
        zlib.crc32(data)
with WaitClock() as clock:
    threads = [threading.Thread(target=work) for _ in range(int(sys.argv[1]))]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    found = clock.lap()
print(json.dumps({**vars(found), "part": found.part}))
"""
SPIN = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); print(flush=True)\nwhile True: pass"

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="written for Linux")


def measured(threads: int) -> dict[str, float]:
    command = [sys.executable, "-c", WORK, str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


@contextmanager
def neighbour() -> Iterator[None]:
    """A process that wants the same processor all the time."""
    process = subprocess.Popen([sys.executable, "-c", SPIN], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()  # it has begun
        yield
    finally:
        process.kill()
        process.communicate()


@pytest.mark.requirement("30.5")
def test_a_neighbour_is_seen() -> None:
    """30.5: WHEN a sample waited for other processes during more of its time than the table *Undisturbed samples*
    allows, THE Gates Session SHALL take it again, as often as that table allows, and show it in the report."""
    with neighbour():
        found = measured(1)
    # half of the time is the neighbour's, however much others take beside it
    assert found["part"] > 0.3
    assert found["waited_ms"] > 0.3 * found["wall_ms"]
    assert found["taken_ms"] > 0.3 * found["wall_ms"]


@pytest.mark.requirement("30.6")
def test_a_process_that_waits_for_its_own_threads_has_nobody_to_blame() -> None:
    """30.6: WHEN a process waits for its own threads, THE Harness SHALL not count that as a disturbance."""
    found = measured(4)
    assert found["waited_ms"] > found["wall_ms"]
    # what others took in the meantime is all that it may blame them for
    assert found["part"] * found["wall_ms"] <= found["taken_ms"] + 1e-6
    assert Waits(1000, 3000, 20, 0, 9).part == pytest.approx(0.02)


def test_the_smaller_of_both_counts() -> None:
    """Neither waiting without a neighbour nor a neighbour without waiting disturbs."""
    assert Waits(1000, 0, 900, 0, 0).part == 0
    assert Waits(1000, 500, 400, 400, 0).part == pytest.approx(0.4)
    assert Waits(0, 0, 0, 0, 0).part == 0


def test_laps_follow_each_other_and_threads_that_ended_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is read is a difference; a thread's number that falls is another thread's."""
    clock = WaitClock()
    first, second = clock.lap(), clock.lap()
    assert min(first.wall_ms, second.wall_ms) >= 0
    monkeypatch.setattr(waits, "_TASKS", tmp_path)
    clock._last, clock._gone_ns = {}, 0
    found = []
    for counts in ({1: 500}, {1: 700, 2: 50}, {1: 900}, {1: 900, 2: 10}, {}):
        shutil.rmtree(tmp_path)
        for thread, waited in counts.items():
            (tmp_path / str(thread)).mkdir(parents=True)
            (tmp_path / str(thread) / "schedstat").write_text(f"1 {waited} 3\n", encoding="utf-8")
        found.append(clock._waited_ns())
    assert found == [500, 750, 950, 960, 960]


def test_a_system_without_counts_has_no_waits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where the system keeps none, nothing is made up."""
    monkeypatch.setattr(waits, "_STAT", tmp_path / "stat")
    monkeypatch.setattr(waits, "_TASKS", tmp_path / "tasks")
    assert waits._processors_ns() == (0, 0)
    clock = WaitClock()
    found = clock.lap()
    assert (found.waited_ms, found.taken_ms, found.part) == (0, 0, 0)
