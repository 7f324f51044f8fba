"""A fresh process that is asked one thing and prints one JSON object; what it measured, or why there is nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from llm_compression.errors import LlmCompressionError


class MeasurementError(LlmCompressionError):
    """A sample could not be taken, or its answers are wrong."""


def run_child(
    kind: str,
    request: Mapping[str, Any],
    timeout_s: float,
    *,
    program: Sequence[str],
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Run a program in a fresh process and read the JSON object that is its last line of output.

    Args:
        kind: What it is to do, its first argument.
        request: Its second; the time before its start is added.
        timeout_s: After how many seconds it is ended.
        program: The interpreter's arguments that name it.
        environment: Variables beside those of this process.

    Raises:
        MeasurementError: It exited with another status than 0, ran out of time or printed something else.
    """
    started = time.monotonic()
    command = [sys.executable, *program, kind, json.dumps({**request, "started": started})]
    try:
        variables = {**os.environ, **(environment or {})}
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise MeasurementError(f"{kind}: not done after {timeout_s:g} s: {dict(request)}") from error
    if done.returncode != 0:
        last = "\n".join(done.stderr.strip().splitlines()[-12:])
        raise MeasurementError(f"{kind}: exit status {done.returncode}: {dict(request)}\n{last}")
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError) as error:
        raise MeasurementError(f"{kind}: printed {done.stdout[-200:]!r}, expected a line of JSON") from error
    if not isinstance(answer, dict):
        raise MeasurementError(f"{kind}: printed {done.stdout[-200:]!r}, expected a JSON object")
    return answer


def percentile(values: Sequence[float], percent: float) -> float:
    """Percentile with linear interpolation between the two nearest values.

    Raises:
        MeasurementError: There is no value.
    """
    if not values:
        raise MeasurementError("a percentile of no values")
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)
