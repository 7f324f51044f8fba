"""Which of the files of a data set are no pictures, found before a run."""

from __future__ import annotations

import mimetypes
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

from llm_compression.errors import ImageError
from llm_compression.inference.threads import available_cpus
from llm_compression.multimodal.decoding import lost_levels, to_rgb
from llm_compression.multimodal.image_processor import read_image

# what the table of MIME types of older Pythons lacks
_SUFFIXES: Final = frozenset(
    (".avif", ".heic", ".heif", ".j2k", ".jfif", ".jp2", ".pcx", ".psd", ".qoi", ".sgi", ".tga", ".webp")
)
_AHEAD: Final = 64


class Finding(NamedTuple):
    """What became of one file: why it is no picture, and what of it is lost; None where nothing is wrong."""

    path: str
    reason: str | None
    warning: str | None


def image_files(paths: Sequence[str | os.PathLike[str]]) -> Iterator[str]:
    """The files named, and in folders, at any depth, those whose names end as those of pictures do, in order."""
    for path in [os.fspath(given) for given in paths]:
        if not Path(path).is_dir():
            yield path
            continue
        for folder, inner, names in os.walk(path):
            inner.sort()
            for name in sorted(names):
                if is_image_name(name):
                    yield str(Path(folder, name))


def is_image_name(name: str) -> bool:
    """Whether a file's name ends as those of pictures do."""
    kind = mimetypes.guess_type(name, strict=False)[0] or ""
    return kind.startswith("image/") or Path(name).suffix.lower() in _SUFFIXES


def check_images(
    paths: Sequence[str | os.PathLike[str]], *, formats: Sequence[str] | None = None, strict: bool = False
) -> Iterator[Finding]:
    """Decode every file as an encoder would.

    Args:
        paths: Files and folders.
        formats: As `ImageProcessor`.
        strict: As `ImageProcessor`.

    Yields:
        One finding for each file, in the order of `image_files`.

    Raises:
        ConfigError: A format is unknown.
    """

    def check(path: str) -> Finding:
        try:
            image = read_image(path, formats=formats, strict=strict)
            warning = lost_levels(image)
            to_rgb(image)
        except ImageError as error:
            return Finding(path, error.reason, None)
        return Finding(path, None, warning)

    files = image_files(paths)
    with ThreadPoolExecutor(available_cpus(), thread_name_prefix="check") as pool:
        # a few at a time, as a data set has more files than memory has room for their names
        while batch := list(islice(files, _AHEAD)):
            yield from pool.map(check, batch)
