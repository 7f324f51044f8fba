"""Gates of the metric ``load``: constructing a VisionEncoder from a bfloat16 weight file, imports excluded."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from .conftest import GateRun

PROCESSES: Final = 7


@pytest.mark.metric("load")
def test_load(run: GateRun) -> None:
    """THE VisionEncoder SHALL load within the limits of gates `load-...` (8.1, 8.4): the median over processes.

    The first call's embedding is compared with the reference, so that what is loaded is the model.
    """
    taken, disturbed = run.series.loads(run.job(), run.bounds(), PROCESSES)
    loads = [each.sample.load_ms for each in taken]
    assert len(loads) == PROCESSES
    run.keep(median(loads), loads, disturbed)
