"""How the tests of the engines run programs, and what they compare."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from llm_compression import shapes_model

MODEL = str(shapes_model())
ROWS = 48
SHARD_ROWS = 4


def program(*arguments: str, **named: str) -> subprocess.CompletedProcess[str]:
    """A Python program to its end, as a user starts it."""
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, env={**os.environ, **named}
    )


def data_set(out: Path) -> dict[str, bytes]:
    """Every file of a data set, by name."""
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}
