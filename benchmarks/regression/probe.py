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

# of a live process before its turns: what is made once has been made
_WARM_CALLS: Final = 3
# of Linux
_IO: Final = Path("/proc/self/io")
_HARNESS: Final = Path(__file__).resolve().parents[2] / "llm_compression" / "harness"


def convert(request: dict[str, Any]) -> dict[str, Any]:
    """Convert the seeded checkpoint with the converter of the measured revision."""
    from llm_compression import convert_checkpoint

    _assert_measured(request["worktree"])
    milliseconds, _ = _timed(lambda: convert_checkpoint(request["checkpoint"], request["out"], request["dtype"]))
    return {"convert_ms": milliseconds}


def sample(request: dict[str, Any]) -> dict[str, Any]:
    """Import, load, encode one image: what a fresh process takes, and how far its answer is from the reference's."""
    taken, calls = _start(request)
    return {**taken, "accuracy": calls.accuracy}


def turns(request: dict[str, Any]) -> dict[str, Any]:
    """The same, then a call for each line of the standard input: ``one`` image, or a ``batch``.

    It answers each line with one, and says at the end what it took in all.
    """
    taken, calls = _start(request)
    sizes = {"one": 1, "batch": request["batch_size"]}
    for _ in range(_WARM_CALLS):
        calls.encode(1)
    waited_from = time.process_time()
    print(json.dumps({"ready": True}), flush=True)
    called_s = 0.0
    for line in sys.stdin:
        before = time.process_time()
        milliseconds = calls.encode(sizes[line.strip()])
        called_s += time.process_time() - before
        print(json.dumps({"ms": milliseconds}), flush=True)
    # threads that spin while the others have their turns would show here
    waiting_ms = (time.process_time() - waited_from - called_s) * 1000
    peak_mb = _own("paired/peak_memory").PeakMemory().peak_mb
    return {**taken, "peak_mb": peak_mb, "waiting_cpu_ms": waiting_ms, "accuracy": calls.accuracy}


class _Calls:
    """Encodes seeded images, never one twice in a row, and keeps the rows until they are compared."""

    def __init__(self, encoder: Any, request: dict[str, Any]) -> None:
        # imported here, as they need numpy, whose import was timed
        import numpy as np

        self._accuracy = _own("clip/accuracy")
        self._encoder, self._request = encoder, request
        self._reference = np.load(request["reference"])
        self._next_image = 0
        self._kept: list[tuple[list[int], Any]] = []

    def encode(self, images: int) -> float:
        """Encode the next images; milliseconds of the call alone."""
        import numpy as np
        import torch

        numbers = [(self._next_image + i) % len(self._reference) for i in range(images)]
        self._next_image += images
        size, seed = self._request["image_size"], self._request["seed"]
        pixels = torch.from_numpy(np.stack([self._accuracy.seeded_pixels(seed, number, size) for number in numbers]))
        milliseconds, rows = _timed(lambda: np.asarray(self._encoder.encode_pixels(pixels, normalize=False)))
        self._kept.append((numbers, rows))
        return milliseconds

    @property
    def accuracy(self) -> dict[str, Any]:
        """Of every row until now."""
        parts = [self._accuracy.compare(rows, self._reference[numbers]) for numbers, rows in self._kept]
        merged: dict[str, Any] = vars(self._accuracy.merge(parts))
        return merged


def _start(request: dict[str, Any]) -> tuple[dict[str, Any], _Calls]:
    """Import the package, load the model and encode one image."""
    import_ms, encoder_type = _timed(_import_encoder)
    _assert_measured(request["worktree"])
    load_ms, encoder = _timed(lambda: encoder_type(request["model"], "cpu", request["dtype"]))
    calls = _Calls(encoder, request)
    first_call_ms = calls.encode(1)
    # the clock of the parent process, which both read from the system
    start_to_first_ms = (time.monotonic() - request["started"]) * 1000
    return {
        "import_ms": import_ms,
        "load_ms": load_ms,
        "first_call_ms": first_call_ms,
        "start_to_first_ms": start_to_first_ms,
        **_system_counts(),
    }, calls


def _system_counts() -> dict[str, float]:
    """What the system counted of this process since its start, which a neighbour moves less than it moves a clock."""
    counts = {"cpu_ms": time.process_time() * 1000}
    if _IO.is_file():
        import resource

        usage = resource.getrusage(resource.RUSAGE_SELF)
        read = next(line for line in _IO.read_text(encoding="utf-8").splitlines() if line.startswith("rchar:"))
        counts |= {"page_faults": usage.ru_minflt + usage.ru_majflt, "read_mb": int(read.split()[1]) / 1e6}
    return counts


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


KINDS: Final = {"convert": convert, "sample": sample, "turns": turns}


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what is asked and print the answer as one line of JSON."""
    parser = argparse.ArgumentParser(
        prog="python -P benchmarks/regression/probe.py",
        description="Convert with or measure the package on PYTHONPATH. Started by harness.paired.rounds.",
        epilog='example: python -P benchmarks/regression/probe.py sample \'{"worktree": "/tmp/base", ...}\'',
    )
    parser.add_argument("kind", choices=tuple(KINDS), help="what to do")
    parser.add_argument("request", type=json.loads, help="its arguments, a JSON object")
    options = parser.parse_args(arguments)
    print(json.dumps(KINDS[options.kind](options.request)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
