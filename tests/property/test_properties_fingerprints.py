"""Properties of fingerprints: no rearrangement of what a weight file holds goes unseen."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm_compression.errors import WeightFormatError
from llm_compression.inference.weight_format import DTYPES, WeightMetadata, write_weights
from llm_compression.inference.weight_loader import WeightLoader
from tests.weight_rows import rewrite

METADATA = WeightMetadata(config={"model_type": "table"}, source={"name": "drawn"})
UNITS = (1, 2, 3, 4, 8, 12, 16, 64, 512, 4096)
Draw = Callable[[st.SearchStrategy[Any]], Any]


def tensor_of(kind: str, dtype: torch.dtype, rows: int, columns: int, seed: int) -> torch.Tensor:
    """A matrix as models have them, or one whose sums of rows and columns are all alike."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(rows, columns, generator=generator)
    patterns = {
        "normal": drawn * 20,
        "signs": drawn.sign(),
        "identity": torch.eye(rows, columns),
        "rows alike": (drawn * 20)[:1].expand(rows, columns),
        "sparse": torch.where(drawn > 1.5, drawn * 20, 0),
    }
    return patterns[kind].to(dtype)


def units_of(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def rearranged(data: bytes, columns_bytes: int, draw: Draw) -> bytes:
    """The bytes of a tensor in another order, or with some of their bits flipped."""
    size = draw(st.sampled_from([*(unit for unit in UNITS if unit < len(data)), columns_bytes]))
    whole, rest = data[: len(data) // size * size], data[len(data) // size * size :]
    units = units_of(whole, size)
    first, second = sorted(draw(st.tuples(st.integers(0, len(units) - 1), st.integers(0, len(units) - 1))))
    how = draw(st.sampled_from(["exchange", "rotate", "reverse", "transpose", "flip", "shift", "reverse bytes"]))
    part = units[first : second + 1]
    if how == "exchange":
        units[first], units[second] = units[second], units[first]
    elif how == "rotate":
        by = draw(st.integers(0, len(part)))
        units[first : second + 1] = part[by:] + part[:by]
    elif how == "reverse":
        units[first : second + 1] = part[::-1]
    elif how == "transpose":
        columns = draw(st.sampled_from([n for n in range(1, min(len(units), 65) + 1) if len(units) % n == 0]))
        units = [units[row * columns + column] for column in range(columns) for row in range(len(units) // columns)]
    elif how == "flip":
        mask = draw(st.integers(1, 255))
        units[first] = bytes(each ^ mask for each in units[first])
    elif how == "shift":
        units = [bytes(size), *units[:-1]]
    else:
        units[first] = units[first][::-1]
    return b"".join(units) + rest


@pytest.mark.property(35)
@given(
    kinds=st.lists(st.sampled_from(["normal", "signs", "identity", "rows alike", "sparse"]), min_size=2, max_size=3),
    dtype=st.sampled_from(list(DTYPES.values())),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 80)),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
def test_no_rearrangement_goes_unseen(
    kinds: list[str], dtype: torch.dtype, shape: tuple[int, int], seed: int, data: st.DataObject
) -> None:
    """Property 35: *For any* tensors of any dtype, any exchange, rotation, reversal, transposition, shift and flip of
    the bytes, words, elements or rows within them and between them, page checksums made anew, loading raises
    WeightFormatError with the name of a tensor that changed."""
    names = [f"layers.0.{index}" for index in range(len(kinds))]
    table = {
        name: tensor_of(kind, dtype, *shape, seed + index)
        for index, (name, kind) in enumerate(zip(names, kinds, strict=True))
    }
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "weights.parquet")
        write_weights(path, table.items(), METADATA)
        changed: set[str] = set()

        def change(rows: list[dict[str, Any]]) -> None:
            before = [row["data"] for row in rows]
            if data.draw(st.booleans(), label="within one"):
                row = data.draw(st.sampled_from(rows))
                row["data"] = rearranged(row["data"], shape[1] * dtype.itemsize, data.draw)
            else:
                joined = rearranged(b"".join(before), shape[1] * dtype.itemsize, data.draw)
                for index, (row, old) in enumerate(zip(rows, before, strict=True)):
                    row["data"] = joined[index * len(old) : (index + 1) * len(old)]
            changed.update(row["layer_name"] for row, old in zip(rows, before, strict=True) if row["data"] != old)

        rewrite(path, change)
        loader = WeightLoader(path)
        for name in names:
            if name in changed:
                with pytest.raises(WeightFormatError, match=rf"{name}: these are not the bytes that were written"):
                    dict(loader.stream())
                break
        else:
            found = loader.load_weights()
            assert all(np.array_equal(found[name].float(), table[name].float()) for name in names)
