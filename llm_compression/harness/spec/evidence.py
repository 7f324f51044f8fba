"""What pytest runs leave of the tests that cite a spec: a JSON file for each session, bound to the source tree.

``nox -s tests`` writes ``reports/evidence/tests.json``, and so on; `join` makes one of those that belong to a tree. The
table ``tool.evidence`` of ``pyproject.toml`` lists the files that a tree is made of (``sources``) and the packages
whose versions count (``versions``). This module needs no library, so that it serves wherever pytest runs.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from llm_compression.errors import LlmCompressionError
from llm_compression.harness.git import GitError, changed, head

EVIDENCE_DIRECTORY: Final = Path("reports", "evidence")
# the session that runs no test and only says which there are
COLLECTED: Final = "collected"
NOT_RUN: Final = "not run"
# of two outcomes of one test, in two sessions, the one that stands further to the left counts
OUTCOMES: Final = ("failed", "error", "xfailed", "xpassed", "passed", "skipped", NOT_RUN)
NO_CUDA: Final = "no CUDA device"
# how the reason begins of a gate whose samples others disturbed
INVALID: Final = "INVALID"
NVIDIA_DRIVER: Final = Path("/proc/driver/nvidia/gpus")
# where ``tool.evidence`` is missing: every file but hidden ones and what sessions make
_SOURCES: Final = ("./*", ".kiro/*", ".ci/*", ".github/*")
_MADE: Final = ("reports", "build", "dist")
_VERSIONS: Final = ("pytest", "hypothesis")


class EvidenceError(LlmCompressionError, ValueError):
    """A file of evidence, or the list of what a tree is made of, cannot be read."""


@dataclass(frozen=True)
class Source:
    """The source tree that a run belongs to; two are equal where their files are.

    Attributes:
        commit: The revision; empty where git knows none.
        dirty: Whether files of the tree differ from it.
        tree: A sha256 over the names and contents of the files that ``tool.evidence`` lists.
        reason: Why git knows no revision, in its own words.
    """

    commit: str = field(compare=False)
    dirty: bool = field(compare=False)
    tree: str
    reason: str = field(default="", compare=False)


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
        lacks: The session of a skipped gate, where the machine is not of its kind.
        absent: The reason with which such a gate is skipped.
        rate: The rate of the machine, of a gate that was skipped since it is slower than the reference machine.
        disturbed: Samples that other processes disturbed, of a gate that was skipped for that.
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
    absent: str = NO_CUDA
    rate: float | None = None
    disturbed: int = 0


@dataclass(frozen=True)
class Part:
    """What the runs of one session left: where, on which tree, and a record for each citing test."""

    source: Source
    machine: Mapping[str, Any] = field(default_factory=dict)
    records: tuple[Record, ...] = ()


def _listed(root: Path) -> tuple[dict[str, list[str]], tuple[str, ...]]:
    """The table ``tool.evidence``: patterns of names by the directory that they hold in and below, and packages."""
    path = root / "pyproject.toml"
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise EvidenceError(f"{path}: cannot be read: {error}") from error
    table = content.get("tool", {}).get("evidence", {})
    found = {"sources": list(_SOURCES), "versions": list(_VERSIONS), **table}
    for name, values in found.items():
        if name not in ("sources", "versions") or not isinstance(values, list) or not values:
            raise EvidenceError(f"{path}: tool.evidence.{name} is {values!r}, expected a list as sources or versions")
        if not all(isinstance(each, str) for each in values):
            raise EvidenceError(f"{path}: tool.evidence.{name} is {values!r}, expected texts")
    places: dict[str, list[str]] = {}
    for pattern in found["sources"]:
        place, _, name = pattern.rpartition("/")
        places.setdefault(place, []).append(name)
    return places, tuple(found["versions"])


def source_files(root: Path) -> dict[str, str]:
    """The files that a tree is made of, whatever git knows, ignores or refuses: name to sha256.

    ``DIRECTORY/PATTERN`` lists the names that match in a directory and below it, ``PATTERN`` those in the root alone.
    Hidden files and directories must be named, and compiled Python is none.

    Raises:
        EvidenceError: The list or a file cannot be read.
    """
    found = {}
    for place, patterns in _listed(root)[0].items():
        made = _MADE if place == "." else ()
        for directory, inner, names in os.walk(root / place, onerror=_unreadable) if (root / place).is_dir() else ():
            inner[:] = [each for each in inner if place and each[0] != "." and each not in ("__pycache__", *made)]
            for name in names:
                path = Path(directory, name)
                wanted = any(fnmatchcase(name, each) and (name[0] != "." or each[0] == ".") for each in patterns)
                # a link to nothing has no content, and a pipe would be waited for
                if wanted and path.is_file():
                    try:
                        found[path.relative_to(root).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
                    except OSError as error:
                        _unreadable(error)
    return found


def _unreadable(error: OSError) -> None:
    raise EvidenceError(f"a source cannot be read: {error}") from error


def source_of(root: Path) -> Source:
    """The state of a checkout.

    Raises:
        EvidenceError: The list of its files or one of them cannot be read.
    """
    return describe(root, source_files(root))


def describe(root: Path, found: Mapping[str, str]) -> Source:
    """The state of a checkout whose `source_files` are these."""
    digest = hashlib.sha256()
    for name, text in sorted(found.items()):
        digest.update(os.fsencode(f"{name}\0{text}\n"))
    try:
        commit = head(root)
        # as git has it; what is deleted is no file of the tree any more, and still a difference
        dirty = any(name in found or not (root / name).exists() for name in changed(root))
    except GitError as error:
        return Source("", False, digest.hexdigest(), error.reason)
    return Source(commit, dirty, digest.hexdigest())


def machine_facts(root: Path) -> dict[str, Any]:
    """What this machine is and the versions on it: nothing that changes while it runs, or with who asks.

    Raises:
        EvidenceError: The list of packages cannot be read.
    """
    versions = {}
    for package in _listed(root)[1]:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "processor": _processor(),
        "system": platform.platform(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "versions": versions,
        # a device that PyTorch cannot use is no device that the machine lacks
        "lacks": [] if NVIDIA_DRIVER.exists() else ["cuda"],
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def merge(old: Iterable[Record], new: Iterable[Record]) -> tuple[Record, ...]:
    """The records of a run over those that earlier runs of the same tree left; a test not run takes nothing away."""
    records = {record.node: record for record in old}
    for record in new:
        if record.outcome != NOT_RUN or record.node not in records:
            records[record.node] = _citing(record, records.get(record.node, record))
    return tuple(records.values())


def _citing(record: Record, known: Record) -> Record:
    """The record, with the citations that are known of its test where it died too early to say them."""
    if record.requirements or record.properties:
        return record
    return replace(record, requirements=known.requirements, properties=known.properties)


def write_part(path: Path, part: Part) -> None:
    """Write what a run left, over what lies there of the same tree and machine; what lies there of another one goes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path):
        try:
            old = read_part(path)
        except EvidenceError:
            old = part
        # as it reads back: a tuple is a list there
        same = old.source == part.source and json.dumps(old.machine) == json.dumps(part.machine)
        records = merge(old.records if same else (), part.records)
        _write(path, {"source": asdict(part.source), "machine": part.machine, "records": list(map(asdict, records))})


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """No other process changes the file meanwhile, where the system and its file system have locks."""
    with path.with_name(f".{path.name}.lock").open("w") as file:
        with suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


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
    if values["outcome"] not in OUTCOMES:
        raise EvidenceError(f"outcome {values['outcome']!r}, expected one of {', '.join(OUTCOMES)}")
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
        worse = OUTCOMES.index(record.outcome) < OUTCOMES.index(known.outcome)
        records[record.node] = _citing(record, known) if worse else _citing(known, record)
    return tuple(records.values())


def write_joined(path: Path, source: Source, parts: Mapping[str, Part]) -> None:
    """Write ``evidence.json``: the tree, the machine of each session, and the records of all of them."""
    machines = {session: part.machine for session, part in parts.items()}
    records = [asdict(record) for record in join(list(parts.values()))]
    _write(path, {"source": asdict(source), "machines": machines, "records": records})


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # under its name only once it is whole
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
