"""The program of a fresh process: takes one sample, or computes reference embeddings; `measure` starts it.

It imports nothing heavy until the clock of the import runs. Its own share of a sample is psutil, a thread that reads
the resident memory, one that reads what was waited for, and the pixels of one call at a time.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from llm_compression.harness.clip.systems import SYSTEMS
from llm_compression.harness.paired.peak_memory import PeakMemory
from llm_compression.harness.paired.waits import WaitClock

if TYPE_CHECKING:
    from llm_compression.harness.clip.accuracy import Accuracy, Array
    from llm_compression.harness.clip.systems import Loaded

Result = TypeVar("Result")

# Two images of the reference must be further apart than this, or one could pass for the other.
_MAX_COSINE_BETWEEN: Final = 0.99
# Calls before the turns begin.
_WARM_CALLS: Final = 3
# Growth by which enough is known, before the machine has no memory left.
_GROWTH_MB: Final = 500


class _Calls:
    """Calls of a model on seeded images, each compared with the reference; no image comes twice in a row."""

    def __init__(self, model: Loaded, job: argparse.Namespace) -> None:
        # imported here, as they need numpy, whose import was timed
        import numpy as np

        self._model, self._job, self._reference = model, job, np.load(job.reference)
        self._next_image = 0
        self._parts: list[Accuracy] = []

    def __call__(self, images: int) -> float:
        """Encode the next images and compare them; milliseconds of the call alone."""
        import numpy as np

        from llm_compression.harness.clip.accuracy import compare, seeded_pixels

        numbers = [(self._next_image + i) % len(self._reference) for i in range(images)]
        self._next_image += images
        pixels = np.stack([seeded_pixels(self._job.seed, number, self._job.image_size) for number in numbers])
        milliseconds, embeddings = _timed(lambda: self._model.encode_pixels(pixels))
        self._parts.append(compare(embeddings, self._reference[numbers]))
        return milliseconds

    @property
    def accuracy(self) -> dict[str, Any]:
        """Of every embedding until now."""
        from llm_compression.harness.clip.accuracy import merge

        return vars(merge(self._parts))


def take_sample(request: dict[str, Any]) -> dict[str, Any]:
    """Import, load, call: everything in a `Sample` but its job."""
    started = request.pop("started")
    job = argparse.Namespace(**request)
    system = SYSTEMS[job.system]
    with PeakMemory() as memory, WaitClock() as clock:
        import_ms = {module: _timed(partial(importlib.import_module, module))[0] for module in system.imports}
        import_mb = memory.now_mb
        load_ms, model = _timed(lambda: system.load(job.model, job.dtype, job.device))
        loaded_mb = memory.now_mb
        call = _Calls(model, job)
        first_call_ms = call(1)
        start_to_first_ms = (time.monotonic() - started) * 1000
        first_peak_mb, first_waits = memory.peak_mb, clock.lap()
        latency_ms = [call(1) for _ in range(job.calls)]
        call_waits = clock.lap()
        if job.batches:
            call(job.batch_size)
        batch_ms = [call(job.batch_size) for _ in range(job.batches)]
        peak_mb = memory.peak_mb
    return {
        "import_ms": import_ms,
        "import_mb": import_mb,
        "load_ms": load_ms,
        "loaded_mb": loaded_mb,
        "first_call_ms": first_call_ms,
        "start_to_first_ms": start_to_first_ms,
        "first_peak_mb": first_peak_mb,
        "latency_ms": latency_ms,
        "batch_ms": batch_ms,
        "peak_mb": peak_mb,
        "accuracy": call.accuracy,
        "dtype": model.dtype,
        "first_waits": vars(first_waits),
        "call_waits": vars(call_waits),
    }


def take_turns(request: dict[str, Any]) -> dict[str, Any]:
    """Load and make a few calls, say so, then make one call for each line that comes in; a line of JSON for each."""
    job = argparse.Namespace(**request)
    call = _Calls(SYSTEMS[job.system].load(job.model, job.dtype, job.device), job)
    for _ in range(_WARM_CALLS):
        call(1)
    clock = WaitClock()
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        print(json.dumps({"ms": call(1)}), flush=True)
    return {"accuracy": call.accuracy, "waits": vars(clock.lap())}


def write_reference(request: dict[str, Any]) -> dict[str, Any]:
    """Embed the seeded images with transformers in float32 and save the rows."""
    import numpy as np

    from llm_compression.harness.clip.accuracy import seeded_pixels

    model = SYSTEMS["transformers"].load(request["checkpoint"], "float32", "cpu")
    rows: list[Array] = []
    for start in range(0, request["rows"], 16):
        numbers = range(start, min(start + 16, request["rows"]))
        pixels = np.stack([seeded_pixels(request["seed"], number, request["image_size"]) for number in numbers])
        rows.append(model.encode_pixels(pixels))
    embeddings = np.concatenate(rows)
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    between = unit @ unit.T - 2 * np.eye(len(unit))
    if not between.max() < _MAX_COSINE_BETWEEN:
        one, other = np.unravel_index(between.argmax(), between.shape)
        raise SystemExit(
            f"images {one} and {other} have a cosine of {between.max():.4f}, expected less than {_MAX_COSINE_BETWEEN}: "
            "a wrong answer could pass for a right one"
        )
    np.save(request["out"], embeddings)
    return {"rows": len(embeddings)}


def write_files(request: dict[str, Any]) -> dict[str, Any]:
    """Embed image files with one system and save the rows."""
    import numpy as np

    model = SYSTEMS[request["system"]].load(request["model"], request["dtype"], request["device"])
    if warm := request["files"][: request["warm"]]:
        model.encode_files(warm)
    milliseconds, embeddings = _timed(lambda: model.encode_files(request["files"]))
    np.save(request["out"], embeddings)
    return {"encode_ms": milliseconds}


def take_growth(request: dict[str, Any]) -> dict[str, Any]:
    """Encode files one at a time, many times; resident memory after the first calls and after the last, in MB.

    Freed memory is handed back before each reading: what the C library holds for reuse moves by a few MB either way.
    """
    from llm_compression.inference.memory import release_memory

    memory = PeakMemory()
    model = SYSTEMS[request["system"]].load(request["model"], request["dtype"], request["device"])
    files = request["files"]
    loaded_mb = before_mb = memory.now_mb
    for number in range(request["first"] + request["calls"]):
        if number == request["first"]:
            release_memory()
            before_mb = memory.now_mb
        model.encode_files([files[number % len(files)]])
        if memory.now_mb > loaded_mb + _GROWTH_MB:
            break
    release_memory()
    return {"before_mb": before_mb, "after_mb": memory.now_mb}


_KINDS: Final[dict[str, Callable[[dict[str, Any]], dict[str, Any]]]] = {
    "sample": take_sample,
    "turns": take_turns,
    "reference": write_reference,
    "files": write_files,
    "growth": take_growth,
}


def _timed(function: Callable[[], Result]) -> tuple[float, Result]:
    start = time.perf_counter()
    result = function()
    return (time.perf_counter() - start) * 1000, result


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what is asked and print the answer as one line of JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m llm_compression.harness.clip.sample",
        description="Take one sample of a measurement in this process; llm_compression.harness.clip.measure starts it.",
        epilog='example: python -m llm_compression.harness.clip.sample sample \'{"model": "models/clip", ...}\'',
    )
    parser.add_argument("kind", choices=tuple(_KINDS), help="what to do")
    parser.add_argument("request", type=json.loads, help="its arguments, a JSON object")
    options = parser.parse_args(arguments)
    print(json.dumps(_KINDS[options.kind](options.request)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
