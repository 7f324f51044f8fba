"""Properties of preprocessing: the bits that the published recipe gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from llm_compression.multimodal.image_processor import ImageProcessor
from tests.strategies import FORMATS, SEEDS, encode_image, images, pil_images, random_array, random_image

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def reference_pixels(image: Image.Image, size: int, resize: int | None = None) -> npt.NDArray[np.float32]:
    """The recipe step by step: to RGB on white, bicubic on the short edge, centre crop, scale, normalise."""
    if image.mode == "La":
        image = image.convert("LA")  # Pillow has no way from La to RGBA
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        image = white
    image = image.convert("RGB")
    width, height = image.size
    short = size if resize is None else resize
    if width <= height:
        image = image.resize((short, int(short * height / width)), Image.Resampling.BICUBIC)
    else:
        image = image.resize((int(short * width / height), short), Image.Resampling.BICUBIC)
    array = np.asarray(image)
    padded = np.zeros((max(size, array.shape[0]), max(size, array.shape[1]), 3), np.uint8)
    top, left = (padded.shape[0] - array.shape[0] + 1) // 2, (padded.shape[1] - array.shape[1] + 1) // 2
    padded[top : top + array.shape[0], left : left + array.shape[1]] = array
    top, left = (padded.shape[0] - size) // 2, (padded.shape[1] - size) // 2
    crop = padded[top : top + size, left : left + size]
    scaled = (crop.astype(np.float64) * (1 / 255)).astype(np.float32)
    normalised: npt.NDArray[np.float32] = ((scaled - MEAN) / STD).transpose(2, 0, 1)
    return normalised


def bits(pixels: Any) -> npt.NDArray[np.int32]:
    """float32 as the integers of its bits."""
    assert pixels.dtype in (np.float32, torch.float32)
    return np.ascontiguousarray(np.asarray(pixels)).view(np.int32)


@pytest.mark.property(16)
@given(given_images=st.lists(pil_images(60), max_size=4), size=st.integers(1, 50))
def test_preprocessing_gives_the_bits_of_the_recipe(given_images: list[Image.Image], size: int) -> None:
    """Property 16: *For any* image size and mode, the pixels of ImageProcessor equal those of the PIL image processor
    of transformers bit for bit: here the published recipe, transformers itself in the parity tests."""
    pixels = ImageProcessor(size)(given_images)
    assert len(pixels) == len(given_images)
    for found, image in zip(pixels, given_images, strict=True):
        np.testing.assert_array_equal(bits(found), bits(reference_pixels(image, size)))


@pytest.mark.property(16)
@given(
    size=st.integers(1, 40), resize=st.integers(1, 60), height=st.integers(1, 60), width=st.integers(1, 60), seed=SEEDS
)
def test_resizing_to_another_size_than_the_crop(size: int, resize: int, height: int, width: int, seed: int) -> None:
    """Property 16: *For any* image size and mode, the pixels of ImageProcessor equal those of the PIL image processor
    of transformers bit for bit: also with a short edge other than the crop, padded with zeros where it is smaller."""
    array = random_array(height, width, seed)
    found = ImageProcessor(size, resize_size=resize)(array)[0]
    np.testing.assert_array_equal(bits(found), bits(reference_pixels(Image.fromarray(array), size, resize)))


@pytest.mark.property(16)
@given(data=st.data(), size=st.integers(1, 40), seed=SEEDS, height=st.integers(1, 60), width=st.integers(1, 60))
def test_a_file_gives_the_bits_of_its_picture(
    data: st.DataObject, size: int, seed: int, height: int, width: int
) -> None:
    """Property 16: *For any* image size and mode, the pixels of ImageProcessor equal those of the PIL image processor
    of transformers bit for bit: from the bytes of a lossless file as from the picture in it."""
    file_format = data.draw(st.sampled_from(sorted(set(FORMATS) - {"JPEG", "GIF"})))
    image = random_image(data.draw(st.sampled_from(FORMATS[file_format])), width, height, seed)
    found = ImageProcessor(size)(encode_image(image, file_format))[0]
    np.testing.assert_array_equal(bits(found), bits(reference_pixels(image, size)))


@pytest.mark.requirement("6.1")
@given(given_images=st.lists(images(), max_size=7), size=st.integers(1, 30), batch_size=st.integers(1, 4))
def test_batches_are_the_whole_in_parts(given_images: list[Any], size: int, batch_size: int) -> None:
    """6.1: WHEN given n accepted images, n = 0 included, THE ImageProcessor SHALL return a float32 tensor of shape (n,
    3, S, S): batch by batch the same bits."""
    processor = ImageProcessor(size)
    parts = [part.clone() for part in processor.batches(given_images, batch_size)]
    assert [len(part) for part in parts] == [
        min(batch_size, len(given_images) - start) for start in range(0, len(given_images), batch_size)
    ]
    whole = torch.cat(parts) if parts else torch.empty(0, 3, size, size)
    assert torch.equal(whole, processor(given_images))
