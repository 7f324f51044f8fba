"""The measured limit of this machine: how fast it multiplies the matrices of a model, and nothing else.

    python -m llm_compression.harness.limit b16 bfloat16

Prints one line of JSON: the sustained GFLOP/s over the products of one pass (packed weights, a set for each layer, so
that they come from memory as they do in a model), and the milliseconds that the model's GFLOP take at that rate.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from llm_compression.harness.checkpoints import VARIANTS
from llm_compression.harness.measure import MeasurementError
from llm_compression.inference.linear import Linear
from llm_compression.inference.threads import limit_threads
from llm_compression.multimodal.vision_config import VisionConfig


@dataclass(frozen=True)
class Limit:
    """What one process found: the model's GFLOP, the sustained GFLOP/s, and the milliseconds that makes."""

    gflop: float
    gflops: float
    limit_ms: float


def measure_limit(variant: str, dtype: str) -> Limit:
    """The limit for a variant and dtype, from a process of its own.

    Raises:
        MeasurementError: The process failed.
    """
    command = [sys.executable, "-m", "llm_compression.harness.limit", variant, dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise MeasurementError(f"limit of {variant} in {dtype}: exit status {done.returncode}\n{done.stderr[-2000:]}")
    try:
        return Limit(**json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, ValueError, TypeError) as error:
        raise MeasurementError(f"limit of {variant} in {dtype}: printed {done.stdout[-200:]!r}") from error


def product_shapes(config: VisionConfig) -> list[tuple[int, int]]:
    """(out, in) of the products of one block: q, k and v as one, output, and the two of the MLP."""
    width, mlp = config.hidden_size, config.intermediate_size
    return [(3 * width, width), (width, width), (mlp, width), (width, mlp)]


def model_gflop(config: VisionConfig) -> float:
    """GFLOP of one image: every product of the tower, a multiplication and an addition each, attention's included."""
    tokens, width = config.num_positions, config.hidden_size
    block = sum(2 * tokens * rows * columns for rows, columns in product_shapes(config)) + 4 * tokens**2 * width
    patches = 2 * config.num_patches * width * 3 * config.patch_size**2
    return (config.num_layers * block + patches + 2 * width * config.dimension) / 1e9


@torch.inference_mode()
def sustained_gflops(config: VisionConfig, dtype: torch.dtype, passes: int = 24) -> float:
    """Median GFLOP/s over passes through all blocks' products."""
    limit_threads()
    cpu, tokens = torch.device("cpu"), config.num_positions
    layers = []
    for rows, columns in product_shapes(config) * config.num_layers:
        layer = Linear(columns, rows)
        layer.load(torch.randn(rows, columns) * columns**-0.5, torch.zeros(rows), cpu, dtype)
        layers.append((layer, torch.randn(1, tokens, columns).to(dtype)))
    gflop = config.num_layers * sum(2 * tokens * rows * columns for rows, columns in product_shapes(config)) / 1e9
    seconds = []
    for _ in range(passes):
        start = time.perf_counter()
        for layer, x in layers:
            layer(x)
        seconds.append(time.perf_counter() - start)
    return gflop / statistics.median(seconds[2:])


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the limit of a variant and dtype."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variant", choices=tuple(VARIANTS))
    parser.add_argument("dtype", choices=("float32", "bfloat16"))
    options = parser.parse_args(arguments)
    config = VARIANTS[options.variant]
    gflops = sustained_gflops(config, getattr(torch, options.dtype))
    gflop = model_gflop(config)
    print(json.dumps(asdict(Limit(gflop, gflops, gflop / gflops * 1e3))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
