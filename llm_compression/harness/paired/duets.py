"""A round of a model: fresh processes back to back, then live ones by turns, of base, head and control.

The three sides of a round meet the same minutes of a machine, and the live ones the same moments: each two of them are
a duet. The control is the base once more, from a checkout of its own, so that a duet of base and control shows what
path, order of start and place in memory do where nothing changed. Who starts first and who has the first turn is drawn,
and so is the size of each process's environment, which moves its stack.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

from llm_compression.harness.paired import child
from llm_compression.harness.paired import turns as turns_module
from llm_compression.harness.paired.child import MeasurementError, run_child
from llm_compression.harness.paired.project import END, SAMPLE, Metric, Project, Side
from llm_compression.harness.paired.turns import Live, take_turns

SIDES: Final = ("base", "head", "control")
# of a variable that nobody reads, in bytes
_PADDING: Final = 4096

_HERE: Final = Path(__file__)

Turn = tuple[float, ...]


class Level(NamedTuple):
    """A metric in one round.

    Attributes:
        base: Of the base.
        head: Of the head.
        control: Of the base's second checkout.
        turns: What it was taken from, where it was taken by turns: a value of each side in each turn.
    """

    base: float
    head: float
    control: float
    turns: tuple[Turn, ...] = ()


@dataclass(frozen=True)
class Round:
    """What was taken in one round of a model.

    Attributes:
        levels: Of each metric that was asked for.
        waiting: The part of a processor that a live process used while it waited for its turns; None where none did.
    """

    levels: Mapping[str, Level] = field(default_factory=dict)
    waiting: float | None = None


class SideError(MeasurementError):
    """A side failed; the cause says how."""

    def __init__(self, side: str, cause: MeasurementError) -> None:
        self.side = side
        super().__init__(f"{side}: {cause}")


class Duets:
    """Takes rounds of a project's revisions.

    Args:
        project: Whose.
        sides: What each of `SIDES` is.
        shared: What the project prepared of each model.
        seed: Of the orders that are drawn.
    """

    def __init__(self, project: Project, sides: Mapping[str, Side], shared: Mapping[str, Any], seed: int) -> None:
        self._project, self._sides, self._shared = project, sides, shared
        self._random = random.Random(seed)

    def warm(self, model: str) -> None:
        """A process of each side that does not count: it makes what belongs to the side and fills the caches.

        Raises:
            SideError: A side failed.
        """
        for name in SIDES:
            self._sample(name, model)

    def take(self, model: str, metrics: Collection[str]) -> Round:
        """One round.

        Args:
            model: Of what.
            metrics: What is to be taken; processes that give none of it are not started.

        Raises:
            SideError: A side failed.
        """
        wanted = {name: self._project.metrics[name] for name in metrics}
        samples: dict[str, list[Mapping[str, Any]]] = {name: [] for name in SIDES}
        if any(metric.taken == SAMPLE for metric in wanted.values()):
            until = time.monotonic() + self._project.sample_s
            while not samples["head"] or time.monotonic() < until:
                for name in self._random.sample(SIDES, len(SIDES)):
                    samples[name].append(self._sample(name, model))
        calls = list(dict.fromkeys(metric.taken for metric in wanted.values() if metric.taken not in (SAMPLE, END)))
        turns: dict[str, list[Turn]] = {}
        ends: dict[str, list[Mapping[str, Any]]] = {}
        waiting = None
        if calls or any(metric.taken == END for metric in wanted.values()):
            turns, said, seconds = self._turns(model, calls)
            ends = {name: [answer] for name, answer in said.items()}
            samples = {name: [*samples[name], *ends[name]] for name in SIDES}
            waiting = _waiting(said, turns, seconds)
        levels = {}
        for name, metric in wanted.items():
            if metric.taken in turns:
                levels[name] = _of_turns(name, metric, turns[metric.taken])
            else:
                levels[name] = _of_samples(name, metric, ends if metric.taken == END else samples)
        return Round(levels, waiting)

    def _sample(self, name: str, model: str) -> dict[str, Any]:
        project, side, shared = self._project, self._sides[name], self._shared[model]
        try:
            sample = ask(project, side, "sample", self._request(side, model), self._padding())
            project.check(sample, shared)
        except MeasurementError as error:
            raise SideError(name, error) from error
        return sample

    def _turns(
        self, model: str, calls: Sequence[str]
    ) -> tuple[dict[str, list[Turn]], dict[str, dict[str, Any]], float]:
        """Turns of each call, what each process said at its end, and how long the turns took."""
        lives = {name: self._live(name, model) for name in SIDES}
        at = ""
        try:
            with ExitStack() as stack:
                # one at a time: a process that starts would be heard by those that have their turns
                for at in self._random.sample(SIDES, len(SIDES)):
                    stack.enter_context(lives[at])
                started, at = time.monotonic(), ""
                turns = {
                    call: take_turns(
                        [lives[name] for name in SIDES], self._random, turns=1, seconds=self._project.turn_s, line=call
                    )
                    for call in calls
                }
                seconds = time.monotonic() - started
                said = {}
                for at in SIDES:
                    said[at] = lives[at].last()
                    self._project.check(said[at], self._shared[model])
        except MeasurementError as error:
            raise SideError(at or _first_named(str(error)), error) from error
        return turns, said, seconds

    def _live(self, name: str, model: str) -> Live:
        side = self._sides[name]
        try:
            request = self._request(side, model)
        except MeasurementError as error:
            raise SideError(name, error) from error
        program = ("-P", str(self._project.probe), "turns")
        return Live(name, program, self._project.timeout_s, _environment(self._project, side, self._padding()), request)

    def _request(self, side: Side, model: str) -> dict[str, Any]:
        if not side.revision.tree:
            raise MeasurementError(f"{side.revision.short} has no package to measure")
        return {"model": model, **self._project.request(side, self._shared[model]), "worktree": str(side.worktree)}

    def _padding(self) -> int:
        return self._random.randrange(_PADDING)


def ask(project: Project, side: Side, kind: str, request: Mapping[str, Any], padding: int = 0) -> dict[str, Any]:
    """What the probe answers in a fresh process that finds the package of a side.

    Raises:
        MeasurementError: The process failed.
    """
    # -P: a file beside the probe must not hide a module of the same name
    return run_child(
        kind,
        {**request, "worktree": str(side.worktree)},
        project.timeout_s,
        program=("-P", str(project.probe)),
        environment=_environment(project, side, padding),
    )


def measured_by(project: Project) -> tuple[Path, ...]:
    """Every file that has a part in a figure."""
    return (project.probe, *project.program, *(Path(str(module.__file__)) for module in (child, turns_module)), _HERE)


def _environment(project: Project, side: Side, padding: int) -> dict[str, str]:
    path = str((side.worktree / project.package).parent)
    return {**project.environment, "PYTHONPATH": path, "PAIRED_PADDING": "x" * padding}


def _first_named(message: str) -> str:
    """The side whose live process failed in a turn: its name begins the message."""
    return message.partition(":")[0]


def _of_samples(name: str, metric: Metric, samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> Level:
    """The median over the processes of each side.

    Raises:
        SideError: A process printed no figure of the metric.
    """
    values = []
    for side in SIDES:
        try:
            values.append(median(_value(name, metric, sample) for sample in samples[side]))
        except MeasurementError as error:
            raise SideError(side, error) from error
    base, head, control = values
    return Level(base, head, control)


def _of_turns(name: str, metric: Metric, turns: Sequence[Turn]) -> Level:
    """Three values whose ratios are those of the duets: medians over the turns of the ratios within a turn.

    The head is compared with base and control each for itself: what slows single turns down slows one side of three,
    and a median against the mean of two would take that for a change.
    """
    values = tuple(tuple(_value(name, metric, {"ms": each}) for each in turn) for turn in turns)
    if not all(math.isfinite(each) and each > 0 for turn in values for each in turn):
        # no ratio can be taken, as the verdict will say
        base, head, control = (median(turn[place] for turn in values) for place in range(len(SIDES)))
        return Level(base, head, control, values)
    logs = [tuple(map(math.log, turn)) for turn in values]
    middle = median((base + control) / 2 for base, _, control in logs)
    change = (median(head - base for base, head, _ in logs) + median(head - control for _, head, control in logs)) / 2
    noise = median(control - base for base, _, control in logs)
    return Level(math.exp(middle - noise / 2), math.exp(middle + change), math.exp(middle + noise / 2), values)


def _waiting(
    said: Mapping[str, Mapping[str, Any]], turns: Mapping[str, Sequence[Turn]], seconds: float
) -> float | None:
    """The part of a processor that the processes used between their calls, the largest of the three."""
    used = []
    for place, name in enumerate(SIDES):
        called_ms = sum(turn[place] for taken in turns.values() for turn in taken)
        waited_ms = seconds * 1000 - called_ms
        if "waiting_cpu_ms" in said[name] and waited_ms > 0:
            used.append(float(said[name]["waiting_cpu_ms"]) / waited_ms)
    return max(used, default=None)


def _value(name: str, metric: Metric, sample: Mapping[str, Any]) -> float:
    try:
        return float(metric.read(sample))
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        # a KeyError is no more than the key
        reason = f"{type(error).__name__}: {error}"
        raise MeasurementError(f"{name}: not in what the probe printed, {dict(sample)}: {reason}") from error
