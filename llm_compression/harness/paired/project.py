"""What the comparison is told of a project: its package, its probe, its metrics and what each sample is asked.

A project is gated by a `Project` and a call of `llm_compression.harness.paired.run.run`. The comparison checks both
revisions out, starts the probe in fresh processes of each, and takes every figure from what the probe prints, so that
it knows nothing of what is measured. ``docs/compare-revisions.md`` has a whole example.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from llm_compression.errors import LlmCompressionError
from llm_compression.harness.paired.child import MeasurementError
from llm_compression.harness.paired.machine import MachineInfo, machine
from llm_compression.harness.paired.worktrees import Revision

# how a metric is taken, beside the name of a call
SAMPLE: Final = "sample"
END: Final = "end"


class ProjectError(LlmCompressionError):
    """What a project says of itself does not fit: a metric without a floor, or a floor of another unit."""


class WrongAnswersError(MeasurementError):
    """The answers of a process are not within the bounds; raised by a project's `check`."""


class Floor(Protocol):
    """What a change of a metric must exceed; a row of a spec's table *Regression floors* is one."""

    @property
    def floor(self) -> float:
        """The number, above 0."""

    @property
    def unit(self) -> str:
        """``%`` of the base's value, or the metric's own unit."""


@dataclass(frozen=True)
class Metric:
    """A positive number that is taken of each side in each round.

    Attributes:
        unit: Its unit; ``1`` where it has none.
        read: Takes it from the JSON object that the probe printed.
        taken: From what: `SAMPLE`, what a fresh process prints; the name of a call, what a live process answers in a
            turn, ``{"ms": ...}``; `END`, what a live process prints after its turns.
        higher_is_better: Whether more of it is better.
        once: Whether it is taken of the first model alone, since no model has a part in it.
        of_answers: Whether it says how good the answers are, so that wrong ones are a regression of it.
    """

    unit: str
    read: Callable[[Mapping[str, Any]], float]
    taken: str = SAMPLE
    higher_is_better: bool = False
    once: bool = False
    of_answers: bool = False


class Key(NamedTuple):
    """A row of the table: a metric of a model."""

    metric: str
    model: str


@dataclass(frozen=True)
class Side:
    """A revision that is measured, and the worktree that holds it.

    Attributes:
        revision: Which one.
        worktree: Its checkout, of this side alone.
        control: Whether it is the base once more: what belongs to a side is made for it anew.
    """

    revision: Revision
    worktree: Path
    control: bool = False


def _nothing_shared(_root: Path, models: Sequence[str], _sides: Sequence[Revision]) -> Mapping[str, Any]:
    return dict.fromkeys(models)


def _nothing_asked(_side: Side, _shared: Any) -> Mapping[str, Any]:
    return {}


def _any_answer(_sample: Mapping[str, Any], _shared: Any) -> None:
    """Refuse nothing."""


@dataclass(frozen=True, kw_only=True)
class Project:
    """A project whose revisions are compared.

    Attributes:
        package: The directory of its package, relative to the checkout, as git writes it (``src/kettle``). The
            directory above it in the worktree is what a process finds modules by (``PYTHONPATH``).
        probe: The program of a process, run as ``python -P PROBE sample REQUEST``; it prints one JSON object as its
            last line. Where a metric is taken by turns it is run as ``python -P PROBE turns REQUEST`` too: it prints a
            line of JSON once it is ready, answers each line of its standard input, the name of a call, with
            ``{"ms": ...}``, and at the end of its input prints what a sample prints, and more. It is this checkout's on
            every side. It should refuse a package that is imported from elsewhere than ``request["worktree"]``: an
            installed one would be measured on both sides, and be the same.
        metrics: What is taken from it, by name, in the order of the report.
        models: What is measured each for itself, unless the command line chooses: models, or any other cases.
        known_models: What may be chosen; `models` where it is empty.
        floors: Reads the floor of each metric from a checkout, such as ``{each.metric: each for spec in
            read_specs(root) for each in spec.floors}`` of `llm_compression.harness.spec.parser`.
        command: What a user types before the options to measure again, for the report.
        prepare: ``prepare(root, models, (base, head))`` makes what both sides share, of each model, once before the
            rounds, such as inputs and reference answers; `request` and `check` are given it.
        request: ``request(side, shared)`` is what a sample is asked beside ``model``, the name, and ``worktree``; it
            may first make what belongs to the side (`llm_compression.harness.paired.duets.ask`).
        check: ``check(sample, shared)`` raises WrongAnswersError where the answers of a process do not count.
        program: Files beside the probe that have a part in a figure; measurements by other files make another series.
        environment: Variables of each process beside those of this one.
        machine: This machine, with the versions that a figure depends on.
        timeout_s: After how many seconds a process is ended.
        sample_s: Seconds of fresh processes in a round: one of each side at least, and as many as fit.
        turn_s: Seconds of the turns of a call in a round: one turn at least, and as many as fit.
        budget_s: Seconds of the rounds, unless the command line says otherwise.
        inject: ``inject(worktree, values)`` slows the package of a worktree down, for the study of false alarms.
        injections: The names that `inject` knows, each with a value for an example.
    """

    package: str
    probe: Path
    metrics: Mapping[str, Metric]
    models: Sequence[str]
    floors: Callable[[Path], Mapping[str, Floor]]
    command: str
    known_models: Sequence[str] = ()
    prepare: Callable[[Path, Sequence[str], Sequence[Revision]], Mapping[str, Any]] = _nothing_shared
    request: Callable[[Side, Any], Mapping[str, Any]] = _nothing_asked
    check: Callable[[Mapping[str, Any], Any], None] = _any_answer
    program: Sequence[Path] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    machine: Callable[[], MachineInfo] = machine
    timeout_s: float = 300.0
    sample_s: float = 0.0
    turn_s: float = 8.0
    budget_s: float = 300.0
    inject: Callable[[Path, Mapping[str, float]], None] | None = None
    injections: Mapping[str, float] = field(default_factory=dict)


def keys_of(project: Project, models: Sequence[str]) -> list[Key]:
    """The rows of the table for these models."""
    return [
        Key(name, model)
        for position, model in enumerate(models)
        for name, metric in project.metrics.items()
        if position == 0 or not metric.once
    ]


def floors_of(project: Project, root: Path) -> Mapping[str, Floor]:
    """The floor of each metric, from a checkout.

    Raises:
        ProjectError: A metric has none, or one that is not above 0 or in another unit than the metric.
        LlmCompressionError: They cannot be read.
    """
    floors = project.floors(root)
    if missing := [name for name in project.metrics if name not in floors]:
        raise ProjectError(f"no floor of {', '.join(missing)} in {root}, expected one for each metric")
    for name, metric in project.metrics.items():
        floor = floors[name]
        if floor.floor <= 0 or floor.unit not in ("%", metric.unit):
            raise ProjectError(
                f"floor of {name}: {floor.floor:g} {floor.unit}, expected more than 0, in % or {metric.unit}"
            )
    return floors
