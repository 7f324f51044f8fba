"""How many threads the package uses: never more than the process may, fewer where the user says so."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from llm_compression.errors import ConfigError
from llm_compression.inference import threads
from llm_compression.inference.threads import (
    NUM_THREADS_VARIABLE,
    available_cpus,
    limit_threads,
    single_threaded_pool,
)

UNLIMITED = 1 << 20
_real_cgroup_cpus = threads._cgroup_cpus


@pytest.fixture(autouse=True)
def fresh_count(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The count is read once per process; here, once per test, with no setting and with any affinity."""
    monkeypatch.delenv(NUM_THREADS_VARIABLE, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(16)), raising=False)
    monkeypatch.setattr(threads, "_cgroup_cpus", lambda: UNLIMITED)
    available_cpus.cache_clear()
    yield
    available_cpus.cache_clear()


CGROUPS_1 = "4:memory:/m\n1:cpu,cpuacct:{}\n0::/u\n"
CGROUP_2 = "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
CGROUP_1 = "32 31 0:29 {} /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
# what a machine with version 1 also has: another controller, and version 2 without any
BESIDE = (
    "33 31 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "34 31 0:31 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
)


def system(root: Path, cgroups: str, mounts: str, quotas: dict[str, str]) -> Path:
    """A directory that looks like / to a process: its cgroups, the mounts, and the quota of each cgroup.

    A quota is ``"quota period"``: written as version 2 does, or as version 1 below ``cpu,cpuacct``.
    """
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "self" / "cgroup").write_text(cgroups, encoding="utf-8")
    (root / "proc" / "self" / "mountinfo").write_text(mounts, encoding="utf-8")
    for name, quota in quotas.items():
        directory = root / "sys" / "fs" / "cgroup" / name
        directory.mkdir(parents=True, exist_ok=True)
        if "cpu,cpuacct" in name:
            for kind, value in zip(("quota", "period"), quota.split(), strict=True):
                (directory / f"cpu.cfs_{kind}_us").write_text(f"{value}\n", encoding="utf-8")
        else:
            (directory / "cpu.max").write_text(f"{quota}\n", encoding="utf-8")
    return root


@pytest.mark.requirement("8.2")
def test_affinity_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    """8.2: WHEN one image's pixels are encoded in bfloat16 on CPU, THE VisionEncoder SHALL return its embedding with a
    90th percentile of latency within the limits of gates `latency-b16` and `latency-b32`: not more threads than the
    process may run on, which would wait for each other."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {3, 5, 6}, raising=False)
    assert available_cpus() == 3


@pytest.mark.requirement("8.2")
def test_the_affinity_of_a_real_process() -> None:
    """8.2: WHEN one image's pixels are encoded in bfloat16 on CPU, THE VisionEncoder SHALL return its embedding with a
    90th percentile of latency within the limits of gates `latency-b16` and `latency-b32`: a process bound to one
    processor uses one thread, whatever the machine has."""
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "import torch; torch.set_num_threads(4)\n"
        "from llm_compression.inference.threads import available_cpus, limit_threads\n"
        "limit_threads(); print(available_cpus(), torch.get_num_threads())"
    )
    environment = {name: value for name, value in os.environ.items() if name != NUM_THREADS_VARIABLE}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["1", "1"]


@pytest.mark.requirement("8.2")
def test_a_system_without_affinity_counts_its_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """8.2: WHEN one image's pixels are encoded in bfloat16 on CPU, THE VisionEncoder SHALL return its embedding with a
    90th percentile of latency within the limits of gates `latency-b16` and `latency-b32`: also off Linux."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert available_cpus() == 6
    available_cpus.cache_clear()
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cpus() == 1


@pytest.mark.requirement("26.3")
@pytest.mark.parametrize(
    ("cgroups", "mounts", "quotas", "expected"),
    [
        pytest.param("0::/\n", CGROUP_2, {".": "200000 100000"}, 2, id="the root of a container"),
        pytest.param("0::/\n", CGROUP_2, {".": "150000 100000"}, 2, id="a part of a processor counts"),
        pytest.param("0::/\n", CGROUP_2, {".": "50000 100000"}, 1, id="less than one"),
        pytest.param("0::/\n", CGROUP_2, {".": "max 100000"}, 16, id="no limit"),
        pytest.param("0::/\n", CGROUP_2, {".": "6400000 100000"}, 16, id="more than there are"),
        pytest.param("0::/a/b\n", CGROUP_2, {"a/b": "300000 100000"}, 3, id="its own"),
        pytest.param("0::/a/b\n", CGROUP_2, {"a/b": "max 100000", "a": "200000 100000"}, 2, id="its parent's"),
        pytest.param("0::/a/b\n", CGROUP_2, {"a/b": "400000 100000", "a": "200000 100000"}, 2, id="parent's is less"),
        pytest.param("0::/a/b\n", CGROUP_2, {"a/b": "200000 100000", "a": "400000 100000"}, 2, id="its own is less"),
        pytest.param("0::/a\n", CGROUP_2, {"a": "max 100000", "b": "100000 100000"}, 16, id="another's"),
        pytest.param("0::/a/b\n", CGROUP_2, {"a/b/c": "100000 100000"}, 16, id="a child's"),
        pytest.param("0::/a:b c\n", CGROUP_2, {"a:b c": "300000 100000"}, 3, id="a name with a colon and a space"),
        pytest.param("0::/../x\n", CGROUP_2, {".": "300000 100000", "x": "100000 100000"}, 3, id="outside"),
        pytest.param(
            "0::/\n", CGROUP_2.replace("cgroup rw", "c\\040d rw"), {"../c d": "300000 100000"}, 3, id="an odd mount"
        ),
        *(
            pytest.param(
                f"4:memory:/m\n1:cpu,cpuacct:{path}\n0::/u\n",
                CGROUP_1.format(shown) + BESIDE,
                quotas,
                expected,
                id=name,
            )
            for name, path, shown, quotas, expected in (
                ("version 1", "/", "/", {"cpu,cpuacct": "300000 100000"}, 3),
                ("version 1 without a limit", "/", "/", {"cpu,cpuacct": "-1 100000"}, 16),
                (
                    "version 1, the parent's",
                    "/a/b",
                    "/",
                    {"cpu,cpuacct/a/b": "-1 100000", "cpu,cpuacct/a": "200000 100000"},
                    2,
                ),
                ("version 1, a part mounted", "/docker/a", "/docker/a", {"cpu,cpuacct": "200000 100000"}, 2),
                ("version 1, below the part", "/docker/a/b", "/docker/a", {"cpu,cpuacct/b": "200000 100000"}, 2),
                ("version 1, beside the part", "/docker/c", "/docker/a", {"cpu,cpuacct": "200000 100000"}, 2),
                ("version 1, another controller's", "/a", "/", {"memory/m": "100000 100000"}, 16),
                ("version 1, a broken file", "/", "/", {"cpu,cpuacct": "much 100000"}, 16),
            )
        ),
        pytest.param("0::/\n", "23 1 8:1 / / rw - ext4 /dev/sda rw\n", {".": "100000 100000"}, 16, id="not mounted"),
        pytest.param("", "", {}, 16, id="no cgroups"),
    ],
)
def test_the_least_quota_of_the_cgroups_is_honoured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cgroups: str, mounts: str, quotas: dict[str, str], expected: int
) -> None:
    """26.3: WHERE the cgroup of the process or one above it limits processors, THE Package SHALL use no more threads
    than the least of these limits, a part of a processor taken for a whole one."""
    root = system(tmp_path, cgroups, mounts, quotas)
    monkeypatch.setattr(threads, "_cgroup_cpus", functools.partial(_real_cgroup_cpus, root))
    assert available_cpus() == expected


@pytest.mark.requirement("26.3")
def test_a_system_without_cgroups_has_no_quota(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """26.3: also where there is no /proc."""
    monkeypatch.setattr(threads, "_cgroup_cpus", functools.partial(_real_cgroup_cpus, tmp_path))
    assert available_cpus() == 16


@pytest.mark.requirement("8.2")
@pytest.mark.parametrize(("setting", "expected"), [("1", 1), ("15", 15), ("16", 16), ("17", 16), ("1000000", 16)])
def test_the_setting_lowers_and_never_raises(monkeypatch: pytest.MonkeyPatch, setting: str, expected: int) -> None:
    """8.2: WHEN one image's pixels are encoded in bfloat16 on CPU, THE VisionEncoder SHALL return its embedding with a
    90th percentile of latency within the limits of gates `latency-b16` and `latency-b32`."""
    monkeypatch.setenv(NUM_THREADS_VARIABLE, setting)
    assert available_cpus() == expected


@pytest.mark.requirement("8.2")
def test_the_setting_does_not_raise_a_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    """8.2: WHEN one image's pixels are encoded in bfloat16 on CPU, THE VisionEncoder SHALL return its embedding with a
    90th percentile of latency within the limits of gates `latency-b16` and `latency-b32`."""
    monkeypatch.setenv(NUM_THREADS_VARIABLE, "8")
    monkeypatch.setattr(threads, "_cgroup_cpus", lambda: 2)
    assert available_cpus() == 2


@pytest.mark.requirement("12.6")
@pytest.mark.parametrize("setting", ["0", "-2", "two", "", "1.5", " 2", "²", "٣"])
def test_a_bad_setting_is_refused(monkeypatch: pytest.MonkeyPatch, setting: str) -> None:
    """12.6: IF the Package refuses an input or a file, THEN THE Package SHALL raise a subclass of `LlmCompressionError`
    whose message has the value found and what was expected."""
    monkeypatch.setenv(NUM_THREADS_VARIABLE, setting)
    with pytest.raises(ConfigError, match=re.escape(f"LLM_COMPRESSION_NUM_THREADS: {setting!r}, expected a positive")):
        available_cpus()


@pytest.mark.requirement("8.2")
@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 2), (3, 3), (7, 3)])
def test_pytorch_is_lowered_and_never_raised(monkeypatch: pytest.MonkeyPatch, before: int, after: int) -> None:
    """8.2: WHEN one image's pixels are encoded in bfloat16 on CPU, THE VisionEncoder SHALL return its embedding with a
    90th percentile of latency within the limits of gates `latency-b16` and `latency-b32`: a lower count that the caller
    set stays."""
    monkeypatch.setenv(NUM_THREADS_VARIABLE, "3")
    found = torch.get_num_threads()
    try:
        torch.set_num_threads(before)
        limit_threads()
        assert torch.get_num_threads() == after
    finally:
        torch.set_num_threads(found)


@pytest.mark.requirement("8.1")
@pytest.mark.parametrize("count", [1, 3])
def test_a_pool_computes_with_one_thread_each_and_changes_nothing_else(count: int) -> None:
    """8.1: each thread of a pool has one PyTorch thread; this one, and one that starts later, have what they had."""
    found = torch.get_num_threads()

    def in_a_new_thread() -> int:
        with ThreadPoolExecutor(1) as other:
            return other.submit(torch.get_num_threads).result()

    try:
        torch.set_num_threads(2)
        meet = threading.Barrier(count)

        def threads_here(_number: int) -> int:
            meet.wait()  # so that each thread of the pool answers
            return torch.get_num_threads()

        with single_threaded_pool(count) as pool:
            assert list(pool.map(threads_here, range(count))) == [1] * count
            assert (torch.get_num_threads(), in_a_new_thread()) == (2, 2)
        assert (torch.get_num_threads(), in_a_new_thread()) == (2, 2)
    finally:
        torch.set_num_threads(found)


@pytest.mark.requirement("8.1")
@pytest.mark.parametrize("allowed", [0, 1])
def test_a_pool_that_cannot_start_its_threads_does_not_hang(monkeypatch: pytest.MonkeyPatch, allowed: int) -> None:
    """8.1: the system's refusal of a thread is raised, and every thread keeps its count, also one that starts later."""
    real, started = threading.Thread.start, list[threading.Thread]()

    def refuse(thread: threading.Thread) -> None:
        if len(started) == allowed:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        real(thread)

    found = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            with pytest.raises(RuntimeError, match="can't start new thread"), single_threaded_pool(2):
                pytest.fail("there is no pool")
        with ThreadPoolExecutor(1) as other:
            assert (torch.get_num_threads(), other.submit(torch.get_num_threads).result()) == (2, 2)
        assert not any(thread.is_alive() for thread in started)
    finally:
        torch.set_num_threads(found)
