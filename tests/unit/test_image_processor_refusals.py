"""ImageProcessor: what is no image, or is not the image it should be, is refused by position and name."""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from llm_compression.errors import ImageError
from llm_compression.multimodal.image_processor import ImageProcessor
from tests.strategies import encode_image, random_array, random_image

PROCESSOR = ImageProcessor(16)
PICTURE = random_image("RGB", 30, 24, 0)
PNG, JPEG = encode_image(PICTURE, "PNG"), encode_image(PICTURE, "JPEG")


def png(width: int, height: int) -> bytes:
    """The bytes of a black 1-bit PNG of any size, some hundred of them."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    packed = zlib.compress(bytes(min(height, 10) * (1 + (width + 7) // 8)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


@pytest.mark.requirement("6.6")
@pytest.mark.parametrize(
    "data",
    [b"", b"this is no image", PNG[:-100], PNG[:20], JPEG[:-100], JPEG[: len(JPEG) // 2], bytes(1000), PNG[8:]],
    ids=["empty", "text", "PNG cut", "PNG header", "JPEG cut", "JPEG half", "zeros", "PNG without signature"],
)
@pytest.mark.parametrize("position", [0, 2, 4])
def test_an_unreadable_image_in_a_batch(tmp_path: Path, data: bytes, position: int) -> None:
    """6.6: IF an image is missing or cannot be read, THEN THE ImageProcessor SHALL raise ImageError with the position
    of the image in the call and its name."""
    path = tmp_path / "broken.jpg"
    path.write_bytes(data)
    sound: list[Any] = [PICTURE, PNG, random_array(9, 9, 0), JPEG]
    for bad, name in ((path, str(path)), (str(path), str(path)), (data, f"{len(data)} bytes")):
        given = [*sound[:position], bad, *sound[position:]]
        with pytest.raises(ImageError, match=re.escape(f"image {position} ({name}): cannot be read: ")) as caught:
            PROCESSOR(given)
        assert (caught.value.position, caught.value.name) == (position, name)
        with pytest.raises(ImageError) as caught:
            list(PROCESSOR.batches(given, 2))
        assert (caught.value.position, caught.value.name) == (position, name)


@pytest.mark.requirement("6.6")
def test_a_missing_file_and_a_directory(tmp_path: Path) -> None:
    """6.6: IF an image is missing or cannot be read, THEN THE ImageProcessor SHALL raise ImageError with the position
    of the image in the call and its name."""
    for bad in (tmp_path / "no photo.jpg", tmp_path):
        for given in ([PNG, bad], [PNG, str(bad)], pa.array(["", str(bad)])[1:]):
            with pytest.raises(ImageError) as caught:
                PROCESSOR(given)
            assert caught.value.position == len(given) - 1
            assert caught.value.name == str(bad)
            assert str(bad) in str(caught.value)


@pytest.mark.requirement("6.6")
def test_the_first_of_several_is_named() -> None:
    """6.6: IF an image is missing or cannot be read, THEN THE ImageProcessor SHALL raise ImageError with the position
    of the image in the call and its name: in whichever order they are read."""
    given = [PNG] * 6 + ["missing one"] + [PNG] * 3 + ["missing two"] + [b"no image"]
    for batch_size in (1, 4, 20):
        with pytest.raises(ImageError) as caught:
            list(PROCESSOR.batches(given, batch_size))
        assert (caught.value.position, caught.value.name) == (6, "missing one")


@pytest.mark.requirement("6.6")
def test_batches_before_an_unreadable_image_are_sound() -> None:
    """6.6: IF an image is missing or cannot be read, THEN THE ImageProcessor SHALL raise ImageError with the position
    of the image in the call and its name: after whole batches only."""
    batches = PROCESSOR.batches([PNG, PICTURE, PNG, "missing"], 2)
    assert torch.equal(next(batches), PROCESSOR([PNG, PICTURE]))
    with pytest.raises(ImageError, match=r"image 3 \(missing\)"):
        next(batches)


@pytest.mark.requirement("6.1")
def test_an_abandoned_loop_over_batches_ends() -> None:
    """6.1: WHEN given n accepted images, n = 0 included, THE ImageProcessor SHALL return a float32 tensor of shape (n,
    3, S, S): no thread stays behind a loop that was left."""
    batches = PROCESSOR.batches([PNG] * 9, 2)
    next(batches)
    batches.close()  # type: ignore[attr-defined]  # an iterator to callers, a generator here
    with pytest.raises(StopIteration):
        next(batches)


@pytest.mark.requirement("6.6")
@pytest.mark.parametrize("values", [[PNG, None, PNG], [None], [PNG, PNG, None]])
def test_a_null_of_a_column(values: list[bytes | None], tmp_path: Path) -> None:
    """6.6: IF an image is missing or cannot be read, THEN THE ImageProcessor SHALL raise ImageError with the position
    of the image in the call and its name."""
    position = values.index(None)
    (tmp_path / "x.png").write_bytes(PNG)
    texts = [None if value is None else str(tmp_path / "x.png") for value in values]
    for column in (
        pa.array(values, pa.binary()),
        pa.array(values, pa.large_binary()),
        pa.array([PNG, *values], pa.binary())[1:],
        pa.array(texts, pa.string()),
        pa.chunked_array([values[:1], values[1:]], pa.binary()),
        pa.chunked_array([[], values], pa.binary()),
    ):
        with pytest.raises(ImageError, match=f"image {position}: null, expected an image") as caught:
            PROCESSOR(column)
        assert caught.value.position == position


@pytest.mark.requirement("6.7")
@pytest.mark.parametrize(("width", "height"), [(30000, 30000), (1 << 20, 1 << 10), (65500, 65500)])
def test_a_decompression_bomb(tmp_path: Path, width: int, height: int) -> None:
    """6.7: IF an image is a decompression bomb, THEN THE ImageProcessor SHALL raise ImageError."""
    data = png(width, height)
    assert len(data) < 2000
    (tmp_path / "bomb.png").write_bytes(data)
    for bomb in (data, tmp_path / "bomb.png", pa.array([data])):
        with pytest.raises(ImageError, match="decompression bomb"):
            PROCESSOR(bomb)


ARRAYS: dict[str, np.ndarray[Any, Any]] = {
    "float32": np.zeros((4, 5, 3), np.float32),
    "int8": np.zeros((4, 5, 3), np.int8),
    "uint16": np.zeros((4, 5, 3), np.uint16),
    "bool": np.zeros((4, 5, 3), np.bool_),
    "object": np.empty((4, 5, 3), object),
    "two channels": np.zeros((4, 5, 2), np.uint8),
    "five channels": np.zeros((4, 5, 5), np.uint8),
    "channels first": np.zeros((3, 4, 5), np.uint8),
    "one dimension": np.zeros(3, np.uint8),
    "scalar": np.zeros((), np.uint8),
    "five dimensions": np.zeros((1, 1, 4, 5, 3), np.uint8),
    "no rows": np.zeros((0, 5, 3), np.uint8),
    "no columns": np.zeros((4, 0, 3), np.uint8),
}


@pytest.mark.requirement("6.8")
@pytest.mark.parametrize("what", ARRAYS)
def test_an_array_that_is_no_picture(what: str) -> None:
    """6.8: IF an array has a dtype, shape or channel count other than uint8 (H, W, 3), (H, W, 4), (H, W, 1) or (H, W),
    THEN THE ImageProcessor SHALL raise ImageError with what was found and what was expected."""
    array = ARRAYS[what]
    message = f"an array of {array.dtype} with shape {array.shape}, expected uint8 (H, W, 3)"
    for position, given in ((0, array), (0, [array]), (2, [PNG, PICTURE, array])):
        with pytest.raises(ImageError, match=re.escape(f"image {position}: {message}")) as caught:
            PROCESSOR(given)
        assert caught.value.position == position


@pytest.mark.requirement("6.8")
@pytest.mark.parametrize(
    "batch",
    [np.zeros((2, 4, 5, 3), np.float32), np.zeros((2, 4, 5, 2), np.uint8), np.zeros((2, 3, 4, 5), np.uint8)],
)
def test_a_batch_of_arrays_that_are_no_pictures(batch: np.ndarray[Any, Any]) -> None:
    """6.8: IF an array has a dtype, shape or channel count other than uint8 (H, W, 3), (H, W, 4), (H, W, 1) or (H, W),
    THEN THE ImageProcessor SHALL raise ImageError with what was found and what was expected."""
    message = f"image: an array of {batch.dtype} with shape {batch.shape}, expected uint8 (H, W, 3)"
    with pytest.raises(ImageError, match=re.escape(message)):
        PROCESSOR(batch)


@pytest.mark.requirement("6.6")
@pytest.mark.parametrize(
    "what",
    [None, 3, 2.5, {"a": 1}, torch.zeros(3, 4, 5), object(), [PNG]],
    # an object's own name has its address, and a test must have one name in every run
    ids=lambda what: type(what).__name__,
)
def test_what_is_no_image_at_all(what: Any) -> None:
    """6.6: IF an image is missing or cannot be read, THEN THE ImageProcessor SHALL raise ImageError with the position
    of the image in the call and its name."""
    found = {
        "NoneType": "null, expected an image:",
        "Tensor": "a tensor of torch.float32 with shape (3, 4, 5), expected",
    }.get(type(what).__name__, f"got {type(what).__name__}, expected")
    message = f"image 1: {found} a path, encoded bytes, an open file, a PIL image or a uint8 array (H, W, 3)"
    with pytest.raises(ImageError, match=re.escape(message)) as caught:
        PROCESSOR([PNG, what])
    assert caught.value.position == 1


@pytest.mark.requirement("6.6")
@pytest.mark.parametrize(
    "column",
    [
        pa.array([1, 2]),
        pa.array([[b"x"]]),
        pa.array([1]).dictionary_encode(),
        pa.array([{"picture": b"abc"}]),
    ],
    ids=lambda column: str(column.type),
)
def test_a_column_of_another_type(column: pa.Array) -> None:
    """6.6: IF an image is missing or cannot be read, THEN THE ImageProcessor SHALL raise ImageError with the position
    of the image in the call and its name."""
    message = f"an Arrow array of {column.type}, expected string (paths), binary (encoded images)"
    for given in (column, pa.chunked_array([column])):
        with pytest.raises(ImageError, match=re.escape(message)):
            PROCESSOR(given)


@pytest.mark.requirement("6.6")
def test_a_closed_picture_and_one_of_no_size() -> None:
    """6.6: IF an image is missing or cannot be read, THEN THE ImageProcessor SHALL raise ImageError with the position
    of the image in the call and its name."""
    with pytest.raises(ImageError, match=r"image 0 \(PIL image, mode RGB\): cannot be read: 0 x 5 pixels"):
        PROCESSOR(Image.new("RGB", (0, 5)))
    closed = Image.new("RGB", (4, 4))
    closed.close()
    with pytest.raises(ImageError, match=r"image 1 \(PIL image, mode RGB\): cannot be read"):
        PROCESSOR([PNG, closed])
