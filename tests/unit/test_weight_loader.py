"""WeightLoader: the same tensors from every call, views of the Arrow buffer, and every writer's files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from llm_compression.columns import binary_views
from llm_compression.errors import WeightFormatError
from llm_compression.inference import weight_loader
from llm_compression.inference.weight_format import WeightMetadata, tensor_bytes, write_weights
from llm_compression.inference.weight_loader import WeightLoader

METADATA = WeightMetadata(config={"model_type": "table"}, preprocessing={"image_size": 8}, source={"name": "made"})


def table() -> dict[str, torch.Tensor]:
    """Tensors of several blocks and dtypes; three bytes before a float make an odd offset."""
    return {
        "head": torch.arange(300, dtype=torch.float32).reshape(3, 100),
        "layers.0.odd": torch.tensor([1, 2, 3], dtype=torch.int8),
        "layers.0.weight": torch.arange(70, dtype=torch.float32) - 20,
        "layers.0.half": torch.arange(9, dtype=torch.bfloat16),
        "layers.1.scalar": torch.tensor(2.5, dtype=torch.float64),
        "layers.1.none": torch.empty(0, 4),
        "tail": torch.tensor([True, False]),
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_weights(tmp_path / "weights.parquet", table().items(), METADATA)
    return tmp_path / "weights.parquet"


def assert_same(found: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(table())
    for name, tensor in table().items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert bytes(tensor_bytes(found[name])) == bytes(tensor_bytes(tensor))


@pytest.mark.requirement("4.1")
def test_every_call_gives_the_same_tensors(path: Path) -> None:
    """4.1: WHEN given a directory that holds `weights.parquet` or the path of the file itself, THE WeightLoader SHALL
    yield the same tensors from `load_weights()`, `get_layer(name)` and `stream()`."""
    for given in (path, str(path), path.parent, str(path.parent)):
        loader = WeightLoader(given)
        assert loader.path == path
        assert loader.names == list(table())
        assert_same(loader.load_weights())
        assert_same(dict(loader.stream()))
        assert_same({name: loader.get_layer(name) for name in loader.names})


@pytest.mark.requirement("3.5")
def test_what_the_file_says_about_itself(path: Path) -> None:
    """3.5: THE Weight File SHALL carry in its key-value metadata the format version, the model config, the
    preprocessing constants, the name, revision and sha256 of the source, a sha256 over the tensors, and a sha256 over
    config and preprocessing."""
    loader = WeightLoader(path)
    assert loader.metadata is not None
    assert (loader.metadata.config, loader.metadata.preprocessing) == ({"model_type": "table"}, {"image_size": 8})
    assert loader.config == {"model_type": "table"}
    assert loader.verify() == loader.metadata.tensors_sha256
    info = loader.tensors["layers.0.half"]
    assert (info.shape, info.dtype, info.num_params, info.num_bytes, info.dtype_name) == (
        (9,),
        torch.bfloat16,
        9,
        18,
        "bfloat16",
    )
    assert [info.row_group for info in loader.tensors.values()] == [0, 1, 1, 1, 2, 2, 3]


@pytest.mark.requirement("4.2")
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_tensors_view_the_arrow_buffer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: str) -> None:
    """4.2: THE WeightLoader SHALL yield tensors that view the Arrow buffer they were read into."""
    write_weights(tmp_path / "weights.parquet", table().items(), METADATA, compression=compression)
    buffers: list[pa.Buffer] = []

    def recording(array: pa.Array) -> list[memoryview | None]:
        buffers.append(array.buffers()[2])  # held, so that no later buffer gets its address
        return binary_views(array)

    monkeypatch.setattr(weight_loader, "binary_views", recording)
    for name, tensor in WeightLoader(tmp_path).stream():
        if tensor.numel():
            spans = [(buffer.address, buffer.address + buffer.size) for buffer in buffers if buffer is not None]
            start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
            assert any(first <= start and end <= last for first, last in spans), name


@pytest.mark.requirement("4.2")
def test_a_tensor_outlives_the_file_and_the_loader(path: Path) -> None:
    """4.2: THE WeightLoader SHALL yield tensors that view the Arrow buffer they were read into: and hold it."""
    found = WeightLoader(path).load_weights()
    path.unlink()
    pa.default_memory_pool().release_unused()
    _ = [np.full(300, 7.0) for _ in range(200)]
    assert_same(found)


@pytest.mark.requirement("4.7")
def test_one_tensor_at_a_time(tmp_path: Path) -> None:
    """4.7: WHILE weights are loaded, THE VisionEncoder SHALL hold at most one whole copy of the model: what is streamed
    is the tensor at hand and the next one, whatever the size of the file or of a row group."""
    big = {f"layers.0.{i}": torch.full((1 << 18,), float(i)) for i in range(24)}  # 1 MiB each, one row group
    write_weights(tmp_path / "weights.parquet", big.items(), METADATA)
    loader = WeightLoader(tmp_path)
    before = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)
    pa.set_memory_pool(pool)
    try:
        for index, (_, tensor) in enumerate(loader.stream()):
            assert tensor[0] == index
            del tensor
        assert 2 << 20 <= pool.max_memory() <= 8 << 20
    finally:
        pa.set_memory_pool(before)


@pytest.mark.requirement("4.7")
def test_an_abandoned_stream_is_closed(path: Path) -> None:
    """4.7: WHILE weights are loaded, THE VisionEncoder SHALL hold at most one whole copy of the model: no reader stays
    behind a loop that was left."""
    stream = WeightLoader(path).stream()
    assert next(stream)[0] == "head"
    assert isinstance(stream, Iterator)
    stream.close()  # type: ignore[attr-defined]  # an iterator to callers, a generator here
    with pytest.raises(StopIteration):
        next(stream)


@pytest.mark.requirement("12.6")
def test_an_unknown_name(path: Path) -> None:
    """12.6: IF the Package refuses an input or a file, THEN THE Package SHALL raise a subclass of `LlmCompressionError`
    whose message has the value found and what was expected: a name that is not there is a KeyError, as in a dict."""
    with pytest.raises(KeyError, match=r"layers\.9\.weight: no such tensor in .*weights\.parquet, which has 7"):
        WeightLoader(path).get_layer("layers.9.weight")


@pytest.mark.requirement("4.4")
def test_no_file(tmp_path: Path) -> None:
    """4.4: IF a Weight File is truncated, empty, not Parquet or of another schema, THEN THE WeightLoader SHALL raise
    WeightFormatError with the path and what was found: where there is no file at all, FileNotFoundError names it."""
    for given in (tmp_path, tmp_path / "none.parquet"):
        with pytest.raises(FileNotFoundError, match=rf"{re.escape(str(tmp_path))}.*\.parquet: no such file"):
            WeightLoader(given)


def rows(**changes: Any) -> pa.Table:
    """A table of the earlier layout with one tensor, some columns of another type."""
    columns: dict[str, Any] = {
        "layer_name": pa.array(["a"]),
        "shape": pa.array([[2]], pa.list_(pa.int64())),
        "dtype": pa.array(["torch.float32"]),
        "data": pa.array([np.array([1, 2], np.float32).tobytes()], pa.large_binary()),
        "num_params": pa.array([2]),
    }
    return pa.table(columns | changes)


@pytest.mark.requirement("3.7")
def test_the_earlier_layout_has_no_hash_to_verify(tmp_path: Path) -> None:
    """3.7: WHERE a Weight File has the Earlier Layout, THE WeightLoader SHALL yield its tensors."""
    pq.write_table(rows(), tmp_path / "weights.parquet")
    loader = WeightLoader(tmp_path)
    assert loader.metadata is None
    with pytest.raises(WeightFormatError, match="the earlier layout records no hash to verify"):
        loader.verify()


@pytest.mark.requirement("3.7")
@pytest.mark.parametrize("binary", [pa.binary(), pa.large_binary()])
@pytest.mark.parametrize("text", [pa.string(), pa.large_string()])
@pytest.mark.parametrize(
    "options", [{}, {"use_compliant_nested_type": False}, {"store_schema": False}, {"version": "1.0"}]
)
def test_the_earlier_layout_as_any_writer_has_it(
    tmp_path: Path, binary: pa.DataType, text: pa.DataType, options: dict[str, Any]
) -> None:
    """3.7: WHERE a Weight File has the Earlier Layout, THE WeightLoader SHALL yield its tensors."""
    written = rows(
        layer_name=pa.array(["a"], text),
        dtype=pa.array(["torch.float32"], text),
        data=pa.array([np.array([1, 2], np.float32).tobytes()], binary),
    )
    pq.write_table(written, tmp_path / "weights.parquet", **options)
    assert WeightLoader(tmp_path).load_weights()["a"].tolist() == [1, 2]


@pytest.mark.requirement("4.2")
@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_views_of_a_column(kind: pa.DataType) -> None:
    """4.2: THE WeightLoader SHALL yield tensors that view the Arrow buffer they were read into."""
    array = pa.array([b"one", None, b"", b"four", b"seven"], kind)
    for part in (array, array[1:], array[3:4], array[2:2], array[:0]):
        views = binary_views(part)
        assert [None if view is None else bytes(view) for view in views] == part.to_pylist()
        data = part.buffers()[2]
        for view in views:
            if view:
                address = np.frombuffer(view, np.uint8).ctypes.data
                assert data.address <= address < data.address + data.size
    assert binary_views(pa.array([], kind)) == []
    assert binary_views(pa.array([None], kind)) == [None]
