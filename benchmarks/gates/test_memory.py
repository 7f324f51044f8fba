"""Gates of the metric ``peak_memory``: the peak resident memory of the whole process since its start."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from .conftest import GateRun

PROCESSES: Final = 3
CALLS: Final = 8


@pytest.mark.metric("peak_memory")
def test_memory(run: GateRun) -> None:
    """THE VisionEncoder SHALL keep the peak resident memory of the process within the limits (8.3, 8.6).

    Each process imports the package, loads, encodes one image at a time and then batches; the highest counts.
    """
    samples, _ = run.samples([run.job(calls=CALLS, batches=1)] * PROCESSES, run.bounds())
    peaks = [sample.peak_mb for sample in samples]
    assert len(peaks) == PROCESSES
    run.keep(max(peaks), peaks)
