"""Properties of weight files: the same bits after a round trip, damage noticed, every mismatch in one error."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm_compression.errors import WeightFormatError
from llm_compression.harness.clip.checkpoint_weights import make_weights
from llm_compression.harness.clip.checkpoints import VARIANTS
from llm_compression.inference.weight_format import DTYPE_NAMES, DTYPES, WeightMetadata, tensor_bytes, write_weights
from llm_compression.inference.weight_loader import WeightLoader
from llm_compression.multimodal.vision_config import VisionConfig
from tests.strategies import CORRUPTIONS, corrupted, weight_tables

if TYPE_CHECKING:
    from tests.conftest import BuildEncoder

CODECS = ("none", "zstd", "lz4", "snappy", "gzip")
METADATA = WeightMetadata(config={"model_type": "table"}, source={"name": "drawn", "revision": None, "sha256": "0"})
Bits = list[tuple[str, torch.dtype, tuple[int, ...], bytes]]


def bits_of(tensors: dict[str, torch.Tensor]) -> Bits:
    """What has to come back: names in order, dtypes, shapes and bits."""
    return [(name, tensor.dtype, tuple(tensor.shape), bytes(tensor_bytes(tensor))) for name, tensor in tensors.items()]


@pytest.mark.property(5)
@given(table=weight_tables(), codec=st.sampled_from(CODECS))
def test_writing_then_reading_gives_the_same_bits(table: dict[str, torch.Tensor], codec: str) -> None:
    """Property 5: *For any* table of tensors, of any names, supported dtypes and shapes, zero-sized and scalar ones
    included, what is read from the written file has the same names, dtypes, shapes and bits."""
    with tempfile.TemporaryDirectory() as directory:
        report = write_weights(Path(directory, "weights.parquet"), table.items(), METADATA, compression=codec)
        loader = WeightLoader(directory)
        assert bits_of(loader.load_weights()) == bits_of(table)
        assert bits_of(dict(loader.stream())) == bits_of(table)
        assert bits_of({name: loader.get_layer(name) for name in table}) == bits_of(table)
        assert loader.names == list(table)
        assert loader.verify() == report.tensors_sha256
        sizes = (len(table), sum(t.numel() for t in table.values()), sum(t.nbytes for t in table.values()))
        assert (report.num_tensors, report.num_params, report.data_bytes) == sizes
        assert report.file_bytes == report.path.stat().st_size


@pytest.mark.property(5)
@given(table=weight_tables(any_bits=True), codec=st.sampled_from(CODECS))
def test_any_parquet_tool_reads_the_same_bits(table: dict[str, torch.Tensor], codec: str) -> None:
    """Property 5: *For any* table of tensors, of any names, supported dtypes and shapes, zero-sized and scalar ones
    included, what is read from the written file has the same names, dtypes, shapes and bits: NaN payloads too."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "weights.parquet")
        write_weights(path, table.items(), METADATA, compression=codec)
        rows = pq.read_table(path).to_pylist()
        found = [(row["layer_name"], DTYPES[row["dtype"]], tuple(row["shape"]), row["data"]) for row in rows]
        assert found == bits_of(table)
        assert [row["num_params"] for row in rows] == [tensor.numel() for tensor in table.values()]
        assert [row["dtype"] for row in rows] == [DTYPE_NAMES[tensor.dtype] for tensor in table.values()]
        loader = WeightLoader(path)
        bad = [name for name, tensor in table.items() if not tensor.isfinite().all()]
        if bad:
            with pytest.raises(WeightFormatError) as caught:
                loader.load_weights()
            assert bad[0] in str(caught.value)
        else:
            assert bits_of(loader.load_weights()) == bits_of(table)


SMALL = VisionConfig(
    image_size=8, patch_size=4, hidden_size=6, num_layers=1, num_heads=2, intermediate_size=5, projection_dim=3
)


@pytest.fixture(scope="module")
def sound_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A small tower's whole weight file, by codec."""
    path = tmp_path_factory.mktemp("sound") / "weights.parquet"
    metadata = WeightMetadata(config=SMALL.to_dict(), preprocessing={"image_size": 8}, source={"name": "small"})
    files = {}
    for codec in CODECS:
        write_weights(path, make_weights(SMALL).items(), metadata, compression=codec)
        files[codec] = path.read_bytes()
    return files


@pytest.fixture(scope="module")
def least_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The smallest file that has a block, something outside it, and all metadata."""
    path = tmp_path_factory.mktemp("least") / "weights.parquet"
    table = {"w": torch.tensor([1.5, -2.0]), "layers.0.b": torch.tensor([3, 4], dtype=torch.int8)}
    write_weights(path, table.items(), WeightMetadata(config={"a": 1}))
    return path.read_bytes()


def read(data: bytes, path: Path) -> tuple[Bits, WeightMetadata | None]:
    """Tensors and metadata of a file of these bytes."""
    path.write_bytes(data)
    loader = WeightLoader(path)
    return bits_of(loader.load_weights()), loader.metadata


def is_refused_or_unchanged(sound: bytes, damaged: bytes) -> bool:
    """Whether reading a damaged file raises WeightFormatError, and gives what was written where not."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "weights.parquet")
        written = read(sound, path)
        try:
            found = read(damaged, path)
        except WeightFormatError as error:
            refusal = str(error)
        else:
            assert found == written
            return False
    assert str(path) in refusal
    return True


@pytest.mark.property(6)
@given(codec=st.sampled_from(CODECS), corruption=CORRUPTIONS)
def test_a_flipped_byte_never_gives_other_numbers(
    sound_files: dict[str, bytes], codec: str, corruption: tuple[float, int]
) -> None:
    """Property 6: *For any* weight file, any byte of it and any other value of that byte, loading raises
    WeightFormatError or gives the tensors and metadata that were written."""
    is_refused_or_unchanged(sound_files[codec], corrupted(sound_files[codec], corruption))


@pytest.mark.property(6)
@given(mask=st.integers(1, 255), data=st.data())
def test_a_flipped_byte_of_a_weight_is_always_refused(
    sound_files: dict[str, bytes], mask: int, data: st.DataObject
) -> None:
    """Property 6: *For any* weight file, any byte of it and any other value of that byte, loading raises
    WeightFormatError or gives the tensors and metadata that were written: a byte of a weight carries something."""
    sound_file = sound_files["none"]
    name = data.draw(st.sampled_from(list(SMALL.expected_shapes())))
    blob = bytes(tensor_bytes(make_weights(SMALL)[name]))
    where = sound_file.index(blob) + data.draw(st.integers(0, len(blob) - 1))
    damaged = sound_file[:where] + bytes([sound_file[where] ^ mask]) + sound_file[where + 1 :]
    assert is_refused_or_unchanged(sound_file, damaged)


@pytest.mark.requirement("4.5")
@pytest.mark.parametrize("mask_of", [lambda _where: 0xFF, lambda where: 1 << where % 8], ids=["all bits", "one bit"])
def test_every_byte_of_a_file_flipped(least_file: bytes, mask_of: Callable[[int], int], tmp_path: Path) -> None:
    """Property 6: *For any* weight file, any byte of it and any other value of that byte, loading raises
    WeightFormatError or gives the tensors and metadata that were written: each byte of one file in turn."""
    path = tmp_path / "weights.parquet"
    written, refused = read(least_file, path), 0
    for where in range(len(least_file)):
        damaged = least_file[:where] + bytes([least_file[where] ^ mask_of(where)]) + least_file[where + 1 :]
        try:
            assert read(damaged, path) == written, f"byte {where} of {len(least_file)}"
        except WeightFormatError:
            refused += 1
    assert refused > len(least_file) // 2


@pytest.mark.requirement("4.4")
@given(table=weight_tables(), keep=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_refused(
    sound_files: dict[str, bytes], table: dict[str, torch.Tensor], keep: float
) -> None:
    """4.4: IF a Weight File is truncated, empty, not Parquet or of another schema, THEN THE WeightLoader SHALL raise
    WeightFormatError with the path and what was found: at any length."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "weights.parquet")
        write_weights(path, table.items(), METADATA)
        for whole in (*sound_files.values(), path.read_bytes()):
            path.write_bytes(whole[: int(keep * len(whole))])
            with pytest.raises(WeightFormatError) as caught:
                WeightLoader(path).load_weights()
            assert str(path) in str(caught.value)


NAMES = list(VARIANTS["tiny"].expected_shapes())


@pytest.mark.property(14)
@given(
    removed=st.sets(st.sampled_from(NAMES), max_size=6),
    added=st.dictionaries(
        st.from_regex(r"added\.[a-z]{1,8}|vision_model\.encoder\.layers\.[2-9]\.[a-z]{1,8}", fullmatch=True),
        st.lists(st.integers(0, 4), max_size=3).map(tuple),
        max_size=4,
    ),
    reshaped=st.dictionaries(st.sampled_from(NAMES), st.lists(st.integers(1, 5), max_size=4).map(tuple), max_size=6),
)
def test_one_error_lists_every_mismatch(
    build_encoder: BuildEncoder,
    removed: set[str],
    added: dict[str, tuple[int, ...]],
    reshaped: dict[str, tuple[int, ...]],
) -> None:
    """Property 14: *For any* set of tensors that are removed, added or given another shape, loading and converting each
    raise one error whose message names every one of them."""
    config = VARIANTS["tiny"]
    shapes, weights = config.expected_shapes(), make_weights(config)
    reshaped = {name: shape for name, shape in reshaped.items() if name not in removed and shape != shapes[name]}
    weights |= {name: torch.zeros(shape) for name, shape in (added | reshaped).items()}
    kept = {name: tensor for name, tensor in weights.items() if name not in removed}
    if not (removed or added or reshaped):
        build_encoder(config, tensors=kept)
        return
    with pytest.raises(WeightFormatError) as caught:
        build_encoder(config, tensors=kept)
    lines = str(caught.value).splitlines()[1:]
    expected = [f"missing: {name} {shapes[name]}" for name in removed]
    expected += [f"unexpected: {name} {shape}" for name, shape in added.items()]
    expected += [f"mis-shaped: {name} {shape}, expected {shapes[name]}" for name, shape in reshaped.items()]
    assert sorted(line.strip() for line in lines) == sorted(expected)
