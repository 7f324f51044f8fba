"""A shard: some rows of a source, and the one file that their embeddings go to. The file is the checkpoint."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from llm_compression.columns import arrow_values
from llm_compression.embed.reasons import Reason, Trace, reason_of, trace_of
from llm_compression.embed.rows import EMBEDDING, ERROR, ERROR_MESSAGE, RowBatch, read_rows
from llm_compression.embed.sources import Fragment, file_identity
from llm_compression.embeddings import column_of
from llm_compression.errors import EmbedError, ImageError, SourceChangedError, SourceError
from llm_compression.files import whole_file
from llm_compression.multimodal.image_encoding import ImageEncoding

VectorType = Literal["fixed_size_list", "list"]
VectorDtype = Literal["float32", "float16"]
METADATA_KEY: Final = b"llm_compression.embed"
_HASH_DIGITS: Final = 16


@dataclass(frozen=True)
class Settings:
    """What decides the bits of a row, and so what every shard of a data set must share.

    Attributes:
        weights_sha256: Hash that the weight file records of itself.
        preprocessing: What makes pixels of an image.
        dimension: Width of an embedding.
        dtype: What the encoder computes in.
        normalized: Whether an embedding has unit length.
        vector_type: Arrow type of the column ``embedding``.
        vector_dtype: Of its values.
    """

    weights_sha256: str
    preprocessing: Mapping[str, Any]
    dimension: int
    dtype: str
    normalized: bool = True
    vector_type: VectorType = "fixed_size_list"
    vector_dtype: VectorDtype = "float32"


@dataclass(frozen=True)
class Shard:
    """Rows ``start`` to ``stop`` of a fragment, and the file they go to.

    Attributes:
        name: The file's name: its place in the order of the input, and a hash of all that follows.
        crashed: Rows, counted from ``start``, whose images ended a process, each with how; they are not read.
    """

    name: str
    fragment: Fragment
    start: int
    stop: int
    crashed: Mapping[int, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """One line that `from_json` reads, with the paths of its own rows alone."""
        if not self.fragment.paths:
            return json.dumps(asdict(self))
        paths = self.fragment.paths[self.start : self.stop]
        own = replace(self.fragment, rows=len(paths), paths=paths, start=self.fragment.start + self.start)
        return json.dumps(asdict(replace(self, fragment=own, start=0, stop=len(paths))))

    @classmethod
    def from_json(cls, text: str) -> Shard:
        """The shard of a line of `to_json`."""
        found = json.loads(text)
        fragment = Fragment(**{**found["fragment"], "paths": tuple(found["fragment"]["paths"])})
        crashed = {int(row): how for row, how in found["crashed"].items()}
        return cls(found["name"], fragment, found["start"], found["stop"], crashed)


@dataclass(frozen=True)
class Receipt:
    """What became of a shard."""

    name: str
    rows: int
    errors: Mapping[str, int]
    seconds: float


@dataclass(frozen=True)
class Embedded:
    """Rows with their embeddings.

    Attributes:
        carried: ``id`` and the columns that went through, (n).
        embeddings: float32 (n, dimension), zero in rows that have a reason.
        reasons: Why a row has no embedding, by its number.
    """

    carried: pa.Table
    embeddings: npt.NDArray[np.float32]
    reasons: Mapping[int, Reason]


def plan_shards(fragments: Iterable[Fragment], settings: Settings, shard_rows: int) -> list[Shard]:
    """Each fragment cut into shards of at most some rows; the same input gives the same names.

    Args:
        fragments: The input.
        settings: Part of the name, so that a file never stands for other vectors.
        shard_rows: Rows of a shard at most.
    """
    shards = list[Shard]()
    for fragment in fragments:
        for start in range(0, fragment.rows, shard_rows):
            stop = min(start + shard_rows, fragment.rows)
            what = [fragment.kind, fragment.uri, fragment.identity, fragment.start, fragment.image_column, start, stop]
            text = json.dumps([*what, asdict(settings)], sort_keys=True)
            digest = hashlib.sha256(text.encode()).hexdigest()[:_HASH_DIGITS]
            shards.append(Shard(f"{len(shards):08d}-{digest}.parquet", fragment, start, stop))
    return shards


def embed_shard(
    shard: Shard,
    encoder: ImageEncoding,
    settings: Settings,
    out: Path,
    batch_size: int,
    on_rows: Callable[[int], None] = lambda _: None,
) -> Receipt:
    """Read, decode and encode a shard and write its file, whole or not at all.

    Args:
        shard: Which rows.
        encoder: What embeds them.
        settings: How the file says they were made.
        out: The directory of the data set.
        batch_size: Images of one pass.
        on_rows: Told of rows as they are read.

    Returns:
        Rows, errors by code, and seconds.

    Raises:
        SourceError: The source cannot be read, or is no longer what was planned; nothing is written.
        OSError: The file cannot be written.
    """
    began = time.perf_counter()
    state = source_state(shard)
    found = _embedded(shard, encoder, settings, batch_size, on_rows)
    if source_state(shard) != state:
        raise SourceChangedError(f"{shard.fragment.uri}: files changed while they were read; run the command again")
    write_shard(out / shard.name, found, settings, state)
    counts = Counter(reason.code for reason in found.reasons.values())
    return Receipt(shard.name, shard.stop - shard.start, dict(counts), time.perf_counter() - began)


def source_state(shard: Shard) -> str:
    """What tells the files of a shard's rows from changed ones; of a table or an archive it is in the shard's name."""
    paths = shard.fragment.paths[shard.start : shard.stop]
    return hashlib.sha256("\n".join(map(file_identity, paths)).encode()).hexdigest() if paths else ""


def probe_shard(
    shard: Shard,
    encoder: ImageEncoding,
    settings: Settings,
    batch_size: int,
    on_rows: Callable[[int], None] = lambda _: None,
) -> None:
    """Do all that `embed_shard` does but write, to see whether the process lives."""
    _embedded(shard, encoder, settings, batch_size, on_rows)


def _embedded(
    shard: Shard, encoder: ImageEncoding, settings: Settings, batch_size: int, on_rows: Callable[[int], None]
) -> Embedded:
    fragment, count = shard.fragment, shard.stop - shard.start

    def read() -> Iterator[RowBatch]:
        return read_rows(fragment, shard.start, shard.stop)

    found = embed_rows(read, encoder, settings.normalized, batch_size, shard.crashed, on_rows)
    if found.carried.num_rows != count:
        raise EmbedError(f"{shard.name}: {found.carried.num_rows} rows, expected {count}")
    if fragment.kind not in ("files", "list") and file_identity(fragment.uri) != fragment.identity:
        raise SourceChangedError(f"{fragment.uri}: changed since the run was planned; run the command again")
    return found


def write_shard(path: Path, found: Embedded, settings: Settings, state: str) -> None:
    """Write a shard's file, with what made it and the state of the source that it was made of."""
    import pyarrow.parquet as pq

    table = table_of(found, settings.vector_type, settings.vector_dtype)
    says = json.dumps({**asdict(settings), "version": _version(), "source_state": state}, sort_keys=True)
    # Arrow's own metadata, such as that of pandas, would describe other columns
    table = table.replace_schema_metadata({METADATA_KEY: says.encode()})
    with whole_file(path) as partial:
        pq.write_table(table, partial, row_group_size=max(1, table.num_rows))


def _version() -> str:
    try:
        return version("llm-compression")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"


def table_of(
    found: Embedded, vector_type: VectorType = "fixed_size_list", vector_dtype: VectorDtype = "float32"
) -> pa.Table:
    """The rows as a table: what they carry, ``embedding``, ``error`` and ``error_message``."""
    rows = found.carried.num_rows
    nulls = np.zeros(rows, bool)
    nulls[list(found.reasons)] = True
    vectors: pa.Array = column_of(found.embeddings, nulls)
    value, width = getattr(pa, vector_dtype)(), found.embeddings.shape[1]
    kind = pa.list_(value, width) if vector_type == "fixed_size_list" else pa.list_(value)
    if vectors.type != kind:
        values = pa.array(found.embeddings.astype(vector_dtype).ravel())
        mask = pa.array(nulls)
        if vector_type == "fixed_size_list":
            vectors = pa.FixedSizeListArray.from_arrays(values, width, mask=mask)
        else:
            offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * width)
            vectors = pa.ListArray.from_arrays(offsets, values, mask=mask)
    reasons = [found.reasons.get(row) for row in range(rows)]
    columns = {
        EMBEDDING: vectors,
        ERROR: pa.array([None if reason is None else reason.code for reason in reasons], pa.string()),
        ERROR_MESSAGE: pa.array([None if reason is None else reason.message for reason in reasons], pa.string()),
    }
    table = found.carried
    for name, column in columns.items():
        table = table.append_column(name, column)
    return table


def embed_batches(
    batches: Iterable[pa.RecordBatch],
    encoder: ImageEncoding,
    column: str,
    *,
    normalize: bool = True,
    batch_size: int = 32,
    vector_type: VectorType = "fixed_size_list",
) -> Iterator[pa.RecordBatch]:
    """A stream of record batches with their embeddings: one row out for each row in, in order.

    Args:
        batches: Each with a column of encoded images (binary), paths (string) or both (struct<bytes, path>).
        encoder: A VisionEncoder, or what else encodes images.
        column: That column's name; it goes through as the others do.
        normalize: Whether each embedding gets unit length.
        batch_size: Images of one pass.
        vector_type: ``fixed_size_list`` or ``list``, the Arrow type of ``embedding``.

    Yields:
        The batch with the columns ``embedding``, fixed_size_list<float>[dimension] unless it is a list, ``error`` and
        ``error_message`` behind its own; a row without an embedding has a null and says why.

    Raises:
        SourceError: There is no such column, it holds no images, or a column has one of the new names.
    """
    for batch in batches:
        names = batch.schema.names
        if column not in names:
            raise SourceError(f"no column {column!r}, expected one of {names}")
        if taken := {EMBEDDING, ERROR, ERROR_MESSAGE} & set(names):
            raise SourceError(f"the batch has columns {sorted(taken)} of its own; rename them")
        values = arrow_values(batch.column(column), ("string", "binary", "struct", "null"))
        if values is None:
            raise SourceError(f"column {column!r} is {batch.schema.field(column).type}, which holds no images")
        rows = [RowBatch(batch, list(values))]
        found = embed_rows(rows.__iter__, encoder, normalize, batch_size)
        table = table_of(found, vector_type)
        combined = table.combine_chunks().to_batches()
        yield from combined or [pa.RecordBatch.from_pylist([], schema=table.schema)]


def embed_rows(
    read: Callable[[], Iterable[RowBatch]],
    encoder: ImageEncoding,
    normalize: bool,
    batch_size: int,
    crashed: Mapping[int, str] | None = None,
    on_rows: Callable[[int], None] = lambda _: None,
) -> Embedded:
    """Embed rows as they are read; decoding the next images overlaps with encoding these.

    Args:
        read: Gives the rows from the first on, each time it is called.
        encoder: What embeds them.
        normalize: Whether each embedding gets unit length.
        batch_size: Images of one pass.
        crashed: Rows that are not read, and why.
        on_rows: Told of rows as they are read.

    Returns:
        All rows, in order.
    """
    known = {row: Reason("crashed", how) for row, how in (crashed or {}).items()}
    while True:
        carried, traces = list[pa.RecordBatch](), list[Trace]()

        def images(carried: list[pa.RecordBatch] = carried, traces: list[Trace] = traces) -> Iterator[Any]:
            for batch in read():
                carried.append(batch.carried)
                for image in batch.images:
                    traces.append(trace_of(image))
                    yield None if len(traces) - 1 in known else image
                on_rows(len(batch.images))

        try:
            found = encoder.encode(images(), normalize, batch_size, on_error="skip")
        except ImageError as error:
            # the picture is sound and its embedding is none: the others are embedded without it
            if error.position is None or error.position in known:
                raise
            known[error.position] = Reason("not_finite", error.reason)
            continue
        reasons = dict(known)
        for bad in found.errors:
            # what is known to end a process is not looked at again
            if bad.position is not None and bad.position not in known:
                reasons[bad.position] = reason_of(bad, traces[bad.position])
        embeddings = np.zeros((len(traces), encoder.dimension), np.float32)
        embeddings[found.positions] = found.embeddings
        return Embedded(pa.Table.from_batches(carried), embeddings, reasons)
