"""A run over real worker processes: what it writes, other settings, changed sources, full disks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import llm_compression.embed.shards
from llm_compression import VisionEncoder
from llm_compression.cli import main
from llm_compression.embed.reasons import CODES
from llm_compression.embed.run import ErrorLimit, embed
from llm_compression.embed.shards import Settings, embed_batches, embed_shard, plan_shards, write_shard
from llm_compression.embed.sources import file_identity, find_sources
from llm_compression.embed.tables import Embedded, VectorType
from llm_compression.errors import ConfigError, EmbedError, ImageError, SourceChangedError, SourceError
from tests.embed_photos import BROKEN, IMAGES, MODEL, files, run, write_photos


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("data") / "photos")


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set of `photos`, by a run that was not disturbed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    found = run(photos, out)
    assert found.rows == IMAGES + len(BROKEN)
    assert found.embedded == IMAGES
    assert found.errors == dict.fromkeys(sorted(BROKEN.values()), 1)
    return out


@pytest.mark.requirement("35.1", "35.2")
def test_one_row_for_each_row(photos: Path, whole: Path) -> None:
    """35.1: exactly one row for each row of the input, in its order; 35.2: a null, a code and the words of the error
    for what cannot be read, and the other rows' embeddings are those of `encode`."""
    table = ds.dataset(whole).to_table()
    assert table.column_names == ["id", "path", "embedding", "error", "error_message"]
    names = sorted(path.name for path in photos.iterdir())
    assert table["id"].to_pylist() == [str(photos / name) for name in names]
    assert table["error"].to_pylist() == [BROKEN.get(name) for name in names]
    assert set(BROKEN.values()) <= set(CODES)
    for row in table.to_pylist():
        assert (row["error"] is None) == (row["error_message"] is None) == (row["embedding"] is not None)
    good = [str(photos / name) for name in names if name not in BROKEN]
    wanted = VisionEncoder(MODEL).encode(good)
    found = np.array([row for row in table["embedding"].to_pylist() if row is not None], np.float32)
    assert np.abs(found - wanted).max() <= 2e-6
    assert pa.types.is_fixed_size_list(table.schema.field("embedding").type)


@pytest.mark.requirement("35.5", "35.13")
def test_the_command_says_what_became_of_the_rows(
    photos: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """35.13: rows, embeddings and errors by code; 35.5: what was passed over; the status."""
    copy = tmp_path / "photos"
    shutil.copytree(photos, copy, symlinks=True, ignore=shutil.ignore_patterns("i-*", "h-*"))
    (copy / "README.txt").write_text("no picture")
    command = ["embed", str(copy), "-o", str(tmp_path / "out"), "--model", MODEL, "--threads", "1"]
    assert main([*command, "--dry-run"]) == 0
    assert not (tmp_path / "out").exists()
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "passed over 1 files: .txt" in said
    assert f"embedded    {IMAGES} rows" in said
    assert "error       1 rows: lfs_pointer" in said
    assert main([*command, "--strict"]) == 1
    assert whole.exists()


@pytest.mark.requirement("35.8")
def test_only_shards_that_are_there_are_held_against_their_source(
    photos: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """35.8: ... since its shard was made; of a shard that was not, no file is looked at before it is."""
    looked = list[str]()

    def identity(path: str) -> str:
        looked.append(path)
        return file_identity(path)

    monkeypatch.setattr(llm_compression.embed.shards, "file_identity", identity)
    assert run(photos, tmp_path / "out", dry_run=True).done_before == 0
    assert looked == []
    assert run(photos, whole, dry_run=True).done_before == len(files(whole))
    assert len(looked) == IMAGES + len(BROKEN)


@pytest.mark.requirement("35.13")
def test_too_many_errors_end_a_run(photos: Path, tmp_path: Path) -> None:
    """35.13: more than `--max-errors`; what is finished stays, and the next run goes on from there."""
    found = run(photos, tmp_path / "out", max_errors=ErrorLimit.parse("1"))
    assert found.has_too_many_errors
    assert not found.is_complete
    before = files(tmp_path / "out")
    assert 0 < len(before) < found.shards
    assert run(photos, tmp_path / "out", max_errors=ErrorLimit.parse("50%")).done_before == len(before)
    with pytest.raises(ConfigError, match="a part of them"):
        ErrorLimit.parse("half")


@pytest.mark.requirement("35.13")
def test_no_embedding_at_all_is_no_success(tmp_path: Path) -> None:
    """35.13: ... or if no row has an embedding."""
    (tmp_path / "a.jpg").write_text("no picture")
    assert main(["embed", str(tmp_path / "a.jpg"), "-o", str(tmp_path / "out"), "--model", MODEL]) == 1


@pytest.mark.requirement("35.7")
def test_a_data_set_of_other_settings_is_refused(photos: Path, whole: Path, tmp_path: Path) -> None:
    """35.7: IF the directory holds shards of other settings, or other files, THEN THE Package SHALL raise EmbedError
    with the difference."""
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    before = files(out)
    with pytest.raises(EmbedError, match="normalized: True there, False now"):
        run(photos, out, normalize=False)
    with pytest.raises(EmbedError, match="vector_dtype: float32 there, float16 now"):
        run(photos, out, vector_dtype="float16")
    with pytest.raises(EmbedError, match="shard-rows"):
        run(photos, out, shard_rows=8)
    assert files(out) == before
    (out / "notes.csv").touch()
    with pytest.raises(EmbedError, match=r"notes\.csv"):
        run(photos, out)
    (out / "notes.csv").unlink()
    (out / min(before)).write_bytes(b"cut")
    with pytest.raises(EmbedError, match="delete it"):
        run(photos, out)


@pytest.mark.requirement("35.8", "35.12")
def test_changed_sources_and_errors_that_pass(photos: Path, tmp_path: Path) -> None:
    """35.8: a source that changed is refused unless its shards are to be made again; 35.12: shards with errors are made
    again, and no other."""
    folder, out = tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    for path in sorted(photos.glob("a*"))[:20]:
        shutil.copy(path, folder)
    (folder / "a008-gone.jpg").symlink_to(tmp_path / "later.jpg")
    assert run(folder, out).errors == {"missing": 1}
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}

    shutil.copy(folder / "a001.jpg", tmp_path / "later.jpg")
    with pytest.raises(EmbedError, match="replace-changed"):
        run(folder, out)
    assert run(folder, out, retry_errors=["missing"]).errors == {}
    after = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert [before[name] != after[name] for name in sorted(before)] == [False, True, False]

    (folder / "a000.png").write_bytes((folder / "a003.png").read_bytes())
    with pytest.raises(EmbedError, match="1 shards such as 00000000-"):
        run(folder, out)
    assert run(folder, out, replace_changed=True).done_before == 2
    rows = ds.dataset(out).to_table()["embedding"].to_pylist()
    assert rows[0] == pytest.approx(rows[3], abs=2e-6)

    (folder / "a0005.jpg").write_bytes((folder / "a001.jpg").read_bytes())  # all rows behind it move
    with pytest.raises(EmbedError, match="replace-changed"):
        run(folder, out)
    assert run(folder, out, replace_changed=True).rows == 22
    assert ds.dataset(out).count_rows() == 22


@pytest.mark.requirement("35.11")
def test_a_full_disk_leaves_finished_shards(photos: Path, tmp_path: Path) -> None:
    """35.11: IF a shard cannot be written ..., THEN THE Package SHALL raise an error that says so and leave the
    finished shards."""
    out = tmp_path / "out"
    code = (
        "import resource, sys; from llm_compression.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2); sys.exit(main(sys.argv[2:]))"
    )
    command = ["embed", str(photos), "-o", str(out), "--model", MODEL, "--shard-rows", "7", "--threads", "1"]
    ended = subprocess.run([sys.executable, "-c", code, "500", *command], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ".parquet" in ended.stderr
    assert "File too large" in ended.stderr
    assert list(out.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(EmbedError, match="not a directory"):
        run(photos, tmp_path / "file")


@pytest.mark.requirement("35.11")
def test_an_interrupted_write_leaves_no_shard(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """35.11: a half-written file would be taken for a finished shard."""
    encoder, write = VisionEncoder(MODEL), pq.write_table

    def interrupted(table: pa.Table, where: Path, **options: Any) -> None:
        write(table, where, **options)
        os.truncate(where, 100)
        raise KeyboardInterrupt

    monkeypatch.setattr(pq, "write_table", interrupted)
    settings = Settings("", {}, encoder.dimension, "float32")
    (shard,) = plan_shards(find_sources([photos / "a000.png"]).fragments, settings, 10)
    with pytest.raises(KeyboardInterrupt):
        embed_shard(shard, encoder, settings, tmp_path / "out", 32)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.requirement("35.11")
def test_a_source_that_changes_while_it_is_read(photos: Path, tmp_path: Path) -> None:
    """35.11: ... or its source changes while it is read, ... by an encoder that is slow enough for that."""
    path = tmp_path / "a.png"
    shutil.copy(photos / "a000.png", path)
    pq.write_table(pa.table({"image": [path.read_bytes()]}), tmp_path / "t.parquet")
    encoder = VisionEncoder(MODEL)
    settings = Settings("", {}, encoder.dimension, "float32")
    for source in (path, tmp_path / "t.parquet"):
        (shard,) = plan_shards(find_sources([source]).fragments, settings, 10)

        def touch(_: int, source: Path = source) -> None:
            os.utime(source, (1, 1))

        with pytest.raises(SourceChangedError, match="changed"):
            embed_shard(shard, encoder, settings, tmp_path / "out", 32, touch)
    assert not list(tmp_path.glob("out/*.parquet"))


@pytest.mark.requirement("35.4")
def test_columns_that_differ_are_refused(tmp_path: Path) -> None:
    """35.4: IF an input ... holds no images or carries other columns than the first, THEN ... SourceError."""
    for name, column in (("a", "label"), ("b", "caption")):
        pq.write_table(pa.table({"image": [b"x"], column: ["y"]}), tmp_path / f"{name}.parquet")
    with pytest.raises(SourceError, match=r"b\.parquet .*caption: string"):
        embed([tmp_path], tmp_path / "out", MODEL)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").touch()
    with pytest.raises(SourceError, match=r"no images; passed over: 1 \.txt"):
        embed([tmp_path / "empty"], tmp_path / "out", MODEL)
    with pytest.raises(EmbedError, match="no such"):
        embed([tmp_path / "a.parquet"], tmp_path / "out", tmp_path / "no-model")


@pytest.mark.requirement("35.1")
def test_tables_and_other_vectors(photos: Path, tmp_path: Path) -> None:
    """35.1: the columns that the input carries, with other types of vectors."""
    paths = sorted(photos.glob("a*"))[:10]
    table = pa.table(
        {"image": [path.read_bytes() for path in paths[:9]] + [None], "label": pa.array(range(10), pa.int8())}
    )
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=4)
    found = embed(
        [tmp_path / "t.parquet"], tmp_path / "out", MODEL, shard_rows=3, vector_type="list", vector_dtype="float16"
    )
    assert found.errors == {"no_image": 1}
    out = ds.dataset(tmp_path / "out").to_table()
    assert out["label"].equals(table["label"])
    assert out.schema.field("embedding").type == pa.list_(pa.float16())
    wanted = VisionEncoder(MODEL).encode(paths[:9]).astype(np.float16)
    assert np.array_equal(np.array(out["embedding"].to_pylist()[:9], np.float16), wanted)
    assert out["embedding"].to_pylist()[9] is None


@pytest.mark.requirement("35.1")
@pytest.mark.parametrize("vector_type", ["fixed_size_list", "list"])
def test_a_file_is_little_larger_than_its_vectors(vector_type: VectorType, tmp_path: Path) -> None:
    """35.1: `id`, the columns that it carries, nested ones too, with a dictionary; `embedding` without one."""
    rows, wide = 1000, 64
    vectors = np.random.default_rng(0).standard_normal((rows, wide)).astype(np.float32)
    carried = pa.table({"id": [str(row) for row in range(rows)], "tags": [{"kind": ["a", "b"]}] * rows})
    settings = Settings("", {}, wide, "float32", vector_type=vector_type)
    write_shard(tmp_path / "shard.parquet", Embedded(carried, vectors), settings, "")
    assert (tmp_path / "shard.parquet").stat().st_size < 1.1 * vectors.nbytes
    group = pq.read_metadata(tmp_path / "shard.parquet").row_group(0)
    columns = [group.column(index) for index in range(group.num_columns)]
    with_dictionary = {each.path_in_schema.partition(".")[0] for each in columns if each.has_dictionary_page}
    assert with_dictionary == {"id", "tags", "error", "error_message"}
    assert pq.read_table(tmp_path / "shard.parquet")["embedding"].to_pylist() == vectors.tolist()


@pytest.mark.requirement("35.14")
def test_a_stream_of_record_batches(photos: Path) -> None:
    """35.14: WHEN `embed_batches` is given a stream of record batches, THE Package SHALL give each with its columns and
    the three new ones, and the embeddings of `encode`."""
    paths = [str(path) for path in sorted(photos.glob("a*"))]
    rows = [*paths[:4], str(photos / "g-text.jpg"), *paths[4:]]
    table = pa.table({"file": rows, "n": list(range(len(rows)))})
    encoder = VisionEncoder(MODEL)
    stream = table.to_batches(max_chunksize=6)
    empty = pa.RecordBatch.from_pylist([], schema=table.schema)
    found = list(embed_batches([*stream, empty], encoder, "file"))
    assert [batch.num_rows for batch in found] == [*(batch.num_rows for batch in stream), 0]
    out = pa.Table.from_batches(found)
    assert out.select(["file", "n"]).equals(table)
    assert out["error"].to_pylist() == [None] * 4 + ["not_an_image"] + [None] * (len(paths) - 4)
    got = np.array([row for row in out["embedding"].to_pylist() if row is not None], np.float32)
    assert np.abs(got - encoder.encode(paths)).max() <= 2e-6
    with pytest.raises(SourceError, match="no column 'image'"):
        list(embed_batches(stream, encoder, "image"))
    with pytest.raises(SourceError, match="int64, which holds no images"):
        list(embed_batches(stream, encoder, "n"))


@pytest.mark.requirement("35.2")
def test_an_embedding_that_is_not_finite_costs_its_row_alone(tmp_path: Path) -> None:
    """35.2: IF ... its embedding is not finite, THEN ... its row a null, and the other rows their embeddings."""

    class Overflowing(VisionEncoder):
        """One whose pass gives no finite row for a white picture."""

        def _embed_batch(self, batch: torch.Tensor, normalize: bool) -> torch.Tensor:
            for position, pixels in enumerate(batch):
                if pixels.min() > 0.9:
                    raise ImageError("the embedding is not finite", position=position)
            return super()._embed_batch(batch, normalize)

    encoder, names = Overflowing(MODEL), [str(tmp_path / f"{row}.png") for row in range(5)]
    for name, shade in zip(names, (0, 255, 10, 255, 20), strict=True):
        Image.new("RGB", (40, 40), (shade, shade, shade)).save(name)
    batch = pa.RecordBatch.from_pydict({"file": names})
    (found,) = embed_batches([batch], encoder, "file", batch_size=2)
    assert found["error"].to_pylist() == [None, "not_finite", None, "not_finite", None]
    assert [row is None for row in found["embedding"].to_pylist()] == [False, True, False, True, False]


@pytest.mark.requirement("35.8")
def test_what_is_of_no_part_of_the_input_is_counted_before_it_goes(photos: Path, whole: Path, tmp_path: Path) -> None:
    """35.8: IF ... a file of the data set is of no part of the input, THEN THE Package SHALL raise EmbedError, unless
    ... the other deleted."""
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    before, one = files(out), min(photos.glob("a*.png"))
    rows = ds.dataset(out).count_rows()
    with pytest.raises(EmbedError, match=rf"with {rows} rows, are of no part of this input.*deletes them"):
        run(one, out)
    tried = run(one, out, replace_changed=True, dry_run=True)
    assert (tried.rows, tried.replaced) == (1, rows)
    assert files(out) == before
    made = run(one, out, replace_changed=True)
    assert (made.rows, made.replaced, ds.dataset(out).count_rows()) == (1, rows, 1)
