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
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from llm_compression.harness.spec.markdown import Block, numbered_sections, read_blocks
from llm_compression.harness.spec.model import (
    SPECS_DIRECTORY,
    Condition,
    Criterion,
    Floor,
    Gate,
    Property,
    Reference,
    Requirement,
    Spec,
    SpecError,
    Task,
)
from llm_compression.harness.spec.problems import problems
from llm_compression.harness.spec.tables import GATE_COLUMNS, read_conditions, read_floors, read_gates, read_references

# what reads a spec needs no other import
__all__ = [
    "SPECS_DIRECTORY",
    "Condition",
    "Criterion",
    "Floor",
    "Gate",
    "Property",
    "Reference",
    "Requirement",
    "Spec",
    "SpecError",
    "Task",
    "main",
    "problems",
    "read_spec",
    "read_specs",
    "summary",
]

_STORY = re.compile(r"\*\*User Story:\*\* (As (?:an?|the) \S.*, I want \S.*, so that \S.*)")
_CRITERION = re.compile(r"([1-9]\d*)\. (\S.*)")
_TASK = re.compile(r"- \[([ xX])\] ([1-9]\d*\.[1-9]\d*) (\S.*)")
_REFERENCES = r"([1-9]\d*\.[1-9]\d*(?:, [1-9]\d*\.[1-9]\d*)*)"
_VALIDATES = re.compile(rf"\*\*Validates: Requirements {_REFERENCES}\*\*")
_TASK_CITES = re.compile(rf"_Requirements: {_REFERENCES}_$")


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
    requirements, gates = _read_requirements(directory / "requirements.md"), read_gates(directory / "requirements.md")
    properties, tasks = _read_properties(directory / "design.md"), _read_tasks(directory / "tasks.md")
    floors = read_floors(directory / "requirements.md")
    references = read_references(directory / "requirements.md")
    conditions = read_conditions(directory / "requirements.md")
    return Spec(directory.resolve().name, requirements, properties, tasks, gates, floors, references, conditions)


def _read_requirements(path: Path) -> tuple[Requirement, ...]:
    requirements = []
    for line, number, title, body in numbered_sections(path, "Requirement"):
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


def _read_criterion(path: Path, requirement: int, block: Block) -> Criterion:
    match = _CRITERION.fullmatch(block.text)
    if not match:
        raise SpecError(path, block.line, f"{block.text!r}, expected a criterion, '1. WHEN ..., THE ... SHALL ...'")
    return Criterion(requirement, int(match[1]), match[2])


def _read_properties(path: Path) -> tuple[Property, ...]:
    properties = []
    for line, number, title, body in numbered_sections(path, "Property"):
        validates = _VALIDATES.fullmatch(body[-1].text) if len(body) > 1 else None
        if not validates:
            raise SpecError(path, line, "expected a sentence, then '**Validates: Requirements 1.2, 3.4**'")
        text = " ".join(block.text for block in body[:-1])
        properties.append(Property(number, title, text, tuple(validates[1].split(", "))))
    return tuple(properties)


def _read_tasks(path: Path) -> tuple[Task, ...]:
    tasks: list[Task] = []
    for block in read_blocks(path):
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
