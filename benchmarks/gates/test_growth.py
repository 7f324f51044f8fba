"""Gates of the metric ``memory_growth``: what stays of a thousand calls from image files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from llm_compression.harness.measure import measure_growth
from llm_compression.harness.photos import photo_paths

if TYPE_CHECKING:
    from .conftest import GateRun


@pytest.mark.metric("memory_growth")
def test_growth(run: GateRun) -> None:
    """THE VisionEncoder SHALL grow the resident memory of the process by less than the limit (8.12)."""
    run.say(f"{run.gate.id}: a thousand files")
    model, device = run.model.weights["bfloat16"], run.gate.session
    grown: list[float] = []

    def round_() -> None:
        grown.append(measure_growth(model, photo_paths(), dtype="bfloat16", device=device))

    run.benchmark.pedantic(round_, rounds=1)
    run.record(grown[0], grown)
