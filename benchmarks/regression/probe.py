"""The program of a fresh process that measures one revision; run by its path, with ``PYTHONPATH`` at a worktree.

Of the measured revision it imports what a user would: the converter and VisionEncoder. The pixels, the comparison with
the reference and the clock of the memory are those of the checkout that this file lies in, loaded by path, so that both
sides are measured by the same program.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final, TypeVar

Result = TypeVar("Result")

_HARNESS: Final = Path(__file__).resolve().parents[2] / "llm_compression" / "harness"


def convert(request: dict[str, Any]) -> dict[str, Any]:
    """Convert the seeded checkpoint with the converter of the measured revision."""
    from llm_compression import convert_checkpoint

    _assert_measured(request["worktree"])
    milliseconds, _ = _timed(lambda: convert_checkpoint(request["checkpoint"], request["out"], request["dtype"]))
    return {"convert_ms": milliseconds}


def sample(request: dict[str, Any]) -> dict[str, Any]:
    """Import, load, call: one value of every metric, and how far the answers are from the reference's."""
    memory_module = _own("paired/peak_memory")
    with memory_module.PeakMemory() as memory:
        import_ms, encoder_type = _timed(_import_encoder)
        _assert_measured(request["worktree"])
        load_ms, encoder = _timed(lambda: encoder_type(request["model"], "cpu", request["dtype"]))

        # imported here, as they need numpy and torch, whose imports were timed
        import numpy as np
        import torch

        accuracy = _own("clip/accuracy")
        reference = np.load(request["reference"])
        parts = []
        next_image = 0

        def call(images: int) -> float:
            """Encode the next images, never one twice in a row, and compare them; milliseconds of the call alone."""
            nonlocal next_image
            numbers = [(next_image + i) % len(reference) for i in range(images)]
            next_image += images
            size, seed = request["image_size"], request["seed"]
            pixels = torch.from_numpy(np.stack([accuracy.seeded_pixels(seed, number, size) for number in numbers]))
            milliseconds, rows = _timed(lambda: np.asarray(encoder.encode_pixels(pixels, normalize=False)))
            parts.append(accuracy.compare(rows, reference[numbers]))
            return milliseconds

        first_call_ms = call(1)
        # the clock of the parent process, which both read from the system
        start_to_first_ms = (time.monotonic() - request["started"]) * 1000
        latency_ms = [call(1) for _ in range(request["calls"])]
        call(request["batch_size"])
        batch_ms = [call(request["batch_size"]) for _ in range(request["batches"])]
        peak_mb = memory.peak_mb
    return {
        "import_ms": import_ms,
        "load_ms": load_ms,
        "first_call_ms": first_call_ms,
        "start_to_first_ms": start_to_first_ms,
        "latency_ms": latency_ms,
        "batch_ms": batch_ms,
        "peak_mb": peak_mb,
        "accuracy": vars(accuracy.merge(parts)),
    }


def _import_encoder() -> Any:
    from llm_compression import VisionEncoder

    return VisionEncoder


def _assert_measured(worktree: str) -> None:
    """Refuse a package from elsewhere: an installed one would be measured on both sides, and be the same."""
    import llm_compression

    found = Path(llm_compression.__file__).resolve()
    if not found.is_relative_to(Path(worktree).resolve()):
        raise SystemExit(f"llm_compression was imported from {found}, expected from {worktree}")


def _own(name: str) -> ModuleType:
    """A module of this checkout's harness, under a name that the measured revision cannot have."""
    file = _HARNESS / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"probe_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # dataclasses look up their module
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _timed(function: Callable[[], Result]) -> tuple[float, Result]:
    start = time.perf_counter()
    result = function()
    return (time.perf_counter() - start) * 1000, result


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what is asked and print the answer as one line of JSON."""
    parser = argparse.ArgumentParser(
        prog="python -P benchmarks/regression/probe.py",
        description="Convert with or measure the package on PYTHONPATH. Started by harness.paired.rounds.",
        epilog='example: python -P benchmarks/regression/probe.py sample \'{"worktree": "/tmp/base", ...}\'',
    )
    parser.add_argument("kind", choices=("convert", "sample"), help="what to do")
    parser.add_argument("request", type=json.loads, help="its arguments, a JSON object")
    options = parser.parse_args(arguments)
    print(json.dumps({"convert": convert, "sample": sample}[options.kind](options.request)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
