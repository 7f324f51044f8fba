"""What of a PNG file decides its pixels: its critical chunks and tRNS, each held against its checksum.

Pillow checks no CRC of IDAT, and refuses a picture for what is wrong with a chunk that changes no pixel. So the file is
read here, and Pillow is given a PNG of the chunks that count.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from llm_compression.multimodal.orientation import exif_orientation, profile_orientation, xmp_orientation

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_ESSENTIAL: Final = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
# Registered chunks that change no pixel of the first picture; one with a wrong CRC is passed over.
_ANCILLARY: Final = frozenset(
    b"acTL fcTL fdAT cHRM gAMA iCCP sBIT sRGB cICP mDCV cLLI bKGD hIST pHYs sPLT tIME iTXt tEXt zTXt eXIf oFFs pCAL "
    b"sCAL gIFg gIFt gIFx sTER dSIG caBX vpAg orNT iDOT".split()
)
_TEXT_LIMIT: Final = 1 << 24
_CHANNELS: Final = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# First column and row of each pass of an interlaced picture, and the steps to the next ones (W3C PNG, 8.1).
_ADAM7: Final = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_PIECE: Final = 1 << 20


class DamageError(ValueError):
    """A file says itself that it is damaged."""


@dataclass
class PngPicture:
    """A PNG reduced to its pixels.

    Attributes:
        parts: The pieces of a PNG with the chunks that count, views of the file.
        orientation: What its metadata say of how it is to be turned.
    """

    parts: list[bytes | memoryview] = field(default_factory=lambda: [SIGNATURE])
    orientation: int | None = None

    def require_all_rows(self, last_row: bytes) -> None:
        """Refuse a picture whose data end after a whole row before the last, which Pillow takes for a whole one.

        Args:
            last_row: As Pillow decoded it, which leaves what is missing zero: the data are counted only then, or where
                the rows do not stand in their order.

        Raises:
            DamageError: Rows are missing.
        """
        header = self.parts[1][8:21]
        width, height, depth, colours, _, _, interlaced = struct.unpack(">IIBBBBB", header)
        if any(last_row) and not interlaced:
            return
        bits = depth * _CHANNELS.get(colours, 1)
        passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
        expected = 0
        for left, top, across, down in passes:
            columns, rows = -(-(width - left) // across), -(-(height - top) // down)
            expected += rows * (1 + (columns * bits + 7) // 8) if columns > 0 and rows > 0 else 0
        found, inflate = 0, zlib.decompressobj()
        for part in self.parts[1:]:
            rest: bytes | memoryview = part[8:-4] if part[4:8] == b"IDAT" else b""
            while rest and not inflate.eof and found < expected:
                found += len(inflate.decompress(rest, _PIECE))
                rest = inflate.unconsumed_tail
        # what inflate still holds back of the last piece
        while found < expected and not inflate.eof and (held := inflate.decompress(b"", _PIECE)):
            found += len(held)
        if found < expected:
            raise DamageError(f"PNG: data of {found} bytes, expected {expected} for {width} x {height} pixels")


def read_png(data: memoryview) -> PngPicture:
    """Hold a PNG against its checksums.

    Raises:
        DamageError: A chunk that decides pixels is damaged or missing.
    """
    found, seen = PngPicture(), set()
    exif: int | None = None
    profile: int | None = None
    xmp: int | None = None
    for kind, body, whole in _chunks(data):
        if kind in _ESSENTIAL:
            # one of each but IDAT, as a second would be another picture's
            if kind != b"IDAT" and kind in seen:
                continue
            seen.add(kind)
            found.parts.append(whole)
            if kind == b"IHDR" and len(body) != 13:
                raise DamageError(f"PNG: IHDR of {len(body)} bytes, expected 13")
        elif kind == b"eXIf":
            exif = exif_orientation(body)
        elif kind in (b"tEXt", b"zTXt", b"iTXt"):
            key, text = _text(kind, bytes(body))
            if key == b"exif":
                exif = exif_orientation(text) if exif is None else exif
            elif key == b"Raw profile type exif":
                profile = profile_orientation(text)
            elif key in (b"XML:com.adobe.xmp", b"xmp"):
                xmp = xmp_orientation(text)
    colours = found.parts[1][8 + 9] if b"IHDR" in seen else 0
    required = [b"IHDR", *([b"PLTE"] if colours == 3 else []), b"IDAT", b"IEND"]
    missing = [kind.decode() for kind in required if kind not in seen]
    if missing:
        raise DamageError(f"PNG: no chunk {', '.join(missing)}")
    found.orientation = next((value for value in (exif, profile, xmp) if value is not None), None)
    return found


def _chunks(data: memoryview) -> Iterator[tuple[bytes, memoryview, memoryview]]:
    """Type, body and whole of each chunk up to IEND, those that are damaged and change no pixel left out."""
    position = len(SIGNATURE)
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end <= len(data) and _sum_fits(data, position, end):
            yield kind, data[position + 8 : end - 4], data[position:end]
            if kind == b"IEND":
                return
            if kind[0] & 32 == 0 and kind not in _ESSENTIAL and kind.isalpha() and kind != b"DDAT":
                raise DamageError(f"PNG: an unknown critical chunk {kind!r} at byte {position}")
            position = end
            continue
        if kind in _ESSENTIAL or not _may_be_skipped(kind):
            what = "is cut off" if end > len(data) else "does not fit its checksum"
            raise DamageError(f"PNG: the chunk {kind!r} at byte {position} {what}")
        # damage in what changes no pixel: on to the next chunk, wherever it is if the length is wrong too
        follows = bytes(data[end + 4 : end + 8])
        position = end if follows in _ESSENTIAL or follows in _ANCILLARY else _next_chunk(data, position + 8)
    raise DamageError(f"PNG: cut off after {len(data)} bytes, without a chunk IEND")


def _sum_fits(data: memoryview, position: int, end: int) -> bool:
    expected: int = struct.unpack_from(">I", data, end - 4)[0]
    return zlib.crc32(data[position + 4 : end - 4]) == expected


def _may_be_skipped(kind: bytes) -> bool:
    """Whether a chunk with a wrong CRC is surely none that decides pixels, a damaged type being taken into account."""
    if kind in _ANCILLARY:
        return True
    near = any(sum(a != b for a, b in zip(kind, essential, strict=True)) < 3 for essential in _ESSENTIAL)
    return kind.isalpha() and bool(kind[0] & 32) and not near


def _next_chunk(data: memoryview, start: int) -> int:
    """Where the next sound chunk that decides pixels starts."""
    raw = bytes(data[start:])
    places = []
    for kind in _ESSENTIAL[1:]:
        found = raw.find(kind)
        while found >= 0:
            position = start + found - 4
            length = struct.unpack_from(">I", data, position)[0]
            end = position + 12 + length
            if end <= len(data) and _sum_fits(data, position, end):
                places.append(position)
                break
            found = raw.find(kind, found + 1)
    if not places:
        raise DamageError(f"PNG: no sound chunk after byte {start}")
    return min(places)


def _text(kind: bytes, body: bytes) -> tuple[bytes, bytes]:
    """Key and text of a text chunk; an empty text where it cannot be read."""
    key, _, rest = body.partition(b"\0")
    if key not in (b"exif", b"Raw profile type exif", b"XML:com.adobe.xmp", b"xmp"):
        return key, b""
    packed = kind == b"zTXt"
    if kind == b"zTXt":
        rest = rest[1:]
    elif kind == b"iTXt":
        packed = rest[:1] == b"\1"
        rest = rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    if packed:
        try:
            rest = zlib.decompressobj().decompress(rest, _TEXT_LIMIT)
        except zlib.error:
            rest = b""
    return key, rest
