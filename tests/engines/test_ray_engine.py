"""The engine ray, on a Ray cluster of this machine: the bytes of the engine local, whatever dies."""

from __future__ import annotations

import io
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from PIL import Image

from llm_compression.embed.run import embed
from tests.embed_photos import HOSTILE_SITE
from tests.engines.runs import MODEL, ROWS, SHARD_ROWS, data_set, program
from tests.text_models import TINY_CLIP, write_text_model


def command(source: Path, out: Path, *more: str) -> list[str]:
    """A run by two actors of one thread each."""
    sizes = ["--shard-rows", str(SHARD_ROWS), "--workers", "2", "--threads", "1"]
    where = [str(source), "-o", str(out), "--model", MODEL, "--engine", "ray"]
    return ["-m", "llm_compression", "embed", *where, *sizes, *more]


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a cluster that others have started, with a token of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--head", "--block", f"--port={port}", "--node-ip-address=127.0.0.1", "--num-cpus=3"]
    options += ["--include-dashboard=false", "--disable-usage-stats"]
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_AUTH_MODE", "token")
    patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(16))
    process = subprocess.Popen([*ray, "start", *options], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    assert any("Ray runtime started" in line for line in process.stdout)
    yield f"127.0.0.1:{port}"
    below = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    process.communicate()
    for each in below:
        if each.is_running():
            each.kill()
    patch.undo()


def test_ray_writes_the_bytes_of_the_engine_local(listed: Path, local: Path, tmp_path: Path) -> None:
    """38.1 and a cluster that the command starts: two actors write the bytes of the engine local."""
    ended = program(*command(listed, tmp_path / "out"))
    assert ended.returncode == 0, ended.stderr
    assert "error       1 rows: missing" in ended.stdout
    assert data_set(tmp_path / "out") == data_set(local)


def test_an_actor_that_is_killed_loses_no_row(listed: Path, local: Path, tmp_path: Path, cluster: str) -> None:
    """38.1 and 38.3: an actor that dies while it embeds costs no row and changes no byte, as another gets its shard."""
    out = tmp_path / "out"
    with subprocess.Popen(
        [sys.executable, *command(listed, out, "--address", cluster)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        actors = list[psutil.Process]()
        while process.poll() is None and not (len(actors) == 2 and list(out.glob("*.parquet"))):
            time.sleep(0.05)
            actors = actors_of(out)
        finished = len(list(out.glob("*.parquet")))
        if process.poll() is None:
            actors[0].kill()
        said, _ = process.communicate()
    assert process.returncode == 0, said
    assert 0 < finished < ROWS // SHARD_ROWS, "it was disturbed too late"
    assert len(actors) == 2
    assert data_set(out) == data_set(local)


def test_ray_embeds_texts_beside_images(tmp_path: Path, cluster: str) -> None:
    """38.1 and a text column: both towers of a CLIP, the bytes of the engine local."""
    model = write_text_model(tmp_path / "clip", TINY_CLIP)
    picture = io.BytesIO()
    Image.new("RGB", (30, 20), "red").save(picture, "png")
    table = {"image": [picture.getvalue(), b"no picture", None, picture.getvalue()] * 2}
    pq.write_table(pa.table({**table, "caption": ["a red cat", "the dog", "", None] * 2}), tmp_path / "rows.parquet")
    rows, local = tmp_path / "rows.parquet", tmp_path / "local"
    wanted = embed([rows], local, model, text_column="caption", shard_rows=3, workers=1, threads=1)
    more = ["--address", cluster, "--text-column", "caption", "--model", str(model), "--shard-rows", "3"]
    ended = program(*command(rows, tmp_path / "out", *more))
    assert ended.returncode == 0, ended.stderr
    assert (wanted.embedded, wanted.embedded_texts, wanted.failed) == (4, 4, 6)
    assert data_set(tmp_path / "out") == data_set(local)


def actors_of(out: Path) -> list[psutil.Process]:
    """The processes of Ray whose own processes write to a data set."""
    found = list[psutil.Process]()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            parent = process.parent()
            if parent is None or "llm_compression.embed.worker" not in (line := process.cmdline()):
                continue
            if str(out) in line[-1] and "".join(parent.cmdline()).startswith("ray::"):
                found.append(parent)
    return found


def test_a_row_that_ends_its_process_costs_itself_alone(listed: Path, tmp_path: Path) -> None:
    """38.2 and a real cluster: the row is `crashed`, and the other rows have their embeddings."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(HOSTILE_SITE)
    (tmp_path / "crash.png").touch()
    names = listed.read_text().split()[:6]
    names[2] = str(tmp_path / "crash.png")
    (tmp_path / "list.txt").write_text("\n".join(names))
    paths = os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])
    ended = program(*command(tmp_path / "list.txt", tmp_path / "out"), PYTHONPATH=paths)
    assert ended.returncode == 0, ended.stderr
    rows = ds.dataset(tmp_path / "out").to_table().to_pylist()
    assert [row["error"] for row in rows] == [None, None, "crashed", None, None, None]
    assert "SIGSEGV" in rows[2]["error_message"]


def test_what_is_done_is_done_whatever_the_engine(listed: Path, local: Path, tmp_path: Path, cluster: str) -> None:
    """38.3 in both directions; 38.5 and 38.7: what a cluster's workers lack is said as on one machine."""
    out = tmp_path / "out"
    out.mkdir()
    kept = sorted(local.iterdir())[:-2]
    for path in kept:
        os.link(path, out / path.name)
    ended = program(*command(listed, out, "--address", cluster))
    assert ended.returncode == 0, ended.stderr
    assert f"{len(kept)} of them done before" in ended.stdout
    assert data_set(out) == data_set(local)

    bad = command(listed, tmp_path / "other", "--address", cluster)
    bad[bad.index(MODEL)] = str(tmp_path / "no-model")
    ended = program(*bad)
    assert ended.returncode == 1
    assert "no-model" in ended.stderr
    assert "Traceback" not in ended.stderr
    wide = command(listed, tmp_path / "other", "--address", cluster)
    wide[wide.index("--threads") + 1] = "64"
    ended = program(*wide)
    assert ended.returncode == 1
    assert "threads: 64, expected 3 at most" in ended.stderr
    assert embed([listed], out, MODEL, shard_rows=SHARD_ROWS, threads=1).done_before == ROWS // SHARD_ROWS
