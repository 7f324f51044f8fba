"""Gates of the metric ``memory_growth``: what stays of hundreds of calls from image files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from llm_compression.harness.clip.measure import measure_growth
from llm_compression.harness.clip.photos import photo_paths

if TYPE_CHECKING:
    from .conftest import GateRun

# before the first reading, and after it
FIRST: Final = 100
CALLS: Final = 300


@pytest.mark.metric("memory_growth")
def test_growth(run: GateRun) -> None:
    """THE VisionEncoder SHALL grow the resident memory of the process by less than the limit (8.12)."""
    run.say(f"{run.gate.id}: {FIRST} calls, then {CALLS}")
    model = run.model.weights["bfloat16"]
    grown = measure_growth(model, photo_paths(), dtype="auto", device=run.device, first=FIRST, calls=CALLS)
    run.keep(grown, [grown])
