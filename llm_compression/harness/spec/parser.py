"""Reads the specs under ``.kiro/specs``: requirements, correctness properties, tasks and gates; and checks them.

A spec is a directory of three Markdown files. ``requirements.md`` holds numbered requirements with criteria in EARS
form, cited as ``N.k``, and tables: *Gates*, the only place where a limit is written; *Reference machine*, for which
limits of time are stated; *Undisturbed samples*, what makes a sample count; *Regression floors*, what a change must
exceed. ``design.md`` holds numbered properties, each naming the criteria it validates; ``tasks.md`` holds a checkbox
list whose tasks name theirs.
What cannot be read raises `SpecError`; what can be read but is wrong is listed by `problems`, all at once.
"""

from __future__ import annotations

import argparse
import operator
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Final, NamedTuple

from llm_compression.errors import LlmCompressionError

SPECS_DIRECTORY: Final = Path(".kiro", "specs")
GATE_COLUMNS: Final = ("id", "metric", "limit", "unit", "model", "session", "criterion")
FLOOR_COLUMNS: Final = ("metric", "floor", "unit")
FLOOR_UNITS: Final = ("%", "MB", "1")
REFERENCE_COLUMNS: Final = ("metric", "model", "rate", "unit", "rests on")
CONDITION_COLUMNS: Final = ("quantity", "value", "unit")
COMPARISONS: Final = {"<": operator.lt, "<=": operator.le, ">=": operator.ge, ">": operator.gt}

_STORY = re.compile(r"\*\*User Story:\*\* (As (?:an?|the) \S.*, I want \S.*, so that \S.*)")
_CRITERION = re.compile(r"([1-9]\d*)\. (\S.*)")
_TASK = re.compile(r"- \[([ xX])\] ([1-9]\d*\.[1-9]\d*) (\S.*)")
_REFERENCES = r"([1-9]\d*\.[1-9]\d*(?:, [1-9]\d*\.[1-9]\d*)*)"
_VALIDATES = re.compile(rf"\*\*Validates: Requirements {_REFERENCES}\*\*")
_TASK_CITES = re.compile(rf"_Requirements: {_REFERENCES}_$")
_LIMIT_CELL = re.compile(r"(<=|>=|<|>) ?(\d{1,15}(?:\.\d+)?(?:e-?\d\d?)?)")
_NUMBER_CELL = re.compile(r"\d{1,15}(?:\.\d+)?")
_GATES_NAMED = re.compile(r"\bgates? ((?:`[^`]+`(?:, and |, | and | or )?)+)")
# a line that begins one of these is never the continuation of the line above
_STARTS_BLOCK = re.compile(r"#{1,6} |[-*] |\d+[.)] |\||\*\*Validates:")

_EARS = re.compile(r"(?:(?:WHEN|WHILE|WHERE) .+?, (?:and )?|IF .+?,? THEN )*THE [^,]+? SHALL \S.*\.")
_VAGUE = re.compile(
    r"\b(?:(?:fast|slow|quick|appropriate|robust|proper|efficient|adequate|sufficient|graceful|seamless|optimal|normal"
    r"|usual|typical|general)(?:ly)?|(?:reasonab|suitab|simp)l[ey]|eas(?:y|ily)|several|various|many|few|some|good"
    r"|better|best|nice|user-friendly|as needed|as necessary|if possible|where possible|and/or|etc)\b",
    re.IGNORECASE,
)
# a number with a unit, a comparison with a number, a power of ten, or a fraction below one
_LIMIT = re.compile(
    r"\d[ -]?(?:%|(?:ns|us|ms|s|seconds?|milliseconds?|minutes?|[kKMG]i?B|bytes|percent|times|fps|img/s)\b)"
    r"|[<>]=? *\d|\b\d+(?:\.\d+)?e-?\d+\b|\b0\.\d+"
)


class SpecError(LlmCompressionError, ValueError):
    """A spec file cannot be read; the message starts with the file and, where there is one, the line."""

    def __init__(self, path: Path, line: int, reason: str) -> None:
        self.path, self.line, self.reason = path, line, reason
        super().__init__(f"{path}:{line}: {reason}" if line else f"{path}: {reason}")


@dataclass(frozen=True)
class Criterion:
    """An acceptance criterion: its requirement's number, its own, and its sentence with the white space collapsed."""

    requirement: int
    number: int
    text: str

    @property
    def id(self) -> str:
        """How the criterion is cited, ``N.k``."""
        return f"{self.requirement}.{self.number}"


@dataclass(frozen=True)
class Requirement:
    """A requirement: its number, title, user story and criteria."""

    number: int
    title: str
    user_story: str
    criteria: tuple[Criterion, ...]


@dataclass(frozen=True)
class Property:
    """A correctness property of the design, and the ids of the criteria it validates."""

    number: int
    title: str
    text: str
    validates: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """A task, cited as ``N.k``: whether it is ticked, and the ids of the criteria it serves."""

    id: str
    title: str
    done: bool
    requirements: tuple[str, ...]


@dataclass(frozen=True)
class Gate:
    """A measured limit, one row of the table *Gates*: ``metric comparison limit unit``, of a model, in a session."""

    id: str
    metric: str
    limit: float
    comparison: str
    unit: str
    model: str
    session: str
    criterion: str

    def passes(self, value: float) -> bool:
        """Whether a measured value is within the limit; NaN never is."""
        return bool(COMPARISONS[self.comparison](value, self.limit))


@dataclass(frozen=True)
class Floor:
    """What a change of a metric must exceed to count, one row of *Regression floors*."""

    metric: str
    floor: float
    unit: str


@dataclass(frozen=True)
class Reference:
    """The least rate of a machine for which the limits of a metric and model are stated, a row of *Reference machine*.

    ``rests_on`` is the metric whose gates of the same model hold on any machine.
    """

    metric: str
    model: str
    rate: float
    unit: str
    rests_on: str


@dataclass(frozen=True)
class Condition:
    """What makes a sample count, one row of *Undisturbed samples*."""

    quantity: str
    value: float
    unit: str


@dataclass(frozen=True)
class Spec:
    """One spec: the name of its directory and what its three files say, in their order."""

    name: str
    requirements: tuple[Requirement, ...]
    properties: tuple[Property, ...]
    tasks: tuple[Task, ...]
    gates: tuple[Gate, ...]
    floors: tuple[Floor, ...] = ()
    references: tuple[Reference, ...] = ()
    conditions: tuple[Condition, ...] = ()

    @property
    def criteria(self) -> tuple[Criterion, ...]:
        """The criteria of all requirements."""
        return tuple(chain.from_iterable(requirement.criteria for requirement in self.requirements))

    def gate(self, gate_id: str) -> Gate:
        """The gate of this id; `KeyError` when there is none."""
        return {gate.id: gate for gate in self.gates}[gate_id]

    def criterion(self, criterion_id: str) -> Criterion:
        """The criterion cited as ``N.k``; `KeyError` when there is none."""
        return {criterion.id: criterion for criterion in self.criteria}[criterion_id]


def read_specs(root: Path) -> tuple[Spec, ...]:
    """Read every spec of a checkout, in the order of their names.

    Raises:
        SpecError: There is none, or one cannot be read.
    """
    specs = Path(root) / SPECS_DIRECTORY
    directories = sorted(path for path in specs.iterdir() if path.is_dir()) if specs.is_dir() else []
    if not directories:
        raise SpecError(specs, 0, "no spec here, expected a directory for each")
    return tuple(read_spec(directory) for directory in directories)


def read_spec(directory: Path) -> Spec:
    """Read one spec from its directory.

    Raises:
        SpecError: A file is missing or a part of it is malformed.
    """
    directory = Path(directory)
    requirements, gates = _read_requirements(directory / "requirements.md"), _read_gates(directory / "requirements.md")
    properties, tasks = _read_properties(directory / "design.md"), _read_tasks(directory / "tasks.md")
    floors = _read_floors(directory / "requirements.md")
    references = _read_references(directory / "requirements.md")
    conditions = _read_conditions(directory / "requirements.md")
    return Spec(directory.resolve().name, requirements, properties, tasks, gates, floors, references, conditions)


class _Block(NamedTuple):
    """A heading, list item, table row or paragraph, its wrapped lines joined; and where it begins."""

    line: int
    text: str


def _blocks(path: Path) -> list[_Block]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(path, 0, f"cannot be read: {error}") from error
    blocks: list[_Block] = []
    fence, open_paragraph = 0, False
    for number, line in enumerate(map(str.strip, lines), 1):
        if line.startswith("```"):
            fence, open_paragraph = (0 if fence else number), False
        elif fence or not line:
            open_paragraph = False
        elif open_paragraph and not _STARTS_BLOCK.match(line):
            blocks[-1] = blocks[-1]._replace(text=f"{blocks[-1].text} {' '.join(line.split())}")
        else:
            blocks.append(_Block(number, " ".join(line.split())))
            open_paragraph = not line.startswith(("#", "|"))
    if fence:
        raise SpecError(path, fence, "this code block is never closed")
    return blocks


def _sections(path: Path) -> list[tuple[_Block, list[_Block]]]:
    """Each heading with the blocks below it, acceptance criteria with their requirement; any preamble is dropped."""
    sections: list[tuple[_Block, list[_Block]]] = []
    for block in _blocks(path):
        if block.text.startswith("#") and block.text != "#### Acceptance Criteria":
            sections.append((block, []))
        elif sections:
            sections[-1][1].append(block)
    return sections


def _numbered_sections(path: Path, kind: str) -> Iterator[tuple[int, int, str, list[_Block]]]:
    """Line, number, title and body of each section ``### kind N: Title``."""
    for heading, body in _sections(path):
        if re.match(rf"#+ *{kind}\b", heading.text, re.IGNORECASE):
            match = re.fullmatch(rf"### {kind} ([1-9]\d*): (\S.*)", heading.text)
            if not match:
                raise SpecError(path, heading.line, f"{heading.text!r}, expected '### {kind} N: Title'")
            yield heading.line, int(match[1]), match[2], body


def _read_requirements(path: Path) -> tuple[Requirement, ...]:
    requirements = []
    for line, number, title, body in _numbered_sections(path, "Requirement"):
        story = _STORY.fullmatch(body[0].text) if body else None
        if not story:
            raise SpecError(path, line, "expected '**User Story:** As a ..., I want ..., so that ...' below")
        if len(body) < 3 or body[1].text != "#### Acceptance Criteria":
            raise SpecError(path, line, "expected '#### Acceptance Criteria' and a numbered list below the user story")
        criteria = tuple(_read_criterion(path, number, block) for block in body[2:])
        requirements.append(Requirement(number, title, story[1], criteria))
    if not requirements:
        raise SpecError(path, 0, "no requirement, expected '### Requirement 1: Title'")
    return tuple(requirements)


def _read_criterion(path: Path, requirement: int, block: _Block) -> Criterion:
    match = _CRITERION.fullmatch(block.text)
    if not match:
        raise SpecError(path, block.line, f"{block.text!r}, expected a criterion, '1. WHEN ..., THE ... SHALL ...'")
    return Criterion(requirement, int(match[1]), match[2])


def _read_gates(path: Path) -> tuple[Gate, ...]:
    table = _read_table(path, "Gates", r"gates?\b", "gate", GATE_COLUMNS)
    return tuple(_read_gate(path, line, cells) for line, cells in table)


def _read_floors(path: Path) -> tuple[Floor, ...]:
    floors = []
    for line, cells in _read_table(path, "Regression floors", r"(?:regression )?floors?\b", "metric", FLOOR_COLUMNS):
        if len(cells) != len(FLOOR_COLUMNS) or not all(cells) or not _NUMBER_CELL.fullmatch(cells[1]):
            raise SpecError(path, line, f"cells {list(cells)}, expected a metric, a number such as '4' and a unit")
        floors.append(Floor(cells[0], float(cells[1]), cells[2]))
    return tuple(floors)


def _read_references(path: Path) -> tuple[Reference, ...]:
    found = []
    for line, cells in _read_table(path, "Reference machine", r"reference machines?\b", "metric", REFERENCE_COLUMNS):
        if len(cells) != len(REFERENCE_COLUMNS) or not all(cells) or not _NUMBER_CELL.fullmatch(cells[2]):
            raise SpecError(
                path, line, f"cells {list(cells)}, expected a metric, a model, a rate, its unit and a metric"
            )
        found.append(Reference(cells[0], cells[1], float(cells[2]), cells[3], cells[4]))
    return tuple(found)


def _read_conditions(path: Path) -> tuple[Condition, ...]:
    found = []
    for line, cells in _read_table(path, "Undisturbed samples", r"undisturbed\b", "quantity", CONDITION_COLUMNS):
        if len(cells) != len(CONDITION_COLUMNS) or not all(cells) or not _NUMBER_CELL.fullmatch(cells[1]):
            raise SpecError(path, line, f"cells {list(cells)}, expected a quantity, a number and its unit")
        found.append(Condition(cells[0], float(cells[1]), cells[2]))
    return tuple(found)


def _read_table(
    path: Path, title: str, like: str, row: str, columns: tuple[str, ...]
) -> list[tuple[int, tuple[str, ...]]]:
    """Lines and cells of the only table below ``## title``; none where no heading is like it."""
    sections = [each for each in _sections(path) if re.match(rf"#+ *{like}", each[0].text, re.IGNORECASE)]
    if not sections:
        return []
    heading, body = sections[0]
    if len(sections) > 1 or heading.text != f"## {title}":
        raise SpecError(path, sections[-1][0].line, f"{sections[-1][0].text!r}, expected one section '## {title}'")
    lines = [block for block in body if block.text.startswith("|")]
    rows = [(line, tuple(cell.strip(" `") for cell in text.strip("|").split("|"))) for line, text in lines]
    if len(rows) < 3 or not all(re.fullmatch(r":?-+:?", cell) for cell in rows[1][1]):
        raise SpecError(path, heading.line, f"expected a table: a header, a line of dashes, a row for each {row}")
    if rows[0][1] != columns:
        raise SpecError(path, rows[0][0], f"columns {list(rows[0][1])}, expected {list(columns)}")
    return rows[2:]


def _read_gate(path: Path, line: int, cells: Sequence[str]) -> Gate:
    if len(cells) != len(GATE_COLUMNS) or not all(cells):
        raise SpecError(path, line, f"cells {list(cells)}, expected one for each of {list(GATE_COLUMNS)}")
    gate_id, metric, limit, unit, model, session, criterion = cells
    match = _LIMIT_CELL.fullmatch(limit)
    if not match:
        raise SpecError(path, line, f"limit {limit!r}, expected a comparison and a number such as '< 500'")
    return Gate(gate_id, metric, float(match[2]), match[1], unit, model, session, criterion)


def _read_properties(path: Path) -> tuple[Property, ...]:
    properties = []
    for line, number, title, body in _numbered_sections(path, "Property"):
        validates = _VALIDATES.fullmatch(body[-1].text) if len(body) > 1 else None
        if not validates:
            raise SpecError(path, line, "expected a sentence, then '**Validates: Requirements 1.2, 3.4**'")
        text = " ".join(block.text for block in body[:-1])
        properties.append(Property(number, title, text, tuple(validates[1].split(", "))))
    return tuple(properties)


def _read_tasks(path: Path) -> tuple[Task, ...]:
    tasks: list[Task] = []
    for block in _blocks(path):
        if re.match(r"[-*] ?\[", block.text):
            match = _TASK.fullmatch(block.text)
            if not match:
                raise SpecError(path, block.line, f"{block.text!r}, expected '- [ ] 2.1 Title', ticked or not")
            tasks.append(Task(match[2], match[3], match[1] != " ", ()))
        elif "_Requirements" in block.text:
            cites = _TASK_CITES.search(block.text)
            if not cites or not tasks:
                raise SpecError(path, block.line, f"{block.text!r}, expected '_Requirements: 1.2, 3.4_' below a task")
            tasks[-1] = replace(tasks[-1], requirements=(*tasks[-1].requirements, *cites[1].split(", ")))
    return tuple(tasks)


def problems(spec: Spec) -> list[str]:
    """Everything that is wrong with a spec that could be read, a sentence each; empty for a sound one."""
    return [*_numbering_problems(spec), *_wording_problems(spec), *_citation_problems(spec)]


def _numbering_problems(spec: Spec) -> Iterator[str]:
    yield from _out_of_order("requirement", (each.number for each in spec.requirements))
    for requirement in spec.requirements:
        numbers = (criterion.number for criterion in requirement.criteria)
        yield from _out_of_order(f"criterion of requirement {requirement.number}", numbers)
    yield from _out_of_order("property", (each.number for each in spec.properties))
    group, last = 0, 0
    for task in spec.tasks:
        number = tuple(int(part) for part in task.id.split("."))
        if number not in ((group, last + 1), (group + 1, 1)):
            yield f"task {task.id} after {group}.{last}, expected the next number"
        group, last = number
    ids = [gate.id for gate in spec.gates]
    yield from (f"gate {each!r} is listed {ids.count(each)} times" for each in sorted(set(ids)) if ids.count(each) > 1)
    metrics = [floor.metric for floor in spec.floors]
    twice = sorted({metric for metric in metrics if metrics.count(metric) > 1})
    yield from (f"floor of {metric!r} is listed more than once" for metric in twice)
    for floor in spec.floors:
        if floor.floor <= 0 or floor.unit not in FLOOR_UNITS:
            yield f"floor of {floor.metric!r}: {floor.floor:g} {floor.unit}, expected more than 0, in {FLOOR_UNITS}"
    yield from _reference_problems(spec)


def _reference_problems(spec: Spec) -> Iterator[str]:
    known = {(gate.metric, gate.model) for gate in spec.gates}
    rows = [(each.metric, each.model) for each in spec.references]
    for each in spec.references:
        name = f"reference of {each.metric!r} and {each.model!r}"
        if rows.count((each.metric, each.model)) > 1:
            yield f"{name} is listed more than once"
        for metric in (each.metric, each.rests_on):
            if (metric, each.model) not in known:
                yield f"{name}: there is no gate of the metric {metric!r} for this model"
    quantities = [each.quantity for each in spec.conditions]
    yield from (
        f"condition {each!r} is listed more than once" for each in set(quantities) if quantities.count(each) > 1
    )


def _out_of_order(kind: str, numbers: Iterable[int]) -> Iterator[str]:
    last = 0
    for number in numbers:
        if number != last + 1:
            yield f"{kind}: number {number} after {last}, expected {last + 1}"
        last = number


def _wording_problems(spec: Spec) -> Iterator[str]:
    for criterion in spec.criteria:
        # names in code may contain any word
        prose = re.sub(r"`[^`]*`", "`x`", criterion.text)
        if not _EARS.fullmatch(prose) or prose.count("SHALL") != 1 or re.search(r"[.!?] \S", prose):
            yield f"criterion {criterion.id} is not one sentence 'WHEN ..., THE ... SHALL ...': {criterion.text}"
        if vague := _VAGUE.findall(prose):
            yield f"criterion {criterion.id} uses words that no test can decide: {', '.join(vague)}"
    for prop in spec.properties:
        if not prop.text.startswith("*For any*"):
            yield f"property {prop.number} does not begin with '*For any*': {prop.text}"
    texts = [(f"criterion {criterion.id}", criterion.text) for criterion in spec.criteria]
    texts += [(f"property {prop.number}", prop.text) for prop in spec.properties]
    texts += [(f"task {task.id}", task.title) for task in spec.tasks]
    for where, text in texts:
        if limit := _LIMIT.search(text):
            yield f"{where} writes the limit {limit[0]!r} outside the table Gates, expected the name of a gate: {text}"


def _citation_problems(spec: Spec) -> Iterator[str]:
    known, gates = {criterion.id for criterion in spec.criteria}, {gate.id for gate in spec.gates}
    proofs = [(f"property {prop.number}", prop.validates) for prop in spec.properties]
    proofs += [(f"task {task.id}", task.requirements) for task in spec.tasks]
    for where, references in [*proofs, *((f"gate {gate.id!r}", (gate.criterion,)) for gate in spec.gates)]:
        if not references:
            yield f"{where} cites no criterion"
        yield from (f"{where} cites criterion {each}, which does not exist" for each in references if each not in known)
    cited = set(chain.from_iterable(references for _, references in proofs))
    for criterion in spec.criteria:
        if criterion.id not in cited:
            yield f"criterion {criterion.id} is cited by no property and no task"
        for named in re.findall(r"`([^`]+)`", " ".join(_GATES_NAMED.findall(criterion.text))):
            if named not in gates:
                yield f"criterion {criterion.id} names the gate {named!r}, which does not exist"


def summary(spec: Spec) -> str:
    """The counts and gates of a spec, to be printed."""
    done = sum(task.done for task in spec.tasks)
    counts = (
        f"{spec.name}: {len(spec.requirements)} requirements, {len(spec.criteria)} criteria, "
        f"{len(spec.properties)} properties, {len(spec.tasks)} tasks ({done} done), {len(spec.gates)} gates"
    )
    rows = [GATE_COLUMNS] if spec.gates else []
    for gate in spec.gates:
        limit = f"{gate.comparison} {gate.limit:g}"
        rows.append((gate.id, gate.metric, limit, gate.unit, gate.model, gate.session, gate.criterion))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join([counts, *("  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)])


def main(arguments: Sequence[str] | None = None) -> int:
    """Print each spec's counts, gates and problems; 0 for sound specs, 1 for a problem (a usage error exits with 2)."""
    parser = argparse.ArgumentParser(
        prog="python -m llm_compression.harness.spec.parser",
        description="Check the specs of a checkout and print what they hold. Exits 1 when something is wrong with one.",
        epilog="example: python -m llm_compression.harness.spec.parser .",
    )
    parser.add_argument("root", nargs="?", type=Path, default=Path(), metavar="ROOT", help="the checkout (default: .)")
    try:
        specs = read_specs(parser.parse_args(arguments).root)
    except SpecError as error:
        print(error, file=sys.stderr)
        return 1
    found = [f"{spec.name}: {problem}" for spec in specs for problem in problems(spec)]
    print("\n\n".join(map(summary, specs)), *found, f"problems: {len(found)}", sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
