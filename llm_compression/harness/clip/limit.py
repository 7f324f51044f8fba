"""The measured limits of this machine: a model's matrix products, and a file's bytes read, checked and copied.

    python -m llm_compression.harness.clip.limit b16 bfloat16

The program that measures is `products.py`, which imports nothing of this package. Prints one line of JSON: the
sustained GFLOP/s over the products of one pass, by the fastest way that PyTorch has, and the milliseconds that the
model's GFLOP take at that rate.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from llm_compression.harness.clip.checkpoints import VARIANTS
from llm_compression.harness.paired.turns import Live
from llm_compression.inference.threads import available_cpus
from llm_compression.multimodal.vision_config import VisionConfig

PROGRAM: Final = Path(__file__).with_name("products.py")
_PASSES: Final = 16


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
    config = VARIANTS[variant]
    with product_rounds(config, dtype) as rounds:
        passes_ms = [float(rounds.ask()["ms"]) for _ in range(_PASSES)]
    gflop, gflops = model_gflop(config), pass_gflop(config) / median(passes_ms) * 1e3
    return Limit(gflop, gflops, gflop / gflops * 1e3)


def product_rounds(config: VisionConfig, dtype: str) -> Live:
    """A process that makes one pass through a model's products for each line."""
    shapes = product_shapes(config) * config.num_layers
    request = {"tokens": config.num_positions, "shapes": shapes, "dtype": dtype}
    return _rounds(f"products in {dtype}", request)


def reading_rounds(file: str | os.PathLike[str], stored: str, dtype: str) -> Live:
    """A process that reads, checks and copies the bytes of a file for each line, from the stored dtype to another."""
    return _rounds(f"reading of {file}", {"file": os.fspath(file), "stored": stored, "dtype": dtype})


def _rounds(name: str, request: dict[str, Any]) -> Live:
    # -P: what lies beside the program is no module of it
    return Live(name, ("-P", str(PROGRAM), json.dumps({**request, "threads": available_cpus()})))


def product_shapes(config: VisionConfig) -> list[tuple[int, int]]:
    """(out, in) of the products of one block: q, k and v as one, output, and the two of the MLP."""
    width, mlp = config.hidden_size, config.intermediate_size
    return [(3 * width, width), (width, width), (mlp, width), (width, mlp)]


def pass_gflop(config: VisionConfig) -> float:
    """GFLOP of one pass through the products of all blocks."""
    products = sum(rows * columns for rows, columns in product_shapes(config))
    return 2 * config.num_layers * config.num_positions * products / 1e9


def model_gflop(config: VisionConfig) -> float:
    """GFLOP of one image: every product of the tower, a multiplication and an addition each, attention's included."""
    tokens, width = config.num_positions, config.hidden_size
    attention = 4 * config.num_layers * tokens**2 * width
    patches = 2 * config.num_patches * width * 3 * config.patch_size**2
    return pass_gflop(config) + (attention + patches + 2 * width * config.dimension) / 1e9


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the limit of a variant and dtype."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variant", choices=tuple(VARIANTS))
    parser.add_argument("dtype", choices=("float32", "bfloat16"))
    options = parser.parse_args(arguments)
    print(json.dumps(asdict(measure_limit(options.variant, options.dtype))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
