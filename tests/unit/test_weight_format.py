"""The weight file as written: schema, bytes, encoding, row groups, metadata, and no half files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from llm_compression.errors import WeightFormatError
from llm_compression.inference.fingerprints import fingerprint
from llm_compression.inference.weight_format import (
    DTYPES,
    KEY_PREFIX,
    MAX_TENSOR_BYTES,
    WeightMetadata,
    block_of,
    tensor_bytes,
    write_weights,
)

CONFIG = {"model_type": "clip_vision_model", "width": 3, "name": "ä"}
METADATA = WeightMetadata(
    config=CONFIG, preprocessing={"mean": [0.1, 0.2, 0.3]}, source={"name": "n", "revision": "r", "sha256": "ab"}
)
Table = dict[str, torch.Tensor]


def table() -> Table:
    return {
        "a.embedding": torch.arange(12, dtype=torch.float32).reshape(3, 4) / 7,
        "encoder.layers.0.weight": torch.tensor([1.5, -2.25], dtype=torch.bfloat16),
        "encoder.layers.0.bias": torch.tensor([[1], [2]], dtype=torch.int8),
        "encoder.layers.1.weight": torch.tensor(3.25, dtype=torch.float64),
        "encoder.layers.10.weight": torch.zeros(2, 0, dtype=torch.float16),
        "z": torch.tensor([True, False, True]),
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "weights.parquet"
    write_weights(path, table().items(), METADATA)
    return path


def key_values(path: Path) -> dict[str, str]:
    """The file's own key-value metadata, without Arrow's copy of the schema."""
    stored = pq.read_metadata(path).metadata
    return {key.decode(): value.decode() for key, value in stored.items() if key != b"ARROW:schema"}


@pytest.mark.requirement("3.1")
def test_one_row_per_tensor_and_no_null(path: Path) -> None:
    """3.1: THE Weight File SHALL hold one row per tensor in the columns `layer_name`, `shape`, `dtype`, `data` and
    `num_params`, none of them null."""
    read = pq.read_table(path)
    types = {"layer_name": pa.string(), "dtype": pa.string(), "data": pa.large_binary(), "num_params": pa.int64()}
    assert read.schema.names == ["layer_name", "shape", "dtype", "data", "num_params"]
    assert {name: read.schema.field(name).type for name in types} == types
    assert read.schema.field("shape").type.value_type == pa.int64()
    assert not any(field.nullable for field in read.schema)
    required = pq.ParquetFile(path).schema
    assert [required.column(i).max_definition_level for i in range(5)] == [0, 1, 0, 0, 0]  # 1: a shape may be empty
    assert read["layer_name"].to_pylist() == list(table())
    assert read["shape"].to_pylist() == [[3, 4], [2], [2, 1], [], [2, 0], [3]]
    assert read["dtype"].to_pylist() == ["float32", "bfloat16", "int8", "float64", "float16", "bool"]
    assert read["num_params"].to_pylist() == [12, 2, 2, 1, 0, 3]


@pytest.mark.requirement("3.2")
def test_data_is_little_endian_and_row_major(tmp_path: Path) -> None:
    """3.2: THE Weight File SHALL hold in `data` the row-major little-endian bytes of the tensor, bfloat16 as its 16
    bits."""
    square = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    tensors = {
        "plain": square,
        "transposed": square.T,
        "slice": square[:, 1],
        "half": torch.tensor([1.0, -2.0], dtype=torch.bfloat16),
        "long": torch.tensor([258]),
        "trained": torch.nn.Parameter(square),
    }
    write_weights(tmp_path / "w", tensors.items(), METADATA)
    data = dict(zip(tensors, pq.read_table(tmp_path / "w")["data"].to_pylist(), strict=True))
    assert data["plain"] == data["trained"] == np.array([1, 2, 3, 4], "<f4").tobytes()
    assert data["transposed"] == np.array([1, 3, 2, 4], "<f4").tobytes()
    assert data["slice"] == np.array([2, 4], "<f4").tobytes()
    assert data["half"] == bytes.fromhex("803f00c0")
    assert data["long"] == bytes.fromhex("0201000000000000")


@pytest.mark.requirement("3.3")
@pytest.mark.parametrize(("codec", "name"), [(None, "UNCOMPRESSED"), ("zstd", "ZSTD"), ("snappy", "SNAPPY")])
def test_encoding(tmp_path: Path, codec: str | None, name: str) -> None:
    """3.3: WHERE no compression is asked for, THE Weight File SHALL use plain encoding with page checksums and with
    neither dictionary nor compression."""
    options = {} if codec is None else {"compression": codec}
    write_weights(tmp_path / "w", table().items(), METADATA, **options)
    metadata = pq.read_metadata(tmp_path / "w")
    for group in range(metadata.num_row_groups):
        for column in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(column)
            assert chunk.compression == name
            assert set(chunk.encodings) <= {"PLAIN", "RLE"}  # RLE: the levels, never the values
            assert "PLAIN" in chunk.encodings
            assert not chunk.has_dictionary_page
            assert not chunk.is_stats_set


@pytest.mark.requirement("3.3")
def test_pages_have_checksums(path: Path) -> None:
    """3.3: WHERE no compression is asked for, THE Weight File SHALL use plain encoding with page checksums and with
    neither dictionary nor compression: any reader that looks at them sees a changed weight."""
    data = bytearray(path.read_bytes())
    blob = bytes(tensor_bytes(table()["a.embedding"]))
    assert data.count(blob) == 1
    data[data.index(blob) + 5] ^= 4
    path.write_bytes(data)
    assert pq.read_table(path).num_rows == 6
    with pytest.raises(OSError, match=r"(?i)crc"):
        pq.read_table(path, page_checksum_verification=True)


@pytest.mark.requirement("3.3")
def test_one_page_per_tensor(tmp_path: Path) -> None:
    """3.3: WHERE no compression is asked for, THE Weight File SHALL use plain encoding with page checksums and with
    neither dictionary nor compression: a checksum for each tensor, not one for a block."""
    tensors = {f"layers.0.{i}": torch.full((300,), float(i)) for i in range(4)}
    write_weights(tmp_path / "w", tensors.items(), METADATA)
    data = bytearray((tmp_path / "w").read_bytes())
    data[data.index(bytes(tensor_bytes(tensors["layers.0.3"])))] ^= 1
    (tmp_path / "w").write_bytes(data)
    batches = pq.ParquetFile(tmp_path / "w", page_checksum_verification=True).iter_batches(1, columns=["data"])
    assert [next(batches).num_rows for _ in range(3)] == [1, 1, 1]
    with pytest.raises(OSError, match=r"(?i)crc"):
        next(batches)


@pytest.mark.requirement("3.4")
def test_a_row_group_per_block(path: Path) -> None:
    """3.4: THE Weight File SHALL hold the tensors of each transformer block in a row group of their own."""
    file = pq.ParquetFile(path)
    groups = [file.read_row_group(i)["layer_name"].to_pylist() for i in range(file.num_row_groups)]
    names = list(table())
    assert groups == [[names[0]], names[1:3], [names[3]], [names[4]], [names[5]]]


@pytest.mark.requirement("3.4")
@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("vision_model.encoder.layers.11.mlp.fc1.bias", "vision_model.encoder.layers.11."),
        ("text_model.encoder.layers.0.x", "text_model.encoder.layers.0."),
        ("encoder.layer.3.attention.self.query.weight", "encoder.layer.3."),
        ("layers.3.x", "layers.3."),
        ("visual.transformer.resblocks.2.ln_1.weight", "visual.transformer.resblocks.2."),
        ("vision_model.embeddings.class_embedding", ""),
        ("vision_model.pre_layrnorm.weight", ""),
        ("layers.x.y", ""),
    ],
)
def test_block_of_a_name(name: str, block: str) -> None:
    """3.4: THE Weight File SHALL hold the tensors of each transformer block in a row group of their own."""
    assert block_of(name) == block


@pytest.mark.requirement("3.5")
def test_metadata(path: Path) -> None:
    """3.5: THE Weight File SHALL carry in its key-value metadata the format version, the model config, the
    preprocessing constants, the name, revision and sha256 of the source, a sha256 over the tensors, and a sha256 over
    config and preprocessing."""
    stored = key_values(path)
    assert all(key.startswith(KEY_PREFIX) for key in stored)
    stored = {key.removeprefix(KEY_PREFIX): value for key, value in stored.items()}
    assert stored["format_version"] == "2"
    assert json.loads(stored["config"]) == CONFIG
    assert json.loads(stored["preprocessing"]) == {"mean": [0.1, 0.2, 0.3]}
    assert json.loads(stored["source"]) == {"name": "n", "revision": "r", "sha256": "ab"}
    digest = hashlib.sha256()
    for row in pq.read_table(path).to_pylist():
        digest.update(json.dumps([row["layer_name"], row["dtype"], row["shape"]]).encode() + b"\n" + row["data"])
    assert json.loads(stored["tensors_sha256"]) == digest.hexdigest()
    recorded = stored.pop("metadata_sha256")
    covered = {KEY_PREFIX + key: value for key, value in sorted(stored.items())}
    text = json.dumps(covered, sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(text.encode()).hexdigest() == recorded


@pytest.mark.requirement("39.1")
def test_fingerprints_are_recorded(path: Path) -> None:
    """39.1: THE Package SHALL write Weight Files of format version 2, whose fingerprint of a tensor has sums of its
    words weighted by their positions."""
    recorded = json.loads(key_values(path)[KEY_PREFIX + "fingerprints"])
    assert list(recorded) == sorted(table())
    for row in pq.read_table(path).to_pylist():
        assert recorded[row["layer_name"]] == fingerprint(row["dtype"], row["shape"], row["data"], 2)


@pytest.mark.requirement("10.1")
def test_the_report(tmp_path: Path) -> None:
    """10.1: WHEN `convert SOURCE OUT` ends, THE CLI SHALL print the path written, the tensors, the parameters, the
    bytes in and out and the recorded sha256."""
    report = write_weights(tmp_path / "new" / "dir" / "w", table().items(), METADATA)
    assert report.path == tmp_path / "new" / "dir" / "w"
    assert (report.num_tensors, report.num_params, report.data_bytes) == (6, 20, 48 + 4 + 2 + 8 + 0 + 3)
    assert report.file_bytes == report.path.stat().st_size
    assert json.loads(key_values(report.path)[KEY_PREFIX + "tensors_sha256"]) == report.tensors_sha256


@pytest.mark.requirement("3.6")
def test_the_same_tensors_give_the_same_file(tmp_path: Path) -> None:
    """3.6: WHEN any table of finite tensors is written to a Weight File and read back, THE WeightLoader SHALL yield the
    same names, dtypes, shapes and bits."""
    for name in ("a", "b"):
        write_weights(tmp_path / name, table().items(), METADATA)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.requirement("9.6")
@pytest.mark.parametrize("fails_at", [0, 1, 4])
def test_a_write_that_fails_leaves_what_was_there(path: Path, fails_at: int) -> None:
    """9.6: IF a conversion is killed, THEN THE convert_checkpoint SHALL leave at the target path the previous file or
    none."""

    def failing() -> Iterator[tuple[str, torch.Tensor]]:
        for index, pair in enumerate(table().items()):
            if index == fails_at:
                raise KeyboardInterrupt
            yield pair

    before = path.read_bytes()
    for target in (path, path.with_name("new.parquet")):
        with pytest.raises(KeyboardInterrupt):
            write_weights(target, failing(), METADATA)
    assert [entry.name for entry in path.parent.iterdir()] == ["weights.parquet"]
    assert path.read_bytes() == before


@pytest.mark.requirement("9.6")
def test_a_new_file_takes_the_place_of_the_old_at_once(path: Path) -> None:
    """9.6: IF a conversion is killed, THEN THE convert_checkpoint SHALL leave at the target path the previous file or
    none: who has the previous one open goes on reading it."""
    before = path.read_bytes()
    with path.open("rb") as reader:
        write_weights(path, [("other", torch.ones(2))], METADATA)
        assert reader.read() == before
    assert pq.read_table(path)["layer_name"].to_pylist() == ["other"]


@pytest.mark.requirement("12.6")
@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("", torch.zeros(1))], "a tensor needs a name, got an empty one"),
        ([("a", torch.zeros(1)), ("b", torch.zeros(1)), ("a", torch.ones(2))], "a: two tensors of this name"),
        ([("c", torch.zeros(1, dtype=torch.complex64))], "c: dtype torch.complex64, expected one of float64, float32"),
        ([("u", torch.zeros(1, dtype=torch.uint16))], "u: dtype torch.uint16, expected one of"),
        (
            [("big", torch.zeros(1, dtype=torch.int8).expand(MAX_TENSOR_BYTES + 1))],
            f"big: {MAX_TENSOR_BYTES + 1} bytes, a tensor can have {MAX_TENSOR_BYTES}",
        ),
    ],
)
def test_tensors_that_cannot_be_stored(tmp_path: Path, pairs: list[tuple[str, torch.Tensor]], message: str) -> None:
    """12.6: IF the Package refuses an input or a file, THEN THE Package SHALL raise a subclass of `LlmCompressionError`
    whose message has the value found and what was expected."""
    with pytest.raises(WeightFormatError, match=re.escape(message)):
        write_weights(tmp_path / "w", pairs, METADATA)
    assert list(tmp_path.iterdir()) == []


def stored(**changes: Any) -> dict[bytes, bytes]:
    """Metadata as a file stores it, with some keys replaced, or removed where None."""
    values = METADATA.to_key_values() | {KEY_PREFIX + key: value for key, value in changes.items()}
    return {key.encode(): value.encode() for key, value in values.items() if value is not None}


def stored_of(version: int) -> dict[bytes, bytes]:
    """Metadata of a version of the format, as a file stores it."""
    values = replace(METADATA, format_version=version).to_key_values()
    return {key.encode(): value.encode() for key, value in values.items()}


@pytest.mark.requirement("3.6")
def test_metadata_reads_back() -> None:
    """3.6: WHEN any table of finite tensors is written to a Weight File and read back, THE WeightLoader SHALL yield the
    same names, dtypes, shapes and bits: and the metadata that was written."""
    assert WeightMetadata.from_key_values(stored(), "f") == METADATA
    assert WeightMetadata.from_key_values({**stored(), b"ARROW:schema": b"x", b"other": b"y"}, "f") == METADATA
    for nothing in (None, {}, {b"ARROW:schema": b"x"}, {b"pandas": b"{}"}):
        assert WeightMetadata.from_key_values(nothing, "f") is None


@pytest.mark.requirement("4.5")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": "{}"}, "f: damaged metadata: sha256 is"),
        ({"preprocessing": '{"mean":[0.1,0.2,0.4]}'}, "f: damaged metadata: sha256 is"),
        ({"fingerprints": '{"a":"b"}'}, "f: damaged metadata: sha256 is"),
        ({"format_version": "1"}, "f: damaged metadata: sha256 is"),
        ({"metadata_sha256": "00"}, "the file recorded 00"),
        ({"metadata_sha256": None}, "f: damaged metadata: missing ['llm_compression.metadata_sha256'], unknown []"),
        ({"config": None}, "f: damaged metadata: missing ['llm_compression.config'], unknown []"),
        ({"more": "x"}, "f: damaged metadata: missing [], unknown ['llm_compression.more']"),
    ],
)
def test_damaged_metadata(changes: dict[str, str | None], message: str) -> None:
    """4.5: IF a byte of a Weight File is flipped, THEN THE WeightLoader SHALL raise WeightFormatError or yield the
    tensors and metadata that were written."""
    with pytest.raises(WeightFormatError, match=re.escape(message)):
        WeightMetadata.from_key_values(stored(**changes), "f")


@pytest.mark.requirement("4.5")
def test_metadata_that_is_not_text() -> None:
    """4.5: IF a byte of a Weight File is flipped, THEN THE WeightLoader SHALL raise WeightFormatError or yield the
    tensors and metadata that were written."""
    with pytest.raises(WeightFormatError, match="f: the file's metadata is not text"):
        WeightMetadata.from_key_values({**stored(), b"llm_compression.\xff": b"x"}, "f")


@pytest.mark.requirement("39.3")
@pytest.mark.parametrize("version", [1, 2])
def test_metadata_keeps_its_version(version: int) -> None:
    """39.3: WHEN given a Weight File of format version 1, THE WeightLoader SHALL hold its tensors against the sums of
    their words: what is read of it is of that version, with the hash that it has, and what is written of version 2."""
    found = WeightMetadata.from_key_values(stored_of(version), "f")
    assert found is not None
    assert found == replace(METADATA, format_version=version)
    assert {key.encode(): value.encode() for key, value in found.to_key_values().items()} == stored_of(version)


@pytest.mark.requirement("39.3")
def test_what_is_written_anew_has_the_latest_version(tmp_path: Path) -> None:
    """39.3: ... the tensors of a file of version 1 are written as version 2."""
    write_weights(tmp_path / "w", table().items(), replace(METADATA, format_version=1))
    assert key_values(tmp_path / "w")[KEY_PREFIX + "format_version"] == "2"


@pytest.mark.requirement("39.4")
@pytest.mark.parametrize("more", [{}, {"shards": "2"}])
def test_another_version_is_refused(more: dict[str, str]) -> None:
    """39.4: IF a Weight File has another format version, THEN THE WeightLoader SHALL raise WeightFormatError with the
    version found and those that it reads: whatever other keys that version has."""
    values = replace(METADATA, format_version=3).to_key_values() | {
        KEY_PREFIX + key: each for key, each in more.items()
    }
    del values[KEY_PREFIX + "metadata_sha256"]
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    values[KEY_PREFIX + "metadata_sha256"] = hashlib.sha256(text.encode()).hexdigest()
    with pytest.raises(WeightFormatError, match="f: format version 3, this package reads versions 1 and 2"):
        WeightMetadata.from_key_values({key.encode(): each.encode() for key, each in values.items()}, "f")


@pytest.mark.requirement("3.2")
def test_every_dtype_has_the_name_that_pytorch_gives_it() -> None:
    """3.2: THE Weight File SHALL hold in `data` the row-major little-endian bytes of the tensor, bfloat16 as its 16
    bits: under the dtype's own name."""
    assert {name: f"torch.{name}" for name in DTYPES} == {name: str(dtype) for name, dtype in DTYPES.items()}
    assert {"float32", "bfloat16", "float16"} <= set(DTYPES)


@pytest.mark.requirement("3.2")
def test_bytes_are_a_view_where_they_can_be() -> None:
    """3.2: THE Weight File SHALL hold in `data` the row-major little-endian bytes of the tensor, bfloat16 as its 16
    bits: taken in place from a contiguous tensor."""
    tensor = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    view = np.frombuffer(tensor_bytes(tensor), np.uint8)
    assert view.ctypes.data == tensor.data_ptr()
    assert bytes(tensor_bytes(torch.empty(0, 3))) == b""
