"""Stand-ins for a pandas and a polars Series: their names and the few methods that this package calls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa


class _ArrowBacked:
    def __init__(self, values: pa.Array) -> None:
        self.values = values

    def __arrow_array__(self) -> pa.Array:
        return self.values


class PandasSeries:
    """A column of Python objects, a missing one being NaN, or one over an Arrow array."""

    def __init__(self, values: Sequence[Any] | pa.Array) -> None:
        self.values = values
        self.array = _ArrowBacked(values) if isinstance(values, pa.Array) else values

    def tolist(self) -> list[Any]:
        """The values."""
        assert not isinstance(self.values, pa.Array), "copies what Arrow holds"
        return [math.nan if value is None else value for value in self.values]


class PolarsSeries:
    """A column over an Arrow array, or of Python objects, which polars cannot give as Arrow."""

    def __init__(self, values: Sequence[Any] | pa.Array) -> None:
        self.values = values
        self.dtype = "Binary" if isinstance(values, pa.Array) else "Object"

    def to_list(self) -> list[Any]:
        """The values."""
        return list(self.values)

    def to_arrow(self) -> pa.Array:
        """The array, or a panic."""
        assert self.dtype != "Object", "no Arrow type"
        return self.values


for _stand_in, _module in (
    (_ArrowBacked, "pandas"),
    (PandasSeries, "pandas.core.series"),
    (PolarsSeries, "polars.series"),
):
    _stand_in.__module__ = _module
_ArrowBacked.__name__ = "ArrowExtensionArray"
PandasSeries.__name__ = PolarsSeries.__name__ = "Series"
