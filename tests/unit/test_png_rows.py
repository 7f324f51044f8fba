"""PNGs whose checksums all fit, and whose data are too short."""

from __future__ import annotations

import io
import struct
import zlib
from itertools import pairwise
from typing import Final

import numpy as np
import pytest
import torch
from PIL import Image

from llm_compression.errors import ImageError
from llm_compression.multimodal.image_processor import ImageProcessor

PROCESSOR: Final = ImageProcessor(image_size=16)
WIDTH, HEIGHT = 13, 11
# colour type to its depths and channels
KINDS: Final = {0: ((1, 2, 4, 8, 16), 1), 2: ((8, 16), 3), 3: ((1, 2, 4, 8), 1), 4: ((8, 16), 2), 6: ((8, 16), 4)}
PASSES: Final = {
    False: ((0, 0, 1, 1),),
    True: ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
}


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _rows(colours: int, depth: int, interlaced: bool, value: int) -> list[bytes]:
    bits = depth * KINDS[colours][1]
    rows = []
    for left, top, across, down in PASSES[interlaced]:
        columns = len(range(left, WIDTH, across))
        rows += [b"\0" + bytes([value]) * ((columns * bits + 7) // 8) for _ in range(top, HEIGHT, down) if columns]
    return rows


def _png(colours: int, depth: int, interlaced: bool, rows: list[bytes], pieces: int = 1) -> bytes:
    packed = zlib.compress(b"".join(rows))
    ends = [len(packed) * i // pieces for i in range(pieces + 1)]
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            _chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, depth, colours, 0, 0, interlaced)),
            _chunk(b"PLTE", bytes(range(256)) * 3) if colours == 3 and depth == 8 else b"",
            _chunk(b"PLTE", bytes(3 << depth)) if colours == 3 and depth < 8 else b"",
            *(_chunk(b"IDAT", packed[start:end]) for start, end in pairwise(ends)),
            _chunk(b"IEND", b""),
        )
    )


CASES: Final = [
    (colours, depth, interlaced)
    for colours, (depths, _) in KINDS.items()
    for depth in depths
    for interlaced in (False, True)
]


@pytest.mark.requirement("23.17")
@pytest.mark.filterwarnings("ignore::llm_compression.errors.ImagePrecisionWarning")
@pytest.mark.parametrize(("colours", "depth", "interlaced"), CASES)
def test_a_png_without_its_last_rows_is_refused(colours: int, depth: int, interlaced: bool) -> None:
    """23.17: IF the data of a PNG end before its last row, THEN THE ImageProcessor SHALL raise ImageError."""
    rows = _rows(colours, depth, interlaced, 0x55)
    assert len(PROCESSOR([_png(colours, depth, interlaced, rows)])) == 1
    for kept in range(1, len(rows)):
        with pytest.raises(ImageError, match=r"PNG: data of|truncated"):
            PROCESSOR([_png(colours, depth, interlaced, rows[:kept], pieces=1 + kept % 3)])


@pytest.mark.requirement("23.17")
@pytest.mark.filterwarnings("ignore::llm_compression.errors.ImagePrecisionWarning")
@pytest.mark.parametrize(("colours", "depth", "interlaced"), CASES)
def test_a_black_png_and_one_with_more_data_than_it_needs_have_their_row(
    colours: int, depth: int, interlaced: bool
) -> None:
    """23.17: IF the data of a PNG end before its last row, THEN THE ImageProcessor SHALL raise ImageError."""
    for value in (0, 0x55):
        rows = _rows(colours, depth, interlaced, value)
        whole = PROCESSOR([_png(colours, depth, interlaced, rows, pieces=3)])
        more = PROCESSOR([_png(colours, depth, interlaced, [*rows, b"\0" * 99])])
        assert torch.equal(whole, more)


@pytest.mark.requirement("23.17")
def test_a_png_whose_last_row_is_black_has_its_row() -> None:
    """23.17: IF the data of a PNG end before its last row, THEN THE ImageProcessor SHALL raise ImageError."""
    pixels = np.full((40, 60, 3), 200, np.uint8)
    pixels[20:] = 0
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    assert torch.equal(PROCESSOR([file.getvalue()]), PROCESSOR([pixels]))
