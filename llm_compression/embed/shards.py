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
from typing import Any, Final

import pyarrow as pa

from llm_compression.columns import arrow_values
from llm_compression.embed.encoders import AnyEncoder, towers_of
from llm_compression.embed.encoding import embed_rows
from llm_compression.embed.reasons import Reason
from llm_compression.embed.rows import EMBEDDING, TEXT_COLUMNS, TEXT_PREFIX, VECTOR_COLUMNS, RowBatch, read_rows
from llm_compression.embed.sources import Fragment, file_identity
from llm_compression.embed.tables import Embedded, VectorDtype, VectorType, table_of
from llm_compression.embed.texts import EXPECTED, texts_of
from llm_compression.errors import ConfigError, EmbedError, SourceChangedError, SourceError
from llm_compression.files import whole_file

METADATA_KEY: Final = b"llm_compression.embed"
_HASH_DIGITS: Final = 16


@dataclass(frozen=True)
class Settings:
    """What decides the bits of a row, and so what every shard of a data set must share.

    Attributes:
        weights_sha256: Hash that the weight file records of itself.
        preprocessing: What makes pixels of an image; empty where none are embedded.
        dimension: Width of an embedding.
        dtype: What the encoder computes in.
        normalized: Whether an embedding has unit length.
        vector_type: Arrow type of the column ``embedding``.
        vector_dtype: Of its values.
        text_column: The column whose texts are embedded, or None.
        tokenizer_sha256: Hash of the file that makes tokens of them, or None.
    """

    weights_sha256: str
    preprocessing: Mapping[str, Any]
    dimension: int
    dtype: str
    normalized: bool = True
    vector_type: VectorType = "fixed_size_list"
    vector_dtype: VectorDtype = "float32"
    text_column: str | None = None
    tokenizer_sha256: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """What there is, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Shard:
    """Rows ``start`` to ``stop`` of a fragment, and the file they go to.

    Attributes:
        name: The file's name: its place in the order of the input, and a hash of all that follows.
        crashed: Rows, counted from ``start``, whose images ended a process, each with how; they are not read.
        crashed_texts: The same of texts.
    """

    name: str
    fragment: Fragment
    start: int
    stop: int
    crashed: Mapping[int, str] = field(default_factory=dict)
    crashed_texts: Mapping[int, str] = field(default_factory=dict)

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
        crashed = ({int(row): how for row, how in found[name].items()} for name in ("crashed", "crashed_texts"))
        return cls(found["name"], fragment, found["start"], found["stop"], *crashed)


@dataclass(frozen=True)
class Receipt:
    """What became of a shard.

    Attributes:
        name: Of its file.
        rows: How many it has.
        errors: Images without an embedding, by code.
        seconds: From reading to the finished file.
        text_errors: Texts without one, by code.
        failed: Rows of which one of the two has none.
    """

    name: str
    rows: int
    errors: Mapping[str, int]
    seconds: float
    text_errors: Mapping[str, int] = field(default_factory=dict)
    failed: int = 0


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
            text = json.dumps([*what, settings.to_dict()], sort_keys=True)
            digest = hashlib.sha256(text.encode()).hexdigest()[:_HASH_DIGITS]
            shards.append(Shard(f"{len(shards):08d}-{digest}.parquet", fragment, start, stop))
    return shards


def embed_shard(
    shard: Shard,
    encoder: AnyEncoder,
    settings: Settings,
    out: Path,
    batch_size: int,
    on_rows: Callable[[int], None] = lambda _: None,
) -> Receipt:
    """Read, decode and encode a shard and write its file, whole or not at all.

    Args:
        shard: Which rows.
        encoder: What embeds them; a CLIPEngine or an ArrowEngine where the settings name a text column.
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
    errors, text_errors = (Counter(why.code for why in each.values()) for each in _reasons(found))
    failed = len(set().union(*_reasons(found)))
    seconds = time.perf_counter() - began
    return Receipt(shard.name, shard.stop - shard.start, dict(errors), seconds, dict(text_errors), failed)


def _reasons(found: Embedded) -> tuple[Mapping[int, Reason], Mapping[int, Reason]]:
    """Why images have no embeddings, and why texts have none."""
    return found.reasons, {} if found.texts is None else found.texts.reasons


def source_state(shard: Shard) -> str:
    """What tells the files of a shard's rows from changed ones; of a table or an archive it is in the shard's name."""
    paths = shard.fragment.paths[shard.start : shard.stop]
    return hashlib.sha256("\n".join(map(file_identity, paths)).encode()).hexdigest() if paths else ""


def probe_shard(
    shard: Shard,
    encoder: AnyEncoder,
    settings: Settings,
    batch_size: int,
    on_rows: Callable[[int], None] = lambda _: None,
) -> None:
    """Do all that `embed_shard` does but write, to see whether the process lives."""
    _embedded(shard, encoder, settings, batch_size, on_rows)


def _embedded(
    shard: Shard, encoder: AnyEncoder, settings: Settings, batch_size: int, on_rows: Callable[[int], None]
) -> Embedded:
    fragment, count = shard.fragment, shard.stop - shard.start

    def read() -> Iterator[RowBatch]:
        return read_rows(fragment, shard.start, shard.stop)

    towers = towers_of(encoder, settings.text_column)
    crashed = shard.crashed, shard.crashed_texts
    found = embed_rows(read, towers, settings.normalized, batch_size, *crashed, on_rows)
    if found.carried.num_rows != count:
        raise EmbedError(f"{shard.name}: {found.carried.num_rows} rows, expected {count}")
    if fragment.kind not in ("files", "list") and file_identity(fragment.uri) != fragment.identity:
        raise SourceChangedError(f"{fragment.uri}: changed since the run was planned; run the command again")
    return found


def write_shard(path: Path, found: Embedded, settings: Settings, state: str) -> None:
    """Write a shard's file, with what made it and the state of the source that it was made of."""
    import pyarrow.parquet as pq

    table = table_of(found, settings.vector_type, settings.vector_dtype)
    says = json.dumps({**settings.to_dict(), "version": _version(), "source_state": state}, sort_keys=True)
    # Arrow's own metadata, such as that of pandas, would describe other columns
    table = table.replace_schema_metadata({METADATA_KEY: says.encode()})
    with whole_file(path) as partial:
        pq.write_table(table, partial, row_group_size=max(1, table.num_rows), use_dictionary=_repeating(table))


def _repeating(table: pa.Table) -> list[str]:
    """Paths of all columns but the vectors: a dictionary of numbers that do not repeat is larger than they are."""
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.ParquetWriter(sink, table.schema).close()
    schema = pq.ParquetFile(pa.BufferReader(sink.getvalue())).schema
    paths = [schema.column(index).path for index in range(len(schema.names))]
    return [path for path in paths if path.partition(".")[0] not in (EMBEDDING, TEXT_PREFIX + EMBEDDING)]


def _version() -> str:
    try:
        return version("llm-compression")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"


def embed_batches(
    batches: Iterable[pa.RecordBatch],
    encoder: AnyEncoder,
    column: str | None = None,
    *,
    text_column: str | None = None,
    normalize: bool = True,
    batch_size: int = 32,
    vector_type: VectorType = "fixed_size_list",
) -> Iterator[pa.RecordBatch]:
    """A stream of record batches with their embeddings: one row out for each row in, in order.

    Args:
        batches: Each with a column of encoded images (binary), paths (string) or both (struct<bytes, path>), and of
            texts (string) where these are embedded.
        encoder: A VisionEncoder, or what else encodes images; a CLIPEngine for texts too; an ArrowEngine for texts
            alone.
        column: Name of the column of images; it goes through as the others do. None with an ArrowEngine.
        text_column: Name of the column of texts, if they are embedded.
        normalize: Whether each embedding gets unit length.
        batch_size: Images or texts of one pass.
        vector_type: ``fixed_size_list`` or ``list``, the Arrow type of ``embedding`` and ``text_embedding``.

    Yields:
        The batch with the columns ``embedding``, fixed_size_list<float>[dimension] unless it is a list, ``error`` and
        ``error_message`` behind its own; a row without an embedding has a null and says why. Of texts:
        ``text_embedding``, ``text_error`` and ``text_error_message``.

    Raises:
        SourceError: There is no such column, it holds no images or texts, or a column has one of the new names.
        ConfigError: The encoder does not embed what is asked for.
    """
    towers = towers_of(encoder, text_column)
    if (column is None) != (towers.images is None):
        what = "images alone or with texts" if column is None else "texts alone"
        raise ConfigError(f"column: {column!r}, and {type(encoder).__name__} embeds {what}")
    new = {*(VECTOR_COLUMNS if towers.images else ()), *(TEXT_COLUMNS if towers.texts else ())}
    for batch in batches:
        names = batch.schema.names
        if missing := [name for name in (column, text_column) if name is not None and name not in names]:
            raise SourceError(f"no column {missing[0]!r}, expected one of {names}")
        if taken := new & set(names):
            raise SourceError(f"the batch has columns {sorted(taken)} of its own; rename them")
        images, texts = list[Any](), list[str | None]()
        if column is not None:
            values = arrow_values(batch.column(column), ("string", "binary", "struct", "null"))
            if values is None:
                raise SourceError(f"column {column!r} is {batch.schema.field(column).type}, which holds no images")
            images = list(values)
        if text_column is not None:
            listed = texts_of(batch.column(text_column))
            if listed is None:
                raise SourceError(
                    f"column {text_column!r} is {batch.schema.field(text_column).type}, expected {EXPECTED}"
                )
            texts = listed
        found = embed_rows([RowBatch(batch, images, texts)].__iter__, towers, normalize, batch_size)
        table = table_of(found, vector_type)
        combined = table.combine_chunks().to_batches()
        yield from combined or [pa.RecordBatch.from_pylist([], schema=table.schema)]
