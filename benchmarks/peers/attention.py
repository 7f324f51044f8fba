"""Times both forms of attention on this machine, for the choice in `llm_compression.inference.attention`.

    python benchmarks/peers/attention.py

Each row is a layer of CLIP's shape (12 heads of 64) at a token count, batch and dtype. The two forms are timed in turn,
so that both see the same noise, and their results are compared before a time is printed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812  # the name that PyTorch's users know
from torch import Tensor

from llm_compression.inference.attention import by_bmm, prefers_bmm

HEADS, HEAD_DIM = 12, 64
# the token counts of B/32, B/16, L/14 and L/14-336
TOKENS = (50, 197, 257, 577)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="calls of each form (default: %(default)s)")
    rounds = parser.parse_args().rounds
    print(f"{torch.get_num_threads()} threads, PyTorch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}")
    print(f"{'dtype':9} {'batch':>5} {'tokens':>6} {'fused ms':>9} {'bmm ms':>9} {'bmm/fused':>9}  chosen")
    for dtype in (torch.bfloat16, torch.float32):
        for batch in (1, 16):
            for tokens in TOKENS:
                fused, bmm = measure(dtype, batch, tokens, rounds)
                chosen = "bmm" if prefers_bmm(dtype, torch.device("cpu"), tokens) else "fused"
                slower = (
                    "  (the slower one here)"
                    if (bmm < fused) == (chosen == "fused") and abs(bmm - fused) > 0.05 * fused
                    else ""
                )
                name = str(dtype).removeprefix("torch.")
                print(f"{name:9} {batch:5} {tokens:6} {fused:9.3f} {bmm:9.3f} {bmm / fused:9.2f}  {chosen}{slower}")


@torch.inference_mode()
def measure(dtype: torch.dtype, batch: int, tokens: int, rounds: int) -> tuple[float, float]:
    """Median milliseconds of the fused kernel and of the two products, on the layout that the core gives them."""
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(batch, tokens, 3, HEADS, HEAD_DIM, generator=generator).to(dtype)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    forms: tuple[Callable[[Tensor, Tensor, Tensor], Tensor], ...] = (F.scaled_dot_product_attention, by_bmm)
    first, second = (form(q, k, v).float() for form in forms)
    if not torch.allclose(first, second, atol=TOLERANCE[dtype]):
        raise SystemExit(f"the two forms differ by {(first - second).abs().max():.2e}")
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for form, series in zip(forms, times, strict=True):
            start = time.perf_counter()
            form(q, k, v)
            series.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times[0]), statistics.median(times[1])


if __name__ == "__main__":
    main()
