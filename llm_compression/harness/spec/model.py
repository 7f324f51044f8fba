"""What a spec says, as data: requirements with criteria, properties, tasks, and the rows of its tables."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Final

from llm_compression.errors import LlmCompressionError

SPECS_DIRECTORY: Final = Path(".kiro", "specs")
COMPARISONS: Final = {"<": operator.lt, "<=": operator.le, ">=": operator.ge, ">": operator.gt}


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
