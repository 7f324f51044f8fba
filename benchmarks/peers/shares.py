"""Times a batch computed whole and as shares on this machine, for the bounds in `llm_compression.inference.shares`.

    python -m benchmarks.peers.shares

Each row is a stack of CLIP's width (768, three layers) over a batch of B/32's or B/16's token count in bfloat16. The
two forms are timed in turn, so that both see the same noise, and their results are compared before a time is printed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from unittest import mock

import torch
from torch import Tensor

from llm_compression.inference import shares
from llm_compression.inference.inference_core import InferenceCore
from llm_compression.inference.layer_weights import CLIP_LAYER_NAMES, core_slots
from llm_compression.inference.threads import limit_threads

WIDTH, LAYERS = 768, 3
# token count -> batches
BATCHES = {50: (4, 8, 10, 12, 16, 20, 24, 28, 32, 34, 40), 197: (2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 16)}
MIN_COSINE = 0.999
NEVER = 1 << 60


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="calls of each form (default: %(default)s)")
    rounds = parser.parse_args().rounds
    limit_threads()
    threads, core = torch.get_num_threads(), seeded_core()
    print(f"{threads} threads, PyTorch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}")
    print("tokens batch rows a share  whole ms shares ms shares/whole  chosen")
    for tokens, batches in BATCHES.items():
        for batch in batches:
            x = torch.randn(batch, tokens, WIDTH, generator=torch.Generator().manual_seed(batch)).bfloat16()
            whole, shared = measure(core, x, rounds)
            with torch.inference_mode():
                chosen = "shares" if shares.items_of_share(x, threads) else "whole"
            slower = (shared < whole) == (chosen == "whole") and abs(shared - whole) > 0.05 * whole
            print(
                f"{tokens:6} {batch:5} {batch // threads * tokens:12} {whole:9.2f} {shared:9.2f} "
                f"{shared / whole:12.2f}  {chosen}{'  (the slower one here)' if slower else ''}"
            )


def seeded_core() -> InferenceCore:
    """A stack with small random weights."""
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        core = InferenceCore(WIDTH, LAYERS, WIDTH // 64, 4 * WIDTH)
    sizes = {"fc1": (4 * WIDTH, WIDTH), "fc2": (WIDTH, 4 * WIDTH)}
    for slot in core_slots(core, "", CLIP_LAYER_NAMES, torch.device("cpu"), torch.bfloat16):
        tensors = []
        for name in slot.names:
            shape = sizes.get(name.split(".")[-2], (WIDTH, WIDTH))
            norm_or_bias = "norm" in name or name.endswith("bias")
            tensors.append(torch.randn(shape[:1] if norm_or_bias else shape, generator=generator) * 0.02)
        slot.take(*tensors)
    return core


@torch.inference_mode()
def measure(core: InferenceCore, x: Tensor, rounds: int) -> tuple[float, float]:
    """Median milliseconds of the batch computed whole and as shares."""
    times: tuple[list[float], list[float]] = ([], [])
    found: list[Tensor] = [x, x]
    for _ in range(rounds + 2):
        for form, least in enumerate((NEVER, 0)):
            with mock.patch.multiple(shares, MIN_ROWS=least, MAX_ROWS=NEVER):
                start = time.perf_counter()
                found[form] = core(x)
                times[form].append((time.perf_counter() - start) * 1e3)
    cosine = torch.cosine_similarity(found[0].float(), found[1].float(), dim=-1).min()
    if not cosine >= MIN_COSINE:
        raise SystemExit(f"the two forms differ: cosine {cosine:.6f}")
    # the first two calls of each make their products
    return statistics.median(times[0][2:]), statistics.median(times[1][2:])


if __name__ == "__main__":
    main()
