"""Hypothesis strategies: configurations, images, weight tables, corruptions, batch sizes."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
from hypothesis import strategies as st
from PIL import Image

from llm_compression.inference.paths import FORMS
from llm_compression.inference.weight_format import DTYPES
from llm_compression.multimodal.vision_config import VisionConfig

SEEDS: Final = st.integers(0, 2**32 - 1)
BATCH_SIZES: Final = st.integers(0, 5)
# A form of each computation, for `forced`; what this machine cannot run falls back.
PATHS: Final = st.fixed_dictionaries({choice: st.sampled_from(forms) for choice, forms in FORMS.items()})

# Every mode that Pillow turns into RGB, and those that a file of each format can hold.
MODES: Final = ("1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "HSV", "I", "F", "I;16", "RGBX", "RGBa")
FORMATS: Final = {
    "PNG": ("1", "L", "P", "RGB", "RGBA", "LA", "I;16"),
    "JPEG": ("L", "RGB", "CMYK"),
    "TIFF": ("1", "L", "P", "RGB", "RGBA", "CMYK", "I;16", "F"),
    "BMP": ("1", "L", "P", "RGB"),
    "GIF": ("L", "P"),
    "WEBP": ("RGB", "RGBA"),
}

# Corners of the names that a file must carry unchanged: text of any script, dots, and those that make row groups.
_NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12) | st.from_regex(
    r"(vision_model\.encoder\.layers|transformer\.resblocks)\.[0-9]{1,2}\.[a-z]{1,6}\.(weight|bias)", fullmatch=True
)
_SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)


@st.composite
def vision_configs(draw: st.DrawFn) -> VisionConfig:
    """Tiny towers: 8 to 48 pixels, 1 to 64 patches, head widths that are not all powers of two.

    Not narrower than some ten channels: a layer norm or an embedding over fewer is ill-conditioned at times.
    """
    grid = draw(st.integers(1, 8))
    patch = draw(st.integers(-(-8 // grid), min(16, 48 // grid)))
    heads = draw(st.integers(1, 4))
    return VisionConfig(
        image_size=grid * patch,
        patch_size=patch,
        hidden_size=heads * draw(st.integers(-(-12 // heads), 17)),
        num_layers=draw(st.integers(1, 3)),
        num_heads=heads,
        intermediate_size=draw(st.integers(1, 70)),
        projection_dim=draw(st.none() | st.integers(8, 40)),
        layer_norm_eps=draw(st.sampled_from((1e-5, 1e-6, 1e-12, 1e-3))),
        hidden_act=draw(st.sampled_from(("quick_gelu", "gelu"))),
    )


def random_pixels(n: int, size: int, seed: int) -> torch.Tensor:
    """Pixels as an ImageProcessor would make them: float32 (n, 3, size, size), about unit variance."""
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def random_array(height: int, width: int, seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Noise: uint8 (height, width, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def random_image(mode: str, width: int, height: int, seed: int, transparent: bool = False) -> Image.Image:
    """A picture of noise in any mode; a palette gets transparent entries on request."""
    rng = np.random.default_rng(seed)
    if mode in ("I", "F"):  # random bits would be far out of range, or NaN
        values = rng.uniform(-40, 300, (height, width))
        return Image.fromarray(values.astype(np.int32 if mode == "I" else np.float32))
    bytes_per_pixel = 2 if mode == "I;16" else len(Image.new(mode, (1, 1)).getbands())
    row = (width + 7) // 8 if mode == "1" else width * bytes_per_pixel
    image = Image.frombytes(mode, (width, height), rng.bytes(row * height))
    if mode == "P":
        image.putpalette(rng.bytes(768))
        if transparent:
            image.info["transparency"] = rng.bytes(256)
    return image


def encode_image(image: Image.Image, file_format: str, orientation: int | None = None) -> bytes:
    """The bytes of an image file, with an EXIF orientation on request."""
    file = io.BytesIO()
    options: dict[str, Any] = {"lossless": True} if file_format == "WEBP" else {}
    if "transparency" in image.info and file_format == "PNG":
        options["transparency"] = image.info["transparency"]
    if orientation is not None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    image.save(file, file_format, **options)
    return file.getvalue()


@st.composite
def pil_images(draw: st.DrawFn, max_side: int = 40) -> Image.Image:
    """PIL images of every mode, down to 1 x 1."""
    width, height = draw(st.integers(1, max_side)), draw(st.integers(1, max_side))
    return random_image(draw(st.sampled_from(MODES)), width, height, draw(SEEDS), draw(st.booleans()))


@st.composite
def encoded_images(draw: st.DrawFn, max_side: int = 40) -> bytes:
    """Image files of every format and mode."""
    file_format = draw(st.sampled_from(sorted(FORMATS)))
    mode = draw(st.sampled_from(FORMATS[file_format]))
    width, height = draw(st.integers(1, max_side)), draw(st.integers(1, max_side))
    transparent = file_format == "PNG" and draw(st.booleans())
    return encode_image(random_image(mode, width, height, draw(SEEDS), transparent), file_format)


def arrays(max_side: int = 40) -> st.SearchStrategy[np.ndarray[Any, np.dtype[np.uint8]]]:
    """uint8 arrays (H, W, 3)."""
    sides = st.integers(1, max_side)
    return st.builds(random_array, sides, sides, SEEDS)


def images(max_side: int = 40) -> st.SearchStrategy[Any]:
    """One image of any kind that needs no file: PIL, array, encoded bytes."""
    return pil_images(max_side) | encoded_images(max_side) | arrays(max_side)


@st.composite
def tensors(draw: st.DrawFn, *, any_bits: bool = False) -> torch.Tensor:
    """A tensor of any dtype that a weight file stores: scalars and zero-sized ones included.

    Args:
        draw: Hypothesis's.
        any_bits: Whether floats may be any bits, NaN with its payload included; else they are finite.
    """
    dtype, shape = draw(st.sampled_from(list(DTYPES.values()))), draw(_SHAPES)
    rng = np.random.default_rng(draw(SEEDS))
    if not math.prod(shape):
        return torch.empty(shape, dtype=dtype)
    raw = rng.integers(0, 256, math.prod(shape) * dtype.itemsize, dtype=np.uint8)
    if dtype == torch.bool:
        raw %= 2
    tensor = torch.from_numpy(raw).view(dtype).reshape(shape)
    if dtype.is_floating_point and not any_bits:
        tensor = tensor.where(tensor.isfinite(), torch.tensor(-0.0, dtype=dtype))
    return tensor


def weight_tables(*, any_bits: bool = False) -> st.SearchStrategy[dict[str, torch.Tensor]]:
    """Tables of tensors by name, the empty one included."""
    return st.dictionaries(_NAMES, tensors(any_bits=any_bits), max_size=6)


# Where to change a byte, as a fraction of the file, and what to change it by.
CORRUPTIONS: Final = st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255))


def corrupted(data: bytes, corruption: tuple[float, int]) -> bytes:
    """The bytes with one of them changed."""
    where, mask = int(corruption[0] * len(data)), corruption[1]
    return data[:where] + bytes([data[where] ^ mask]) + data[where + 1 :]


# What cannot be read as an image, by what it is; each is made fresh, as some would be consumed.
UNREADABLE: Final[dict[str, Callable[[], Any]]] = {
    "missing file": lambda: "no/such/photo.jpg",
    "text": lambda: b"this is no image",
    "empty": lambda: b"",
    "truncated PNG": lambda: encode_image(random_image("RGB", 30, 30, 0), "PNG")[:-200],
    "truncated JPEG": lambda: encode_image(random_image("RGB", 30, 30, 0), "JPEG")[:200],
    "none": lambda: None,
    "number": lambda: 3,
    "float array": lambda: np.zeros((4, 4, 3), np.float32),
    "array of two channels": lambda: np.zeros((4, 4, 2), np.uint8),
}
