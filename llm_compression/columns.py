"""The values of a column: of Arrow, with encoded bytes as views of its own memory, and of pandas and polars.

The last two are told by what they are called, so that neither library is imported.

`pyarrow.BinaryScalar.as_buffer` copies each value; slicing a memoryview of the array's data buffer does not, and stays
writable where the buffer is, as PyTorch wants it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import chain
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa

# Values are taken out of an array so many at a time: a Python object for each of a long column would outweigh it.
_SLICE: Final = 1024
_INLINE: Final = 12
_MISSING: Final = ("NAType", "NaTType")


class NamedBytes(NamedTuple):
    """Encoded bytes, and the name of what they are of, if it is known."""

    data: Any
    name: str | None


def binary_views(array: pa.Array) -> list[memoryview | None]:
    """Each value of a binary, large_binary or binary_view array, None for a null, without copying."""
    # pyarrow.compute, which is_valid imports, costs a load tens of milliseconds
    valid = [value.is_valid for value in array] if array.null_count else [True] * len(array)
    if pa.types.is_binary_view(array.type):
        return _views_of_views(array, valid)
    width = np.int64 if pa.types.is_large_binary(array.type) else np.int32
    _, offset_buffer, data = array.buffers()
    if len(array) == 0 or offset_buffer is None:
        return [None] * len(array)
    offsets = np.frombuffer(offset_buffer, width, count=len(array) + 1, offset=array.offset * np.dtype(width).itemsize)
    memory = memoryview(b"" if data is None else data).cast("B")
    return [
        memory[int(start) : int(end)] if is_valid else None
        for start, end, is_valid in zip(offsets[:-1], offsets[1:], valid, strict=True)
    ]


def _views_of_views(array: pa.Array, valid: list[bool]) -> list[memoryview | None]:
    """Of a binary_view array: 16 bytes for each value, the length and then the bytes, or where they lie."""
    _, headers, *blocks = array.buffers()
    if headers is None:
        return [None] * len(array)
    memory = memoryview(headers).cast("B")
    places = np.frombuffer(headers, np.int32, count=4 * len(array), offset=16 * array.offset).reshape(-1, 4)
    views: list[memoryview | None] = []
    for row, ((length, _, block, start), is_valid) in enumerate(zip(places.tolist(), valid, strict=True)):
        if not is_valid:
            views.append(None)
        elif length <= _INLINE:
            first = 16 * (array.offset + row) + 4
            views.append(memory[first : first + length])
        else:
            views.append(memoryview(blocks[block]).cast("B")[start : start + length])
    return views


def arrow_values(array: pa.Array | pa.ChunkedArray, kinds: Collection[str]) -> Iterator[Any] | None:
    """The values of a column, None for a null: str of strings, views of binaries, `NamedBytes` of structs.

    A dictionary, run-end encoded or extension type is what it holds. Of a ``struct<bytes, path>``, as Hugging Face's
    datasets keep images in, the bytes count, and where there are none the path.

    Args:
        array: The column.
        kinds: What it may be of: ``string``, ``binary``, ``struct``, ``null``.

    Returns:
        An iterator that takes out some values at a time, or None where the column is of another type.
    """
    if _kind(array.type) not in kinds:
        return None
    chunks = array.chunks if isinstance(array, pa.ChunkedArray) else [array]
    slices = (chunk.slice(start, _SLICE) for chunk in chunks for start in range(0, len(chunk), _SLICE))
    return chain.from_iterable(map(_values, slices))


def _kind(kind: pa.DataType) -> str:
    types = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return _kind(kind.storage_type)
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        return _kind(kind.value_type)
    if types.is_null(kind):
        return "null"
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return "string"
    if any(is_kind(kind) for is_kind in (types.is_binary, types.is_large_binary, types.is_binary_view)):
        return "binary"
    if types.is_fixed_size_binary(kind):
        return "binary"
    if types.is_struct(kind):
        found = {kind.field(index).name: _kind(kind.field(index).type) for index in range(kind.num_fields)}
        fits = set(found) <= {"bytes", "path"} and found
        if (
            fits
            and found.get("bytes", "null") in ("binary", "null")
            and found.get("path", "null") in ("string", "null")
        ):
            return "struct"
    return str(kind)


def _values(array: pa.Array) -> list[Any]:
    kind, types = array.type, pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return _values(array.storage)
    if types.is_dictionary(kind):
        # only the entries that this slice names
        codes = array.indices.to_pylist()
        entries = {code: _values(array.dictionary.slice(code, 1))[0] for code in set(codes) if code is not None}
        return [None if code is None else entries[code] for code in codes]
    if types.is_run_end_encoded(kind):
        import pyarrow.compute as pc

        return _values(pc.run_end_decode(array))
    if types.is_struct(kind):
        names = [kind.field(index).name for index in range(kind.num_fields)]
        columns = dict(zip(names, map(_values, array.flatten()), strict=True))  # flattened: a null struct has none
        nothing = [None] * len(array)
        pairs = zip(columns.get("bytes", nothing), columns.get("path", nothing), strict=True)
        return [path if data is None else NamedBytes(data, path) for data, path in pairs]
    if any(is_kind(kind) for is_kind in (types.is_binary, types.is_large_binary, types.is_binary_view)):
        return list(binary_views(array))
    try:
        return list(array.to_pylist())
    except UnicodeDecodeError:  # Arrow does not check what a file holds: such bytes become lone surrogates, as in paths
        if types.is_string_view(kind):
            array = array.cast(pa.large_string())
        views = binary_views(array.view(pa.binary() if types.is_string(kind) else pa.large_binary()))
        return [None if view is None else bytes(view).decode("utf-8", "surrogateescape") for view in views]


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
