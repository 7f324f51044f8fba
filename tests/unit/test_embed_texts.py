"""Texts beside images in a data set: both towers of a CLIP, a sentence encoder alone, and rows that lack one."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from llm_compression import ArrowEngine, CLIPEngine, VisionEncoder
from llm_compression.cli import main
from llm_compression.embed.encoders import AnyEncoder, description
from llm_compression.embed.reasons import TEXT_CODES
from llm_compression.embed.run import ErrorLimit, embed
from llm_compression.embed.shards import Settings, embed_batches, embed_shard, plan_shards
from llm_compression.embed.sources import find_sources
from llm_compression.errors import ConfigError, EmbedError, SourceError, TextError
from tests.text_models import TINY_BERT, TINY_CLIP, write_text_model

COLUMNS = ["embedding", "error", "error_message"]
TEXT_COLUMNS = ["text_embedding", "text_error", "text_error_message"]
CAPTIONS = ["a red cat", None, "the dog", "", "a zebra", "large round", "  ", "small photo of the dog", "a cat"]
WHY = [None, "no_text", None, "empty", "not_tokenized", None, "empty", None, None]
# an image that is none beside a text, beside no text, and beside a bad one
BROKEN = {1: "no_image", 2: "not_an_image", 4: "empty"}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> CLIPEngine:
    return CLIPEngine(write_text_model(tmp_path_factory.mktemp("clip"), TINY_CLIP), dtype="float32")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> ArrowEngine:
    return ArrowEngine(write_text_model(tmp_path_factory.mktemp("bert"), TINY_BERT), dtype="float32")


def pictures() -> list[bytes | None]:
    """Encoded images, and what is none where `BROKEN` says so."""
    rng, found = np.random.default_rng(0), list[bytes | None]()
    for _ in CAPTIONS:
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(file, "png")
        found.append(file.getvalue())
    return [*found[:1], None, b"no picture", *found[3:4], b"", *found[5:]]


def table() -> pa.Table:
    return pa.table({"image": pictures(), "caption": CAPTIONS, "n": range(len(CAPTIONS))})


def rows_of(source: Path, encoder: AnyEncoder, out: Path, text_column: str | None, shard_rows: int = 4) -> pa.Table:
    """The data set of a source, in this process."""
    with_images = not isinstance(encoder, ArrowEngine)
    fragments = find_sources([source], text_column=text_column, with_images=with_images).fragments
    settings = Settings(**description(encoder, text_column))
    for shard in plan_shards(fragments, settings, shard_rows):
        embed_shard(shard, encoder, settings, out, 2)
    return ds.dataset(out).to_table()


def close(found: Any, wanted: Any) -> bool:
    """Equal but for the order of sums, which the size of a batch decides."""
    return bool(np.abs(np.array(found.to_pylist(), np.float32) - wanted).max() <= 2e-6)


@pytest.mark.requirement("36.1", "36.2", "36.3")
def test_both_towers(clip: CLIPEngine) -> None:
    """36.1: the embeddings of the text tower's `encode`, and the columns of images as without a text column; 36.2: a
    null, a code and the words of the error; 36.3: the embedding of the other of the two."""
    stream = table().to_batches(max_chunksize=4)
    found = pa.Table.from_batches(list(embed_batches(stream, clip, "image", text_column="caption")))
    assert found.column_names == ["image", "caption", "n", *COLUMNS, *TEXT_COLUMNS]
    alone = pa.Table.from_batches(list(embed_batches(stream, clip.vision, "image")))
    assert found.drop_columns(TEXT_COLUMNS).equals(alone)
    assert found["error"].to_pylist() == [BROKEN.get(row) for row in range(len(CAPTIONS))]
    assert found["text_error"].to_pylist() == WHY
    assert set(filter(None, WHY)) <= set(TEXT_CODES)
    for row in found.to_pylist():
        assert (row["text_error"] is None) == (row["text_error_message"] is None) == (row["text_embedding"] is not None)
    assert "zebra" in found["text_error_message"][4].as_py()
    good = [text for text, why in zip(CAPTIONS, WHY, strict=True) if why is None]
    assert close(found["text_embedding"].drop_null(), clip.encode_text(good))
    assert found.schema.field("text_embedding").type == pa.list_(pa.float32(), clip.dimension)


@pytest.mark.requirement("36.4")
@pytest.mark.parametrize("container", ["parquet", "feather"])
@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "dictionary"])
def test_every_type_of_text(kind: str, container: str, clip: CLIPEngine, tmp_path: Path) -> None:
    """36.4: WHEN texts are a column of strings of any layout ..., THE Package SHALL give the same embeddings."""
    if container == "feather" and kind == "string_view":
        container = "arrow"  # which has views
    column = pa.array(CAPTIONS, pa.string())
    column = column.dictionary_encode() if kind == "dictionary" else column.cast(getattr(pa, kind)())
    content = table().set_column(1, "caption", column)
    path = tmp_path / f"t.{container}"
    if container == "parquet":
        pq.write_table(content, path, row_group_size=5)
    elif container == "feather":
        feather.write_feather(content, str(path), chunksize=5)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, content.schema) as writer:
            writer.write_table(content, max_chunksize=5)
    found = rows_of(path, clip, tmp_path / "out", "caption")
    plain = pa.Table.from_batches(list(embed_batches(table().to_batches(4), clip, "image", text_column="caption")))
    assert found.select(["text_error", "error"]).equals(plain.select(["text_error", "error"]))
    wanted = np.array(plain["text_embedding"].drop_null().to_pylist(), np.float32)
    assert close(found["text_embedding"].drop_null(), wanted)
    assert found["caption"].to_pylist() == CAPTIONS


def write_tar(path: Path, texts: list[bytes | None]) -> None:
    with tarfile.open(path, "w") as archive:
        for row, (picture, text) in enumerate(zip(pictures(), texts, strict=True)):
            for suffix, data in (("png", picture), ("txt", text), ("json", b"{}")):
                if data is not None:
                    info = tarfile.TarInfo(f"{row:05}.{suffix}")
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))


@pytest.mark.requirement("36.4")
def test_the_captions_of_a_tar_shard(clip: CLIPEngine, bert: ArrowEngine, tmp_path: Path) -> None:
    """36.4: ... or the member `txt` of a tar shard."""
    write_tar(tmp_path / "0.tar", [None if text is None else text.encode() for text in CAPTIONS])
    found = rows_of(tmp_path / "0.tar", clip, tmp_path / "out", "txt")
    assert found.column_names == ["id", "key", "txt", "json", *COLUMNS, *TEXT_COLUMNS]
    assert found["text_error"].to_pylist() == WHY
    assert found["error"].to_pylist() == [BROKEN.get(row) for row in range(len(CAPTIONS))]
    good = [text for text, why in zip(CAPTIONS, WHY, strict=True) if why is None]
    assert close(found["text_embedding"].drop_null(), clip.encode_text(good))
    alone = rows_of(tmp_path / "0.tar", bert, tmp_path / "alone", "txt")
    assert alone.column_names == ["id", "key", "txt", "json", *TEXT_COLUMNS]
    assert close(alone["text_embedding"].drop_null(), bert.encode(good))


@pytest.mark.requirement("36.2")
@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "dictionary", "tar"])
def test_bytes_that_are_no_text_cost_their_own_row(kind: str, clip: CLIPEngine, tmp_path: Path) -> None:
    """36.2: ... a text that is no Unicode: Arrow does not look at what a file holds."""
    texts = [b"a cat", b"caf\xe9 cat", *[b"the dog"] * 7]
    if kind == "tar":
        write_tar(tmp_path / "t.tar", [*texts])
        found = rows_of(tmp_path / "t.tar", clip, tmp_path / "out", "txt")
        assert found["txt"][1].as_py() == "caf\\xe9 cat"
    else:
        column = pa.array(texts, pa.binary()).view(pa.string())
        column = column.dictionary_encode() if kind == "dictionary" else column.cast(getattr(pa, kind)())
        pq.write_table(table().set_column(1, "caption", column), tmp_path / "t.parquet")
        found = rows_of(tmp_path / "t.parquet", clip, tmp_path / "out", "caption")
    assert found["text_error"].to_pylist() == [None, "not_unicode", *[None] * 7]
    assert close(found["text_embedding"].drop_null(), clip.encode_text(["a cat", *["the dog"] * 7]))


@pytest.mark.requirement("36.2", "36.3")
def test_an_embedding_of_a_text_that_is_not_finite(clip: CLIPEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """36.2: ... whose embedding is not finite; the other texts of its pass have theirs."""
    real = type(clip.text.encoder)._rows
    bad = {len(clip.text.tokenize("a cat")[0])}
    current = list[int]()

    def padded(self: Any, rows: Any) -> Any:
        current[:] = [len(row) for row in rows]
        return real_padded(self, rows)

    def refusing(self: Any, embeddings: torch.Tensor, normalize: bool, error: Any) -> torch.Tensor:
        for position, length in enumerate(current):
            if length in bad:
                raise error(position, "the embedding is not finite")
        return real(self, embeddings, normalize, error)

    real_padded = type(clip.text.encoder)._padded
    monkeypatch.setattr(type(clip.text.encoder), "_padded", padded)
    monkeypatch.setattr(type(clip.text.encoder), "_rows", refusing)
    with pytest.raises(TextError):
        clip.encode_text("a cat")
    captions = ["a cat", "a red cat", "the dog", "a"]
    batch = pa.RecordBatch.from_pydict({"image": pictures()[5:9], "caption": captions})
    (found,) = embed_batches([batch], clip, "image", text_column="caption")
    assert found["text_error"].to_pylist() == ["not_finite", None, "not_finite", None]
    assert found["error"].null_count == 4
    assert [row is None for row in found["text_embedding"].to_pylist()] == [True, False, True, False]


@pytest.mark.requirement("36.5")
def test_a_sentence_encoder_embeds_texts_alone(bert: ArrowEngine, tmp_path: Path) -> None:
    """36.5: WHERE a model has no image tower, THE Package SHALL embed the texts alone, of inputs with or without
    images."""
    texts = pa.table({"caption": CAPTIONS, "text_error": ["mine"] * len(CAPTIONS)})
    pq.write_table(texts, tmp_path / "t.parquet")
    found = rows_of(tmp_path / "t.parquet", bert, tmp_path / "out", "caption")
    assert found.column_names == ["id", "caption", "source_text_error", *TEXT_COLUMNS]
    assert found["text_error"].to_pylist() == WHY
    good = [text for text, why in zip(CAPTIONS, WHY, strict=True) if why is None]
    assert close(found["text_embedding"].drop_null(), bert.encode(good))
    (batch,) = embed_batches(texts.select(["caption"]).to_batches(), bert, text_column="caption")
    assert batch["text_error"].to_pylist() == WHY
    with pytest.raises(ConfigError, match="texts alone"):
        list(embed_batches(table().to_batches(), bert, "image", text_column="caption"))
    with pytest.raises(ConfigError, match="no images"):
        list(embed_batches(table().to_batches(), bert, "image"))


@pytest.mark.requirement("36.6")
def test_a_model_without_words_is_refused_first(tiny_model: Path, tmp_path: Path) -> None:
    """36.6: IF the model has no text tower, THEN THE Package SHALL raise ConfigError before a source is read."""
    with pytest.raises(ConfigError, match=r"'caption'.*both towers"):
        embed([tmp_path / "no such file"], tmp_path / "out", tiny_model, text_column="caption")
    with pytest.raises(ConfigError, match="VisionEncoder has no text tower"):
        list(embed_batches(table().to_batches(), VisionEncoder(tiny_model), "image", text_column="caption"))
    assert not (tmp_path / "out").exists()


@pytest.mark.requirement("36.7")
def test_columns_that_hold_no_texts(clip: CLIPEngine, tmp_path: Path) -> None:
    """36.7: IF an input has no such column, or one without texts, THEN THE Package SHALL raise SourceError with its
    name."""
    pq.write_table(table(), tmp_path / "t.parquet")
    write_tar(tmp_path / "t.tar", [b"a cat"] * len(CAPTIONS))
    (tmp_path / "a.png").write_bytes(pictures()[0] or b"")
    for name, column, why in (
        ("t.parquet", "text", r"no column 'text', expected one of"),
        ("t.parquet", "n", r"column 'n' is int64, expected texts"),
        ("t.parquet", "image", r"column 'image' is binary, expected texts"),
        ("t.tar", "caption", r"no texts 'caption', expected txt or json"),
        ("a.png", "caption", r"paths of images have no column 'caption'"),
    ):
        with pytest.raises(SourceError, match=rf"{name}.*{why}"):
            find_sources([tmp_path / name], text_column=column)
    for column, why in (("text", "no column 'text'"), ("n", "is int64, expected texts")):
        with pytest.raises(SourceError, match=why):
            list(embed_batches(table().to_batches(), clip, "image", text_column=column))
    taken = table().append_column("text_error", pa.nulls(len(CAPTIONS)))
    with pytest.raises(SourceError, match="text_error"):
        list(embed_batches(taken.to_batches(), clip, "image", text_column="caption"))


@pytest.mark.requirement("36.1")
def test_the_column_of_texts_is_never_taken_for_the_images(tmp_path: Path) -> None:
    """36.1: of two columns of strings, the one that is not the texts holds the images' paths."""
    pq.write_table(pa.table({"caption": ["a"], "photo": ["1.jpg"]}), tmp_path / "t.parquet")
    (fragment,) = find_sources([tmp_path / "t.parquet"], text_column="caption").fragments
    assert (fragment.image_column, fragment.text_column) == ("photo", "caption")
    with pytest.raises(SourceError, match="name it"):
        find_sources([tmp_path / "t.parquet"])


@pytest.mark.requirement("36.8", "36.9")
def test_the_command_goes_on_with_the_same_texts_only(
    clip: CLIPEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """36.8: IF the directory holds shards of another text column, THEN THE Package SHALL raise EmbedError with the
    difference; 36.9: the texts and their errors are printed and count."""
    content = table().append_column("title", table()["caption"])
    pq.write_table(content, tmp_path / "t.parquet")
    model, out = clip.vision.weight_loader.path.parent, tmp_path / "out"
    command = ["embed", str(tmp_path / "t.parquet"), "-o", str(out), "--model", str(model), "--threads", "1"]
    assert main([*command, "--text-column", "caption", "--shard-rows", "5"]) == 0
    said = capsys.readouterr().out
    assert "embedded    6 images and 5 texts" in said
    assert "text error  2 rows: empty" in said
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    options: dict[str, Any] = {"shard_rows": 5, "threads": 1}
    again = embed([tmp_path / "t.parquet"], out, model, text_column="caption", **options)
    assert (again.done_before, again.shards, again.failed) == (2, 2, 5)
    assert again.text_errors == {"empty": 2, "no_text": 1, "not_tokenized": 1}
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before
    assert main([*command, "--text-column", "title", "--shard-rows", "5"]) == 1
    assert "text_column: caption there, title now" in capsys.readouterr().err
    with pytest.raises(EmbedError, match="text_column: caption there, None now"):
        embed([tmp_path / "t.parquet"], out, model, **options)
    limit = ErrorLimit.parse("4")
    assert embed([tmp_path / "t.parquet"], out, model, text_column="caption", max_errors=limit, **options).failed == 5
    with pytest.raises(ConfigError, match="no_text"):
        embed([tmp_path / "t.parquet"], out, model, text_column="caption", retry_errors=["nonsense"], **options)


SITE = """
import os, pathlib, signal
from llm_compression.text.tokenizer import WordTokenizer
opened, called = pathlib.Path.open, WordTokenizer.__call__
def open_it(self, *given, **named):
    if "crash" in self.name:
        os.kill(os.getpid(), signal.SIGSEGV)
    return opened(self, *given, **named)
def call_it(self, texts):
    if "poison" in texts:
        os.kill(os.getpid(), signal.SIGSEGV)
    return called(self, texts)
pathlib.Path.open, WordTokenizer.__call__ = open_it, call_it
"""


@pytest.mark.requirement("36.10")
def test_what_ends_a_process_costs_its_own_tower(
    clip: CLIPEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """36.10: IF one of a row's image and text ends a process, THEN THE Package SHALL give it the code `crashed`, and
    the other its embedding."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]))
    good = pictures()[0] or b""
    for name in ("a.png", "crash.png", "b.png"):
        (tmp_path / name).write_bytes(good)
    paths = [str(tmp_path / name) for name in ("a.png", "crash.png", "b.png")]
    pq.write_table(pa.table({"photo": paths, "caption": ["a cat", "the dog", "poison"]}), tmp_path / "t.parquet")
    model = clip.vision.weight_loader.path.parent
    options: dict[str, Any] = {"shard_rows": 1, "workers": 2, "threads": 1, "dtype": "float32"}
    found = embed([tmp_path / "t.parquet"], tmp_path / "out", model, text_column="caption", **options)
    assert (found.errors, found.text_errors, found.failed) == ({"crashed": 1}, {"crashed": 1}, 2)
    rows = ds.dataset(tmp_path / "out").to_table()
    assert rows["error"].to_pylist() == [None, "crashed", None]
    assert rows["text_error"].to_pylist() == [None, None, "crashed"]
    assert close(rows["text_embedding"].drop_null(), clip.encode_text(["a cat", "the dog"]))
    assert close(rows["embedding"].drop_null(), clip.encode_image([good, good]))
