"""Measures two revisions in rounds of fresh processes until each metric is decided or the time is spent."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Final

from llm_compression.harness.paired import child
from llm_compression.harness.paired.child import MeasurementError, run_child
from llm_compression.harness.paired.compare import LOOKS, Outcome, Rounds, Verdict, decide, not_comparable
from llm_compression.harness.paired.project import Floor, Key, Metric, Project, Side, WrongAnswersError

SIDES: Final = ("base", "head", "control")
# each order and its reverse: over six rounds every side stands in every place equally often
_ORDERS: Final = ((0, 1, 2), (2, 1, 0), (1, 2, 0), (0, 2, 1), (2, 0, 1), (1, 0, 2))


@dataclass
class Comparison:
    """What a run found.

    Attributes:
        verdicts: Of each metric, in the order of the table.
        rounds: Every value, also those taken after a metric was decided.
        seconds: How long the rounds took.
    """

    verdicts: dict[Key, Verdict] = field(default_factory=dict)
    rounds: dict[Key, Rounds] = field(default_factory=dict)
    seconds: float = 0.0


Values = Mapping[str, float]
Take = Callable[[str, str], Values]


def compare_rounds(
    take: Take,
    keys: Sequence[Key],
    metrics: Mapping[str, Metric],
    floors: Mapping[str, Floor],
    budget_s: float,
    say: Callable[[str], None] = print,
    clock: Callable[[], float] = time.monotonic,
) -> Comparison:
    """Take rounds and look at them as planned.

    Args:
        take: ``take(side, model)`` measures one process; a side is one of `SIDES`.
        keys: What is to be decided.
        metrics: What is known of each metric.
        floors: The floor of each metric.
        budget_s: When the time is spent; the rounds up to the first look are taken all the same.
        say: Takes a line on each round and each decision.
        clock: Seconds.
    """
    started, found = clock(), Comparison()
    models = list(dict.fromkeys(key.model for key in keys))
    taken: dict[str, list[dict[str, Values]]] = {model: [] for model in models}
    for model in models:
        # not counted: it compiles what is imported and reads the weights into memory
        _measure(take, SIDES[:2], model, keys, metrics, found)
    for number in count(1):
        before = clock()
        open_models = [model for model in models if any(_is_open(found, key) for key in keys if key.model == model)]
        for model in open_models:
            order = [SIDES[place] for place in _ORDERS[(number - 1) % len(_ORDERS)]]
            if values := _measure(take, order, model, keys, metrics, found):
                taken[model].append(values)
        round_s = clock() - before
        last = clock() - started + round_s > budget_s and number >= LOOKS[0]
        if number in LOOKS or last:
            for key in keys:
                if _is_open(found, key):
                    floor, metric = floors[key.metric], metrics[key.metric]
                    rounds = _rounds(taken[key.model], key.metric)
                    found.verdicts[key] = decide(
                        rounds, floor.floor, floor.unit, higher_is_better=metric.higher_is_better
                    )
        still = sum(_is_open(found, key) for key in keys)
        say(f"round {number}: {round_s:.0f} s, {still} of {len(keys)} open, {clock() - started:.0f} s in all")
        if last or not still or number >= LOOKS[-1]:
            break
    found.rounds = {key: _rounds(taken[key.model], key.metric) for key in keys}
    found.verdicts = {key: found.verdicts[key] for key in keys}
    found.seconds = clock() - started
    return found


def _is_open(found: Comparison, key: Key) -> bool:
    return key not in found.verdicts or not found.verdicts[key].decided


def _measure(
    take: Take,
    sides: Sequence[str],
    model: str,
    keys: Sequence[Key],
    metrics: Mapping[str, Metric],
    found: Comparison,
) -> dict[str, Values] | None:
    """One process of each side; where one fails, every open metric of the model is decided, and there are no values."""
    try:
        return {side: take(side, model) for side in sides}
    except SideError as error:
        wrong = isinstance(error.__cause__, WrongAnswersError) and error.side == "head"
        for key in keys:
            if key.model == model and (wrong or _is_open(found, key)):
                if wrong and metrics[key.metric].of_answers:
                    found.verdicts[key] = Verdict(Outcome.REGRESSED, reason=str(error))
                else:
                    found.verdicts[key] = not_comparable(str(error))
        return None


class SideError(MeasurementError):
    """A side failed; the cause says how."""

    def __init__(self, side: str, cause: MeasurementError) -> None:
        self.side = side
        super().__init__(f"{side}: {cause}")


def _rounds(taken: Sequence[Mapping[str, Values]], metric: str) -> Rounds:
    return Rounds(*(tuple(each[side][metric] for each in taken) for side in SIDES))


def taker(project: Project, base: Side, head: Side, shared: Mapping[str, Any]) -> Take:
    """What `compare_rounds` needs to measure two worktrees; `shared` is what the project prepared of each model."""
    sides = {"base": base, "head": head, "control": base}

    def take(name: str, model: str) -> Values:
        try:
            return take_sample(project, sides[name], model, shared[model])
        except MeasurementError as error:
            raise SideError(name, error) from error

    return take


def take_sample(project: Project, side: Side, model: str, shared: Any) -> Values:
    """One fresh process: a value of every metric.

    Raises:
        WrongAnswersError: Its answers do not count.
        MeasurementError: The revision has no package, the process failed, or it printed no figure of a metric.
    """
    if not side.revision.tree:
        raise MeasurementError(f"{side.revision.short} has no package to measure")
    sample = ask(project, side, "sample", {"model": model, **project.request(side, shared)})
    project.check(sample, shared)
    return {name: _value(name, metric, sample) for name, metric in project.metrics.items()}


def ask(project: Project, side: Side, kind: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """What the probe answers in a fresh process that finds the package of a side.

    Raises:
        MeasurementError: The process failed.
    """
    worktree = side.worktree
    # -P: a file beside the probe must not hide a module of the same name
    return run_child(
        kind,
        {**request, "worktree": str(worktree)},
        project.timeout_s,
        program=("-P", str(project.probe)),
        environment={**project.environment, "PYTHONPATH": str((worktree / project.package).parent)},
    )


def measured_by(project: Project) -> tuple[Path, ...]:
    """Every file that has a part in a figure."""
    return (project.probe, *project.program, Path(__file__), Path(child.__file__))


def _value(name: str, metric: Metric, sample: Mapping[str, Any]) -> float:
    try:
        return float(metric.read(sample))
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        # a KeyError is no more than the key
        reason = f"{type(error).__name__}: {error}"
        raise MeasurementError(f"{name}: not in what the probe printed, {dict(sample)}: {reason}") from error
