"""Worker processes that are killed, die or hang: no row is lost, and another number of them changes no byte."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import pytest

from llm_compression.embed.run import embed
from tests.embed_photos import HOSTILE_SITE, MODEL, files, run, write_photos


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("data") / "photos")


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set of `photos`, by a run that was not disturbed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    run(photos, out)
    return out


@pytest.fixture
def hostile_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers in which a file that is called so ends the process, or never returns."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(HOSTILE_SITE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]))


@pytest.mark.requirement("35.6")
def test_a_killed_run_ends_with_the_same_bytes(photos: Path, whole: Path, tmp_path: Path) -> None:
    """35.6: WHEN a run that was killed is started again, THE Package SHALL make the shards that are missing, and end
    with the bytes of a run that was not killed."""
    out, rng = tmp_path / "out", random.Random(0)
    command = [sys.executable, "-m", "llm_compression", "embed", str(photos), "-o", str(out), "--model", MODEL]
    command += ["--shard-rows", "7", "--workers", "1", "--threads", "1"]
    kept = dict[str, int]()
    for number in range(4):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wanted = min(len(kept) + 1, 5) if number else 1
        # killed once it has written so many, and then at any moment
        while process.poll() is None and len(list(out.glob("*.parquet"))) < wanted:
            time.sleep(0.002)
        time.sleep(rng.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        # its worker ends with the shard that it has
        found = {path.name: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
        assert kept.items() <= found.items(), "a finished shard was made again"
        kept = found
    run(photos, out)
    assert files(out) == files(whole)


@pytest.mark.requirement("35.10")
def test_the_number_of_workers_changes_no_byte(photos: Path, whole: Path, tmp_path: Path) -> None:
    """35.10: the same bytes by another number of workers of as many threads."""
    run(photos, tmp_path / "out", workers=3)
    assert files(tmp_path / "out") == files(whole)


@pytest.mark.requirement("35.9")
@pytest.mark.usefixtures("hostile_site")
def test_a_row_that_ends_its_process_costs_itself_alone(photos: Path, whole: Path, tmp_path: Path) -> None:
    """35.9: IF a process dies or makes no progress twice over one shard, THEN THE Package SHALL give the rows at which
    it does so the code `crashed`, and the other rows their embeddings."""
    listed, good = tmp_path / "list.txt", sorted(photos.glob("a*"))
    names = [*good[:3], tmp_path / "crash.jpg", *good[3:6], tmp_path / "crash2.jpg", good[6]]
    for name in names:
        if name.parent == tmp_path:
            name.touch()
    listed.write_text("\n".join(map(str, names)))
    found = embed([listed], tmp_path / "out", MODEL, shard_rows=5, workers=2, threads=1)
    assert found.errors == {"crashed": 2}
    rows = ds.dataset(tmp_path / "out").to_table().to_pylist()
    assert [row["path"] for row in rows] == [str(name) for name in names]
    assert [row["error"] for row in rows] == [None if name in good else "crashed" for name in names]
    assert "SIGSEGV" in rows[3]["error_message"]
    wanted = {row["path"]: row["embedding"] for row in ds.dataset(whole).to_table().to_pylist()}
    for row in rows:
        if row["error"] is None:
            assert np.abs(np.subtract(row["embedding"], wanted[row["path"]])).max() <= 2e-6


@pytest.mark.requirement("35.9")
@pytest.mark.usefixtures("hostile_site")
def test_a_row_that_never_ends_costs_itself_alone(photos: Path, tmp_path: Path) -> None:
    """35.9, of a process that makes no progress."""
    names = [photos / "a000.png", tmp_path / "hang.jpg", photos / "a001.jpg"]
    names[1].touch()
    (tmp_path / "list.txt").write_text("\n".join(map(str, names)))
    # long enough for a sound row on a busy machine
    found = embed([tmp_path / "list.txt"], tmp_path / "out", MODEL, shard_rows=1, workers=1, threads=1, timeout=12)
    assert (found.rows, found.embedded, found.errors) == (3, 2, {"crashed": 1})
    rows = ds.dataset(tmp_path / "out").to_table().to_pylist()
    assert [row["error"] for row in rows] == [None, "crashed", None]
    assert "no progress" in rows[1]["error_message"]


@pytest.mark.requirement("35.15")
@pytest.mark.usefixtures("hostile_site")
def test_a_worker_that_a_decoder_holds_ends_with_the_run(photos: Path, tmp_path: Path) -> None:
    """35.15: IF the process that hands out shards is killed, THEN THE Package SHALL end its workers, also one that a
    decoder holds."""
    hang = tmp_path / "hang.jpg"
    hang.write_bytes((photos / "a001.jpg").read_bytes())
    command = [
        sys.executable,
        "-m",
        "llm_compression",
        "embed",
        str(hang),
        "-o",
        str(tmp_path / "out"),
        "--model",
        MODEL,
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        held = tmp_path / "hang.pid"
        while process.poll() is None and not (held.exists() and held.read_text()):
            time.sleep(0.01)
        worker = int(held.read_text())
        assert Path(f"/proc/{worker}").exists()
        process.send_signal(signal.SIGKILL)
    end = time.monotonic() + 60
    while _runs(worker) and time.monotonic() < end:
        time.sleep(0.01)
    assert not _runs(worker)


def _runs(process: int) -> bool:
    """Whether a process is there, and not a dead one that nobody has waited for."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
