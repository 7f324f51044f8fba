"""The page of scale is what the script computes from the figures beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.embed.scale import Assumed, need, page

ROOT = Path(__file__).parents[2]
MEASURED: dict[str, Any] = json.loads((ROOT / "benchmarks" / "embed" / "measured.json").read_text(encoding="utf-8"))
ROUND: dict[str, Any] = {
    "parts": {
        "decode_seconds": 0.01,
        "encode_seconds": 0.08,
        "shard_seconds": 1.0,
        "image_bytes": 1e5,
        "output_bytes_a_row": 2000.0,
        "plan_bytes_a_path": 100.0,
        "plan_seconds_a_path": 1e-6,
        "resume_seconds_a_shard": 0.01,
    },
}


def test_the_page_is_that_of_the_script() -> None:
    """To the byte; `python -m benchmarks.embed.scale benchmarks/embed/measured.json > docs/scale.md` writes it."""
    assert (ROOT / "docs" / "scale.md").read_text(encoding="utf-8") == page(MEASURED)


def test_a_million_images_by_hand() -> None:
    """Each amount of round figures."""
    found = need(1_000_000, ROUND, Assumed(price=2, processors=10, shard_rows=100))
    assert found.shards == 10_000
    # 90,000 s of images and 10,000 s of shards
    assert found.processor_hours == pytest.approx(100_000 / 3600)
    assert found.compute_dollars == pytest.approx(200_000 / 3600)
    assert found.days == pytest.approx(10_000 / 86400)
    assert (found.input_bytes, found.output_bytes, found.plan_bytes) == pytest.approx((1e11, 2e9, 1e8))
    assert (found.plan_seconds, found.resume_seconds) == pytest.approx((1, 100))
    assert found.list_requests == 1000
    assert found.list_seconds == pytest.approx(100)
    # a million GET, a thousand LIST, ten thousand PUT
    assert found.request_dollars == pytest.approx(0.4 + 0.055)


def test_a_part_of_a_shard_is_a_shard() -> None:
    """And a part of a listing is one."""
    found = need(1001, ROUND, Assumed(shard_rows=1000))
    assert (found.shards, found.list_requests) == (2, 2)


def test_another_price_is_another_page() -> None:
    """And no row of the study goes unnamed."""
    assert page(MEASURED, Assumed(price=0.08)) != page(MEASURED)
    for run in MEASURED["runs"]:
        assert run["problems"] == []
        assert f"{run['images']:,} images" in page(MEASURED)
