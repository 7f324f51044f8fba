"""WeightLoader: unsound files, rows that do not fit and weights that are no numbers are refused by name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from llm_compression.errors import WeightFormatError
from llm_compression.inference.weight_format import WeightMetadata, tensor_bytes, write_weights
from llm_compression.inference.weight_loader import WeightLoader
from tests.weight_rows import rewrite

METADATA = WeightMetadata(config={"model_type": "table"}, source={"name": "made"})


def table() -> dict[str, torch.Tensor]:
    return {
        "head": torch.arange(300, dtype=torch.float32).reshape(3, 100),
        "layers.0.odd": torch.tensor([1, 2, 3], dtype=torch.int8),
        "layers.0.half": torch.arange(9, dtype=torch.bfloat16),
        "layers.1.scalar": torch.tensor(2.5, dtype=torch.float64),
        "tail": torch.tensor([True, False]),
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_weights(tmp_path / "weights.parquet", table().items(), METADATA)
    return tmp_path / "weights.parquet"


BAD_FILES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _sound: b"",
    "magic only": lambda _sound: b"PAR1PAR1",
    "text": lambda _sound: b"these are no weights\n" * 50,
    "zeros": lambda _sound: bytes(5000),
    "a PNG": lambda _sound: b"\x89PNG\r\n\x1a\n" + bytes(100),
    "first byte": lambda sound: sound[:1],
    "half": lambda sound: sound[: len(sound) // 2],
    "all but the last byte": lambda sound: sound[:-1],
    "without its beginning": lambda sound: sound[100:],
    "without its middle": lambda sound: sound[:200] + sound[300:],
    "a byte more": lambda sound: sound + b"\0",
}


@pytest.mark.requirement("4.4")
@pytest.mark.parametrize("what", BAD_FILES)
def test_a_file_that_is_no_sound_parquet(path: Path, what: str) -> None:
    """4.4: IF a Weight File is truncated, empty, not Parquet or of another schema, THEN THE WeightLoader SHALL raise
    WeightFormatError with the path and what was found."""
    path.write_bytes(BAD_FILES[what](path.read_bytes()))
    with pytest.raises(WeightFormatError, match=re.escape(str(path))):
        WeightLoader(path).load_weights()


def rows(**changes: Any) -> pa.Table:
    """A table of the earlier layout with one tensor, a column replaced, or left out where None."""
    columns: dict[str, Any] = {
        "layer_name": pa.array(["a"]),
        "shape": pa.array([[2]], pa.list_(pa.int64())),
        "dtype": pa.array(["torch.float32"]),
        "data": pa.array([np.array([1, 2], np.float32).tobytes()], pa.large_binary()),
        "num_params": pa.array([2]),
    }
    return pa.table({name: column for name, column in (columns | changes).items() if column is not None})


@pytest.mark.requirement("4.4")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": None}, "columns ['layer_name', 'shape', 'dtype', 'num_params'], expected ['layer_name'"),
        ({"num_params": None}, "columns ['layer_name', 'shape', 'dtype', 'data'], expected ['layer_name'"),
        ({"crc": pa.array([1])}, "'crc'], expected ['layer_name'"),
        ({"layer_name": pa.array([1])}, "layer_name is int64, expected string"),
        ({"dtype": pa.array([b"torch.float32"])}, "dtype is binary, expected string"),
        ({"data": pa.array(["text"])}, "data is string, expected large_binary"),
        ({"num_params": pa.array([2], pa.int32())}, "num_params is int32, expected int64"),
        ({"num_params": pa.array([2.0])}, "num_params is double, expected int64"),
        ({"shape": pa.array([2])}, "shape is int64, expected list<int64>"),
        ({"shape": pa.array([[2]], pa.list_(pa.int32()))}, "expected list<int64>"),
        ({"shape": pa.array([["2"]])}, "expected list<int64>"),
        ({"layer_name": pa.array([None], pa.string())}, "a null in row"),
        ({"shape": pa.array([None], pa.list_(pa.int64()))}, "a null in row"),
        ({"shape": pa.array([[None]], pa.list_(pa.int64()))}, "a null in row"),
        ({"num_params": pa.array([None], pa.int64())}, "a null in row"),
        ({"dtype": pa.array([None], pa.string())}, "dtype"),
        ({"data": pa.array([None], pa.large_binary())}, "a: no data, expected 8 bytes for torch.float32 (2,)"),
        ({"layer_name": pa.array([""])}, "without a name"),
        ({"dtype": pa.array(["torch.float8"])}, "a: dtype 'torch.float8', expected one of float64, float32"),
        ({"dtype": pa.array(["float32"])}, "no metadata, and dtype 'float32' is not of the earlier layout"),
        ({"shape": pa.array([[3]])}, "a: shape (3,) does not have 2 elements"),
        ({"shape": pa.array([[-1, -2]])}, "a: shape (-1, -2) does not have 2 elements"),
        ({"num_params": pa.array([3])}, "a: shape (2,) does not have 3 elements"),
        ({"dtype": pa.array(["torch.float64"])}, "a: 8 bytes, expected 16 bytes for torch.float64 (2,)"),
        ({"data": pa.array([b"1234567"])}, "a: 7 bytes, expected 8 bytes for torch.float32 (2,)"),
        ({"data": pa.array([b"123456789"])}, "a: 9 bytes, expected 8 bytes for torch.float32 (2,)"),
        ({"data": pa.array([b""])}, "a: 0 bytes, expected 8 bytes for torch.float32 (2,)"),
    ],
)
def test_another_schema_or_rows_that_do_not_fit(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """4.4: IF a Weight File is truncated, empty, not Parquet or of another schema, THEN THE WeightLoader SHALL raise
    WeightFormatError with the path and what was found."""
    path = tmp_path / "weights.parquet"
    pq.write_table(rows(), path)
    assert WeightLoader(path).load_weights()["a"].tolist() == [1, 2]
    pq.write_table(rows(**changes), path)
    with pytest.raises(WeightFormatError, match=re.escape(message)) as caught:
        WeightLoader(path).load_weights()
    assert str(path) in str(caught.value)


@pytest.mark.requirement("4.5")
def test_page_checksums_are_looked_at(tmp_path: Path) -> None:
    """4.5: IF a byte of a Weight File is flipped, THEN THE WeightLoader SHALL raise WeightFormatError or yield the
    tensors and metadata that were written: in the Earlier Layout too, where its writer put checksums on the pages."""
    path = tmp_path / "weights.parquet"
    pq.write_table(rows(), path, write_page_checksum=True, compression="none", use_dictionary=False)
    data = bytearray(path.read_bytes())
    # once in the page, before that in no statistics
    data[data.rindex(np.array([1, 2], np.float32).tobytes(), 0, data.index(b"layer_name"))] ^= 1
    path.write_bytes(data)
    with pytest.raises(WeightFormatError, match=r"(?i)crc"):
        WeightLoader(path).load_weights()


@pytest.mark.requirement("4.4")
def test_two_tensors_of_one_name(tmp_path: Path) -> None:
    """4.4: IF a Weight File is truncated, empty, not Parquet or of another schema, THEN THE WeightLoader SHALL raise
    WeightFormatError with the path and what was found."""
    pq.write_table(pa.concat_tables([rows(), rows()]), tmp_path / "weights.parquet")
    with pytest.raises(WeightFormatError, match="two tensors named 'a'"):
        WeightLoader(tmp_path)


def swap(found: list[dict[str, Any]], first: str, second: str, column: str) -> None:
    one, two = (next(row for row in found if row["layer_name"] == name) for name in (first, second))
    one[column], two[column] = two[column], one[column]


@pytest.mark.requirement("4.5")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found.pop(0), "the rows are not those recorded: missing ['head'], unknown []"),
        (
            lambda found: found[0].update(layer_name="new"),
            "the rows are not those recorded: missing ['head'], unknown ['new']",
        ),
        (
            lambda found: found.append({**found[0], "layer_name": "more"}),
            "the rows are not those recorded: missing [], unknown ['more']",
        ),
        (lambda found: found[0].update(data=bytes(1200)), "head: these are not the bytes that were written"),
        (lambda found: found[0].update(shape=[100, 3]), "head: these are not the bytes that were written"),
        (lambda found: found[0].update(dtype="int32"), "head: these are not the bytes that were written"),
        (lambda found: found[0].update(dtype="torch.float32"), "head: dtype 'torch.float32', expected one of"),
        (lambda found: swap(found, "q", "k", "data"), "q: these are not the bytes that were written"),
        (lambda found: swap(found, "q", "k", "layer_name"), "k: these are not the bytes that were written"),
    ],
)
def test_rows_changed_under_the_metadata(
    tmp_path: Path, change: Callable[[list[dict[str, Any]]], Any], message: str
) -> None:
    """4.5: IF a byte of a Weight File is flipped, THEN THE WeightLoader SHALL raise WeightFormatError or yield the
    tensors and metadata that were written: the metadata knows each tensor, also where every page is sound."""
    path = tmp_path / "weights.parquet"
    tensors = {**table(), "q": torch.ones(4), "k": torch.full((4,), 2.0)}
    write_weights(path, tensors.items(), METADATA)
    rewrite(path, lambda _found: None)
    assert list(WeightLoader(path).load_weights()) == list(tensors)
    rewrite(path, change)
    with pytest.raises(WeightFormatError, match=re.escape(message)):
        dict(WeightLoader(path).stream())


@pytest.mark.requirement("3.6")
def test_rows_in_another_order_are_the_same_tensors(path: Path) -> None:
    """3.6: WHEN any table of finite tensors is written to a Weight File and read back, THE WeightLoader SHALL yield the
    same names, dtypes, shapes and bits; verifying the hash over them sees another order."""
    rewrite(path, lambda found: found.reverse())
    loader = WeightLoader(path)
    found = loader.load_weights()
    assert list(found) == list(reversed(table()))
    for name, tensor in table().items():
        assert bytes(tensor_bytes(found[name])) == bytes(tensor_bytes(tensor))
    with pytest.raises(WeightFormatError, match=r"sha256 over the tensors is .*, the file recorded"):
        loader.verify()


@pytest.mark.requirement("4.6")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", [0, 57, 98])
def test_a_weight_that_is_no_number(tmp_path: Path, value: float, dtype: torch.dtype, where: int) -> None:
    """4.6: IF a weight is NaN or infinite, THEN THE VisionEncoder SHALL raise WeightFormatError with the name of its
    tensor."""
    bad = torch.ones(99, dtype=dtype)
    bad[where] = value
    write_weights(tmp_path / "weights.parquet", [("layers.0.fine", torch.ones(3)), ("bad", bad)], METADATA)
    loader = WeightLoader(tmp_path)
    assert loader.get_layer("layers.0.fine").tolist() == [1, 1, 1]
    for read in (loader.load_weights, lambda: dict(loader.stream()), lambda: loader.get_layer("bad")):
        with pytest.raises(WeightFormatError, match="bad: NaN or infinite"):
            read()


@pytest.mark.requirement("4.6")
def test_infinities_that_cancel_are_still_no_numbers(tmp_path: Path) -> None:
    """4.6: IF a weight is NaN or infinite, THEN THE VisionEncoder SHALL raise WeightFormatError with the name of its
    tensor; finite ones are read, also where their sum is not."""
    huge = torch.tensor([3e38, 3e38, -1.0])
    write_weights(tmp_path / "weights.parquet", [("huge", huge), ("half", torch.full((9,), 6e4).half())], METADATA)
    assert WeightLoader(tmp_path).load_weights()["huge"].tolist() == huge.tolist()
    infinite = torch.tensor([float("inf"), float("-inf")])
    write_weights(tmp_path / "weights.parquet", [("both", infinite)], METADATA)
    with pytest.raises(WeightFormatError, match="both: NaN or infinite"):
        WeightLoader(tmp_path).load_weights()


@pytest.mark.requirement("4.3")
def test_a_mismatch_lists_everything_before_any_data_is_read(path: Path) -> None:
    """4.3: IF tensors are missing, unexpected or mis-shaped, THEN THE VisionEncoder SHALL raise one WeightFormatError
    that lists every one of them, mis-shaped ones with the shape found and the shape expected."""
    expected: dict[str, tuple[int, ...]] = {name: tuple(tensor.shape) for name, tensor in table().items()}
    del expected["layers.1.scalar"]
    expected |= {"head": (100, 3), "layers.0.half": (10,), "gone": (1, 2), "also.gone": ()}
    with pytest.raises(WeightFormatError) as caught:
        WeightLoader(path).check(expected)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{path}: the tensors do not fit the model"
    assert {line.strip() for line in lines[1:]} == {
        "missing: gone (1, 2)",
        "missing: also.gone ()",
        "unexpected: layers.1.scalar ()",
        "mis-shaped: head (3, 100), expected (100, 3)",
        "mis-shaped: layers.0.half (9,), expected (10,)",
        "not floating point: layers.0.odd torch.int8",
        "not floating point: tail torch.bool",
    }


@pytest.mark.requirement("3.8")
@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "config.json: not JSON"), ("[1]", "config.json: list, expected a JSON object"), ("\xff", "not JSON")],
)
def test_a_config_beside_the_file_that_is_none(tmp_path: Path, text: str, message: str) -> None:
    """3.8: WHERE a Weight File has the Earlier Layout, THE VisionEncoder SHALL take the model config from a
    `config.json` beside the file or from the caller."""
    pq.write_table(rows(), tmp_path / "weights.parquet")
    assert WeightLoader(tmp_path).config is None
    (tmp_path / "config.json").write_text(json.dumps({"a": 1}), encoding="utf-8")
    assert WeightLoader(tmp_path).config == {"a": 1}
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(WeightFormatError, match=re.escape(message)):
        WeightLoader(tmp_path)
