"""A folder of photos, some of them broken on purpose, and what `embed` must say of each."""

from __future__ import annotations

import io
import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image

from llm_compression.harness.clip.photos import photo_paths

WIDTH: Final = 816
HEIGHT: Final = 612
# Contents that differ; further files are hard links to these.
DISTINCT: Final = 256
BROKEN_PART: Final = 0.02
# How a file is broken -> the code of its row; None: it can be read all the same.
BROKEN: Final[dict[str, str | None]] = {
    "truncated": "damaged",
    "empty": "empty",
    "text": "not_an_image",
    "huge": "too_large",
    "wrong suffix": None,
    "LFS pointer": "lfs_pointer",
    "directory": "directory",
}
_SUFFIXES: Final = {"huge": ".png", "wrong suffix": ".png"}
_LFS: Final = b"version https://git-lfs.github.com/spec/v1\noid sha256:%064d\nsize 123456\n"
_SMALLEST_CROP: Final = 0.6
_HUGE: Final = 20000


@dataclass(frozen=True)
class Item:
    """A file of the folder.

    Attributes:
        name: Of the file.
        content: Which photo it holds; files of one number hold the same bytes.
        broken: A key of `BROKEN`, or None.
    """

    name: str
    content: int
    broken: str | None = None

    @property
    def code(self) -> str | None:
        """The error code of its row, or None where it has an embedding."""
        return None if self.broken is None else BROKEN[self.broken]


def items(count: int, seed: int = 0, distinct: int = DISTINCT) -> list[Item]:
    """What a folder of some files holds, in the order of its rows; the same for the same arguments.

    Args:
        count: How many files.
        seed: Of the places of broken ones.
        distinct: How many contents.
    """
    rng = random.Random(seed)
    places = sorted(rng.sample(range(count), round(count * BROKEN_PART)))
    kinds = list(BROKEN)
    broken = {place: kinds[number % len(kinds)] for number, place in enumerate(places)}
    return [
        Item(
            f"{row:08}{_SUFFIXES.get(broken.get(row, ''), '.jpg')}",
            row % distinct,
            broken.get(row),
        )
        for row in range(count)
    ]


def write(folder: Path, wanted: list[Item], seed: int = 0) -> None:
    """Write the files: photos of scikit-image cropped, turned and mirrored, 0.5 megapixels each, as JPEG.

    Args:
        folder: Made; must not exist.
        wanted: As `items` gives it.
        seed: Of the crops.
    """
    folder.mkdir(parents=True)
    photos = list[Image.Image]()
    for path in photo_paths():
        with Image.open(path) as photo:
            photos.append(photo.convert("RGB"))
    huge = io.BytesIO()
    Image.new("1", (_HUGE, _HUGE)).save(huge, "PNG")
    first = dict[int, Path]()
    for item in wanted:
        path = folder / item.name
        if item.broken == "directory":
            path.mkdir()
        elif item.broken in (None, "wrong suffix"):
            if item.content in first:
                os.link(first[item.content], path)
            else:
                path.write_bytes(_photo(photos, item.content, seed))
                first[item.content] = path
        else:
            path.write_bytes(_damaged(item, photos, seed, huge.getvalue()))


def _damaged(item: Item, photos: list[Image.Image], seed: int, huge: bytes) -> bytes:
    if item.broken == "truncated":
        whole = _photo(photos, item.content, seed)
        return whole[: len(whole) // 2]
    return {"empty": b"", "text": b"no picture at all\n", "huge": huge, "LFS pointer": _LFS % item.content}[
        item.broken or ""
    ]


def _photo(photos: list[Image.Image], content: int, seed: int) -> bytes:
    """The bytes of a photo; another number gives other pixels."""
    rng = random.Random(f"{seed} {content}")
    photo = photos[content % len(photos)]
    width, height = (size * rng.uniform(_SMALLEST_CROP, 1) for size in photo.size)
    left, top = rng.uniform(0, photo.width - width), rng.uniform(0, photo.height - height)
    turns: list[Image.Transpose | None] = [None, *Image.Transpose]
    turn = rng.choice(turns)
    box = (left, top, left + width, top + height)
    cropped = photo.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC, box)
    turned = cropped if turn is None else cropped.transpose(turn)
    written = io.BytesIO()
    turned.save(written, "JPEG", quality=90)
    return written.getvalue()
