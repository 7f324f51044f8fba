"""The one tag of a picture's metadata that changes its pixels: how it is to be turned.

Nothing here raises: what is broken says nothing.
"""

from __future__ import annotations

import re
import struct
from typing import Any, Final

from PIL import Image

ORIENTATION: Final = 0x0112
_EXIF_PREFIX: Final = b"Exif\x00\x00"
_XMP: Final = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
# TIFF's types of numbers, as struct writes them; one of bytes is no number to Pillow either
_NUMBERS: Final = {3: "H", 4: "L", 5: "LL", 8: "h", 9: "l", 10: "ll", 11: "f", 12: "d", 13: "L", 16: "Q"}

TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def upright(image: Image.Image, orientation: int | None) -> Image.Image:
    """The picture, turned as the tag says."""
    method = TURNS.get(orientation or 1)
    return image if method is None else image.transpose(method)


def exif_orientation(data: Any) -> int | None:
    """The orientation in an EXIF block, with or without its prefix; None where it says none that can be read."""
    if not isinstance(data, bytes | bytearray | memoryview):
        return None
    block = bytes(data)
    while block.startswith(_EXIF_PREFIX):
        block = block[len(_EXIF_PREFIX) :]
    try:
        return _in_tiff(block)
    except (struct.error, ZeroDivisionError, OverflowError, ValueError):
        return None


def xmp_orientation(data: Any) -> int | None:
    """The orientation in an XMP packet; None where it says none."""
    if isinstance(data, str):
        data = data.encode("latin-1", "replace")
    found = _XMP.search(data) if isinstance(data, bytes | bytearray | memoryview) else None
    return int(found[1]) if found else None


def profile_orientation(text: Any) -> int | None:
    """The orientation in ImageMagick's text "Raw profile type exif": three lines, then the block in hexadecimal."""
    if isinstance(text, bytes):
        text = text.decode("latin-1")
    if not isinstance(text, str):
        return None
    try:
        return exif_orientation(bytes.fromhex("".join(text.split("\n")[3:])))
    except ValueError:
        return None


def _in_tiff(block: bytes) -> int | None:
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        return None
    big = struct.unpack_from(f"{order}H", block, 2)[0] == 43
    start = struct.unpack_from(f"{order}Q" if big else f"{order}L", block, 8 if big else 4)[0]
    count = struct.unpack_from(f"{order}Q" if big else f"{order}H", block, start)[0]
    entry = struct.Struct(f"{order}HHQ8s" if big else f"{order}HHL4s")
    first, found = start + (8 if big else 2), None
    for index in range(min(count, 1 << 16)):
        offset = first + index * entry.size
        if offset + entry.size > len(block):
            break
        tag, kind, values, inline = entry.unpack_from(block, offset)
        if tag != ORIENTATION:
            continue
        # as in Pillow the last of several counts, and several values are no orientation
        found = _number(block, order, kind, inline, big) if values == 1 and kind in _NUMBERS else 1
    return found


def _number(block: bytes, order: str, kind: int, inline: bytes, big: bool) -> int | None:
    form = struct.Struct(order + _NUMBERS[kind])
    if form.size > len(inline):
        offset = struct.unpack(f"{order}Q" if big else f"{order}L", inline)[0]
        values = form.unpack_from(block, offset)
    else:
        values = form.unpack_from(inline)
    value = values[0] / values[1] if len(values) == 2 else values[0]
    return int(value) if value == int(value) else 1
