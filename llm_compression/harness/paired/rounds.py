"""Measures two revisions in rounds until each metric is decided or the time is spent."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Final, Protocol

from llm_compression.harness.paired.compare import LOOKS, Outcome, Rounds, Verdict, decide, not_comparable
from llm_compression.harness.paired.duets import Level, Round, SideError
from llm_compression.harness.paired.project import Floor, Key, Metric, WrongAnswersError

_FIRST: Final = LOOKS[0]


class Taker(Protocol):
    """What takes rounds; `llm_compression.harness.paired.duets.Duets` is one."""

    def warm(self, model: str) -> None:
        """A process of each side of a model that does not count."""

    def take(self, model: str, metrics: Collection[str]) -> Round:
        """One round of a model: a value of each side of these metrics."""


@dataclass
class Comparison:
    """What a run found.

    Attributes:
        verdicts: Of each metric, in the order of the table.
        rounds: Every value.
        seconds: How long the rounds took.
        waiting: The part of a processor that a live process used while it waited, in each round that had one.
    """

    verdicts: dict[Key, Verdict] = field(default_factory=dict)
    rounds: dict[Key, Rounds] = field(default_factory=dict)
    seconds: float = 0.0
    waiting: list[float] = field(default_factory=list)


def compare_rounds(
    taker: Taker,
    keys: Sequence[Key],
    metrics: Mapping[str, Metric],
    floors: Mapping[str, Floor],
    budget_s: float,
    say: Callable[[str], None] = print,
    clock: Callable[[], float] = time.monotonic,
) -> Comparison:
    """Take rounds and look at them as planned; a metric that is decided is taken no more.

    Args:
        taker: Takes the rounds.
        keys: What is to be decided.
        metrics: What is known of each metric.
        floors: The floor of each metric.
        budget_s: Seconds of the rounds, after a process of each side that does not count; the rounds up to the first
            look are taken all the same.
        say: Takes a line on each round.
        clock: Seconds.
    """
    found = Comparison()
    models = list(dict.fromkeys(key.model for key in keys))
    levels: dict[Key, list[Level]] = {key: [] for key in keys}
    spent: dict[str, list[float]] = {model: [] for model in models}
    for model in models:
        try:
            taker.warm(model)
        except SideError as error:
            _failed(error, model, keys, metrics, found)
    started = clock()
    for number in count(1):
        before = clock()
        for model in models:
            wanted = [key for key in keys if key.model == model and _is_open(found, key)]
            if not wanted:
                continue
            began = clock()
            try:
                taken = taker.take(model, [key.metric for key in wanted])
            except SideError as error:
                _failed(error, model, keys, metrics, found)
                continue
            for key in wanted:
                levels[key].append(taken.levels[key.metric])
            found.waiting += [] if taken.waiting is None else [taken.waiting]
            spent[model].append(clock() - began)
        round_s = clock() - before
        last = clock() - started + round_s > budget_s and number >= _FIRST
        if number in LOOKS or last:
            for key in keys:
                if _is_open(found, key):
                    found.verdicts[key] = _look(levels[key], floors[key.metric], metrics[key.metric], spent[key.model])
        still = sum(_is_open(found, key) for key in keys)
        say(f"round {number}: {round_s:.0f} s, {still} of {len(keys)} open, {clock() - started:.0f} s in all")
        if last or not still or number >= LOOKS[-1]:
            break
    found.rounds = {key: _rounds(levels[key]) for key in keys}
    found.verdicts = {key: found.verdicts[key] for key in keys}
    found.seconds = clock() - started
    return found


def _is_open(found: Comparison, key: Key) -> bool:
    return key not in found.verdicts or not found.verdicts[key].decided


def _look(levels: Sequence[Level], floor: Floor, metric: Metric, spent: Sequence[float]) -> Verdict:
    verdict = decide(_rounds(levels), floor.floor, floor.unit, higher_is_better=metric.higher_is_better)
    if verdict.rounds_needed is None:
        return verdict
    return replace(verdict, seconds_needed=verdict.rounds_needed * sum(spent) / len(spent))


def _failed(
    error: SideError, model: str, keys: Sequence[Key], metrics: Mapping[str, Metric], found: Comparison
) -> None:
    """Where a side fails, every open metric of the model is decided."""
    wrong = isinstance(error.__cause__, WrongAnswersError) and error.side == "head"
    for key in keys:
        if key.model == model and (wrong or _is_open(found, key)):
            if wrong and metrics[key.metric].of_answers:
                found.verdicts[key] = Verdict(Outcome.REGRESSED, reason=str(error))
            else:
                found.verdicts[key] = not_comparable(str(error))


def _rounds(levels: Sequence[Level]) -> Rounds:
    by_turns = tuple(level.turns for level in levels if level.turns)
    base, head = tuple(level.base for level in levels), tuple(level.head for level in levels)
    return Rounds(base, head, tuple(level.control for level in levels), by_turns)
