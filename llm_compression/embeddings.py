"""Tables of embeddings: what a search takes, the cosine of two of them, and the files that hold one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from llm_compression.columns import series_values
from llm_compression.errors import ConfigError
from llm_compression.files import whole_file

if TYPE_CHECKING:
    from torch import Tensor

Array: TypeAlias = npt.NDArray[np.float32]
Embeddings: TypeAlias = "npt.NDArray[Any] | Tensor | pa.Array | pa.ChunkedArray | pa.Table | str | os.PathLike[str]"

IMAGE_COLUMN: Final = "image"
EMBEDDING_COLUMN: Final = "embedding"
SUFFIXES: Final = (".npy", ".parquet")
_EXPECTED: Final = (
    "floating point embeddings (rows, dimension): an array, a tensor, an Arrow column of lists, or the path of an "
    ".npy or .parquet file"
)


def cosine(a: Embeddings, b: Embeddings) -> Array:
    """Cosine of each row of ``a`` to each of ``b``, float32 (n, m).

    Raises:
        ConfigError: These are not two tables of embeddings of one width, or a row has no direction.
    """
    import torch

    from llm_compression.settings import own_settings

    tables = [table_of(a, "a"), table_of(b, "b")]
    if tables[0].shape[1] != tables[1].shape[1]:
        raise ConfigError(f"embeddings of width {tables[0].shape[1]} and {tables[1].shape[1]}, expected one width")
    first, second = (torch.from_numpy(_unit(table, name)) for table, name in zip(tables, "ab", strict=True))
    with own_settings():
        out: Array = (first @ second.T).numpy()
    return out


def table_of(given: Embeddings, name: str) -> npt.NDArray[Any]:
    """Embeddings as an array of floating point numbers (rows, dimension), a view where their holder allows one.

    Args:
        given: An array, a tensor, an Arrow column of lists, a table with a column ``embedding``, a pandas or polars
            Series, or the path of what the command ``encode`` wrote.
        name: What an error calls them.

    Raises:
        ConfigError: They are none, the file is missing or holds none, or a row is null.
    """
    import torch

    found: Any = given
    if isinstance(found, str | os.PathLike):
        path = Path(found)
        found, name = _read(path), f"{name}: {path}"
    if isinstance(found, pa.Table):
        if EMBEDDING_COLUMN not in found.column_names:
            raise ConfigError(f"{name}: columns {found.column_names}, expected {EMBEDDING_COLUMN!r}")
        found = found[EMBEDDING_COLUMN]
    if isinstance(found, torch.Tensor):
        if found.is_floating_point():
            # numpy has no bfloat16
            found = found.detach().to("cpu", torch.float32 if found.dtype == torch.bfloat16 else found.dtype).numpy()
        else:
            raise ConfigError(f"{name}: {found.dtype} {tuple(found.shape)}, expected {_EXPECTED}")
    elif (series := series_values(found)) is not None:
        found = series if isinstance(series, pa.Array | pa.ChunkedArray) else _stacked(series, name)
    if isinstance(found, pa.Array | pa.ChunkedArray):
        found = _rows_of_column(found, name)
    if not isinstance(found, np.ndarray) or found.ndim != 2 or found.dtype.kind != "f":
        what = f"{found.dtype} {found.shape}" if isinstance(found, np.ndarray) else type(found).__name__
        raise ConfigError(f"{name}: {what}, expected {_EXPECTED}")
    return found


def write_embeddings(path: Path, names: Sequence[str], embeddings: Array, positions: Sequence[int]) -> None:
    """Write embeddings as ``.npy``, or as ``.parquet`` with the names of their images; the file is whole or not there.

    Args:
        path: The file.
        names: Of each image that has a row in the file, with or without an embedding.
        embeddings: float32 (k, dimension).
        positions: Which of the names each embedding is of; the others get a row of NaN in an ``.npy``, a null in a
            ``.parquet``.
    """
    import pyarrow.parquet as pq

    has_one = np.zeros(len(names), bool)
    has_one[list(positions)] = True
    rows = embeddings
    if len(positions) < len(names):
        rows = np.full((len(names), embeddings.shape[1]), np.nan, np.float32)
        rows[has_one] = embeddings
    with whole_file(path) as partial:
        if path.suffix == ".npy":
            with partial.open("wb") as file:
                np.save(file, rows)
        else:
            columns = {IMAGE_COLUMN: pa.array(names, pa.string()), EMBEDDING_COLUMN: column_of(rows, ~has_one)}
            pq.write_table(pa.table(columns), partial)


def column_of(rows: Array, nulls: npt.NDArray[np.bool_] | None = None) -> pa.FixedSizeListArray:
    """Embeddings as a column that wraps their memory, fixed_size_list<float>[dimension], null where it is said."""
    values = pa.Array.from_buffers(pa.float32(), rows.size, [None, pa.py_buffer(rows)])
    mask = None if nulls is None or not nulls.any() else pa.array(nulls)
    return pa.FixedSizeListArray.from_arrays(values, rows.shape[1], mask=mask)


def _unit(table: npt.NDArray[Any], name: str) -> Array:
    # in float64: the square of a float16 or float32 may be out of its range
    lengths = np.sqrt(np.einsum("ij,ij->i", table, table, dtype=np.float64, casting="unsafe"))[:, None]
    wrong = ~(np.isfinite(lengths) & (lengths > 0)).ravel()
    if wrong.any():
        rows = np.flatnonzero(wrong)
        raise ConfigError(
            f"{name}: a row of zero, NaN or infinite length, expected embeddings: {_listed(rows)}; "
            f"leave such rows out, as with {name}[numpy.isfinite({name}).all(1)]"
        )
    # divided in float64, some values at a time, each rounded once
    out: Array = np.empty(table.shape, np.float32)
    np.divide(table, lengths, out=out, dtype=np.float64, casting="unsafe")
    return out


def _read(path: Path) -> Any:
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"{path}: expected a name ending in .npy or .parquet")
    if not path.is_file():
        raise ConfigError(f"{path}: no such file, expected embeddings that the command encode wrote")
    try:
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False)
        import pyarrow.parquet as pq

        # no dictionary of names: only the column that is asked for
        names = pq.read_schema(path).names
        return pq.read_table(path, columns=[EMBEDDING_COLUMN]) if EMBEDDING_COLUMN in names else pa.table({})
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error


def _stacked(rows: list[Any], name: str) -> Any:
    """Rows that are arrays or lists of their own, as pandas keeps a column of lists."""
    if any(row is None for row in rows):
        raise _null(np.flatnonzero([row is None for row in rows]), name)
    try:
        return np.stack([np.asarray(row) for row in rows]) if rows else np.empty((0, 0), np.float32)
    except ValueError as error:
        raise ConfigError(f"{name}: rows of several widths, expected {_EXPECTED}") from error


def _rows_of_column(column: pa.Array | pa.ChunkedArray, name: str) -> npt.NDArray[Any]:
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        chunks, kind = [chunk.storage for chunk in chunks], kind.storage_type
    is_fixed = pa.types.is_fixed_size_list(kind)
    if not (is_fixed or pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        raise ConfigError(f"{name}: a column of {kind}, expected {_EXPECTED}")
    if column.null_count:
        nulls = np.concatenate([np.asarray(chunk.is_null()) for chunk in chunks])
        raise _null(np.flatnonzero(nulls), name)
    parts = []
    for chunk in chunks:
        values = chunk.flatten()
        if values.null_count or not pa.types.is_floating(values.type):
            raise ConfigError(f"{name}: a column of {kind} with nulls in its rows or no floats, expected {_EXPECTED}")
        width = kind.list_size if is_fixed else _width(chunk, name)
        parts.append(values.to_numpy(zero_copy_only=False).reshape(len(chunk), width))
    parts = [part for part in parts if len(part)] or parts[:1] or [np.empty((0, 0), np.float32)]
    if len({part.shape[1] for part in parts}) != 1:
        raise ConfigError(f"{name}: rows of several widths, expected {_EXPECTED}")
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _width(chunk: pa.Array, name: str) -> int:
    widths = np.unique(np.diff(np.asarray(chunk.offsets)))
    if len(widths) > 1:
        raise ConfigError(f"{name}: rows of several widths, {_listed(widths)}, expected {_EXPECTED}")
    return int(widths[0]) if len(widths) else 0


def _null(rows: npt.NDArray[np.intp], name: str) -> ConfigError:
    return ConfigError(f"{name}: a null where an embedding is expected: {_listed(rows)}; leave such rows out")


def _listed(rows: npt.NDArray[Any]) -> str:
    shown = ", ".join(map(str, rows[:10].tolist()))
    return f"row{'s' if len(rows) > 1 else ''} {shown}" + (f" and {len(rows) - 10} more" if len(rows) > 10 else "")
