"""Gates by ratio: this encoder beside transformers and the measured limit of the machine, in one interleaved run.

A ratio of two medians from the same minutes holds on any machine that multiplies bfloat16 in hardware, and on a busy
one better than either figure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Final

import pytest

from llm_compression.harness.limit import measure_limit
from llm_compression.harness.measure import Bounds, Job, Sample, measure

if TYPE_CHECKING:
    from llm_compression.harness.models import Model

    from .conftest import GateRun

ROUNDS: Final = 3
# transformers takes several times as long a call, and its median needs fewer
PEER_CALLS: Final = 24


@dataclass(frozen=True)
class Series:
    """A sample of each system for each round, and the measured limit."""

    ours: tuple[Sample, ...]
    transformers: tuple[Sample, ...]
    limits_ms: tuple[float, ...]


@pytest.fixture(scope="session")
def series(say: Callable[[str], None]) -> Callable[[Model, Job, Bounds], Series]:
    """The run of a model, made once for all of its ratios."""
    made: dict[Job, Series] = {}

    def taken(model: Model, job: Job, bounds: Bounds) -> Series:
        if job in made:
            return made[job]
        peer = replace(job, model=str(model.checkpoint), system="transformers", dtype="float32", calls=PEER_CALLS)
        ours, theirs, limits = list[Sample](), list[Sample](), list[float]()
        steps: list[tuple[str, Callable[[], None]]] = [
            ("llm_compression", lambda: ours.append(measure(job, within=bounds))),
            ("transformers float32", lambda: theirs.append(measure(peer, within=Bounds(min_cosine=0.99999)))),
            ("limit", lambda: limits.append(measure_limit(model.variant, job.dtype).limit_ms)),
        ]
        for number in range(ROUNDS):
            for name, step in reversed(steps) if number % 2 else steps:
                say(f"ratios of {model.variant}: round {number + 1} of {ROUNDS}: {name}")
                step()
        made[job] = Series(tuple(ours), tuple(theirs), tuple(limits))
        return made[job]

    return taken


def record(run: GateRun, ours: list[float], others: list[float]) -> None:
    """Record the ratio of the medians; its samples are the ratios of the rounds."""
    assert len(ours) == len(others) == ROUNDS
    value = median(ours) / median(others)
    # the rounds are those of the series; pytest-benchmark wants one of its own
    run.benchmark.pedantic(lambda: None, rounds=1)
    run.record(value, [one / other for one, other in zip(ours, others, strict=True)], ours=ours, others=others)


Taken = Callable[["Model", Job, Bounds], Series]


@pytest.mark.metric("latency_to_transformers")
def test_latency_to_transformers(run: GateRun, series: Taken) -> None:
    """THE VisionEncoder SHALL need at most the limit's share of the time that transformers needs in float32 (8.7)."""
    taken = series(run.model, run.job(batches=0), run.bounds())
    record(run, [each.latency_p50 for each in taken.ours], [each.latency_p50 for each in taken.transformers])


@pytest.mark.metric("latency_to_limit")
def test_latency_to_limit(run: GateRun, series: Taken) -> None:
    """THE VisionEncoder SHALL need at most the limit's multiple of what the matrix products alone would take (8.8)."""
    taken = series(run.model, run.job(batches=0), run.bounds())
    record(run, [each.latency_p50 for each in taken.ours], list(taken.limits_ms))


@pytest.mark.metric("first_call_to_transformers")
def test_first_call_to_transformers(run: GateRun, series: Taken) -> None:
    """THE VisionEncoder SHALL load and make its first call in a time within the limit's part of transformers' (8.9)."""
    taken = series(run.model, run.job(batches=0), run.bounds())
    found = [[each.load_ms + each.first_call_ms for each in samples] for samples in (taken.ours, taken.transformers)]
    record(run, *found)


@pytest.mark.metric("start_to_transformers")
def test_start_to_transformers(run: GateRun, series: Taken) -> None:
    """THE VisionEncoder SHALL give its first embedding within the limit's part of transformers' time (8.10)."""
    taken = series(run.model, run.job(batches=0), run.bounds())
    record(run, *([each.start_to_first_ms for each in samples] for samples in (taken.ours, taken.transformers)))


@pytest.mark.metric("memory_to_transformers")
def test_memory_to_transformers(run: GateRun, series: Taken) -> None:
    """THE VisionEncoder SHALL need at most the limit's share of the memory that transformers needs (8.11)."""
    taken = series(run.model, run.job(batches=0), run.bounds())
    record(run, [each.peak_mb for each in taken.ours], [each.peak_mb for each in taken.transformers])


@pytest.mark.metric("latency_to_eager")
def test_latency_to_eager(run: GateRun) -> None:
    """WHERE a CUDA device is present, THE VisionEncoder SHALL be quicker by a graph than without one (8.14)."""
    ours, eager = list[Sample](), list[Sample]()
    job = run.job(batches=0)
    steps = [(job, ours), (replace(job, system="arrow_eager"), eager)]
    for number in range(ROUNDS):
        for each, taken in reversed(steps) if number % 2 else steps:
            taken.append(run.take(each, number + 1, ROUNDS, run.bounds()))
    record(run, [each.latency_p50 for each in ours], [each.latency_p50 for each in eager])
