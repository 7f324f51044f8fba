"""Gates by ratio: this encoder beside transformers in the same dtype, and beside the measured limits of the machine.

Latency is compared by turns: two live processes make a call each, and the ratio is taken turn by turn, so that both
meet the same moments. What a process does once, such as loading, is compared over fresh processes in turn.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING, Final

import pytest

from llm_compression.harness.clip.series import ROUNDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_compression.harness.clip.measure import Sample
    from llm_compression.harness.clip.series import Pair, Start

    from .conftest import GateRun

LOADS: Final = 7


def record_pairs(run: GateRun, taken: tuple[list[Pair], tuple[float, ...]]) -> None:
    """Record the median of the pairs' ratios."""
    pairs, disturbed = taken
    assert len(pairs) == ROUNDS
    ratios = [pair.ratio for pair in pairs]
    calls_ms = {
        "ours_ms": [median(pair.ours_ms) for pair in pairs],
        "other_ms": [median(pair.other_ms) for pair in pairs],
    }
    run.keep(median(ratios), ratios, disturbed, **calls_ms)


def record_starts(run: GateRun, ours: Sequence[float], others: Sequence[float], disturbed: Sequence[float]) -> None:
    """Record the ratio of the medians; its samples are the ratios of the rounds."""
    assert len(ours) == len(others) == ROUNDS
    ratios = [one / other for one, other in zip(ours, others, strict=True)]
    run.keep(median(ours) / median(others), ratios, disturbed, ours=list(ours), others=list(others))


def starts(run: GateRun) -> tuple[list[Start], tuple[float, ...]]:
    """The starts of both systems, in the dtype that is computed in here."""
    return run.series.starts(run.model, run.resolved(), run.bounds())


@pytest.mark.metric("latency_to_transformers")
def test_latency_to_transformers(run: GateRun) -> None:
    """THE VisionEncoder SHALL need at most the limit's share of the time that transformers needs (8.7)."""
    record_pairs(run, run.series.to_transformers(run.model, run.resolved(), run.bounds()))


@pytest.mark.metric("latency_to_limit")
def test_latency_to_limit(run: GateRun) -> None:
    """THE VisionEncoder SHALL need at most the limit's multiple of what the matrix products alone would take (8.8)."""
    record_pairs(run, run.series.to_limit(run.model, run.resolved(), run.bounds()))


@pytest.mark.metric("load_to_limit")
def test_load_to_limit(run: GateRun) -> None:
    """THE VisionEncoder SHALL load in at most the limit's multiple of what its bytes alone would take (8.15)."""
    loads, disturbed = run.series.loads(run.job(), run.bounds(), LOADS)
    ratios = [each.sample.load_ms / each.reading_ms for each in loads]
    assert len(ratios) == LOADS
    run.keep(median(ratios), ratios, disturbed, reading_ms=[each.reading_ms for each in loads])


@pytest.mark.metric("first_call_to_transformers")
def test_first_call_to_transformers(run: GateRun) -> None:
    """THE VisionEncoder SHALL load and make its first call in a time within the limit's part of transformers' (8.9)."""

    def first(sample: Sample) -> float:
        return sample.load_ms + sample.first_call_ms

    taken, disturbed = starts(run)
    record_starts(run, [first(each.ours) for each in taken], [first(each.transformers) for each in taken], disturbed)


@pytest.mark.metric("start_to_transformers")
def test_start_to_transformers(run: GateRun) -> None:
    """THE VisionEncoder SHALL give its first embedding within the limit's part of transformers' time (8.10)."""
    taken, disturbed = starts(run)
    ours, others = ([getattr(each, name).start_to_first_ms for each in taken] for name in ("ours", "transformers"))
    record_starts(run, ours, others, disturbed)


@pytest.mark.metric("memory_to_transformers")
def test_memory_to_transformers(run: GateRun) -> None:
    """THE VisionEncoder SHALL need at most the limit's share of the memory that transformers needs (8.11)."""
    taken, disturbed = starts(run)
    ours, others = ([getattr(each, name).peak_mb for each in taken] for name in ("ours", "transformers"))
    record_starts(run, ours, others, disturbed)


@pytest.mark.metric("latency_to_eager")
def test_latency_to_eager(run: GateRun) -> None:
    """WHERE a CUDA device is present, THE VisionEncoder SHALL be quicker by a graph than without one (8.14)."""
    ours, eager = list[float](), list[float]()
    job = run.job(batches=0)
    steps = [(job, ours), (replace(job, system="arrow_eager"), eager)]
    for number in range(ROUNDS):
        for each, taken in reversed(steps) if number % 2 else steps:
            taken.append(run.take(each, number + 1, ROUNDS, run.bounds()).latency_p50)
    record_starts(run, ours, eager, ())
