"""What an actor of Ray does with a shard, what Spark is given, and what is said where an engine, or what it needs, is
not there. None of it needs Ray or Spark; tests/engines runs them."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from PIL import Image

from llm_compression import shapes_model
from llm_compression.cli import main
from llm_compression.embed.encoders import description, open_encoder
from llm_compression.embed.local import Job, LocalEngine
from llm_compression.embed.ray_engine import EmbedShard, found_of, room_of
from llm_compression.embed.run import embed
from llm_compression.embed.shards import Receipt, Settings, Shard, embed_batches, plan_shards
from llm_compression.embed.sources import find_sources
from llm_compression.embed.spark import NEW_COLUMNS, NEW_TEXT_COLUMNS, map_in_arrow
from llm_compression.errors import ConfigError, EmbedError, MissingDependencyError, SourceError
from tests.embed_photos import HOSTILE_SITE
from tests.text_models import TINY_BERT, TINY_CLIP, write_text_model

MODEL = str(shapes_model())


def picture() -> bytes:
    """An encoded image."""
    file = io.BytesIO()
    Image.linear_gradient("L").resize((30, 20)).save(file, "png")
    return file.getvalue()


def captioned() -> pa.Table:
    """Images and texts, some of which are none."""
    images = [picture(), b"no picture", None, picture(), picture()]
    return pa.table({"image": images, "caption": ["a red cat", "the dog", "", None, "a cat"]})


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_model(tmp_path_factory.mktemp("clip"), TINY_CLIP)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A picture in a folder of its own."""
    (tmp_path / "photos").mkdir()
    path = tmp_path / "photos" / "a.png"
    path.write_bytes(picture())
    return path


def job_of(model: str | os.PathLike[str], out: Path, text_column: str | None = None) -> Job:
    """What a worker of one thread is told."""
    how = ("cpu", "float32", True, "fixed_size_list", "float32", 32, 1, 600.0, str(Path.cwd()))
    return Job(os.fspath(model), str(out), *how, text_column)


def settings_of(job: Job) -> Settings:
    """What such a worker says of its encoder."""
    encoder = open_encoder(job.model, job.device, job.dtype, job.text_column)
    return Settings(**description(encoder, job.text_column))


def handed(actor: Callable[[pa.Table], pa.Table], shard: Shard) -> dict[str, Any]:
    """What an actor gives for a shard, as Ray Data hands it over."""
    (answer,) = actor(pa.table({"item": [shard.to_json()]}))["answer"].to_pylist()
    return found_of(answer)


def files(out: Path) -> dict[str, bytes]:
    """Every file of a data set, by name."""
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


@pytest.mark.requirement("38.1", "38.3")
def test_an_actor_writes_the_files_of_the_engine_local(clip: Path, tmp_path: Path) -> None:
    """38.1: WHEN an actor of the engine `ray` is handed a shard, THE Package SHALL write the file that the engine
    `local` writes at the same threads, byte for byte; 38.3: WHEN a run that one engine began is started again by the
    other, THE Package SHALL make the shards that are missing alone. Images and texts, some of which are none."""
    pq.write_table(captioned(), tmp_path / "rows.parquet")
    options: dict[str, Any] = {"text_column": "caption", "shard_rows": 2, "workers": 1, "threads": 1}
    wanted = embed([tmp_path / "rows.parquet"], tmp_path / "local", clip, dtype="float32", **options)
    out = tmp_path / "out"
    out.mkdir()
    job = job_of(clip, out, "caption")
    fragments = find_sources([tmp_path / "rows.parquet"], text_column="caption").fragments
    shards = plan_shards(fragments, settings_of(job), 2)
    actor = EmbedShard(job, asdict(wanted.settings))
    receipts = [Receipt(**handed(actor, shard)) for shard in shards[:2]]
    del actor  # with its process
    assert [receipt.rows for receipt in receipts] == [2, 2]
    kept = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert len(kept) == 2
    found = embed([tmp_path / "rows.parquet"], out, clip, dtype="float32", **options)
    assert found.done_before == 2
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept
    assert files(out) == files(tmp_path / "local")
    assert (wanted.embedded, wanted.embedded_texts) == (3, 3)
    assert sum(receipt.failed for receipt in receipts) == 3


@pytest.mark.requirement("38.2")
def test_a_row_that_ends_an_actors_process_costs_itself_alone(
    photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """38.2: IF a row ends the process that an actor embeds it by, THEN THE Package SHALL give that row the code
    `crashed`, and the other rows their embeddings."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(HOSTILE_SITE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]))
    (tmp_path / "crash.png").touch()
    (tmp_path / "list.txt").write_text(f"{tmp_path / 'crash.png'}\n{photo}\n")
    job = job_of(MODEL, tmp_path / "out")
    (tmp_path / "out").mkdir()
    settings = settings_of(job)
    (shard,) = plan_shards(find_sources([tmp_path / "list.txt"]).fragments, settings, 9)
    receipt = handed(EmbedShard(job, asdict(settings)), shard)
    assert receipt["errors"] == {"crashed": 1}
    crashed, other = ds.dataset(tmp_path / "out").to_table().to_pylist()
    assert (crashed["error"], crashed["embedding"]) == ("crashed", None)
    assert "SIGSEGV" in crashed["error_message"]
    assert other["error"] is None
    assert len(other["embedding"]) == settings.dimension


@pytest.mark.requirement("38.4")
def test_a_machine_with_another_encoder_is_refused(photo: Path, tmp_path: Path) -> None:
    """38.4: IF an actor's encoder is not that of the first worker, THEN THE Package SHALL raise EmbedError with the
    difference, and write nothing."""
    job = job_of(MODEL, tmp_path / "out")
    (tmp_path / "out").mkdir()
    settings = settings_of(job)
    (shard,) = plan_shards(find_sources([photo]).fragments, settings, 9)
    actor = EmbedShard(job, asdict(replace(settings, weights_sha256="another")))
    with pytest.raises(EmbedError, match=f"weights_sha256: {settings.weights_sha256}, another wanted"):
        handed(actor, shard)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.requirement("38.5")
def test_an_actors_error_is_that_of_the_engine_local(tmp_path: Path) -> None:
    """38.5: IF an actor meets an error of a source or of a file, THEN THE Package SHALL raise it in the class and the
    words that the engine `local` raises it in, with the name of the machine; the actor is there for another shard."""
    job = job_of(MODEL, tmp_path / "out")
    settings = settings_of(job)
    shards = list[Shard]()
    for name in ("gone", "kept"):
        pq.write_table(pa.table({"image": [picture()]}), tmp_path / f"{name}.parquet")
        shards += plan_shards(find_sources([tmp_path / f"{name}.parquet"]).fragments, settings, 9)
    (tmp_path / "gone.parquet").unlink()
    (tmp_path / "out").write_text("a file where the directory of the data set should be")
    actor = EmbedShard(job, asdict(settings))
    with LocalEngine(job, 1) as engine:
        for shard, kind in zip(shards, (SourceError, EmbedError), strict=True):
            with pytest.raises(kind) as locally:
                engine.run([shard], lambda _: None, lambda _: None)
            with pytest.raises(kind) as of_an_actor:
                handed(actor, shard)
            assert type(of_an_actor.value) is type(locally.value) is kind
            assert str(of_an_actor.value) == f"{locally.value} (on {os.uname().nodename})"


@pytest.mark.requirement("38.6")
def test_what_an_engine_lacks_is_named(
    photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """38.6: IF Ray is not installed, or an engine or an address is asked for that there is not, THEN THE Package SHALL
    raise an error that names the extra, or what there is."""
    out = tmp_path / "out"
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'llm-compression\[ray\]'"):
        embed([photo], out, MODEL, engine="ray")
    command = ["embed", str(photo), "-o", str(out), "--model", MODEL]
    assert main([*command, "--engine", "ray", "--address", "auto", "--workers", "2"]) == 1
    assert "llm-compression[ray]" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([*command, "--engine", "dask"])
    assert "invalid choice: 'dask'" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="'dask', expected one of local, ray"):
        embed([photo], out, MODEL, engine="dask")  # type: ignore[arg-type]  # what a caller without types may give
    with pytest.raises(ConfigError, match="address: 'auto', expected none"):
        embed([photo], out, MODEL, address="auto")
    assert not out.exists()


@pytest.mark.requirement("38.7")
def test_what_a_cluster_lacks_is_named(tmp_path: Path) -> None:
    """38.7: IF no machine of a cluster has the threads or the device that are asked for, THEN THE Package SHALL raise
    ConfigError with what there is; otherwise there are as many workers as it has room for, a processor left free."""
    job = replace(job_of(MODEL, tmp_path), threads=None)
    machines: list[Mapping[str, float]] = [{"CPU": 8.0}, {"CPU": 3.0, "GPU": 1.0}, {}]
    assert room_of(machines, job) == (4, 1)
    assert room_of(machines, replace(job, threads=1)) == (1, 10)
    assert room_of(machines, replace(job, threads=3)) == (3, 3)
    assert room_of(machines, replace(job, threads=1, device="cuda")) == (1, 1)
    assert room_of([{"CPU": 1.0}], job) == (1, 1)
    with pytest.raises(ConfigError, match="threads: 9, expected 8 at most"):
        room_of(machines, replace(job, threads=9))
    with pytest.raises(ConfigError, match="device: 'cuda', expected 'cpu'"):
        room_of(machines[:1], replace(job, device="cuda"))


@pytest.mark.requirement("35.7")
def test_a_data_set_elsewhere_is_refused(photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """35.7: what is no directory of this machine is refused, and none of its name is made here."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EmbedError, match="s3://bucket/vectors: not a local directory"):
        embed([photo], "s3://bucket/vectors", MODEL)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


@pytest.mark.requirement("38.1")
def test_a_shard_goes_to_its_worker_with_its_own_paths(tmp_path: Path) -> None:
    """38.1: what an engine hands out names the same file and the same rows, and no path of another shard."""
    (tmp_path / "list.txt").write_text("\n".join(f"{row}.png" for row in range(10)))
    shards = plan_shards(find_sources([tmp_path / "list.txt"]).fragments, Settings("", {}, 32, "float32"), 4)
    sent = [Shard.from_json(shard.to_json()) for shard in shards]
    assert [shard.name for shard in sent] == [shard.name for shard in shards]
    assert [shard.fragment.paths for shard in sent] == [
        shard.fragment.paths[shard.start : shard.stop] for shard in shards
    ]
    assert [shard.fragment.start + shard.start for shard in sent] == [0, 4, 8]
    assert [shard.stop - shard.start for shard in sent] == [4, 4, 2]


@pytest.mark.requirement("38.8")
@pytest.mark.parametrize(("column", "text_column"), [("image", None), ("image", "caption"), (None, "caption")], ids=str)
def test_the_function_for_spark_gives_the_rows_of_embed_batches(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, column: str | None, text_column: str | None
) -> None:
    """38.8: WHEN the function of `map_in_arrow` is given record batches as Spark's `mapInArrow` gives them, THE Package
    SHALL give the rows of `embed_batches`, of images, of texts and of both, with lists for vectors."""
    monkeypatch.setenv("LLM_COMPRESSION_NUM_THREADS", "1")
    model = clip if column else write_text_model(tmp_path / "bert", TINY_BERT)
    batches = captioned().to_batches(max_chunksize=3)
    encoder = open_encoder(model, "cpu", "float32", text_column)

    def given() -> Iterator[pa.RecordBatch]:
        yield from batches

    found = list(map_in_arrow(model, column, text_column=text_column)(given()))
    wanted = list(embed_batches(batches, encoder, column, text_column=text_column, vector_type="list"))
    assert len(found) == len(wanted) == 2
    assert all(one.equals(other) for one, other in zip(found, wanted, strict=True))
    new = [each for each, is_there in ((NEW_COLUMNS, column), (NEW_TEXT_COLUMNS, text_column)) if is_there]
    named = dict(each.split(" ") for each in ", ".join(new).split(", "))
    assert found[0].schema.names == ["image", "caption", *named]
    types = {"array<float>": pa.list_(pa.float32()), "string": pa.string()}
    assert [found[0].schema.field(name).type for name in named] == [types[kind] for kind in named.values()]
    failed = {name: [bool(each) for each in pa.Table.from_batches(found)[name].to_pylist()] for name in named}
    assert not column or failed["error"] == [False, True, True, False, False]
    assert not text_column or failed["text_error"] == [False, False, True, True, False]


@pytest.mark.requirement("38.8")
def test_the_function_for_spark_opens_the_model_that_has_the_name_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """38.8: ... by the model that has the name: Spark goes on with a process after another model took it."""
    monkeypatch.setenv("LLM_COMPRESSION_NUM_THREADS", "1")
    (batch,) = captioned().to_batches()
    texts = write_text_model(tmp_path / "bert", TINY_BERT)
    function = map_in_arrow(texts, None, text_column="caption")
    before = list(function(iter([batch])))
    for seed in (1, 2):
        write_text_model(texts, TINY_BERT, seed)
        encoder = open_encoder(texts, "cpu", "float32", "caption")
        after = list(function(iter([batch])))
        assert after == list(embed_batches([batch], encoder, None, text_column="caption", vector_type="list"))
        assert after != before
        before = after
