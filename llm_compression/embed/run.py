"""A run: what there is, what is done already, what is left; the same call again goes on where the last one ended."""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, Literal, TextIO, get_args

import pyarrow as pa

from llm_compression.embed.encoders import embeds_images
from llm_compression.embed.local import Engine, Job, LocalEngine
from llm_compression.embed.reasons import CODES, TEXT_CODES
from llm_compression.embed.rows import ERROR, TEXT_PREFIX, carried_schema
from llm_compression.embed.shards import (
    METADATA_KEY,
    Receipt,
    Settings,
    Shard,
    plan_shards,
    source_state,
)
from llm_compression.embed.sources import Sources, find_sources
from llm_compression.embed.tables import VectorDtype, VectorType
from llm_compression.errors import ConfigError, EmbedError, SourceError
from llm_compression.files import sweep
from llm_compression.progress import progress_bar

EngineName = Literal["local", "ray"]
SHARD_ROWS: Final = 1024
TIMEOUT_SECONDS: Final = 600.0
_SHARD_NAME: Final = re.compile(r"\d{8}-[0-9a-f]{16}\.parquet")


@dataclass(frozen=True)
class Summary:
    """What a data set holds after a run.

    Attributes:
        rows: Rows of the input, and of the data set once the run is complete.
        embedded: Rows with an embedding of their image.
        errors: Rows without one, by code.
        shards: Files of the data set when complete.
        done_before: Of these, those that an earlier run had left.
        passed_over: Files of folders that are no images, by suffix.
        seconds: Of this run.
        is_complete: Whether every shard is there.
        has_too_many_errors: Whether more rows failed than may.
        settings: What made them.
        embedded_texts: Rows with an embedding of their text.
        text_errors: Rows without one, by code, where texts are embedded.
        failed: Rows of which one of the two has none.
        replaced: Rows of files that are of no part of the input, deleted once the run is complete.
    """

    rows: int
    embedded: int
    errors: Mapping[str, int]
    shards: int
    done_before: int
    passed_over: Mapping[str, int]
    seconds: float
    is_complete: bool
    has_too_many_errors: bool
    settings: Settings
    embedded_texts: int = 0
    text_errors: Mapping[str, int] = field(default_factory=dict)
    failed: int = 0
    replaced: int = 0


@dataclass(frozen=True)
class ErrorLimit:
    """How many rows may fail: so many, or such a part of all.

    Attributes:
        number: Rows, or per cent of them.
        is_percent: Which of the two.
    """

    number: float
    is_percent: bool

    @classmethod
    def parse(cls, text: str) -> ErrorLimit:
        """``"5"`` or ``"2.5%"``.

        Raises:
            ConfigError: It is neither.
        """
        found = re.fullmatch(r"(\d+)|(\d+(?:\.\d+)?)%", text)
        if found is None or (found[2] is not None and float(found[2]) > 100):
            raise ConfigError(f"{text!r}, expected a number of rows such as 5, or a part of them such as 2.5%")
        return cls(float(found[1] or found[2]), found[2] is not None)

    def rows_of(self, rows: int) -> float:
        """Rows that may fail among some."""
        return rows * self.number / 100 if self.is_percent else self.number


def embed(
    inputs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    model: str | os.PathLike[str],
    *,
    image_column: str | None = None,
    text_column: str | None = None,
    normalize: bool = True,
    vector_type: VectorType = "fixed_size_list",
    vector_dtype: VectorDtype = "float32",
    device: str = "cpu",
    dtype: str = "auto",
    batch_size: int = 32,
    shard_rows: int = SHARD_ROWS,
    workers: int | None = None,
    threads: int | None = None,
    timeout: float = TIMEOUT_SECONDS,
    engine: EngineName = "local",
    address: str | None = None,
    max_errors: ErrorLimit | None = None,
    retry_errors: Sequence[str] = (),
    replace_changed: bool = False,
    dry_run: bool = False,
    stdin: TextIO | None = None,
    show_progress: bool | None = False,
) -> Summary:
    """Embed all images of some sources into a data set of Parquet files, one row for each row.

    Args:
        inputs: As `find_sources`.
        out: The directory of the data set; made if there is none. It holds the shards and nothing else.
        model: A directory that holds ``weights.parquet``, or the file.
        image_column: Which column of a table holds the images; found unless given.
        text_column: Which column of a table, or ``txt`` of tar shards, holds texts that are embedded too; of a sentence
            encoder these alone. None: no texts are embedded.
        normalize: Whether each embedding gets unit length.
        vector_type: ``fixed_size_list`` or ``list``, the Arrow type of ``embedding``.
        vector_dtype: ``float32`` or ``float16``.
        device: Where it is computed.
        dtype: What it is computed in, as `VisionEncoder`.
        batch_size: Images of one pass.
        shard_rows: Rows of a file at most; of paths 4096 at most.
        workers: Processes; as many as the processors have room for with their threads unless given.
        threads: Of each process; the processors, four at most, unless given.
        timeout: Seconds without progress after which a process is taken for dead.
        engine: What hands out the shards: ``local``, processes of this machine, or ``ray``, those of a cluster, on
            every machine of which ``inputs``, ``out`` and ``model`` are found under the same names.
        address: Of a Ray cluster; a new one on this machine unless given.
        max_errors: More failed rows end the run; finished shards stay.
        retry_errors: Codes: shards that have rows with one of them are made again.
        replace_changed: Whether shards of a source that changed since are made again, and those of rows that are gone
            are deleted; an error names them otherwise.
        dry_run: Whether nothing is embedded, and the summary says what is there.
        stdin: What the input ``-`` reads.
        show_progress: Whether to show a bar on stderr; None shows it on a terminal.

    Returns:
        What the data set holds.

    Raises:
        SourceError: An input cannot be read, has no rows, or changed while it was.
        EmbedError: The directory holds another data set or other files, a file cannot be written, or a worker does not
            start; finished shards stay.
        ConfigError: An option is out of its range, or the model cannot embed what is asked for.
    """
    began = time.monotonic()
    _require(batch_size=batch_size, shard_rows=shard_rows, workers=workers, threads=threads, timeout=timeout)
    codes = dict.fromkeys((*CODES, *(() if text_column is None else TEXT_CODES)))
    if unknown := set(retry_errors) - set(codes):
        raise ConfigError(f"no error has the code {', '.join(sorted(unknown))}, expected some of {', '.join(codes)}")
    target = Path(out)
    _require_directory(out)
    with_images = embeds_images(model, text_column)
    if image_column is not None and not with_images:
        raise ConfigError(f"image column {image_column!r}: {os.fspath(model)} embeds texts alone")
    sources = find_sources(
        inputs, image_column=image_column, text_column=text_column, with_images=with_images, stdin=stdin
    )
    _require_one_schema(sources, inputs)
    job = Job(
        os.fspath(model),
        os.fspath(out),
        device,
        dtype,
        normalize,
        vector_type,
        vector_dtype,
        batch_size,
        threads,
        timeout,
        str(Path.cwd()),
        text_column,
    )
    with _open_engine(engine, job, workers, address) as opened:
        settings = opened.settings
        shards = plan_shards(sources.fragments, settings, shard_rows)
        present = _present(target, settings)
        stale = sorted(present.keys() - {shard.name for shard in shards})
        # of what is there alone: the state of a shard takes a look at each of its files
        made = [shard for shard in shards if present.get(shard.name)]
        changed = {shard.name for shard in made if present[shard.name] != source_state(shard)}
        counts = {name: _counts(target / name) for name in present}
        again = {
            name for name, each in counts.items() if (each.errors.keys() | each.text_errors.keys()) & set(retry_errors)
        }
        if (stale or changed - again) and not replace_changed:
            raise EmbedError(f"{target}: {_otherwise(stale, sorted(changed - again), target)}")
        replaced = _rows_in(target, stale)
        done = [shard for shard in shards if shard.name in present and shard.name not in again | changed]
        names = {shard.name for shard in done}
        todo = [shard for shard in shards if shard.name not in names]
        total, finished = _Counts(), [*done]
        limit = math.inf if max_errors is None else max_errors.rows_of(sources.rows)
        for shard in done:
            total.add(counts[shard.name])
        if not dry_run:
            target.mkdir(parents=True, exist_ok=True)
            sweep(target)
            by_name = {shard.name: shard for shard in todo}

            def on_receipt(receipt: Receipt) -> bool:
                finished.append(by_name[receipt.name])
                total.add(receipt)
                return total.failed > limit

            with progress_bar(total=_rows_of(todo), label="embedding", unit="img", enabled=show_progress) as update:
                opened.run(todo, update, on_receipt)
            if len(finished) == len(shards):
                for name in stale:
                    (target / name).unlink()
    return Summary(
        rows=sources.rows,
        embedded=_rows_of(finished) - sum(total.errors.values()) if with_images else 0,
        errors=dict(sorted(total.errors.items())),
        shards=len(shards),
        done_before=len(done),
        passed_over=dict(sources.passed_over),
        seconds=time.monotonic() - began,
        is_complete=len(finished) == len(shards),
        has_too_many_errors=total.failed > limit,
        settings=settings,
        embedded_texts=0 if text_column is None else _rows_of(finished) - sum(total.text_errors.values()),
        text_errors=dict(sorted(total.text_errors.items())),
        failed=total.failed,
        replaced=replaced,
    )


def _open_engine(name: str, job: Job, workers: int | None, address: str | None) -> Engine:
    if name == "ray":
        from llm_compression.embed.ray_engine import RayEngine

        return RayEngine(job, workers, address)
    if name != "local":
        raise ConfigError(f"engine: {name!r}, expected one of {', '.join(get_args(EngineName))}")
    if address is not None:
        raise ConfigError(f"address: {address!r}, expected none, as the engine local is this machine")
    return LocalEngine(job, workers)


def _require(**values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not value > 0:
            raise ConfigError(f"{name}: {value}, expected more than 0")


def _require_directory(out: str | os.PathLike[str]) -> None:
    """Refuse a directory that holds anything but shards, and what is none of this machine's."""
    if "://" in os.fspath(out):
        raise EmbedError(f"{os.fspath(out)}: not a local directory, expected one, such as a mounted file system's")
    target = Path(out)
    if not target.exists():
        return
    if not target.is_dir():
        raise EmbedError(f"{target}: not a directory, expected one for the data set's files")
    for path in sorted(target.iterdir()):
        if not path.name.startswith((".", "_")) and not _SHARD_NAME.fullmatch(path.name):
            raise EmbedError(
                f"{target}: holds {path.name!r}, expected a new directory, or one that this command filled"
            )


def _require_one_schema(sources: Sources, inputs: Sequence[str | os.PathLike[str]]) -> None:
    if not sources.rows:
        passed = ", ".join(f"{count} {suffix}" for suffix, count in sorted(sources.passed_over.items()))
        names = ", ".join(os.fspath(given) for given in inputs)
        raise SourceError(f"{names}: no images{f'; passed over: {passed}' if passed else ''}")
    first = sources.fragments[0]
    for other in sources.fragments[1:]:
        if (other.kind, other.uri) == (first.kind, first.uri):
            continue
        schemas = carried_schema(first), carried_schema(other)
        if not schemas[0].equals(schemas[1]):
            raise SourceError(
                f"{first.uri} carries columns {_columns(schemas[0])}, {other.uri} {_columns(schemas[1])}, expected the "
                "same of all inputs of one data set"
            )


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{column.name}: {column.type}" for column in schema)


def _rows_of(shards: Iterable[Shard]) -> int:
    return sum(shard.stop - shard.start for shard in shards)


def _present(target: Path, settings: Settings) -> dict[str, str]:
    """The shards that are there, each with the state of its source that it recorded.

    Raises:
        EmbedError: One is damaged, or was made with other settings.
    """
    import pyarrow.parquet as pq

    found = dict[str, str]()
    wanted = json.loads(json.dumps(asdict(settings)))
    for path in sorted(target.glob("*.parquet")) if target.is_dir() else []:
        try:
            says = json.loads((pq.read_schema(path).metadata or {})[METADATA_KEY])
        except (OSError, pa.ArrowException, KeyError, ValueError) as error:
            raise EmbedError(f"{path}: not a shard that can be read; delete it, and it is made again") from error
        differing = [name for name in wanted if says.get(name) != wanted[name]]
        if differing:
            described = "; ".join(f"{name}: {says.get(name)} there, {wanted[name]} now" for name in differing)
            raise EmbedError(f"{target}: a data set of other settings: {described}; give another directory")
        found[path.name] = str(says.get("source_state", ""))
    return found


@dataclass
class _Counts:
    """Errors of images and of texts by code, and the rows that have one of either."""

    errors: Counter[str] = field(default_factory=Counter)
    text_errors: Counter[str] = field(default_factory=Counter)
    failed: int = 0

    def add(self, other: _Counts | Receipt) -> None:
        """Those of a shard too."""
        self.errors.update(other.errors)
        self.text_errors.update(other.text_errors)
        self.failed += other.failed


def _counts(path: Path) -> _Counts:
    """The errors of a shard."""
    import pyarrow.parquet as pq

    names = [name for name in (ERROR, TEXT_PREFIX + ERROR) if name in pq.read_schema(path).names]
    columns = pq.read_table(path, columns=names).to_pydict()
    errors, text_errors = (
        Counter(code for code in columns.get(name, ()) if code is not None) for name in (ERROR, TEXT_PREFIX + ERROR)
    )
    failed = sum(any(row) for row in zip(*columns.values(), strict=True))
    return _Counts(errors, text_errors, failed)


def _otherwise(stale: Sequence[str], changed: Sequence[str], target: Path) -> str:
    """What keeps a run from going on, and what would become of it."""
    said = []
    if changed:
        said.append(
            f"{len(changed)} shards such as {changed[0]} are of another state of the source; --replace-changed makes "
            "them again"
        )
    if stale:
        said.append(
            f"{len(stale)} shards such as {stale[0]}, with {_rows_in(target, stale)} rows, are of no part of this "
            "input, which is another or cut otherwise by --shard-rows; --replace-changed deletes them once the run is "
            "complete"
        )
    return "; ".join(said)


def _rows_in(target: Path, names: Iterable[str]) -> int:
    import pyarrow.parquet as pq

    return sum(pq.read_metadata(target / name).num_rows for name in names)
