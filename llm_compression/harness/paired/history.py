"""The Parquet dataset of every measurement: a row for each commit, metric, model and fingerprint of the machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import median
from typing import Final

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from llm_compression.harness.paired.duets import measured_by
from llm_compression.harness.paired.machine import MachineInfo
from llm_compression.harness.paired.project import Project
from llm_compression.harness.paired.rounds import Comparison
from llm_compression.harness.paired.worktrees import WORKING_TREE, Revision

DIRECTORY: Final = "history"
SCHEMA: Final = pa.schema(
    [
        *((name, pa.string()) for name in ("commit", "committed_at", "subject", "metric", "model", "fingerprint")),
        *(("unit", pa.string()), ("value", pa.float64()), ("samples", pa.list_(pa.float64()))),
        *((name, pa.string()) for name in ("measured_at", "processor")),
        # of files from before these were kept, null
        ("base_commit", pa.string()),
        ("ratio", pa.float64()),
    ]
)


@dataclass(frozen=True)
class Row:
    """A metric of a commit on a machine: the median over its rounds, each of them, and its ratio to the base.

    The ratio is to `base_commit`, measured in the same run; it survives a change of machine, which a value does not.
    The base itself has none.
    """

    commit: str
    committed_at: str
    subject: str
    metric: str
    model: str
    fingerprint: str
    unit: str
    value: float
    samples: tuple[float, ...]
    measured_at: str
    processor: str
    base_commit: str | None = None
    ratio: float | None = None


def fingerprint(project: Project, info: MachineInfo) -> str:
    """What must be equal for two measurements to be compared: the machine, the versions and the measuring program."""
    # a kernel reports a few MB more or less after an update
    machine = (info.processor, info.cores, info.flags, round(info.memory_mb / 1000), info.python)
    program = hashlib.sha256(b"".join(path.read_bytes() for path in measured_by(project))).hexdigest()
    text = json.dumps([*machine, sorted(info.versions.items()), program])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def rows_of(
    project: Project, base: Revision, head: Revision, found: Comparison, info: MachineInfo, measured_at: str
) -> tuple[Row, ...]:
    """A row for each side and metric that was measured; the control's values are the base's too."""
    rows = []
    machine = fingerprint(project, info)
    for key, rounds in found.rounds.items():
        change = found.verdicts[key].change if key in found.verdicts else None
        sides: list[tuple[Revision, tuple[float, ...], tuple[str, float] | None]]
        sides = [(base, (*rounds.base, *rounds.control), None)]
        if head.commit != base.commit and head.name != WORKING_TREE:
            sides.append((head, rounds.head, (base.commit, change.ratio) if change else None))
        for revision, values, to_base in sides:
            if values:
                about = (revision.commit, revision.committed_at, revision.subject)
                unit, value = project.metrics[key.metric].unit, median(values)
                where = (measured_at, info.processor)
                ratio = to_base or (None, None)
                rows.append(Row(*about, key.metric, key.model, machine, unit, value, values, *where, *ratio))
    return tuple(rows)


def append(directory: Path, rows: Iterable[Row]) -> None:
    """Add rows to the dataset, as a file of their own: no file that is there is written again."""
    table = pa.Table.from_pylist([asdict(row) for row in rows], SCHEMA)
    if not table.num_rows:
        return
    directory.mkdir(parents=True, exist_ok=True)
    name = f"{table['measured_at'][0].as_py()}-{table['commit'][-1].as_py()[:10]}"
    path = directory / f"{name.replace(':', '')}.parquet"
    # under its name only once it is whole: a cut-off file would fail every later run
    partial = path.with_suffix(".partial")
    pq.write_table(table, partial)
    partial.replace(path)


def read(directory: Path) -> list[Row]:
    """Every row, oldest commit first; of a commit that was measured again on one machine, the latest.

    A commit that was the base of a later run keeps the ratio to its own base.
    """
    if not any(directory.glob("*.parquet")):
        return []
    found = ds.dataset(directory, SCHEMA, format="parquet").to_table().to_pylist()
    latest: dict[tuple[str, ...], Row] = {}
    for each in sorted(found, key=lambda row: str(row["measured_at"])):
        row = Row(**{field.name: each[field.name] for field in fields(Row)} | {"samples": tuple(each["samples"])})
        key = (row.commit, row.metric, row.model, row.fingerprint)
        if row.ratio is None and key in latest:
            row = replace(row, base_commit=latest[key].base_commit, ratio=latest[key].ratio)
        latest[key] = row
    return sorted(latest.values(), key=lambda row: (row.committed_at, row.commit))
