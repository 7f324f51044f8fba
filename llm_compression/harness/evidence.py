"""What pytest runs leave of the tests that cite a spec: a JSON file for each session, bound to the source tree.

``nox -s tests`` writes ``reports/evidence/tests.json``, and so on; `join` makes one of those that belong to a tree.
This module needs no library, so that it serves wherever pytest runs.
"""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from llm_compression.errors import LlmCompressionError
from llm_compression.harness.gates import NVIDIA_DRIVER

EVIDENCE_DIRECTORY: Final = Path("reports", "evidence")
# the session that runs no test and only says which there are
COLLECTED: Final = "collected"
NOT_RUN: Final = "not run"
# of two outcomes of one test, in two sessions, the one that stands further to the left counts
OUTCOMES: Final = ("failed", "error", "xfailed", "xpassed", "passed", "skipped", NOT_RUN)
# what outside git is no source
_MADE: Final = ("reports", "build", "dist", "__pycache__")
_HIDDEN_SOURCES: Final = (".kiro", ".ci", ".github")


class EvidenceError(LlmCompressionError, ValueError):
    """A file of evidence cannot be read."""


@dataclass(frozen=True)
class Source:
    """The source tree that a run belongs to.

    Attributes:
        commit: The revision; empty outside git.
        dirty: Whether files differ from it.
        tree: A sha256 over the names and contents of all files that git does not ignore.
    """

    commit: str
    dirty: bool
    tree: str


@dataclass(frozen=True)
class Record:
    """A test that cites a spec, and what became of it.

    Attributes:
        node: pytest's node id.
        requirements: The criteria it cites, ``N.k`` or ``spec:N.k``.
        properties: The properties it cites, ``N`` or ``spec:N``.
        outcome: One of `OUTCOMES`.
        reason: Why it did not pass.
        duration_s: Seconds, set-up and tear-down included.
        examples: Examples of hypothesis that ran to their end; None for another test.
        gate: The gate it measures, ``spec:id``; empty for another test.
        limit: The gate's comparison and limit, and ``unit`` its unit.
        unit: The unit of ``value`` and ``limit``.
        value: What was measured, or None.
        lacks: The device of a skipped gate, where the machine lacks it.
    """

    node: str
    requirements: tuple[str, ...] = ()
    properties: tuple[str, ...] = ()
    outcome: str = NOT_RUN
    reason: str = ""
    duration_s: float = 0.0
    examples: int | None = None
    gate: str = ""
    limit: str = ""
    unit: str = ""
    value: float | None = None
    lacks: str = ""


@dataclass(frozen=True)
class Part:
    """What the runs of one session left: where, on which tree, and a record for each citing test."""

    source: Source
    machine: Mapping[str, Any] = field(default_factory=dict)
    records: tuple[Record, ...] = ()


def source_of(root: Path) -> Source:
    """The state of a checkout; outside git the files under it, without hidden ones and what sessions make."""
    listed = _git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    # nothing is listed where another repository ignores this directory
    names = filter(None, listed.split("\0")) if listed else _walk(root)
    digest = hashlib.sha256()
    for name in sorted(set(names)):
        if (path := root / name).is_file():
            digest.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    commit = _git(root, "rev-parse", "--verify", "--quiet", "HEAD") or ""
    return Source(commit.strip(), bool(_git(root, "status", "--porcelain")), digest.hexdigest())


def _git(root: Path, *arguments: str) -> str | None:
    try:
        return subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True, check=True).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None


def _walk(root: Path) -> Iterator[str]:
    for path in root.rglob("*"):
        parts = path.relative_to(root).parts
        if not any(part in _MADE or (part.startswith(".") and part not in _HIDDEN_SOURCES) for part in parts):
            yield path.relative_to(root).as_posix()


def machine_facts() -> dict[str, Any]:
    """This machine and the versions on it; without psutil only what Python itself knows."""
    try:
        from llm_compression.harness.machine import machine
    except ImportError:
        facts: dict[str, Any] = {"system": platform.platform(), "python": platform.python_version(), "versions": {}}
    else:
        facts = asdict(machine())
        # a device that PyTorch cannot use is no device that the machine lacks
        facts["lacks"] = [] if facts["gpus"] or NVIDIA_DRIVER.exists() else ["cuda"]
    for package in ("pytest", "hypothesis"):
        try:
            facts["versions"][package] = version(package)
        except PackageNotFoundError:
            continue
    return facts


def merge(old: Iterable[Record], new: Iterable[Record]) -> tuple[Record, ...]:
    """The records of a run over those that earlier runs of the same tree left; a test not run takes nothing away."""
    records = {record.node: record for record in old}
    for record in new:
        if record.outcome != NOT_RUN or record.node not in records:
            records[record.node] = record
    return tuple(records.values())


def write_part(path: Path, part: Part) -> None:
    """Write what a run left, over what lies there of the same tree and machine; what lies there of another one goes."""
    try:
        old = read_part(path)
    except EvidenceError:
        old = part
    # as it reads back: a tuple is a list there
    same = old.source == part.source and json.dumps(old.machine) == json.dumps(part.machine)
    records = merge(old.records if same else (), part.records)
    _write(path, {"source": asdict(part.source), "machine": part.machine, "records": list(map(asdict, records))})


def read_part(path: Path) -> Part:
    """Read what `write_part` wrote.

    Raises:
        EvidenceError: The file is missing or is something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Part(Source(**content["source"]), content["machine"], tuple(map(_record, content["records"])))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvidenceError(f"{path}: no evidence here: {error!r}") from error


def _record(values: Mapping[str, Any]) -> Record:
    cited = {name: tuple(values[name]) for name in ("requirements", "properties")}
    return Record(**{**values, **cited})


def read_parts(directory: Path) -> dict[str, Part]:
    """Every part in a directory, by session.

    Raises:
        EvidenceError: One cannot be read.
    """
    return {path.stem: read_part(path) for path in sorted(directory.glob("*.json"))}


def join(parts: Sequence[Part]) -> tuple[Record, ...]:
    """The records of all parts; of a test that two sessions ran, the outcome that `OUTCOMES` puts first."""
    records: dict[str, Record] = {}
    for record in (record for part in parts for record in part.records):
        known = records.setdefault(record.node, record)
        if OUTCOMES.index(record.outcome) < OUTCOMES.index(known.outcome):
            records[record.node] = record
    return tuple(records.values())


def write_joined(path: Path, source: Source, parts: Mapping[str, Part]) -> None:
    """Write ``evidence.json``: the tree, the machine of each session, and the records of all of them."""
    machines = {session: part.machine for session, part in parts.items()}
    records = [asdict(record) for record in join(list(parts.values()))]
    _write(path, {"source": asdict(source), "machines": machines, "records": records})


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
