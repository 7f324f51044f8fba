"""Measures every peer in one run and writes `reports/peers.md`, `.json` and `.png`; `nox -s peers` calls it.

Each sample is a fresh process. A round takes one of each system; every other round goes through them in the reverse
order, so that a machine that slows down or speeds up meets them all alike. The measured limit is a sample too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Final

from benchmarks.peers.exports import export
from benchmarks.peers.files import measure_files
from benchmarks.peers.report import write_report
from llm_compression.harness.clip.limit import Limit, measure_limit
from llm_compression.harness.clip.measure import Bounds, Job, Sample, measure, summarise
from llm_compression.harness.clip.models import CACHE_DIRECTORY, Model, prepare_model
from llm_compression.harness.clip.this_machine import this_machine

# What a peer's embeddings must meet for its time to count: bfloat16 rounds every product.
BOUNDS: Final = {"float32": Bounds(min_cosine=0.99999), "bfloat16": Bounds(min_cosine=0.99)}


@dataclass(frozen=True)
class Contender:
    """One row of the table: a system, what it loads and what it computes in."""

    title: str
    system: str
    dtype: str

    def model_file(self, model: Model, onnx: Path, openvino: Path) -> Path:
        """What this system loads of a seeded model."""
        if self.system == "arrow":
            return model.weights[self.dtype]
        return {"transformers": model.checkpoint, "onnxruntime": onnx, "openvino": openvino}[self.system]


CONTENDERS: Final = (
    Contender("transformers float32", "transformers", "float32"),
    Contender("transformers bfloat16", "transformers", "bfloat16"),
    Contender("ONNX Runtime float32", "onnxruntime", "float32"),
    Contender("OpenVINO float32", "openvino", "float32"),
    Contender("OpenVINO bfloat16", "openvino", "bfloat16"),
    Contender("llm_compression float32", "arrow", "float32"),
    Contender("llm_compression bfloat16", "arrow", "bfloat16"),
)


def run_variant(variant: str, rounds: int, only: Sequence[str]) -> dict[str, object]:
    """Every contender and the limit on one model: title to summary, samples and ratios."""
    model = prepare_model(variant, CACHE_DIRECTORY, print)
    onnx, openvino = export(model, print)
    contenders = [each for each in CONTENDERS if not only or each.system in only]
    samples: dict[str, list[Sample]] = {each.title: [] for each in contenders}
    limits: dict[str, list[Limit]] = {"float32": [], "bfloat16": []}
    for number in range(rounds):
        turn: list[Contender | str] = [*contenders, *limits]
        for place, each in enumerate(reversed(turn) if number % 2 else turn, 1):
            name = each if isinstance(each, str) else each.title
            print(f"{variant}: round {number + 1} of {rounds}, {place} of {len(turn)}: {name}", flush=True)
            if isinstance(each, str):
                limits[each].append(measure_limit(variant, each))
                continue
            path = each.model_file(model, onnx, openvino)
            job = Job(str(path), str(model.reference), model.image_size, each.dtype, system=each.system, batches=4)
            samples[each.title].append(measure(job, within=BOUNDS[each.dtype]))
    return {
        "limits": {dtype: asdict(_middle(found)) for dtype, found in limits.items()},
        "systems": {title: _summary(taken) for title, taken in samples.items()},
    }


def _middle(limits: Sequence[Limit]) -> Limit:
    gflops = median(each.gflops for each in limits)
    return Limit(limits[0].gflop, gflops, limits[0].gflop / gflops * 1e3)


def _summary(taken: Sequence[Sample]) -> Mapping[str, object]:
    """Medians over the processes; each process's own median of latency is kept for the plot."""
    summary: dict[str, object] = dict(summarise(taken))
    summary["load_and_first_ms"] = median(each.load_ms + each.first_call_ms for each in taken)
    summary["latency_p50_each"] = [each.latency_p50 for each in taken]
    summary["latency_p50_ms"] = median(each.latency_p50 for each in taken)
    summary["latency_p90_ms"] = median(each.latency_p90 for each in taken)
    return summary


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers.run",
        description="Measure this encoder beside transformers, ONNX Runtime and OpenVINO in one interleaved run.",
        epilog="example: python -m benchmarks.peers.run --rounds 5 --variants b16",
    )
    parser.add_argument("--rounds", type=int, default=3, help="samples of each system (default: %(default)s)")
    parser.add_argument("--variants", nargs="+", choices=("b16", "b32", "tiny"), default=["b16", "b32"])
    parser.add_argument("--only", nargs="+", default=[], choices=sorted({each.system for each in CONTENDERS}))
    parser.add_argument("--out", type=Path, default=Path("reports"), help="directory (default: %(default)s)")
    options = parser.parse_args(arguments)
    before = this_machine()
    models = {variant: run_variant(variant, options.rounds, options.only) for variant in options.variants}
    files = {}
    if "b32" in options.variants and not options.only:
        files = measure_files(prepare_model("b32", CACHE_DIRECTORY, print), options.rounds)
    write_report(options.out, models, files, before, options.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
