"""What identifies a tensor at every load, in each version of the format; as docs/weight-format.md has it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

_Words = npt.NDArray[np.uint64]

# Words of a row, each with a multiplier of its own.
_ROW_WORDS: Final = 512
_ROW_BYTES: Final = 8 * _ROW_WORDS
# 128 KiB, which the second-level cache of a processor holds beside a copy.
_ROWS_AT_ONCE: Final = 32


def fingerprint(dtype: str, shape: Iterable[int], data: Any, version: int) -> str:
    """What identifies a tensor, such as ``float32[4,5]:75efa4bef9c71e2d`` in version 1 of the format.

    Args:
        dtype: Its data type, as a weight file names it.
        shape: Its shape.
        data: Its bytes.
        version: Version of the format: 1 has the sum of the words, blind to their order, 2 sums weighted by position.
    """
    return f"{dtype}[{','.join(map(str, shape))}]:{_CHECKSUMS[version](memoryview(data).cast('B'))}"


def sum_of_words(view: memoryview) -> str:
    """The bytes as little-endian 64-bit words, the last one zero-padded, summed modulo 2**64.

    Any single changed byte changes it: a byte's difference is less than 2**64 at every position in a word.
    """
    whole = view.nbytes // 8
    # PyTorch's sum wraps around, and is three times as fast as numpy's
    total = int(torch.frombuffer(view, dtype=torch.int64, count=whole).sum()) if whole else 0
    total += int.from_bytes(bytes(view[whole * 8 :]), "little")
    return f"{total % 2**64:016x}"


def hash_of_weighted_sums(view: memoryview) -> str:
    """sha256 over two sums of each row of 512 words, a word times the multiplier of its place, modulo 2**64.

    The first sum is of the words, the second of their upper halves. A multiplier is odd, so a word that changes changes
    the first. Multipliers differ modulo 2**32, so two words of a row that change places change the first where their
    lower halves differ, and else the second. What changes between rows, the hash sees.
    """
    rows = -(-view.nbytes // _ROW_BYTES)
    sums, upper = np.empty((2, rows), np.uint64), np.empty((_ROWS_AT_ONCE, _ROW_WORDS), np.uint64)
    for start in range(0, rows, _ROWS_AT_ONCE):
        part = view[start * _ROW_BYTES : (start + _ROWS_AT_ONCE) * _ROW_BYTES]
        missing = -part.nbytes % _ROW_BYTES
        words = np.frombuffer(bytes(part) + bytes(missing) if missing else part, np.uint64).reshape(-1, _ROW_WORDS)
        end = start + len(words)
        # unsigned sums and products wrap around in numpy
        sums[0, start:end] = np.dot(words, _MULTIPLIERS)
        halves = np.right_shift(words, np.uint64(32), out=upper[: len(words)])
        sums[1, start:end] = np.dot(halves, _MULTIPLIERS)
    return hashlib.sha256(sums.tobytes()).hexdigest()[:32]


def multipliers() -> _Words:
    """(512,), the multipliers of the words of a row: splitmix64 from 0 (Steele, Lea and Flood, 2014), made odd."""
    z = np.arange(1, _ROW_WORDS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return z ^ z >> np.uint64(31) | np.uint64(1)


_MULTIPLIERS: Final = multipliers()
_CHECKSUMS: Final[Mapping[int, Callable[[memoryview], str]]] = {1: sum_of_words, 2: hash_of_weighted_sums}
