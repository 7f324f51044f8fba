"""What an image can be given as: every holder gives the rows of the list of encoded images, or says what to do."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from llm_compression.columns import binary_views
from llm_compression.errors import ImageError
from llm_compression.multimodal.image_inputs import image_sources, list_images
from llm_compression.multimodal.image_processor import ImageProcessor, read_image
from llm_compression.multimodal.vision_encoder import VisionEncoder
from llm_compression.text.text_inputs import Text
from tests.series import PandasSeries, PolarsSeries
from tests.strategies import encode_image, random_array, random_image

ARRAYS: Final = [random_array(40, 50, seed) for seed in range(4)]
PNGS: Final = [encode_image(Image.fromarray(array), "PNG") for array in ARRAYS]


@pytest.fixture(scope="module")
def rows(tiny_encoder: VisionEncoder) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The rows of the encoded images."""
    return tiny_encoder.encode(PNGS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The images as files, 0.png to 3.png."""
    for index, data in enumerate(PNGS):
        (tmp_path / f"{index}.png").write_bytes(data)
    return tmp_path


class LazyColumn(Sequence[Any]):
    """As a column of Hugging Face's datasets: decodes an image when it is asked for it, and may fail then."""

    def __init__(self, images: Sequence[bytes]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> Any:
        image = Image.open(io.BytesIO(self.images[index]))
        image.load()
        return image


class StoredAs(pa.ExtensionType):  # type: ignore[misc]  # pyarrow ships no types
    """An extension type over another type."""

    def __init__(self, storage: pa.DataType) -> None:
        super().__init__(storage, "tests.stored_as")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> StoredAs:
        return cls(storage)


# How to hold the four images of a folder, by what holds them.
HOLDERS: Final[dict[str, Callable[[Path], Any]]] = {
    "glob": lambda folder: (path for path in sorted(folder.glob("*.png"))),
    "iterdir": lambda folder: iter(sorted(folder.iterdir())),
    "map": lambda folder: map(str, sorted(folder.iterdir())),
    "BytesIO": lambda _: [io.BytesIO(data) for data in PNGS],
    "BytesIO at its end": lambda _: [_at_its_end(data) for data in PNGS],
    "records": lambda folder: [
        {"bytes": PNGS[0], "path": "gone"},
        {"path": str(folder / "1.png")},
        {"bytes": None, "path": folder / "2.png"},
        {"bytes": PNGS[3]},
    ],
    "lazy column": lambda _: LazyColumn(PNGS),
    "array of str": lambda folder: np.array([str(path) for path in sorted(folder.iterdir())]),
    "array of objects": lambda _: np.array([*PNGS, None], object)[:4],
    "Arrow scalars": lambda _: list(pa.array(PNGS)),
    "pandas": lambda _: PandasSeries(PNGS),
    "pandas of paths": lambda folder: PandasSeries(sorted(folder.iterdir())),
    "pandas over Arrow": lambda _: PandasSeries(pa.array(PNGS)),
    "polars": lambda _: PolarsSeries(pa.array(PNGS, pa.binary_view())),
    "polars of objects": lambda _: PolarsSeries(list(map(Image.fromarray, ARRAYS))),
}


def _at_its_end(data: bytes) -> io.BytesIO:
    file = io.BytesIO()
    file.write(data)
    return file


@pytest.mark.requirement("28.6", "28.7", "28.9")
@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_a_holder_gives_the_rows_of_its_images(
    tiny_encoder: VisionEncoder, rows: np.ndarray[Any, Any], folder: Path, holder: str, batch_size: int
) -> None:
    """28.6, 28.7, 28.9: iterators, open files, mappings and Series give the rows of the list of their items."""
    found = tiny_encoder.encode(HOLDERS[holder](folder), batch_size=batch_size)
    np.testing.assert_allclose(found, rows, 1e-5, 1e-6)


@pytest.mark.requirement("28.7")
def test_open_files(tiny_encoder: VisionEncoder, rows: np.ndarray[Any, Any], folder: Path) -> None:
    """28.7: an open file is read from its start, alone, twice in a call, and out of an archive."""
    with zipfile.ZipFile(folder / "all.zip", "w") as archive:
        for index, data in enumerate(PNGS):
            archive.writestr(f"{index}.png", data)
    with (
        (folder / "0.png").open("rb") as first,
        (folder / "1.png").open("rb", buffering=0) as second,
        zipfile.ZipFile(folder / "all.zip") as archive,
        archive.open("2.png") as third,
    ):
        first.read(7)
        given = [first, second, third, zipfile.Path(archive, "3.png"), first]
        np.testing.assert_allclose(tiny_encoder.encode(given), rows[[0, 1, 2, 3, 0]], 1e-5, 1e-6)
        np.testing.assert_allclose(tiny_encoder.encode(first), rows[:1], 1e-5, 1e-6)


COLUMNS: Final[dict[str, Callable[[pa.Array], pa.Array]]] = {
    "binary": lambda array: array,
    "large_binary": lambda array: array.cast(pa.large_binary()),
    "binary_view": lambda array: pa.array(array.to_pylist(), pa.binary_view()),
    "dictionary": lambda array: array.dictionary_encode(),
    "run ends": lambda array: pa.RunEndEncodedArray.from_arrays(pa.array(range(1, len(array) + 1), pa.int32()), array),
    "extension": lambda array: pa.ExtensionArray.from_storage(StoredAs(array.type), array),
    "struct": lambda array: pa.array([{"bytes": value, "path": "gone.png"} for value in array.to_pylist()]),
    "struct extension": lambda array: pa.ExtensionArray.from_storage(
        StoredAs(COLUMNS["struct"](array).type), COLUMNS["struct"](array)
    ),
}


@pytest.mark.requirement("28.8")
@pytest.mark.parametrize("kind", COLUMNS)
def test_a_column_of_any_layout(tiny_encoder: VisionEncoder, rows: np.ndarray[Any, Any], kind: str) -> None:
    """28.8: a column of any layout, sliced, chunked and with empty chunks, gives the rows of its values."""
    column = COLUMNS[kind](pa.array([b"none", *PNGS, b"none"])).slice(1, 4)
    assert column.offset == 1
    chunked = pa.chunked_array([column[:0], column[:1], column[1:1], column[1:], column[:0]])
    for given in (column, chunked, pa.table({"image": chunked})["image"]):
        found = tiny_encoder.encode_arrow(given, batch_size=3)
        np.testing.assert_allclose(np.array(found.to_pylist()), rows, 1e-5, 1e-6)
    assert tiny_encoder.encode(column[:0]).shape == (0, 16)
    assert tiny_encoder.encode_arrow(pa.chunked_array([], column.type)).type == pa.list_(pa.float32(), 16)


@pytest.mark.requirement("28.8")
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_a_column_of_paths(
    tiny_encoder: VisionEncoder, rows: np.ndarray[Any, Any], folder: Path, kind: pa.DataType
) -> None:
    """28.8: a column of strings is one of paths, also in a struct without bytes and under a dictionary."""
    paths = pa.array([str(path) for path in sorted(folder.iterdir())], kind)
    struct = pa.StructArray.from_arrays([pa.nulls(4, pa.binary()), paths], ["bytes", "path"])
    for given in (paths, struct, paths.dictionary_encode() if kind != pa.string_view() else paths):
        np.testing.assert_allclose(tiny_encoder.encode(given), rows, 1e-5, 1e-6)


@pytest.mark.requirement("28.8")
@pytest.mark.parametrize("kind", COLUMNS)
def test_a_null_keeps_its_place(kind: str) -> None:
    """28.8: a null is a null at its place, whatever the layout; of a struct, a null or one of nulls."""
    values = list_images(COLUMNS[kind](pa.array([PNGS[0], None, b"short", None, PNGS[1]])))
    for value, wanted in zip(values, [PNGS[0], None, b"short", None, PNGS[1]], strict=True):
        if "struct" in kind:
            assert value == "gone.png" if wanted is None else bytes(value.data) == wanted
        else:
            assert (None if value is None else bytes(value)) == wanted
    assert list_images(pa.array([None, {"bytes": None, "path": None}, {"bytes": b"x", "path": None}]))[:2] == [None] * 2
    assert list_images(pa.array([None, None])) == [None, None]


@pytest.mark.requirement("28.8")
def test_views_of_a_view_column_are_its_own_memory() -> None:
    """28.8: the values of a binary_view column are read where they lie, short ones inside their headers."""
    array = pa.array([b"skipped", b"short", None, b"a value that is longer than twelve bytes"], pa.binary_view())[1:]
    short, null, long = binary_views(array)
    assert short is not None
    assert long is not None
    assert (bytes(short), null, bytes(long)) == (b"short", None, b"a value that is longer than twelve bytes")
    _, headers, data = array.buffers()
    for view, buffer in ((short, headers), (long, data)):
        address = np.frombuffer(view, np.uint8).ctypes.data
        assert buffer.address <= address < buffer.address + buffer.size


@pytest.mark.requirement("28.7")
@pytest.mark.parametrize("mode", ["L", "RGBA", "RGB"])
def test_arrays_of_every_mode(mode: str) -> None:
    """28.7: an array (H, W), (H, W, 1) or (H, W, 4), of any strides, gives the bits of the PIL image; RGBA on white."""
    image = random_image(mode, 50, 40, 1)
    array, processor = np.asarray(image), ImageProcessor(32)
    given = [array, array[::-1][::-1], np.asfortranarray(array)]
    if mode == "L":
        given.append(array[:, :, None])
    for each in given:
        assert torch.equal(processor(each), processor(image))
        if each.ndim == 3:
            assert torch.equal(processor(np.stack([each, each])), processor([image, image]))
    if mode == "RGBA":
        clear = array.copy()
        clear[:, :, 3] = 0
        assert torch.equal(processor(clear), processor(np.full((40, 50, 3), 255, np.uint8)))


@pytest.mark.requirement("28.10", "6.8")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (ARRAYS[0] / 255, r"float64 with shape \(40, 50, 3\).*\(255 \* x\)\.round\(\)\.astype\(numpy\.uint8\)"),
        (np.stack(ARRAYS).astype(np.float32), r"float32 with shape \(4, 40, 50, 3\).*encode_pixels takes"),
        (ARRAYS[0].transpose(2, 0, 1), r"shape \(3, 40, 50\), expected.*channels first, \.transpose\(1, 2, 0\)"),
        (np.stack(ARRAYS).transpose(0, 3, 1, 2), r"channels first.*\.transpose\(0, 2, 3, 1\)"),
        (np.zeros((1, 40, 50), np.uint8), "channels first"),
        (np.zeros((40, 50, 2), np.uint8), r"\(40, 50, 2\), expected uint8"),
        (np.zeros((40, 50, 3), np.uint16), "an array of uint16"),
        (np.zeros((0, 50, 3), np.uint8), r"\(0, 50, 3\), expected"),
        (np.zeros((2, 0, 50, 3), np.uint8), r"\(2, 0, 50, 3\), expected"),
        (np.ma.masked_array(ARRAYS[0]), r"a masked array.*\.filled"),
        (np.zeros(5, np.uint8), r"shape \(5,\), expected"),
        (torch.from_numpy(ARRAYS[0]), r"a tensor of torch\.uint8.*\.numpy\(\)"),
        (Text("a cat"), "a text, expected .* encode_text"),
        ({"image": PNGS[0]}, "got dict"),
        ({PNGS[0]}, "no order"),
        (pa.table({"image": PNGS}), "a table, expected one column"),
        (pa.array([{"picture": PNGS[0]}]), "expected string"),
        (pa.array([[PNGS[0]]]), "expected string"),
        (None, "got NoneType"),
    ],
)
def test_what_is_no_image_says_what_to_do(given: Any, message: str) -> None:
    """28.10: an array of floats or with its channels first, and what else is no image, is refused with what to do."""
    with pytest.raises(ImageError, match=message):
        ImageProcessor(32)(given)


@pytest.mark.requirement("28.7")
def test_a_file_that_cannot_be_read_is_named(folder: Path) -> None:
    """28.7: an open file that is closed or open as text is an ImageError with its name."""
    name = str(folder / "0.png")
    with (folder / "0.png").open(encoding="latin-1") as text, pytest.raises(ImageError, match="open as text") as caught:
        read_image(text, 3)
    assert (caught.value.position, caught.value.name) == (3, name)
    with (folder / "0.png").open("rb") as file:
        pass
    with pytest.raises(ImageError, match="closed"):
        read_image(file)
    with pytest.raises(ImageError) as caught:
        read_image({"bytes": b"none", "path": "cat.png"}, 2)
    assert (caught.value.position, caught.value.name) == (2, "cat.png")


@pytest.mark.requirement("28.6", "28.12")
def test_a_column_that_fails_at_one_item(tiny_encoder: VisionEncoder, rows: np.ndarray[Any, Any]) -> None:
    """28.6: what a lazy sequence raises for one item is the error of that item alone."""
    kept = tiny_encoder.encode(LazyColumn([PNGS[0], b"none", PNGS[2]]), on_error="skip")
    assert kept.positions.tolist() == [0, 2]
    np.testing.assert_allclose(kept.embeddings, rows[[0, 2]], 1e-5, 1e-6)
    assert "cannot identify" in kept.errors[0].reason


@pytest.mark.requirement("28.16")
def test_a_generator_is_taken_batch_by_batch(tiny_encoder: VisionEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """28.16: no image is taken that is more than two batches ahead of the batch that is being encoded."""
    taken, encoded, ahead = 0, 0, []

    def images() -> Iterator[Any]:
        nonlocal taken
        for _ in range(40):
            taken += 1
            yield ARRAYS[0]

    real = VisionEncoder._embed_batch

    def recording(self: VisionEncoder, batch: torch.Tensor, normalize: bool) -> torch.Tensor:
        nonlocal encoded
        ahead.append(taken - encoded)
        encoded += len(batch)
        return real(self, batch, normalize)

    monkeypatch.setattr(VisionEncoder, "_embed_batch", recording)
    assert tiny_encoder.encode(images(), batch_size=4).shape == (40, 16)
    assert len(ahead) == 10
    assert max(ahead) <= 3 * 4
    assert image_sources(images()).number is None


@pytest.mark.requirement("28.9")
def test_no_library_of_series_is_imported() -> None:
    """28.9: a Series is told without importing pandas, polars or datasets."""
    code = (
        "import sys; from tests.series import PandasSeries, PolarsSeries; import pyarrow as pa\n"
        "from llm_compression.multimodal.image_inputs import list_images\n"
        "for series in PandasSeries(['a', None]), PolarsSeries(pa.array(['a', None])):\n"
        "    assert list_images(series) == ['a', None]\n"
        "assert not {'pandas', 'polars', 'datasets'} & set(sys.modules), sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
