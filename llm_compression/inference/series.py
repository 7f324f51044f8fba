"""Columns of pandas and polars, told by what they are called, so that neither library is imported."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

_MISSING = ("NAType", "NaTType")


def series_values(given: object) -> list[Any] | pa.Array | pa.ChunkedArray | None:
    """The values of a pandas or polars Series (or a pandas Index), None for each that is missing.

    Returns:
        An Arrow array where the values are Arrow's already, a list of the very objects elsewhere; None where this is
        no Series.
    """
    name, library = type(given).__name__, type(given).__module__.partition(".")[0]
    column: Any = given
    if library == "polars" and name == "Series":
        # a column of Python objects has no Arrow type
        return list(column.to_list()) if str(column.dtype) == "Object" else column.to_arrow()
    if library == "pandas" and (name == "Series" or name.endswith("Index")):
        values: Any = column.array
        if type(values).__name__.startswith("Arrow"):
            return values.__arrow_array__()
        return [None if _is_missing(value) else value for value in column.tolist()]
    return None


def _is_missing(value: object) -> bool:
    return (isinstance(value, float) and value != value) or type(value).__name__ in _MISSING
