"""What of a JPEG file decides its pixels: its tables, frame and scans, and whether the scans are whole.

libjpeg fills what a scan lacks with a constant and warns, which Pillow drops. So the file is read here: Pillow is given
the segments that count, without what comes after the last scan, and has to find its rows in them.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from llm_compression.multimodal.orientation import exif_orientation, xmp_orientation
from llm_compression.multimodal.png_chunks import DamageError

_EXIF, _XMP = b"Exif\x00\x00", b"http://ns.adobe.com/xap/1.0/\x00"
_MARKER: Final = re.compile(rb"\xff+([^\x00\xff])", re.DOTALL)
_END_OF_SCAN: Final = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]", re.DOTALL)
_TABLES: Final = frozenset((0xC4, 0xCC, 0xDB, 0xDC, 0xDD))  # DHT, DAC, DQT, DNL, DRI
_FRAMES: Final = frozenset((*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)))
_ALONE: Final = frozenset((0x01, *range(0xD0, 0xD8)))  # markers without a length
# More than the decoder reads ahead, of bits that are no Huffman code: a scan that is whole does not need them.
_AHEAD: Final = b"\xff\x00" * 8
_ZEROS: Final = re.compile(rb"\x00{64}")
_SHORTER: Final = 48
_RESTART: Final = re.compile(rb"\xff([\xd0-\xd7])", re.DOTALL)


@dataclass
class JpegPicture:
    """A JPEG reduced to its pixels.

    Attributes:
        parts: Its segments and scans, views of the file, without the end marker.
        scans: Which of the parts are entropy-coded data.
        frame: The marker of the frame: 0xC0 baseline, 0xC2 progressive, ...
        orientation: What its metadata say of how it is to be turned.
    """

    parts: list[bytes | memoryview] = field(default_factory=lambda: [b"\xff\xd8"])
    scans: list[int] = field(default_factory=list)
    frame: int = 0
    orientation: int | None = None

    @property
    def is_single_scan(self) -> bool:
        """Whether rows come out while the only scan is read, so that no row may need the end marker."""
        return len(self.scans) == 1 and self.frame in (0xC0, 0xC1)

    def stream(self) -> list[bytes | memoryview]:
        """What the decoder gets.

        Of a single sequential scan without the end marker: a scan that lacks blocks asks for more than there is.
        """
        return [*self.parts, _AHEAD if self.is_single_scan else b"\xff\xd9"]

    def disturbed(self) -> list[bytes | memoryview]:
        """The same picture with other bits behind each scan: another one where a scan lacks blocks."""
        noise = bytes(1 + (73 * i + (i * i) % 61) % 251 for i in range(512))
        parts: list[bytes | memoryview] = []
        for index, part in enumerate(self.parts):
            parts.append(part)
            if index in self.scans:
                parts.append(noise)
        return [*parts, b"\xff\xd9"]

    def shortened(self) -> Iterator[list[bytes | memoryview]]:
        """The picture once for each scan, that scan without its last bytes: another picture where the scan is sound."""
        for index in self.scans:
            scan = bytes(self.parts[index]).rstrip(b"\xff")
            if len(scan) >= 256:
                shorter = scan[:-_SHORTER].rstrip(b"\xff")
                yield [*self.parts[:index], shorter, *self.parts[index + 1 :], b"\xff\xd9"]


def read_jpeg(data: memoryview) -> JpegPicture:
    """Take a JPEG apart.

    Raises:
        DamageError: It has no scan, no end, or lacks scans of its picture; or a scan is overwritten with zeros.
    """
    found, exif, xmp = JpegPicture(), b"", None
    coverage: _Coverage | None = None
    codes: dict[int, int] = {}
    interval = 0
    position, ended = 2, False
    while match := _MARKER.search(data, position):
        marker, start = match[1][0], match.end()
        position = start
        if marker in _ALONE:
            continue
        if marker == 0xD9:
            ended = True
            break
        if start + 2 > len(data):
            break
        end = start + struct.unpack_from(">H", data, start)[0]
        if end < start + 2 or end > len(data):
            if marker in _TABLES or marker in _FRAMES or marker == 0xDA:
                raise DamageError(f"JPEG: the segment FF{marker:02X} at byte {match.start()} is cut off")
            continue  # metadata with a wrong length: on to the next marker
        body, position = data[start + 2 : end], end
        whole = data[start - 2 : end]
        if marker == 0xE1 and bytes(body[: len(_EXIF)]) == _EXIF:
            exif += bytes(body[len(_EXIF) :] if exif else body)
        elif marker == 0xE1 and bytes(body[: len(_XMP)]) == _XMP:
            xmp = xmp_orientation(body)
        elif (marker == 0xE0 and len(body) >= 14 and bytes(body[:5]) == b"JFIF\x00") or (
            marker == 0xEE and len(body) >= 12 and bytes(body[:5]) == b"Adobe"
        ):
            found.parts.append(whole)  # both say what the colours are
        elif marker in _TABLES:
            found.parts.append(whole)
            if marker == 0xDD and len(body) >= 2:
                interval = struct.unpack_from(">H", body)[0]
            if marker == 0xC4:
                codes.update(_first_codes(body))
        elif marker in _FRAMES:
            found.parts.append(whole)
            found.frame = marker
            coverage = _Coverage(bytes(body))
        elif marker == 0xDA:
            stop = _END_OF_SCAN.search(data, end)
            position = len(data) if stop is None else stop.start()
            found.parts += [whole, data[end:position]]
            found.scans.append(len(found.parts) - 1)
            if coverage is not None:
                coverage.add(bytes(body))
                if interval:
                    whole_frame = found.frame in (0xC0, 0xC1)
                    blocks = coverage.blocks(body[0]) if whole_frame else None
                    _check_restarts(data, end, position, blocks, interval)
            if found.frame in (0xC0, 0xC1):
                _refuse_zeros(data, end, position, bytes(body), codes)
    if not found.scans:
        raise DamageError("JPEG: a header without a scan")
    if not ended:
        raise DamageError(f"JPEG: cut off after {len(data)} bytes, without an end marker")
    if coverage is not None and found.frame in (0xC0, 0xC1, 0xC2) and (lack := coverage.lacks(found.frame == 0xC2)):
        raise DamageError(f"JPEG: {lack}")
    orientation = exif_orientation(exif) if exif else None
    found.orientation = xmp if orientation is None else orientation
    return found


class _Coverage:
    """Which coefficients of which components the scans have brought, and to which bit."""

    def __init__(self, frame: bytes) -> None:
        if len(frame) < 9:
            raise DamageError(f"JPEG: a frame header of {len(frame)} bytes, expected 9 or more")
        self._components = [frame[i] for i in range(6, len(frame) - 2, 3)]
        self._sampling = [(frame[i + 1] >> 4, frame[i + 1] & 15) for i in range(6, len(frame) - 2, 3)]
        self._height, self._width = struct.unpack_from(">HH", frame, 1)
        self._bits: dict[tuple[int, int], int] = {}

    def add(self, scan: bytes) -> None:
        """Count a scan, by its header."""
        count = scan[0] if scan else 0
        if len(scan) < 1 + 2 * count + 3:
            raise DamageError("JPEG: the header of a scan is cut off")
        first, last, bits = scan[1 + 2 * count : 4 + 2 * count]
        for component in (scan[1 + 2 * i] for i in range(count)):
            for coefficient in range(first, min(last, 63) + 1):
                self._bits[component, coefficient] = bits & 15

    def blocks(self, components: int) -> int | None:
        """Units between restarts in a scan of all components; None where a scan is of some of them."""
        if components != len(self._components):
            return None
        across, down = (1, 1) if components == 1 else (max(s[axis] for s in self._sampling) for axis in (0, 1))
        return -(-self._width // (8 * across)) * -(-self._height // (8 * down)) if across and down else None

    def lacks(self, progressive: bool) -> str:
        """What no scan has brought; empty where nothing is missing."""
        for component in self._components:
            for coefficient in range(64) if progressive else (0,):
                bits = self._bits.get((component, coefficient))
                if bits is None and coefficient == 0:
                    return f"no scan of component {component}"
                if bits:
                    return f"a scan is missing: component {component} lacks {bits} bits of coefficient {coefficient}"
        return ""


def _first_codes(body: memoryview) -> Iterator[tuple[int, int]]:
    """Class and id of each Huffman table, and the symbol whose code is all zeros."""
    position = 0
    while position + 17 <= len(body):
        total = sum(body[position + 1 : position + 17])
        if total and position + 17 < len(body):
            yield body[position], body[position + 17]
        position += 17 + total


def _refuse_zeros(data: memoryview, start: int, stop: int, scan: bytes, codes: dict[int, int]) -> None:
    """Refuse a scan with a run of zeros that would be blocks of nothing but the same small coefficient.

    Where every table's code of zeros ends a block or skips coefficients, such a run is a plain area and may be sound.
    """
    tables = {0x10 | (scan[2 + 2 * i] & 15) for i in range(scan[0])}
    if all(codes.get(table, 0) & 15 == 0 for table in tables):
        return
    found = _ZEROS.search(data, start, stop)
    if found:
        raise DamageError(f"JPEG: {len(found[0])} zeros in the scan at byte {found.start()}, which no picture has")


def _check_restarts(data: memoryview, start: int, stop: int, blocks: int | None, interval: int) -> None:
    """Refuse a scan whose restart markers are not 0 to 7 in turn, or not as many as its blocks need."""
    found = [match[1][0] - 0xD0 for match in _RESTART.finditer(data, start, stop)]
    lost = next((index for index, number in enumerate(found) if number != index % 8), None)
    if lost is not None:
        raise DamageError(f"JPEG: restart marker {found[lost]} of a scan stands where {lost % 8} is expected")
    expected = None if blocks is None else max(0, -(-blocks // interval) - 1)
    if expected is not None and len(found) != expected:
        raise DamageError(f"JPEG: {len(found)} restart markers in a scan, expected {expected}")
