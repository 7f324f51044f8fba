"""The photos that scikit-image ships, files of other modes and shapes made from them, and how similar photos are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from llm_compression.errors import LlmCompressionError

# The pictures in the wheel that Pillow can open, test patterns left out.
PHOTOS: Final = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "cell.png",
    "chelsea.png",
    "clock_motion.png",
    "coffee.png",
    "coins.png",
    "color.png",
    "grass.png",
    "gravel.png",
    "horse.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "logo.png",
    "microaneurysms.png",
    "moon.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "no_time_for_that_tiny.gif",
    "page.png",
    "retina.jpg",
    "rocket.jpg",
    "text.png",
)
_ORIENTATION: Final = 0x0112


class PhotoError(LlmCompressionError):
    """A photo that the installed scikit-image should hold is not there."""


@dataclass(frozen=True)
class Neighbour:
    """A photo, the photo most similar to it, and their cosine."""

    name: str
    nearest: str
    cosine: float


def photo_paths() -> tuple[Path, ...]:
    """The files of `PHOTOS` in the installed scikit-image.

    Raises:
        PhotoError: One of them is missing.
    """
    directory = Path(str(files("skimage") / "data"))
    paths = tuple(directory / name for name in PHOTOS)
    if missing := [path.name for path in paths if not path.is_file()]:
        raise PhotoError(f"{directory}: missing {', '.join(missing)}; expected those that scikit-image 0.26 ships")
    return paths


def write_variants(directory: Path) -> tuple[Path, ...]:
    """Write photos as files of the modes and shapes that the shipped ones lack; returns their paths."""
    photos = {path.stem: path for path in photo_paths()}
    with Image.open(photos["coffee"]) as file:
        coffee = file.convert("RGB")
    with Image.open(photos["camera"]) as file:
        camera = file.convert("L")
    turned = Image.Exif()
    turned[_ORIENTATION] = 6
    fade = Image.linear_gradient("L").resize(coffee.size)
    tall = (coffee.height // 2, 0, coffee.height // 2 + 90, coffee.height)
    wide = (0, 100, coffee.width, 160)
    pictures: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "palette.png": (coffee.quantize(64), {}),
        "palette-transparent.png": (coffee.quantize(64), {"transparency": 3}),
        "rgba.png": (Image.merge("RGBA", (*coffee.split(), fade)), {}),
        "grayscale-alpha.png": (Image.merge("LA", (camera, fade.resize(camera.size))), {}),
        "grayscale-16-bit.png": (Image.fromarray(np.asarray(camera).astype(np.uint16) * 257), {}),
        "bilevel.png": (camera.convert("1"), {}),
        "cmyk.jpg": (coffee.convert("CMYK"), {"quality": 92}),
        "grayscale.jpg": (camera, {"quality": 92}),
        "turned.jpg": (coffee, {"quality": 92, "exif": turned}),
        "portrait.png": (coffee.crop(tall), {}),
        "landscape.png": (coffee.crop(wide), {}),
        "tiny.png": (coffee.resize((3, 2)), {}),
        "one-pixel.png": (coffee.resize((1, 1)), {}),
    }
    for name, (picture, options) in pictures.items():
        picture.save(directory / name, **options)
    return tuple(directory / name for name in pictures)


def neighbours(names: Sequence[str], embeddings: npt.NDArray[Any]) -> tuple[Neighbour, ...]:
    """For each photo the one whose embedding has the highest cosine to its own; at least two photos."""
    unit = embeddings.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -2.0)
    nearest = cosine.argmax(axis=1)
    return tuple(
        Neighbour(name, names[other], float(cosine[row, other]))
        for row, (name, other) in enumerate(zip(names, nearest.tolist(), strict=True))
    )
