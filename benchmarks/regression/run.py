"""Measures one revision beside another and reports; `nox -s regression` calls it.

Exits 0 for no regression, 1 for a regression, 2 for wrong usage, 3 for an inconclusive or incomparable result.
"""

from __future__ import annotations

from benchmarks.regression.project import PROJECT
from llm_compression.harness.paired.run import run

if __name__ == "__main__":
    run(PROJECT, "python -m benchmarks.regression.run")
