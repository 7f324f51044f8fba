"""Seeded models, ready to measure: a checkpoint, its weight files and the reference's embeddings, made once.

They are kept in a directory named after a hash of the sources that make them, so that a change there makes them anew.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

import llm_compression
from llm_compression.convert import convert_checkpoint
from llm_compression.files import whole_directory
from llm_compression.harness.clip.checkpoints import VARIANTS, make_checkpoint
from llm_compression.harness.clip.measure import make_reference
from llm_compression.inference.weight_format import WEIGHTS_FILE

CACHE_DIRECTORY: Final = Path(".cache", "models")
WEIGHT_DTYPES: Final = ("float32", "bfloat16")
_SOURCES: Final = (
    "harness/clip/accuracy.py",
    "harness/clip/checkpoint_weights.py",
    "harness/clip/checkpoints.py",
    "harness/clip/models.py",
    "harness/clip/sample.py",
    "harness/clip/systems.py",
    "convert/*.py",
    "inference/weight_format.py",
    "multimodal/image_processor.py",
    "multimodal/vision_config.py",
)
_PACKAGES: Final = ("numpy", "pyarrow", "torch", "transformers")


@dataclass(frozen=True)
class Model:
    """A seeded model on disk.

    Attributes:
        variant: A name in `VARIANTS`.
        checkpoint: Its Hugging Face directory, in float32.
        weights: Weight file by dtype, ``float32`` and ``bfloat16``, converted from the checkpoint.
        reference: ``.npy`` file of the embeddings of the seeded pixels, by transformers in float32.
        image_size: Height and width of an image.
    """

    variant: str
    checkpoint: Path
    weights: Mapping[str, Path]
    reference: Path
    image_size: int


def prepare_model(variant: str, cache: str | os.PathLike[str], say: Callable[[str], None] = print) -> Model:
    """Make a seeded model, or find it in the cache; others of the variant are removed from there.

    Args:
        variant: A name in `VARIANTS`.
        cache: Directory of the cache.
        say: Takes a line on each step.

    Raises:
        KeyError: There is no such variant.
        LlmCompressionError: The checkpoint cannot be converted, or the reference cannot be computed.
    """
    image_size = VARIANTS[variant].image_size
    home = Path(cache) / f"{variant}-{_key()}"
    if home.is_dir():
        say(f"{variant}: found in {home}")
    else:
        with whole_directory(home) as partial:
            _make(variant, partial, image_size, say)
        for stale in Path(cache).glob(f"{variant}-*"):
            if stale != home:
                stale.unlink() if stale.is_symlink() else shutil.rmtree(stale)
    return Model(
        variant=variant,
        checkpoint=home / "checkpoint",
        weights={dtype: home / dtype / WEIGHTS_FILE for dtype in WEIGHT_DTYPES},
        reference=home / "reference.npy",
        image_size=image_size,
    )


def _make(variant: str, home: Path, image_size: int, say: Callable[[str], None]) -> None:
    start = time.perf_counter()

    def done(what: str) -> None:
        say(f"{variant}: {what} ({time.perf_counter() - start:.1f} s)")

    checkpoint = make_checkpoint(home / "checkpoint", variant)
    done("checkpoint made, float32, in the layout of Hugging Face")
    for dtype in WEIGHT_DTYPES:
        report = convert_checkpoint(checkpoint, home / dtype, dtype)
        done(f"converted to {dtype}: {report.num_tensors} tensors, {report.bytes_out / 1e6:.0f} MB")
    make_reference(checkpoint, home / "reference.npy", image_size)
    done("reference embeddings computed by transformers, float32")


def _key() -> str:
    digest = hashlib.sha256()
    package = Path(llm_compression.__file__).parent
    for pattern in _SOURCES:
        for source in sorted(package.glob(pattern)):
            digest.update(source.relative_to(package).as_posix().encode() + b"\0" + source.read_bytes())
    digest.update("".join(f"{name}=={version(name)}\n" for name in _PACKAGES).encode())
    return digest.hexdigest()[:16]


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the models named on the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m llm_compression.harness.clip.models",
        description="Make seeded checkpoints, convert them, compute the reference's embeddings; keep all in a cache.",
        epilog="example: python -m llm_compression.harness.clip.models b16 b32",
    )
    parser.add_argument("variants", nargs="+", choices=tuple(VARIANTS), metavar="VARIANT", help=", ".join(VARIANTS))
    parser.add_argument("--cache", type=Path, default=CACHE_DIRECTORY, help="default: %(default)s")
    options = parser.parse_args(arguments)
    for variant in options.variants:
        prepare_model(variant, options.cache, lambda line: print(line, flush=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
