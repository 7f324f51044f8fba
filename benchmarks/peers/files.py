"""From JPEG files to embeddings: this encoder beside transformers with its own image processor, on the same pixels.

Photos that scikit-image ships, enlarged to the size asked for and written as JPEG. Each sample is a fresh process,
loading and a first batch excluded. `benchmarks.peers.run` takes these samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
from PIL import Image

from llm_compression.harness.clip.measure import encode_files
from llm_compression.harness.clip.models import Model
from llm_compression.harness.clip.photos import photo_paths
from llm_compression.multimodal.image_processor import ImageProcessor


@dataclass(frozen=True)
class Size:
    """A size of photo, and how many of them are encoded."""

    title: str
    width: int
    height: int
    files: int


SIZES: Final = (Size("0.5 megapixels", 816, 612, 96), Size("12 megapixels", 4000, 3000, 32))
# title -> system, dtype
SYSTEMS: Final = {
    "transformers float32": ("transformers", "float32"),
    "transformers bfloat16": ("transformers", "bfloat16"),
    "llm_compression bfloat16": ("arrow", "bfloat16"),
}


def write_photos(directory: Path, size: Size) -> list[Path]:
    """Write the JPEG files: the photos in turn, no two files alike."""
    photos, paths = photo_paths(), []
    for number in range(size.files):
        with Image.open(photos[number % len(photos)]) as photo:
            enlarged = photo.convert("RGB").resize((size.width, size.height), Image.Resampling.BICUBIC)
        # the second use of a photo is mirrored, the third upside down
        turned = enlarged if number < len(photos) else enlarged.transpose(Image.Transpose(number // len(photos) - 1))
        paths.append(directory / f"{number:03}.jpg")
        turned.save(paths[-1], quality=90)
    return paths


def assert_same_pixels(model: Model, paths: Sequence[Path]) -> None:
    """Both image processors give the same bits.

    Raises:
        AssertionError: They do not.
    """
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    theirs: Any = CLIPImageProcessorPil.from_pretrained(model.checkpoint)
    ours = ImageProcessor(image_size=model.image_size)
    for path in paths:
        with Image.open(path) as image:
            expected = theirs(image, return_tensors="np")["pixel_values"]
        assert np.array_equal(ours(path).numpy(), expected), f"{path.name}: the pixels differ"


def measure_files(model: Model, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Images a second of each system in each round, by size."""
    found: dict[str, dict[str, list[float]]] = {}
    for size in SIZES:
        found[size.title] = {title: [] for title in SYSTEMS}
        with TemporaryDirectory() as scratch:
            directory = Path(scratch)
            print(f"files: writing {size.files} photos of {size.title}", flush=True)
            paths = write_photos(directory, size)
            assert_same_pixels(model, paths[:4])
            for number in range(rounds):
                rows = {}
                for title in reversed(SYSTEMS) if number % 2 else SYSTEMS:
                    print(f"files: {size.title}, round {number + 1} of {rounds}: {title}", flush=True)
                    system, dtype = SYSTEMS[title]
                    weights = model.weights[dtype] if system == "arrow" else model.checkpoint
                    milliseconds = encode_files(system, weights, paths, directory / "rows.npy", dtype=dtype, warm=16)
                    found[size.title][title].append(size.files / milliseconds * 1e3)
                    rows[title] = np.load(directory / "rows.npy")
                _assert_close(rows)
    return found


def _assert_close(rows: dict[str, Any]) -> None:
    reference, *others = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in rows.values())
    for other in others:
        assert (reference * other).sum(1).min() > 0.99, "two systems give different embeddings of a file"
