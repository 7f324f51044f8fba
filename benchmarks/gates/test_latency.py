"""Gates of the metric ``latency_p90``: one image's pixels to its embedding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from llm_compression.harness.clip.measure import CALLS, summarise
from llm_compression.harness.paired.child import percentile

if TYPE_CHECKING:
    from .conftest import GateRun

PROCESSES: Final = 3


@pytest.mark.metric("latency_p90")
def test_latency(run: GateRun) -> None:
    """THE VisionEncoder SHALL return an embedding with a 90th percentile of latency within the limits (8.2, 8.5).

    The percentile is over the calls of all processes, no two of a process on the same image.
    """
    jobs = [run.job(batches=1)] * PROCESSES
    samples, disturbed = run.samples(jobs, run.bounds(), waits=lambda sample: sample.call_waits)
    latency = [value for sample in samples for value in sample.latency_ms]
    assert len(latency) >= PROCESSES * CALLS
    processes = [sample.latency_p90 for sample in samples]
    run.keep(percentile(latency, 90), processes, disturbed, rounds=latency, summary=summarise(samples))
