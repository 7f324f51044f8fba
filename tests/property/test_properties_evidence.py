"""Runs of one tree, one after another, in any order and selection."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_compression.harness.spec.evidence import NOT_RUN, OUTCOMES, Part, Record, Source, merge, read_part, write_part

NODES = tuple(f"tests/test_a.py::test_{name}" for name in "abcde")
# of each run: the tests that were selected, and what became of them
RUNS = st.lists(st.dictionaries(st.sampled_from(NODES), st.sampled_from(OUTCOMES)), min_size=1, max_size=6)


def records(run: dict[str, str]) -> tuple[Record, ...]:
    return tuple(Record(node, ("1.1",), outcome=outcome) for node, outcome in run.items())


@pytest.mark.property(32)
@given(RUNS)
def test_a_run_takes_no_outcome_away(runs: list[dict[str, str]]) -> None:
    """Property 32: For any runs of one tree, one after another, the evidence holds each test that any of them had,
    with its outcome in the last run that ran it."""
    expected: dict[str, str] = {}
    for run in runs:
        expected |= {node: outcome for node, outcome in run.items() if outcome != NOT_RUN or node not in expected}
    found: tuple[Record, ...] = ()
    for run in runs:
        found = merge(found, records(run))
    assert {record.node: record.outcome for record in found} == expected
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "tests.json")
        for commit, run in enumerate(runs):
            write_part(path, Part(Source(str(commit), commit % 2 > 0, "a1"), {"python": "3.11"}, records(run)))
        assert read_part(path).records == found
