"""ImageProcessor: every accepted kind of image, orientation, transparency, the crop, and its constants."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch
from PIL import Image

from llm_compression.errors import ConfigError
from llm_compression.multimodal.image_inputs import list_images
from llm_compression.multimodal.image_processor import CLIP_MEAN, CLIP_STD, ImageProcessor, read_image
from tests.strategies import encode_image, random_array, random_image

Array = npt.NDArray[np.uint8]
SIZE = 16
PROCESSOR = ImageProcessor(SIZE)
ARRAY = random_array(24, 30, 0)
PICTURE = Image.fromarray(ARRAY)
PNG = encode_image(PICTURE, "PNG")
EXPECTED = PROCESSOR(PICTURE)


def kinds(directory: Path) -> dict[str, Any]:
    """The same picture in every form that one image may have."""
    path = directory / "ä picture.png"
    path.write_bytes(PNG)
    return {
        "path": path,
        "path as text": str(path),
        "bytes": PNG,
        "bytearray": bytearray(PNG),
        "memoryview": memoryview(PNG),
        "part of a memoryview": memoryview(b"xx" + PNG + b"yy")[2:-2],
        "Arrow buffer": pa.py_buffer(PNG),
        "PIL image": PICTURE,
        "array": ARRAY,
        "array in another order": np.asfortranarray(ARRAY),
        "part of an array": np.pad(ARRAY, ((1, 2), (3, 0), (0, 0)))[1:-2, 3:],
        "read-only array": np.frombuffer(ARRAY.tobytes(), np.uint8).reshape(ARRAY.shape),
    }


@pytest.mark.requirement("6.1")
def test_one_image_of_every_kind(tmp_path: Path) -> None:
    """6.1: WHEN given n accepted images, n = 0 included, THE ImageProcessor SHALL return a float32 tensor of shape (n,
    3, S, S): one for a lone image of any kind, which is the same picture in each."""
    for kind, image in kinds(tmp_path).items():
        for given in (image, [image], (image,)):
            pixels = PROCESSOR(given)
            assert (pixels.shape, pixels.dtype) == ((1, 3, SIZE, SIZE), torch.float32), kind
            assert torch.equal(pixels, EXPECTED), kind
    assert torch.equal(PROCESSOR(list(kinds(tmp_path).values())), EXPECTED.expand(12, -1, -1, -1))


def columns(directory: Path) -> dict[str, pa.Array | pa.ChunkedArray]:
    """The picture, a black one and the picture again, as columns of each type."""
    path, black = directory / "picture.png", directory / "black.png"
    path.write_bytes(PNG)
    Image.new("RGB", (20, 20)).save(black)
    texts = [str(path), str(black), str(path)]
    blobs = [PNG, black.read_bytes(), PNG]
    return {
        "string": pa.array(texts),
        "large_string": pa.array(texts, pa.large_string()),
        "binary": pa.array(blobs),
        "large_binary": pa.array(blobs, pa.large_binary()),
        "slice of binary": pa.array([b"no image", *blobs, b"no image"])[1:4],
        "slice of string": pa.array(["no file", *texts, "no file"])[1:4],
        "chunked": pa.chunked_array([blobs[:1], [], blobs[1:]], pa.binary()),
        "column of a table": pa.table({"image": blobs})["image"],
    }


@pytest.mark.requirement("5.1")
def test_columns_of_every_type(tmp_path: Path) -> None:
    """5.1: WHEN `encode` is given n images as a path, encoded bytes, a PIL image, a uint8 array (H, W, 3) or (n, H, W,
    3), a list of these or an Arrow array of encoded images, one image and n = 0 included, THE VisionEncoder SHALL
    return a float32 tensor of shape (n, dimension): the processor gives a row for each row, in order."""
    black = PROCESSOR(np.zeros((20, 20, 3), np.uint8))
    for kind, column in columns(tmp_path).items():
        assert torch.equal(PROCESSOR(column), torch.cat((EXPECTED, black, EXPECTED))), kind
    batch = np.stack([ARRAY, np.zeros_like(ARRAY), ARRAY])
    assert torch.equal(PROCESSOR(batch), torch.cat((EXPECTED, black, EXPECTED)))


@pytest.mark.requirement("5.4")
def test_bytes_of_a_column_are_read_in_place() -> None:
    """5.4: WHEN `encode_arrow` is given a binary or string column, THE VisionEncoder SHALL return a FixedSizeListArray
    that has one row for each row of the column and wraps the memory of the embedding matrix: and its images are read
    where they lie."""
    array = pa.array([PNG, b"", PNG])
    data = array.buffers()[2]
    first, _, last = list_images(array)
    assert np.frombuffer(first, np.uint8).ctypes.data == data.address
    assert np.frombuffer(last, np.uint8).ctypes.data == data.address + len(PNG)


@pytest.mark.requirement("6.1")
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP"])
def test_file_formats(tmp_path: Path, file_format: str) -> None:
    """6.1: WHEN given n accepted images, n = 0 included, THE ImageProcessor SHALL return a float32 tensor of shape (n,
    3, S, S): from the bytes of a file as from the file."""
    data = encode_image(PICTURE, file_format)
    path = tmp_path / f"picture.{file_format.lower()}"
    path.write_bytes(data)
    with Image.open(path) as opened:
        expected = PROCESSOR(opened)
    for source in (path, data, bytearray(data), pa.array([data]), pa.py_buffer(data)):
        assert torch.equal(PROCESSOR(source), expected)


# what turns the stored picture upright, by the value of its EXIF tag
TURNS: dict[int, Callable[[Array], Array]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
    8: lambda stored: np.rot90(stored),
}


@pytest.mark.requirement("6.3")
@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_files_are_turned_as_exif_says(tmp_path: Path, file_format: str, orientation: int) -> None:
    """6.3: WHEN an image is a file or encoded bytes, THE ImageProcessor SHALL apply its EXIF orientation."""
    data = encode_image(PICTURE, file_format, orientation)
    path = tmp_path / "turned"
    path.write_bytes(data)
    with Image.open(io.BytesIO(encode_image(PICTURE, file_format))) as opened:
        expected = PROCESSOR(np.ascontiguousarray(TURNS[orientation](np.asarray(opened))))
    for source in (path, str(path), data, memoryview(data), pa.array([data]), pa.array([str(path)])):
        assert torch.equal(PROCESSOR(source), expected)


@pytest.mark.requirement("6.4")
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_and_arrays_are_taken_as_they_stand(orientation: int) -> None:
    """6.4: WHEN an image is a PIL image or an array, THE ImageProcessor SHALL keep its rows and columns as they
    stand."""
    with Image.open(io.BytesIO(encode_image(PICTURE, "PNG", orientation))) as opened:
        assert opened.getexif()[0x0112] == orientation
        assert torch.equal(PROCESSOR(opened), EXPECTED)
    pixels = PROCESSOR([ARRAY[:, ::-1], ARRAY[::-1]])
    assert not torch.equal(pixels[0], EXPECTED[0])
    assert not torch.equal(pixels[1], EXPECTED[0])


def values_of(rgb: tuple[int, int, int]) -> npt.NDArray[np.float32]:
    values: npt.NDArray[np.float64] = (np.array(rgb) / 255 - np.array(CLIP_MEAN)) / np.array(CLIP_STD)
    return values.astype(np.float32)


@pytest.mark.requirement("6.5")
@pytest.mark.parametrize(
    ("image", "rgb"),
    [
        (Image.new("RGBA", (5, 5), (10, 20, 30, 0)), (255, 255, 255)),
        (Image.new("RGBA", (5, 5), (10, 20, 30, 255)), (10, 20, 30)),
        (Image.new("RGBA", (5, 5), (0, 100, 200, 51)), (204, 224, 244)),
        (Image.new("LA", (5, 5), (40, 0)), (255, 255, 255)),
        (Image.new("LA", (5, 5), (40, 255)), (40, 40, 40)),
        (Image.new("RGB", (5, 5), (1, 2, 3)), (1, 2, 3)),
    ],
)
def test_transparency_is_put_on_white(image: Image.Image, rgb: tuple[int, int, int]) -> None:
    """6.5: WHERE an image has transparency, THE ImageProcessor SHALL composite it on white."""
    np.testing.assert_allclose(ImageProcessor(4)(image)[0, :, 1, 1], values_of(rgb), rtol=1e-5)
    np.testing.assert_allclose(ImageProcessor(4)(encode_image(image, "PNG"))[0, :, 1, 1], values_of(rgb), rtol=1e-5)


@pytest.mark.requirement("6.5")
@pytest.mark.parametrize("transparency", [0, bytes([0, 255])])
def test_a_transparent_palette_entry_is_put_on_white(transparency: int | bytes) -> None:
    """6.5: WHERE an image has transparency, THE ImageProcessor SHALL composite it on white."""
    image = Image.new("P", (8, 8), 0)
    image.putpalette([200, 0, 0, 0, 0, 200])
    image.paste(1, (4, 0, 8, 8))
    image.info["transparency"] = transparency
    for source in (image, encode_image(image, "PNG")):
        pixels = ImageProcessor(8)(source)[0]
        np.testing.assert_allclose(pixels[:, 4, 1], values_of((255, 255, 255)), rtol=1e-5)
        np.testing.assert_allclose(pixels[:, 4, 6], values_of((0, 0, 200)), rtol=1e-5)


@pytest.mark.requirement("6.4")
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "I;16", "F"])
def test_no_image_is_changed(mode: str) -> None:
    """6.4: WHEN an image is a PIL image or an array, THE ImageProcessor SHALL keep its rows and columns as they stand:
    also in the caller's own image."""
    image = random_image(mode, 20, 14, 3)
    before = (image.mode, image.size, image.tobytes())
    PROCESSOR(image)
    assert (image.mode, image.size, image.tobytes()) == before


@pytest.mark.requirement("6.3")
def test_reading_one_image() -> None:
    """6.3: WHEN an image is a file or encoded bytes, THE ImageProcessor SHALL apply its EXIF orientation; 6.4: a PIL
    image keeps its own."""
    assert read_image(PICTURE) is PICTURE
    assert read_image(encode_image(PICTURE, "PNG", 6)).size == (24, 30)
    assert read_image(ARRAY).tobytes() == PICTURE.tobytes()


@pytest.mark.requirement("5.9")
@pytest.mark.parametrize(
    ("spare", "floor", "rounded"), [(0, 0, 0), (1, 0, 0), (2, 1, 1), (3, 1, 2), (5, 2, 2), (7, 3, 4)]
)
def test_where_the_crop_starts(spare: int, floor: int, rounded: int) -> None:
    """5.9: WHERE a Weight File carries preprocessing constants, THE VisionEncoder SHALL preprocess images with them:
    the crop of either family, one pixel apart where the spare length leaves 3 when divided by 4."""
    array = random_array(SIZE, SIZE + spare, 5)
    for offset, start in (("floor", floor), ("round", rounded)):
        found = ImageProcessor(SIZE, crop_offset=offset)(array)
        assert torch.equal(found, ImageProcessor(SIZE)(np.ascontiguousarray(array[:, start : start + SIZE])))
        turned = ImageProcessor(SIZE, crop_offset=offset)(np.ascontiguousarray(array.transpose(1, 0, 2)))
        assert torch.equal(turned, found.transpose(2, 3))


@pytest.mark.requirement("5.9")
def test_other_constants() -> None:
    """5.9: WHERE a Weight File carries preprocessing constants, THE VisionEncoder SHALL preprocess images with them."""
    mean, std = (0.5, 0.25, 0.125), (0.5, 1.0, 2.0)
    pixels = ImageProcessor(4, mean=mean, std=std)(np.full((4, 4, 3), 255, np.uint8))
    assert pixels[0, :, 2, 2].tolist() == [1.0, 0.75, 0.4375]
    small = ImageProcessor(4, resize_size=8)(ARRAY)
    assert torch.equal(small, ImageProcessor(8)(ARRAY)[:, :, 2:6, 2:6])


@pytest.mark.requirement("5.9")
def test_constants_round_trip() -> None:
    """5.9: WHERE a Weight File carries preprocessing constants, THE VisionEncoder SHALL preprocess images with them: as
    JSON, and back the same."""
    processor = ImageProcessor(20, 24, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "round")
    values = {
        "image_size": 20,
        "resize_size": 24,
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
        "crop_offset": "round",
    }
    assert processor.to_dict() == values
    again = ImageProcessor.from_dict(json.loads(json.dumps(values)))
    assert again.to_dict() == values
    assert torch.equal(again(ARRAY), processor(ARRAY))
    defaults = ImageProcessor().to_dict()
    assert (defaults["image_size"], defaults["resize_size"], defaults["crop_offset"]) == (224, 224, "floor")
    assert (defaults["mean"], defaults["std"]) == (list(CLIP_MEAN), list(CLIP_STD))


@pytest.mark.requirement("12.6")
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_size": 0}, "image_size: 0, expected a positive whole number"),
        ({"image_size": 2.5}, "image_size: 2.5, expected a positive whole number"),
        ({"image_size": True}, "image_size: True, expected a positive whole number"),
        ({"resize_size": -1}, "resize_size: -1, expected a positive whole number"),
        ({"resize_size": "8"}, "resize_size: '8', expected a positive whole number"),
        ({"mean": (0.5, 0.5)}, "mean: (0.5, 0.5), expected three finite numbers"),
        ({"mean": (0.5, 0.5, float("nan"))}, "expected three finite numbers"),
        ({"std": (0.5, 0.5, 0.0)}, "std: (0.5, 0.5, 0.0), expected three finite numbers (std: positive)"),
        ({"std": (0.5, -0.5, 0.5)}, "expected three finite numbers (std: positive)"),
        ({"std": (0.5, float("inf"), 0.5)}, "expected three finite numbers (std: positive)"),
        ({"crop_offset": "ceil"}, "crop_offset: 'ceil', expected one of floor, round"),
    ],
)
def test_constants_out_of_range(values: dict[str, Any], message: str) -> None:
    """12.6: IF the Package refuses an input or a file, THEN THE Package SHALL raise a subclass of `LlmCompressionError`
    whose message has the value found and what was expected."""
    with pytest.raises(ConfigError, match=re.escape(message)):
        ImageProcessor(**values)
    with pytest.raises(ConfigError, match=re.escape(message)):
        ImageProcessor.from_dict({**ImageProcessor().to_dict(), **values})


@pytest.mark.requirement("12.6")
@pytest.mark.parametrize("name", ["image_size", "resize_size", "mean", "std", "crop_offset"])
def test_missing_and_unknown_constants(name: str) -> None:
    """12.6: IF the Package refuses an input or a file, THEN THE Package SHALL raise a subclass of `LlmCompressionError`
    whose message has the value found and what was expected."""
    values = ImageProcessor().to_dict()
    with pytest.raises(ConfigError, match=re.escape("preprocessing: missing [], unknown ['resample']")):
        ImageProcessor.from_dict({**values, "resample": 3})
    del values[name]
    with pytest.raises(ConfigError, match=re.escape(f"preprocessing: missing ['{name}'], unknown []")):
        ImageProcessor.from_dict(values)


@pytest.mark.requirement("6.1")
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_one_lazily_opened_picture_many_times(tmp_path: Path, suffix: str) -> None:
    """6.1: a picture that was opened and not yet decoded may stand several times in a batch."""
    noise = np.random.default_rng(0).integers(0, 256, (600, 700, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / f"a.{suffix}")
    processor = ImageProcessor(32)
    with Image.open(tmp_path / f"a.{suffix}") as picture:
        (batch,) = [pixels.clone() for pixels in processor.batches([picture] * 6, 8)]
    assert all(torch.equal(row, batch[0]) for row in batch)
    assert torch.equal(batch[:1], processor(tmp_path / f"a.{suffix}"))
