"""A data set held against what its folder holds: lost rows, swallowed errors, vectors of nothing or of others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.embed.images import Item

# Relative error of two float32 passes over one image, in batches of other sizes: that of the parity tests.
_SAME: Final = 2e-5
_UNIT: Final = 1e-4
_NAMED: Final = 20


def shards_of(out: Path) -> list[Path]:
    """The files of a data set, in order."""
    return sorted(out.glob("*.parquet"))


def problems(out: Path, folder: Path, wanted: Sequence[Item]) -> list[str]:
    """What is wrong with a data set, in words; nothing where nothing is.

    Args:
        out: The data set.
        folder: What was embedded.
        wanted: What the folder holds, in order.
    """
    found, row = list[str](), 0
    by_content = dict[int, npt.NDArray[np.float32]]()
    for given in _rows(out):
        if row >= len(wanted):
            found.append(f"row {row}: {given['id']}, expected no more than {len(wanted)} rows")
            break
        item = wanted[row]
        found += [f"row {row}, {item.name}: {what}" for what in _of_row(given, str(folder / item.name), item)]
        vector = given["embedding"]
        if vector is not None and item.code is None:
            first = by_content.setdefault(item.content, vector)
            if np.linalg.norm(vector - first) > _SAME * max(float(np.linalg.norm(first)), 1e-30):
                found.append(f"row {row}, {item.name}: other than the embedding of the same bytes in an earlier row")
        if len(found) >= _NAMED:
            return [*found, "and perhaps more"]
        row += 1
    if row < len(wanted):
        found.append(f"{row} rows, expected {len(wanted)}")
    return found


def _rows(out: Path) -> Iterator[dict[str, Any]]:
    for path in shards_of(out):
        table = pq.read_table(path)
        columns = {name: table[name].to_pylist() for name in ("id", "error", "error_message")}
        for row, vector in enumerate(table["embedding"]):
            values = None if not vector.is_valid else vector.values.to_numpy(zero_copy_only=False)
            yield {"embedding": values, **{name: column[row] for name, column in columns.items()}}


def _of_row(given: dict[str, Any], name: str, item: Item) -> Iterator[str]:
    if given["id"] != name:
        yield f"its id is {given['id']}"
    if given["error"] != item.code:
        yield f"error {given['error']}, expected {item.code}"
    if (given["error"] is None) != (given["error_message"] is None):
        yield f"error {given['error']} with the message {given['error_message']!r}"
    vector = given["embedding"]
    if (vector is None) != (item.code is not None):
        yield "no embedding" if vector is None else "an embedding, expected none"
    if vector is not None and abs(float(np.linalg.norm(vector)) - 1) > _UNIT:  # not true of one that is not finite
        yield f"an embedding of length {float(np.linalg.norm(vector)):g}, expected 1"
    if vector is not None and not np.isfinite(vector).all():
        yield "an embedding that is not finite"


def differences(one: Path, other: Path) -> list[str]:
    """In which files two data sets differ in the bytes of a column, its type or its nulls."""
    names = [[path.name for path in shards_of(out)] for out in (one, other)]
    if names[0] != names[1]:
        return [f"{len(names[0])} and {len(names[1])} files: {sorted({*names[0]} ^ {*names[1]})[:_NAMED]}"]
    return [name for name in names[0] if not _equal(pq.read_table(one / name), pq.read_table(other / name))]


def _equal(one: pa.Table, other: pa.Table) -> bool:
    # equal floats can have other bits: 0 and -0
    return bool(one.equals(other, check_metadata=True)) and all(
        _bits(one[name]) == _bits(other[name]) for name in one.column_names if name.endswith("embedding")
    )


def _bits(column: pa.ChunkedArray) -> bytes:
    return bytes(column.combine_chunks().flatten().to_numpy(zero_copy_only=False).tobytes())
