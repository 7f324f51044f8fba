"""How often the comparison is wrong: a revision beside itself, and beside itself with an injected slowdown."""

from __future__ import annotations

import sys

from benchmarks.regression.project import PROJECT
from llm_compression.harness.paired.study import main

if __name__ == "__main__":
    sys.exit(main(PROJECT, prog="python -m benchmarks.regression.false_alarms"))
