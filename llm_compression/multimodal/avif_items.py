"""The items of an AVIF file: metadata among them that libavif would refuse the whole file for."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

# Boxes on the way to the entries of items (ISO/IEC 14496-12), each with the bytes of its own before its children.
_CONTAINERS: Final = {b"meta": 4, b"moov": 0, b"trak": 0}
# A type that no decoder reads.
_SKIPPED: Final = b"skip"


def without_metadata(data: bytes) -> Iterator[bytes]:
    """The file without its EXIF, then without its XMP too: the items get a type that no decoder reads."""
    out = bytearray(data)
    for kind in (b"Exif", b"mime"):
        found = [place for place in _item_types(data, 0, len(data)) if data[place : place + 4] == kind]
        for place in found:
            out[place : place + 4] = _SKIPPED
        if found:
            yield bytes(out)


def _item_types(data: bytes, start: int, end: int) -> Iterator[int]:
    """Where each item's type stands."""
    for kind, body, stop in _boxes(data, start, end):
        if kind in _CONTAINERS:
            yield from _item_types(data, body + _CONTAINERS[kind], stop)
        elif kind == b"iinf":
            # version and flags, then how many: 2 bytes in version 0, else 4
            yield from _item_types(data, body + (6 if data[body : body + 1] == b"\0" else 8), stop)
        elif kind == b"infe":
            # version and flags, the item's id of 2 bytes, of 4 in version 3, and protection
            yield body + (10 if data[body : body + 1] == b"\3" else 8)


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Type, start of the content and end of each box."""
    while start + 8 <= end:
        size, kind = struct.unpack_from(">L4s", data, start)
        head = 8
        if size == 1:
            size, head = int.from_bytes(data[start + 8 : start + 16], "big"), 16
        elif size == 0:
            size = end - start
        if size < head or start + size > end:
            return
        yield kind, start + head, start + size
        start += size
