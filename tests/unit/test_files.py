"""Writes that are whole or not there."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest

from llm_compression.embeddings import write_embeddings
from llm_compression.files import machine, put_aside, sweep, whole_directory, whole_file
from llm_compression.inference.weight_format import WeightMetadata, write_weights
from llm_compression.models.demo import run_demo

BEFORE, AFTER = b"before", b"after" * 1000

# opens the target, writes a part, says so, and waits to be killed
HALF = """
import sys
from pathlib import Path
from llm_compression.files import whole_file
with whole_file(Path(sys.argv[1])) as partial, partial.open("wb") as file:
    file.write(b"half")
    file.flush()
    print("waiting", flush=True)
    sys.stdin.read()
"""
# no file of this process may grow beyond 1000 bytes, as on a full disk
FULL = """
import json, resource, sys
from pathlib import Path
from llm_compression.files import whole_file
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    with whole_file(Path(sys.argv[1])) as partial:
        partial.write_bytes(b"x" * 5000)
except OSError as error:
    print(json.dumps(type(error).__name__))
"""


@contextmanager
def umask(value: int) -> Iterator[None]:
    """The permissions that new files do not get."""
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))  # noqa: PTH208  # with hidden names


@pytest.mark.requirement("33.1")
@pytest.mark.parametrize("existing", [False, True])
def test_a_file_has_its_name_once_it_is_whole(tmp_path: Path, existing: bool) -> None:
    """33.1: WHILE the Package writes a file, THE Package SHALL leave what its name stood for as it was."""
    target = tmp_path / "deep" / "out.bin"
    if existing:
        target.parent.mkdir()
        target.write_bytes(BEFORE)
    with whole_file(target) as partial:
        partial.write_bytes(AFTER)
        assert partial.parent == target.parent
        assert (target.read_bytes() if target.exists() else None) == (BEFORE if existing else None)
    assert target.read_bytes() == AFTER
    assert names(target.parent) == ["out.bin"]


@pytest.mark.requirement("33.2")
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("write", [whole_file, whole_directory])
def test_a_failed_write_leaves_what_was_there(
    tmp_path: Path,
    write: Callable[[Path], AbstractContextManager[Path]],
    existing: bool,
    error: type[BaseException],
) -> None:
    """33.2: IF a write fails or is interrupted, THEN THE Package SHALL leave what the name stood for as it was and
    nothing beside it."""
    target = tmp_path / "out"
    if existing:
        target.write_bytes(BEFORE)
    with pytest.raises(error), write(target) as partial:  # noqa: PT012  # what is written must be seen to go
        (partial if partial.is_file() else partial / "inside").write_bytes(b"half")
        raise error
    assert names(tmp_path) == (["out"] if existing else [])
    assert not existing or target.read_bytes() == BEFORE


@pytest.mark.requirement("33.1")
@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_process_leaves_no_half_file(tmp_path: Path, number: signal.Signals, existing: bool) -> None:
    """33.1: WHILE the Package writes a file, THE Package SHALL leave what its name stood for as it was: a real process,
    killed while it writes."""
    target = tmp_path / "out.bin"
    if existing:
        target.write_bytes(BEFORE)
    process = subprocess.Popen(
        [sys.executable, "-c", HALF, str(target)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        # a shell that runs this in the background has SIGINT ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"waiting\n"
        (partial,) = tmp_path.glob(".*.partial")
        assert partial.read_bytes() == b"half"
        process.send_signal(number)
    assert process.returncode != 0
    assert (target.read_bytes() if target.exists() else None) == (BEFORE if existing else None)
    left = [] if number == signal.SIGINT else [partial.name]
    assert names(tmp_path) == sorted([*left, *(["out.bin"] if existing else [])])
    with whole_file(target) as again:
        again.write_bytes(AFTER)
    assert target.read_bytes() == AFTER


@pytest.mark.requirement("33.2")
@pytest.mark.skipif(sys.platform != "linux", reason="sets RLIMIT_FSIZE")
@pytest.mark.parametrize("existing", [False, True])
def test_a_disk_that_is_full(tmp_path: Path, existing: bool) -> None:
    """33.2: IF a write fails or is interrupted, THEN THE Package SHALL leave what the name stood for as it was and
    nothing beside it: a file that may not grow, as on a full disk."""
    target = tmp_path / "out.bin"
    if existing:
        target.write_bytes(BEFORE)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(
        [sys.executable, "-c", FULL, str(target)], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == "OSError"
    assert names(tmp_path) == (["out.bin"] if existing else [])
    assert not existing or target.read_bytes() == BEFORE


@pytest.fixture
def unwritable() -> Iterator[Path]:
    """A directory that takes no file of this process, also where that is root's, and that it can look into."""
    is_root = os.geteuid() == 0
    # pytest's own directories let nobody else through
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o555)
        if is_root:
            os.seteuid(65534)
        try:
            yield Path(directory)
        finally:
            if is_root:
                os.seteuid(0)
            Path(directory).chmod(0o700)


@pytest.mark.requirement("33.3")
@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_directory_that_takes_no_file(unwritable: Path) -> None:
    """33.3: IF a directory takes no file, THEN THE Package SHALL say so by the name of the file before it computes what
    is to be written."""
    target, entered = unwritable / "out.bin", False
    with pytest.raises(PermissionError) as raised, whole_file(target):
        entered = True
    assert not entered
    assert str(raised.value).endswith(f"{str(target)!r}")
    assert names(unwritable) == []


@pytest.mark.requirement("33.3")
def test_a_directory_that_is_a_file(tmp_path: Path) -> None:
    """33.3: IF a directory takes no file, THEN THE Package SHALL say so by the name of the file before it computes what
    is to be written."""
    (tmp_path / "file").write_bytes(BEFORE)
    entered = False
    with pytest.raises(OSError, match="file"), whole_file(tmp_path / "file" / "out.bin"):
        entered = True
    assert not entered
    assert names(tmp_path) == ["file"]


@pytest.mark.requirement("33.4")
@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
@pytest.mark.parametrize("mask", [0o000, 0o022, 0o027, 0o077])
@pytest.mark.parametrize("kept", [None, 0o600, 0o664])
def test_permissions_are_those_of_any_file(tmp_path: Path, mask: int, kept: int | None) -> None:
    """33.4: THE Package SHALL give a new file the permissions of any new file, and one that replaces another those of
    the other."""
    target = tmp_path / "out.bin"
    if kept is not None:
        target.write_bytes(BEFORE)
        target.chmod(kept)
    with umask(mask):
        (tmp_path / "plain").write_bytes(AFTER)
        with whole_file(target) as partial:
            partial.write_bytes(AFTER)
    plain = stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    assert stat.S_IMODE(target.stat().st_mode) == (plain if kept is None else kept)


@pytest.mark.requirement("33.1")
def test_a_name_of_any_length(tmp_path: Path) -> None:
    """33.1: WHILE the Package writes a file, THE Package SHALL leave what its name stood for as it was: the longest
    names that a file system takes."""
    for name in ("n" * 255, "é" * 127):
        with whole_file(tmp_path / name) as partial:
            partial.write_bytes(AFTER)
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {AFTER}


@pytest.mark.requirement("33.1")
def test_a_link_is_replaced_and_what_it_points_to_stays(tmp_path: Path) -> None:
    """33.1: WHILE the Package writes a file, THE Package SHALL leave what its name stood for as it was."""
    elsewhere, link = tmp_path / "elsewhere", tmp_path / "link"
    elsewhere.write_bytes(BEFORE)
    link.symlink_to(elsewhere)
    with whole_file(link) as partial:
        partial.write_bytes(AFTER)
    assert (link.read_bytes(), elsewhere.read_bytes()) == (AFTER, BEFORE)


@pytest.mark.requirement("33.1")
def test_a_directory_has_its_name_once_it_is_whole(tmp_path: Path) -> None:
    """33.1: WHILE the Package writes a file, THE Package SHALL leave what its name stood for as it was: what another
    process made in the meantime stays."""
    target = tmp_path / "deep" / "out"
    with whole_directory(target) as partial:
        (partial / "inside").write_bytes(AFTER)
        assert not target.exists()
    assert (target / "inside").read_bytes() == AFTER
    with whole_directory(target) as partial:
        (partial / "other").write_bytes(BEFORE)
    assert names(target) == ["inside"]
    assert names(target.parent) == ["out"]


@pytest.mark.requirement("33.2")
def test_a_file_put_aside_comes_back(tmp_path: Path) -> None:
    """33.2: IF a write fails or is interrupted, THEN THE Package SHALL leave what the name stood for as it was and
    nothing beside it."""
    file = tmp_path / "file"
    file.write_bytes(BEFORE)
    with pytest.raises(KeyboardInterrupt), put_aside(file):  # noqa: PT012  # that it is away must be seen
        assert not file.exists()
        raise KeyboardInterrupt
    assert file.read_bytes() == BEFORE
    with put_aside(file):
        pass
    assert names(tmp_path) == []


def _weights(path: Path) -> None:
    write_weights(path, (), WeightMetadata(config={}, preprocessing={}, source={}))


@pytest.mark.requirement("33.1", "33.3")
@pytest.mark.parametrize(
    ("write", "name"),
    [
        pytest.param(lambda path: write_embeddings(path, ["a"], np.ones((1, 2), np.float32), [0]), name, id=name)
        for name in ("e.npy", "e.parquet")
    ]
    + [
        pytest.param(_weights, "weights.parquet", id="weights"),
        pytest.param(lambda path: run_demo(path, 2, 0), "demo.PNG", id="demo"),
        pytest.param(lambda path: run_demo(path, 2, 0), "demo.jpg", id="demo as JPEG"),
    ],
)
def test_what_the_package_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], object], name: str
) -> None:
    """33.1: WHILE the Package writes a file, THE Package SHALL leave what its name stood for as it was: each of its
    writers, whose last step is made to fail, and then is not."""
    target = tmp_path / name
    target.write_bytes(BEFORE)

    def refuse(_descriptor: int) -> None:
        raise OSError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(OSError, match="no space"):
            write(target)
    assert target.read_bytes() == BEFORE
    assert names(tmp_path) == [name]
    write(target)
    assert target.read_bytes() != BEFORE
    assert names(tmp_path) == [name]


@pytest.mark.requirement("33.2")
def test_what_is_swept_up_is_of_a_dead_process_of_this_machine(tmp_path: Path) -> None:
    """33.2: IF a write fails or is interrupted, THEN THE Package SHALL leave ... nothing beside it: of a killed process
    the next run does that, and leaves what another machine, or a process that lives, still writes."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    here, dead, alive = machine(), process.pid, os.getpid()
    there = f"{int(here, 16) ^ 1:08x}"
    kept = [
        f".a.{alive}.{here}01234567.partial",
        f".a.{dead}.{there}01234567.partial",
        "a",
        ".a.partial",
        ".a.1.partial",
    ]
    for name in [*kept, f".a.{dead}.{here}01234567.partial"]:
        (tmp_path / name).touch()
    sweep(tmp_path)
    assert names(tmp_path) == sorted(kept)
