"""An encoder as a live process, to be asked by turns."""

from __future__ import annotations

import json
from dataclasses import asdict

from llm_compression.harness.clip.measure import OFFLINE, Job
from llm_compression.harness.paired.turns import Live


def encoder(job: Job) -> Live:
    """An encoder that makes one call for each line; what it says last has its accuracy and its waits."""
    request = json.dumps(asdict(job))
    program = ("-m", "llm_compression.harness.clip.sample", "turns", request)
    return Live(f"{job.system} {job.dtype}", program, environment=OFFLINE)
