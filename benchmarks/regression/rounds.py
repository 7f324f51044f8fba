"""Measures two revisions in rounds of fresh processes until each metric is decided or the time is spent."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks.regression.worktrees import Revision
from llm_compression.harness.clip import accuracy
from llm_compression.harness.clip.accuracy import Accuracy
from llm_compression.harness.clip.measure import Bounds, MeasurementError, percentile, run_child
from llm_compression.harness.clip.models import Model
from llm_compression.harness.paired import peak_memory
from llm_compression.harness.paired.compare import LOOKS, Outcome, Rounds, Verdict, decide, not_comparable
from llm_compression.harness.spec.parser import Floor
from llm_compression.inference.weight_format import WEIGHTS_FILE

PROBE: Final = Path(__file__).with_name("probe.py")
# every file of this checkout that has a part in a figure
PROGRAM: Final = (PROBE, *(Path(str(name)) for name in (__file__, accuracy.__file__, peak_memory.__file__)))
SIDES: Final = ("base", "head", "control")
# one process; a batch of each kind is run and not counted
CALLS: Final = 16
BATCHES: Final = 2
BATCH_SIZE: Final = 16
WEIGHTS_DTYPE: Final = "bfloat16"
# what a user gets who names none
DTYPE: Final = "auto"
# each order and its reverse: over six rounds every side stands in every place equally often
_ORDERS: Final = ((0, 1, 2), (2, 1, 0), (1, 2, 0), (0, 2, 1), (2, 0, 1), (1, 0, 2))


class WrongAnswersError(MeasurementError):
    """The embeddings of a process are not within the bounds."""


@dataclass(frozen=True)
class Metric:
    """A figure that one process gives.

    Attributes:
        unit: Its unit.
        read: Takes it from what the probe printed.
        higher_is_better: Whether more of it is better.
        once: Whether it is taken of the first model alone, since no model has a part in it.
    """

    unit: str
    read: Callable[[Mapping[str, Any]], float]
    higher_is_better: bool = False
    once: bool = False


# a low quantile: a burst of another job slows some calls of a process, a change of the code slows them all
METRICS: Final[Mapping[str, Metric]] = {
    "load": Metric("ms", lambda sample: sample["load_ms"]),
    "first_call": Metric("ms", lambda sample: sample["first_call_ms"]),
    "latency": Metric("ms", lambda sample: percentile(sample["latency_ms"], 25)),
    "throughput": Metric("img/s", lambda sample: 1000 * BATCH_SIZE / min(sample["batch_ms"]), higher_is_better=True),
    "cold_start": Metric("ms", lambda sample: sample["start_to_first_ms"]),
    "import": Metric("ms", lambda sample: sample["import_ms"], once=True),
    "peak_memory": Metric("MB", lambda sample: sample["peak_mb"]),
    "relative_error": Metric("1", lambda sample: sample["accuracy"]["relative_error_max"]),
    "cosine": Metric("1", lambda sample: sample["accuracy"]["cosine_min"], higher_is_better=True),
}
PRECISION: Final = ("relative_error", "cosine")


class Key(NamedTuple):
    """A row of the table: a metric of a model."""

    metric: str
    model: str


@dataclass(frozen=True)
class Side:
    """A revision that is measured, and the worktree that holds it."""

    revision: Revision
    worktree: Path


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


def keys_of(models: Sequence[str]) -> list[Key]:
    """The rows of the table for these models."""
    return [
        Key(name, model)
        for position, model in enumerate(models)
        for name, metric in METRICS.items()
        if position == 0 or not metric.once
    ]


def compare_rounds(
    take: Take,
    keys: Sequence[Key],
    floors: Mapping[str, Floor],
    budget_s: float,
    say: Callable[[str], None] = print,
    clock: Callable[[], float] = time.monotonic,
) -> Comparison:
    """Take rounds and look at them as planned.

    Args:
        take: ``take(side, model)`` measures one process; a side is one of `SIDES`.
        keys: What is to be decided.
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
        _measure(take, SIDES[:2], model, keys, found)
    for number in count(1):
        before = clock()
        open_models = [model for model in models if any(_is_open(found, key) for key in keys if key.model == model)]
        for model in open_models:
            order = [SIDES[place] for place in _ORDERS[(number - 1) % len(_ORDERS)]]
            if values := _measure(take, order, model, keys, found):
                taken[model].append(values)
        round_s = clock() - before
        last = clock() - started + round_s > budget_s and number >= LOOKS[0]
        if number in LOOKS or last:
            for key in keys:
                if _is_open(found, key):
                    floor, metric = floors[key.metric], METRICS[key.metric]
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
    take: Take, sides: Sequence[str], model: str, keys: Sequence[Key], found: Comparison
) -> dict[str, Values] | None:
    """One process of each side; where one fails, every open metric of the model is decided, and there are no values."""
    try:
        return {side: take(side, model) for side in sides}
    except SideError as error:
        wrong = isinstance(error.__cause__, WrongAnswersError) and error.side == "head"
        for key in keys:
            if key.model == model and (wrong or _is_open(found, key)):
                if wrong and key.metric in PRECISION:
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


def taker(base: Side, head: Side, models: Mapping[str, Model], weights: Path, bounds: Mapping[str, Bounds]) -> Take:
    """What `compare_rounds` needs to measure two worktrees, each with weights of its own converter."""
    sides = {"base": base, "head": head, "control": base}

    def take(name: str, variant: str) -> Values:
        side, model = sides[name], models[variant]
        try:
            file = converted(side, model, weights, keep=(base.revision.tree, head.revision.tree))
            return take_sample(side, model, file, bounds[variant])
        except MeasurementError as error:
            raise SideError(name, error) from error

    return take


def converted(side: Side, model: Model, cache: Path, keep: Sequence[str]) -> Path:
    """The weight file that a revision's own converter makes of a seeded checkpoint, made once for each package tree.

    Raises:
        MeasurementError: The converter failed, or the revision has no package.
    """
    if not side.revision.tree:
        raise MeasurementError(f"{side.revision.short} has no package to measure")
    # the seeded checkpoint's directory is named after a hash of what made it
    made_of = model.checkpoint.parent.name
    home = cache / f"{made_of}-{side.revision.tree}"
    if not home.is_dir():
        for stale in cache.glob(f"{model.variant}-*"):
            if not stale.name.startswith(f"{made_of}-") or not stale.name.endswith(tuple(keep)):
                shutil.rmtree(stale)
        partial = home.with_name(f".{home.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        request = {"checkpoint": str(model.checkpoint.resolve()), "out": str(partial.resolve())}
        _probe("convert", side, {**request, "dtype": WEIGHTS_DTYPE})
        partial.replace(home)
    return home / WEIGHTS_FILE


def take_sample(side: Side, model: Model, file: Path, bounds: Bounds) -> Values:
    """One fresh process: a value of every metric.

    Raises:
        WrongAnswersError: An embedding is out of bounds.
        MeasurementError: The process failed.
    """
    request = {"model": str(file.resolve()), "reference": str(model.reference.resolve()), "dtype": DTYPE, "seed": 0}
    sizes = {"image_size": model.image_size, "calls": CALLS, "batches": BATCHES, "batch_size": BATCH_SIZE}
    sample = _probe("sample", side, {**request, **sizes})
    accuracy = Accuracy(**sample["accuracy"])
    if not bounds.allow(accuracy):
        raise WrongAnswersError(f"wrong answers, {accuracy}, expected {bounds}")
    return {name: metric.read(sample) for name, metric in METRICS.items()}


def _probe(kind: str, side: Side, request: Mapping[str, Any]) -> dict[str, Any]:
    # -P: a file beside the probe must not hide a module of the same name
    return run_child(
        kind,
        {**request, "worktree": str(side.worktree)},
        timeout_s=300,
        program=("-P", str(PROBE)),
        environment={"PYTHONPATH": str(side.worktree)},
    )
