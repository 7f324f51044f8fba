"""The study of `embed`: its images are what it says of them, and its checks see what they are for."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from benchmarks.embed import child, images, poison
from benchmarks.embed.check import differences, problems
from benchmarks.embed.images import BROKEN, HEIGHT, WIDTH, Item
from llm_compression import VisionEncoder, shapes_model
from llm_compression.embed.shards import embed_batches
from llm_compression.embeddings import column_of

DISTINCT = 5
ITEMS = images.items(350, seed=3, distinct=DISTINCT)
WIDE = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study") / "images"
    images.write(folder, ITEMS)
    return folder


def test_the_images_are_what_is_said_of_them(folder: Path) -> None:
    """One broken in each way among 350, each named by its row's code; the others alike where their number is."""
    expected: dict[str | None, int] = {None: 350 - len(BROKEN)} | dict.fromkeys(BROKEN, 1)
    assert Counter(item.broken for item in ITEMS) == expected
    assert sorted(path.name for path in folder.iterdir()) == [item.name for item in ITEMS]
    sound = [item for item in ITEMS if item.broken is None]
    contents = {(item.content, (folder / item.name).read_bytes()) for item in sound}
    assert len(contents) == len({content for _, content in contents}) == DISTINCT
    with Image.open(folder / sound[0].name) as picture:
        assert (picture.format, sorted(picture.size)) == ("JPEG", sorted((WIDTH, HEIGHT)))

    broken = [item for item in ITEMS if item.broken is not None]
    batch = pa.RecordBatch.from_pydict({"file": [str(folder / item.name) for item in broken]})
    (found,) = embed_batches([batch], VisionEncoder(shapes_model()), "file")
    assert found["error"].to_pylist() == [item.code for item in broken]


def test_the_same_seed_breaks_the_same_files() -> None:
    """And another one others; 2 % of them."""
    assert images.items(1000, seed=1) == images.items(1000, seed=1) != images.items(1000, seed=2)
    assert sum(item.broken is not None for item in images.items(1000)) == 20
    assert len({item.content for item in images.items(1000)}) == images.DISTINCT >= 200


def write_set(out: Path, change: Callable[[list[dict[str, object]]], object] = lambda _: None) -> list[Item]:
    """A data set of 8 rows in 2 files as it should be, but for a change."""
    wanted = [Item(f"{row}.jpg", row % 3, "text" if row == 2 else None) for row in range(8)]
    vectors = np.eye(3, WIDE, dtype=np.float32)
    rows: list[dict[str, object]] = [
        {
            "id": str(Path("photos", item.name)),
            "embedding": None if item.code else vectors[item.content].copy(),
            "error": item.code,
            "error_message": item.code and "its words",
        }
        for item in wanted
    ]
    change(rows)
    out.mkdir()
    for number, part in enumerate((rows[:5], rows[5:])):
        nulls = np.array([row["embedding"] is None for row in part])
        values = np.array([np.zeros(WIDE) if row["embedding"] is None else row["embedding"] for row in part])
        columns = {
            name: pa.array([row[name] for row in part], pa.string()) for name in ("id", "error", "error_message")
        }
        table = pa.table({**columns, "embedding": column_of(values.astype(np.float32), nulls)})
        pq.write_table(table, out / f"{number}.parquet")
    return wanted


def test_a_sound_data_set_has_no_problems(tmp_path: Path) -> None:
    """Neither alone nor beside a copy."""
    wanted = write_set(tmp_path / "out")
    assert problems(tmp_path / "out", Path("photos"), wanted) == []
    write_set(tmp_path / "copy")
    assert differences(tmp_path / "out", tmp_path / "copy") == []


ROTATED = np.roll(np.eye(3, WIDE, dtype=np.float32), 1, 0)
FAULTS: dict[str, tuple[Callable[[list[dict[str, object]]], object], str]] = {
    "a lost row": (lambda rows: rows.pop(3), "row 3, 3.jpg: its id is photos/4.jpg"),
    "the last row lost": (lambda rows: rows.pop(), "7 rows, expected 8"),
    "a row twice": (lambda rows: rows.append(rows[7]), "expected no more than 8 rows"),
    "two rows changed over": (lambda rows: rows.insert(0, rows.pop(1)), "row 0, 0.jpg: its id is photos/1.jpg"),
    "a zero vector": (lambda rows: rows[4].update(embedding=np.zeros(WIDE)), "row 4, 4.jpg: an embedding of length 0"),
    "no number": (lambda rows: rows[4].update(embedding=np.full(WIDE, np.nan)), "row 4, 4.jpg: an embedding that is"),
    "another's vector": (lambda rows: rows[4].update(embedding=ROTATED[1]), "row 4, 4.jpg: other than the embedding"),
    "a swallowed error": (
        lambda rows: rows[2].update(embedding=ROTATED[0], error=None, error_message=None),
        "row 2, 2.jpg: error None, expected not_an_image",
    ),
    "an error of another name": (lambda rows: rows[2].update(error="empty"), "error empty, expected not_an_image"),
    "an error without words": (lambda rows: rows[2].update(error_message=None), "with the message None"),
    "a sound image without a vector": (lambda rows: rows[5].update(embedding=None), "row 5, 5.jpg: no embedding"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(fault: str, tmp_path: Path) -> None:
    """Each kind that a data set must not have."""
    change, words = FAULTS[fault]
    wanted = write_set(tmp_path / "out", change)
    assert any(words in each for each in problems(tmp_path / "out", Path("photos"), wanted))


def test_two_data_sets_differ_by_one_bit(tmp_path: Path) -> None:
    """Zero and minus zero are equal numbers and other bytes; a file that is missing is named."""
    write_set(tmp_path / "out")
    write_set(tmp_path / "other", lambda rows: rows[6].update(embedding=np.array([1, -0.0, 0, 0])))
    assert differences(tmp_path / "out", tmp_path / "other") == ["1.parquet"]
    (tmp_path / "other" / "0.parquet").unlink()
    assert differences(tmp_path / "out", tmp_path / "other") == ["2 and 1 files: ['0.parquet']"]


def test_the_memory_of_all_processes_is_counted() -> None:
    """Of a process and of those that it started."""
    size = 40_000_000
    inner = f"import sys; kept = bytearray(b'x') * {size}; print('ready', flush=True); sys.stdin.read()"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    command = [sys.executable, "-c", outer]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert size < child.tree_bytes(process.pid) < size + 60_000_000
        assert process.stdin is not None
        process.stdin.close()


def test_what_a_run_took(tmp_path: Path) -> None:
    """Its status, output and processor time."""
    ran = child.run([sys.executable, "-c", "print(sum(range(2_000_000))); raise SystemExit(3)"], tmp_path / "log")
    assert ran.status == 3
    assert ran.output == "1999999000000\n"
    assert ran.processor_seconds > 0
    assert ran.seconds > 0


@pytest.mark.parametrize("victim", ["parent", "tree"])
def test_a_process_is_killed_alone_or_with_what_it_started(victim: child.Victim) -> None:
    """The inner one lives until its standard input ends, and holds the pipe that is read here."""
    inner = "import sys; print('ready', flush=True); sys.stdin.read(); print('ended')"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    command = [sys.executable, "-c", outer]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        child.kill(process, victim)
        assert process.returncode == -signal.SIGKILL
        if victim == "parent":
            process.stdin.close()
        assert process.stdout.read() == ("ended\n" if victim == "parent" else "")


def test_a_run_is_killed_or_has_ended() -> None:
    """At its moment, or before; one that fails by itself is no run."""
    assert child.killed([sys.executable, "-c", "import time; time.sleep(600)"], 0.01, "tree")
    assert not child.killed([sys.executable, "-c", ""], 600, "parent")
    with pytest.raises(RuntimeError, match="ended with status 1"):
        child.killed([sys.executable, "-c", "raise SystemExit(1)"], 600, "parent")


def test_what_became_of_a_poisoned_row(tmp_path: Path) -> None:
    """Its row alone says `crashed`; another one that does, and one that is missing, are seen."""
    listed, row = poison.write(tmp_path / "rows", 6, seed=0)
    paths = listed.read_text().splitlines()
    assert [Path(path).name == "poison.jpg" for path in paths] == [each == row for each in range(6)]
    (tmp_path / "out").mkdir()

    def found(bad: set[int], count: int) -> dict[str, object]:
        nulls = np.array([each in bad for each in range(count)])
        errors = pa.array(["crashed" if null else None for null in nulls], pa.string())
        vectors = column_of(np.ones((count, WIDE), np.float32), nulls)
        columns = {"path": paths[:count], "embedding": vectors, "error": errors, "error_message": errors}
        pq.write_table(pa.table(columns), tmp_path / "out" / "0.parquet")
        return poison.outcome(tmp_path / "out", paths, row)

    assert found({row}, 6) == {"rows": 6, "with_vectors": 5, "row": row, "says": "crashed", "wrong": []}
    assert found({row, 0}, 6)["wrong"] == [0]
    assert found(set(), 6)["wrong"] == [row]
    assert found({row}, 5)["wrong"] == [5]
