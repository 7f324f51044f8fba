"""Draws the history and marks where a series changed; `nox -s trend` calls it."""

from __future__ import annotations

import sys

from benchmarks.regression.project import PROJECT
from llm_compression.harness.paired.trend import main

if __name__ == "__main__":
    sys.exit(main(PROJECT, prog="python -m benchmarks.regression.trend"))
