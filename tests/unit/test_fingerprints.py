"""Fingerprints: the sum of version 1, and the sums of version 2 that see where a word stands."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import pytest

from llm_compression.inference.fingerprints import (
    fingerprint,
    hash_of_weighted_sums,
    multipliers,
    sum_of_words,
)

ROW = 4096
# what words may differ by: one bit, the halves exchanged, a sign, all of it
PAIRS = (
    *((0, 1 << bit) for bit in (0, 7, 31, 32, 48, 62, 63)),
    (0x3F800000_BF800000, 0xBF800000_3F800000),
    (0x3FF00000_00000000, 0xBFF00000_00000000),
    (0, 2**64 - 1),
)


def split_mix() -> list[int]:
    """The multipliers by the formula of the specification, in whole numbers."""
    found = []
    for place in range(1, 513):
        z = place * 0x9E3779B97F4A7C15 % 2**64
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        found.append((z ^ z >> 31) | 1)
    return found


def of_words(*words: int) -> memoryview:
    return memoryview(np.array(words, "<u8").tobytes())


@pytest.mark.requirement("39.1")
@pytest.mark.parametrize(
    "size", [0, 1, 7, 8, 9, 4095, 4096, 4097, 5000, 32 * ROW - 1, 32 * ROW, 32 * ROW + 1, 70 * ROW]
)
def test_the_sums_are_those_of_the_specification(size: int) -> None:
    """39.1: THE Package SHALL write Weight Files of format version 2, whose fingerprint of a tensor has sums of its
    words weighted by their positions."""
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8).tobytes()
    padded, weights = data + bytes(-size % ROW), split_mix()
    sums: list[list[int]] = [[], []]
    for start in range(0, len(padded), ROW):
        words = [int.from_bytes(padded[at : at + 8], "little") for at in range(start, start + ROW, 8)]
        sums[0].append(sum(word * weight for word, weight in zip(words, weights, strict=True)) % 2**64)
        sums[1].append(sum((word >> 32) * weight for word, weight in zip(words, weights, strict=True)) % 2**64)
    both = b"".join(each.to_bytes(8, "little") for each in sums[0] + sums[1])
    expected = hashlib.sha256(both).hexdigest()[:32]
    assert hash_of_weighted_sums(memoryview(data)) == expected
    assert fingerprint("uint8", [size], data, 2) == f"uint8[{size}]:{expected}"


@pytest.mark.requirement("39.1")
def test_the_example_of_the_specification() -> None:
    """39.1: the value that docs/weight-format.md prints."""
    data = np.array([1.5, -2], "<f4").tobytes()
    assert fingerprint("float32", [2], data, 2) == "float32[2]:0b26ffe76051c311735506694e393aff"


@pytest.mark.requirement("39.3")
@pytest.mark.parametrize("size", range(20))
def test_the_sum_of_version_1(size: int) -> None:
    """39.3: WHEN given a Weight File of format version 1, THE WeightLoader SHALL hold its tensors against the sums of
    their words."""
    data = bytearray(range(200, 200 + size))
    total = sum(int.from_bytes(data[at : at + 8], "little") for at in range(0, size, 8)) % 2**64
    assert sum_of_words(memoryview(data)) == f"{total:016x}"
    assert fingerprint("int8", [size, 1], data, 1) == f"int8[{size},1]:{total:016x}"


@pytest.mark.requirement("4.5")
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("size", [*range(20), 4095, 4097])
def test_a_fingerprint_sees_every_byte(size: int, version: int) -> None:
    """4.5: IF a byte of a Weight File that carries metadata is flipped, THEN THE WeightLoader SHALL raise
    WeightFormatError or yield the tensors and metadata that were written."""
    data = bytearray(each % 251 for each in range(100, 100 + size))
    whole = fingerprint("uint8", [size], data, version)
    for where in range(size) if size < 100 else (0, 7, 8, 2048, size - 1):
        for mask in (1, 0x80, 0xFF):
            changed = bytearray(data)
            changed[where] ^= mask
            assert fingerprint("uint8", [size], changed, version) != whole
    assert fingerprint("int8", [size], data, version) != whole
    assert fingerprint("uint8", [1, size], data, version) != whole


@pytest.mark.requirement("39.2")
def test_what_the_multipliers_promise() -> None:
    """39.2: that two words of a row that change places change a sum rests on multipliers that are odd and differ modulo
    2^32: a difference below 2^32 times one of theirs is then no multiple of 2^64."""
    found = [int(each) for each in multipliers()]
    assert found == split_mix()
    assert len({each % 2**32 for each in found}) == len(found) == 512
    assert all(each % 2 for each in found)


@pytest.mark.requirement("39.2")
@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_two_words_that_change_places(one: int, other: int) -> None:
    """39.2: IF words of a tensor are exchanged, THEN THE WeightLoader SHALL raise WeightFormatError: whichever two
    places of a row, whatever the words differ by."""
    others = [int(each) for each in np.random.default_rng(0).integers(0, 2**63, 512)]
    for first, second in [(0, 1), (0, 511), *np.random.default_rng(1).choice(512, (60, 2), replace=False).tolist()]:
        words = list(others)
        words[first], words[second] = one, other
        swapped = list(words)
        swapped[first], swapped[second] = other, one
        assert hash_of_weighted_sums(of_words(*words)) != hash_of_weighted_sums(of_words(*swapped))


@pytest.mark.requirement("39.2")
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.int8])
@pytest.mark.parametrize(
    "matrix",
    [
        np.eye(64),
        np.kron(np.eye(8), np.ones((8, 8))),
        np.tile([1, 1, 1, -1], (64, 16)),
        np.where(np.arange(64)[:, None] % 2, np.tile([1, -1], 32), 1),
        np.array([[(-1) ** (i & j).bit_count() for j in range(64)] for i in range(64)]),
    ],
    ids=["identity", "blocks", "signs", "every other row", "Hadamard"],
)
def test_rearranged_patterns(matrix: np.ndarray, dtype: type) -> None:
    """39.2: IF rows of a tensor are exchanged, rotated or reversed, THEN THE WeightLoader SHALL raise
    WeightFormatError: also where all sums of rows and columns stay the same."""
    data: np.ndarray = matrix.astype(dtype)
    changes: list[Callable[[np.ndarray], np.ndarray]] = [
        lambda found: np.roll(found, 1, axis=0),
        lambda found: np.roll(found, 1, axis=1),
        lambda found: found[::-1],
        lambda found: found[:, ::-1],
        *(lambda found, i=i: found[[*range(1, i + 1), 0, *range(i + 1, 64)]] for i in range(1, 64)),
        lambda found: found.T,
        lambda found: -found,
    ]
    whole, seen = hash_of_weighted_sums(memoryview(data.tobytes())), 0
    for change in changes:
        changed = np.ascontiguousarray(change(data))
        if not np.array_equal(changed, data):
            seen += 1
            assert hash_of_weighted_sums(memoryview(changed.tobytes())) != whole
    assert seen > 3


@pytest.mark.requirement("39.2")
def test_any_alignment_gives_the_same_sums() -> None:
    """39.2: bytes that follow others of odd length in an Arrow buffer have the fingerprint of the same bytes alone."""
    data = np.random.default_rng(0).integers(0, 256, 3 * ROW + 5, np.uint8).tobytes()
    for shift in range(1, 9):
        moved = memoryview(bytes(shift) + data)[shift:]
        assert hash_of_weighted_sums(moved) == hash_of_weighted_sums(memoryview(data))
