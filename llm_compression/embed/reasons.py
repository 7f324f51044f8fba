"""Why an image or a text has no embedding: a code that a program can count, and the words of the error."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any, Final, NamedTuple

from PIL import Image, UnidentifiedImageError

from llm_compression.columns import NamedBytes
from llm_compression.errors import ImageError

# What may pass when the same row is tried again.
PASSING: Final = ("missing", "permission", "unreadable", "crashed")
CODES: Final = (
    *PASSING,
    "no_image",
    "directory",
    "not_a_file",
    "empty",
    "lfs_pointer",
    "not_an_image",
    "too_large",
    "damaged",
    "not_finite",
)
TEXT_CODES: Final = ("no_text", "empty", "not_unicode", "not_tokenized", "not_finite", "crashed")
_LFS: Final = b"version https://git-lfs.github.com/spec/"
_FIRST_BYTES: Final = 64


class Reason(NamedTuple):
    """Why an image or a text has no embedding."""

    code: str
    message: str


class Trace(NamedTuple):
    """What is kept of an image to tell afterwards what it was: its path, or the first bytes and how many there are."""

    path: str | None
    first: bytes
    size: int


def trace_of(image: Any) -> Trace:
    """The trace of a path, of encoded bytes, or of None."""
    if isinstance(image, NamedBytes):
        image = image.data
    if image is None:
        return Trace(None, b"", -1)
    if isinstance(image, str):
        return Trace(image, b"", -1)
    view = memoryview(image).cast("B")
    return Trace(None, bytes(view[:_FIRST_BYTES]), len(view))


def reason_of(error: ImageError, trace: Trace) -> Reason:
    """The code of an image's error, by what its file is and what was raised."""
    return Reason(_code(error.__cause__, trace), error.reason)


def _code(cause: BaseException | None, trace: Trace) -> str:
    first, size = trace.first, trace.size
    if trace.path is not None:
        try:
            found = Path(trace.path).stat()
            if stat.S_ISDIR(found.st_mode):
                return "directory"
            if not stat.S_ISREG(found.st_mode):
                return "not_a_file"
            size = found.st_size
            with Path(trace.path).open("rb") as file:
                first = file.read(_FIRST_BYTES)
        except PermissionError:
            return "permission"
        except (FileNotFoundError, NotADirectoryError):
            return "missing"
        except (OSError, ValueError):  # a loop of links, a name too long or with a null byte
            return "missing"
    if size < 0:
        return "no_image"
    if size == 0:
        return "empty"
    if first.startswith(_LFS):
        return "lfs_pointer"
    if isinstance(cause, Image.DecompressionBombError):
        return "too_large"
    if isinstance(cause, UnidentifiedImageError):
        return "not_an_image"
    # from the operating system, not from a decoder
    if isinstance(cause, OSError) and cause.errno is not None:
        return "unreadable"
    return "damaged"
