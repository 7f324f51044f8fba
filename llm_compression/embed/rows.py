"""The rows of a fragment: what identifies each, what it carries along, and its image, not yet decoded."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias

import pyarrow as pa

from llm_compression.columns import NamedBytes, arrow_values
from llm_compression.embed.sources import TAR_TEXTS, Fragment, TarSample, ipc_batches, tar_samples
from llm_compression.embed.texts import texts_of
from llm_compression.errors import SourceError
from llm_compression.multimodal.image_check import is_image_name

ID: Final = "id"
EMBEDDING: Final = "embedding"
ERROR: Final = "error"
ERROR_MESSAGE: Final = "error_message"
VECTOR_COLUMNS: Final = (EMBEDDING, ERROR, ERROR_MESSAGE)
RESERVED: Final = (ID, *VECTOR_COLUMNS)
# Before the names of the columns of embedded texts.
TEXT_PREFIX: Final = "text_"
TEXT_COLUMNS: Final = tuple(TEXT_PREFIX + name for name in VECTOR_COLUMNS)
_ROWS: Final = 64


class RowBatch(NamedTuple):
    """Some rows.

    Attributes:
        carried: Column ``id``, and the columns that go through unchanged.
        images: What each row's image is: a path, encoded bytes, or None; nothing where no images are read.
        texts: Each row's text, or None; nothing where no texts are read.
    """

    carried: pa.RecordBatch
    images: Sequence[Any]
    texts: Sequence[str | None] = ()


# Columns, images and texts of some rows.
_Rows: TypeAlias = tuple[list[Any], Sequence[Any], Sequence[str | None]]


def carried_schema(fragment: Fragment) -> pa.Schema:
    """The columns that a fragment's rows carry, ``id`` first; a column of a reserved name is called ``source_NAME``.

    Raises:
        SourceError: The file cannot be read.
    """
    columns = {"files": ["path"], "list": ["path"], "tar": ["key", *TAR_TEXTS]}.get(fragment.kind)
    if columns is not None:
        return pa.schema([(name, pa.string()) for name in (ID, *columns)])
    return pa.schema([pa.field(ID, pa.string()), *_kept_fields(_table_schema(fragment), fragment)])


def read_rows(fragment: Fragment, start: int, stop: int) -> Iterator[RowBatch]:
    """The rows from ``start`` to ``stop``, some at a time; never fewer.

    Raises:
        SourceError: The file can no longer be read.
    """
    schema, read = carried_schema(fragment), 0
    readers: dict[str, Callable[[Fragment, int, int], Iterator[_Rows]]] = {
        "files": partial(_paths, with_line=False),
        "list": partial(_paths, with_line=True),
        "tar": _tar,
        "parquet": partial(_table, _parquet_batches),
        "ipc": partial(_table, lambda fragment, _start: (0, ipc_batches(fragment.uri))),
    }
    for columns, images, texts in readers[fragment.kind](fragment, start, stop):
        carried = pa.RecordBatch.from_arrays(
            [
                pa.array(column, field.type) if isinstance(column, list) else column
                for column, field in zip(columns, schema, strict=True)
            ],
            schema=schema,
        )
        read += carried.num_rows
        yield RowBatch(carried, images, texts)
    if read != stop - start:
        raise SourceError(f"{fragment.uri}: {read} rows from {start} to {stop}, expected {stop - start}")


def text_of(path: str) -> str:
    """A file's name as text; bytes that are none are shown as escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _paths(fragment: Fragment, start: int, stop: int, with_line: bool) -> Iterator[_Rows]:
    for first in range(start, stop, _ROWS):
        paths = fragment.paths[first : min(first + _ROWS, stop)]
        names = [text_of(path) for path in paths]
        ids = [f"{text_of(fragment.uri)}#{fragment.start + first + index}" for index in range(len(paths))]
        yield [ids if with_line else names, names], paths, ()


def _tar(fragment: Fragment, start: int, stop: int) -> Iterator[_Rows]:
    samples = tar_samples(fragment.uri)[start:stop]
    try:
        with tarfile.open(fragment.uri, "r:") as archive:
            for first in range(0, len(samples), _ROWS):
                part = samples[first : first + _ROWS]
                keys = [text_of(sample.key) for sample in part]
                texts = {name: [_text(archive, sample, name) for sample in part] for name in TAR_TEXTS}
                images = [_image(archive, sample) for sample in part] if fragment.with_images else ()
                ids = [f"{text_of(fragment.uri)}#{key}" for key in keys]
                # shown with escapes, and embedded as it is or not at all
                shown = [[None if text is None else text_of(text) for text in column] for column in texts.values()]
                yield [ids, keys, *shown], images, texts.get(fragment.text_column or "", ())
    except (tarfile.TarError, OSError) as error:
        raise SourceError(f"{fragment.uri}: cannot be read: {error}") from error


def _member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    return b"" if file is None else file.read()


def _text(archive: tarfile.TarFile, sample: TarSample, suffix: str) -> str | None:
    member = sample.members.get(suffix)
    return None if member is None else _member(archive, member).decode("utf-8", "surrogateescape")


def _image(archive: tarfile.TarFile, sample: TarSample) -> NamedBytes | None:
    for suffix, member in sample.members.items():
        if is_image_name(f"x.{suffix}"):
            return NamedBytes(_member(archive, member), text_of(member.name))
    return None


def _table_schema(fragment: Fragment) -> pa.Schema:
    import pyarrow.parquet as pq

    try:
        if fragment.kind == "parquet":
            return pq.read_schema(fragment.uri)
        with pa.memory_map(fragment.uri) as file:
            try:
                return pa.ipc.open_file(file).schema
            except pa.ArrowInvalid:
                file.seek(0)
                return pa.ipc.open_stream(file).schema
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"{fragment.uri}: cannot be read: {error}") from error


def _kept_fields(schema: pa.Schema, fragment: Fragment) -> list[pa.Field]:
    """All fields but the images' own, unless those are paths."""
    reserved = RESERVED if fragment.text_column is None else (*RESERVED, *TEXT_COLUMNS)
    taken, fields = set(reserved) | set(schema.names), list[pa.Field]()
    for column in schema:
        if column.name == fragment.image_column and not _is_text(column.type):
            continue
        name = column.name
        if name in reserved:
            while name in taken:
                name = f"source_{name}"
            taken.add(name)
        fields.append(column.with_name(name))
    return fields


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def _parquet_batches(fragment: Fragment, start: int) -> tuple[int, Iterator[pa.RecordBatch]]:
    """The batches from the row group that holds a row on, and the row they begin at."""
    import pyarrow.parquet as pq

    file = pq.ParquetFile(fragment.uri)
    first, row = 0, 0
    while first < file.num_row_groups and row + file.metadata.row_group(first).num_rows <= start:
        row += file.metadata.row_group(first).num_rows
        first += 1

    def batches() -> Iterator[pa.RecordBatch]:
        with file:
            yield from file.iter_batches(_ROWS, row_groups=list(range(first, file.num_row_groups)))

    return row, batches()


def _table(
    batches: Callable[[Fragment, int], tuple[int, Iterator[pa.RecordBatch]]], fragment: Fragment, start: int, stop: int
) -> Iterator[_Rows]:
    try:
        row, found = batches(fragment, start)
        for batch in found:
            for first in range(max(start - row, 0), min(batch.num_rows, stop - row), _ROWS):
                part = batch.slice(first, min(_ROWS, batch.num_rows - first, stop - row - first))
                yield _of_table(fragment, part, row + first)
            row += batch.num_rows
            if row >= stop:
                return
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"{fragment.uri}: cannot be read: {error}") from error


def _of_table(fragment: Fragment, batch: pa.RecordBatch, row: int) -> _Rows:
    images, texts = list[Any](), list[str | None]()
    if fragment.image_column is not None:
        column = batch.column(fragment.image_column)
        values = arrow_values(column, ("string", "binary", "struct", "null"))
        if values is None:
            raise SourceError(f"{fragment.uri}: column {fragment.image_column!r} is {column.type}: no images")
        images = list(values)
    if fragment.text_column is not None:
        texts = texts_of(batch.column(fragment.text_column)) or []
    kept = [
        batch.column(name)
        for name in batch.schema.names
        if name != fragment.image_column or _is_text(batch.schema.field(name).type)
    ]
    ids = [f"{text_of(fragment.uri)}#{row + index}" for index in range(batch.num_rows)]
    return [ids, *kept], images, texts
