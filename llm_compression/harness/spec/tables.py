"""Reads the tables of ``requirements.md`` into their rows.

*Gates* is the only place where a limit is written; *Reference machine* says for which machine limits of time are
stated, *Undisturbed samples* what makes a sample count, and *Regression floors* what a change must exceed. A spec may
lack each. A row that cannot be read raises `SpecError`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from llm_compression.harness.spec.markdown import read_table
from llm_compression.harness.spec.model import Condition, Floor, Gate, Reference, SpecError

GATE_COLUMNS: Final = ("id", "metric", "limit", "unit", "model", "session", "criterion")
FLOOR_COLUMNS: Final = ("metric", "floor", "unit")
REFERENCE_COLUMNS: Final = ("metric", "model", "rate", "unit", "rests on")
CONDITION_COLUMNS: Final = ("quantity", "value", "unit")

_LIMIT_CELL = re.compile(r"(<=|>=|<|>) ?(\d{1,15}(?:\.\d+)?(?:e-?\d\d?)?)")
_NUMBER_CELL = re.compile(r"\d{1,15}(?:\.\d+)?")


def read_gates(path: Path) -> tuple[Gate, ...]:
    """The rows of the table *Gates*."""
    table = read_table(path, "Gates", r"gates?\b", "gate", GATE_COLUMNS)
    return tuple(_read_gate(path, line, cells) for line, cells in table)


def read_floors(path: Path) -> tuple[Floor, ...]:
    """The rows of the table *Regression floors*."""
    floors = []
    for line, cells in read_table(path, "Regression floors", r"(?:regression )?floors?\b", "metric", FLOOR_COLUMNS):
        if len(cells) != len(FLOOR_COLUMNS) or not all(cells) or not _NUMBER_CELL.fullmatch(cells[1]):
            raise SpecError(path, line, f"cells {list(cells)}, expected a metric, a number such as '4' and a unit")
        floors.append(Floor(cells[0], float(cells[1]), cells[2]))
    return tuple(floors)


def read_references(path: Path) -> tuple[Reference, ...]:
    """The rows of the table *Reference machine*."""
    found = []
    for line, cells in read_table(path, "Reference machine", r"reference machines?\b", "metric", REFERENCE_COLUMNS):
        if len(cells) != len(REFERENCE_COLUMNS) or not all(cells) or not _NUMBER_CELL.fullmatch(cells[2]):
            raise SpecError(
                path, line, f"cells {list(cells)}, expected a metric, a model, a rate, its unit and a metric"
            )
        found.append(Reference(cells[0], cells[1], float(cells[2]), cells[3], cells[4]))
    return tuple(found)


def read_conditions(path: Path) -> tuple[Condition, ...]:
    """The rows of the table *Undisturbed samples*."""
    found = []
    for line, cells in read_table(path, "Undisturbed samples", r"undisturbed\b", "quantity", CONDITION_COLUMNS):
        if len(cells) != len(CONDITION_COLUMNS) or not all(cells) or not _NUMBER_CELL.fullmatch(cells[1]):
            raise SpecError(path, line, f"cells {list(cells)}, expected a quantity, a number and its unit")
        found.append(Condition(cells[0], float(cells[1]), cells[2]))
    return tuple(found)


def _read_gate(path: Path, line: int, cells: Sequence[str]) -> Gate:
    if len(cells) != len(GATE_COLUMNS) or not all(cells):
        raise SpecError(path, line, f"cells {list(cells)}, expected one for each of {list(GATE_COLUMNS)}")
    gate_id, metric, limit, unit, model, session, criterion = cells
    match = _LIMIT_CELL.fullmatch(limit)
    if not match:
        raise SpecError(path, line, f"limit {limit!r}, expected a comparison and a number such as '< 500'")
    return Gate(gate_id, metric, float(match[2]), match[1], unit, model, session, criterion)
