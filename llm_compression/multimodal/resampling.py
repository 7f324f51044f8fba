"""A part of a picture that was resized as a whole, without the whole: Pillow's bicubic filter, to the bit.

Pillow's own ``box`` is rounded to float32, which gives other bits where its corners are no fractions of a power of two.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

_SUPPORT: Final = 2.0
# of the fixed-point numbers that ImagingResample of Pillow multiplies bytes by
_PRECISION_BITS: Final = 32 - 8 - 2


def resized_part(image: Image.Image, size: tuple[int, int], box: tuple[int, int, int, int]) -> npt.NDArray[np.uint8]:
    """What ``image.resize(size, BICUBIC)`` has in a box that lies within it.

    Args:
        image: An RGB picture.
        size: Width and height of the whole after the resize, neither smaller than the picture's; to
            smaller ones Pillow may filter rows first.
        box: Left, top, right and bottom of the part, in pixels of the resized picture.

    Returns:
        uint8 (bottom - top, right - left, 3).
    """
    left, top, right, bottom = box
    columns = _weights(image.width, size[0], left, right)
    rows = _weights(image.height, size[1], top, bottom)
    # of the source, only what the filter reaches
    x0, x1 = int(columns[0].min()), int((columns[0] + columns[1].shape[1]).max())
    y0, y1 = int(rows[0].min()), int((rows[0] + rows[1].shape[1]).max())
    source = Image.new("RGB", (min(x1, image.width) - x0, min(y1, image.height) - y0))
    source.paste(image, (-x0, -y0))
    array: npt.NDArray[Any] = np.asarray(source)
    if size[0] != image.width:
        array = _filtered(array.transpose(1, 0, 2), columns, x0).transpose(1, 0, 2)
    else:
        array = array[:, left - x0 : right - x0]
    return _filtered(array, rows, y0) if size[1] != image.height else array[top - y0 : bottom - y0]


def _weights(length: int, new_length: int, start: int, stop: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any]]:
    """First source pixel and integer weights of each new pixel: int64 (n,) and int32 (n, taps)."""
    scale = length / new_length
    filter_scale = max(scale, 1.0)
    support, inverse = _SUPPORT * filter_scale, 1.0 / filter_scale
    centre = (np.arange(start, stop, dtype=np.float64) + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    last = np.minimum((centre + support + 0.5).astype(np.int64), length)
    taps = math.ceil(support) * 2 + 1
    weights, total = np.zeros((stop - start, taps)), np.zeros(stop - start)
    for tap in range(taps):  # summed in Pillow's order
        inside = first + tap < last
        weights[:, tap] = np.where(inside, _bicubic(((tap + first) - centre + 0.5) * inverse), 0.0)
        total += weights[:, tap]
    weights = np.divide(weights, total[:, None], out=weights, where=total[:, None] != 0)
    rounded = np.where(weights < 0, -0.5, 0.5) + weights * (1 << _PRECISION_BITS)
    return first, rounded.astype(np.int32)  # towards zero, as C does


def _bicubic(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Keys' cubic convolution with a = -0.5, in the order of Pillow's operations."""
    a, x = -0.5, np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _filtered(
    array: npt.NDArray[Any], weights: tuple[npt.NDArray[np.int64], npt.NDArray[Any]], offset: int
) -> npt.NDArray[np.uint8]:
    """The filter along the first axis: uint8 (length, m, 3) to uint8 (n, m, 3)."""
    first, taps = weights
    total = np.full((len(first), *array.shape[1:]), 1 << (_PRECISION_BITS - 1), np.int32)
    for tap in range(taps.shape[1]):
        weight = taps[:, tap]
        if weight.any():
            source = np.minimum(first - offset + tap, len(array) - 1)  # past the end the weight is zero
            total += array[source].astype(np.int32) * weight[:, None, None]
    out: npt.NDArray[np.uint8] = np.clip(total >> _PRECISION_BITS, 0, 255).astype(np.uint8)
    return out
