"""The rates of this machine, by nothing but PyTorch and Python: what an encoder's time is held against.

    python -P products.py '{"tokens": 197, "shapes": [[2304, 768], ...], "dtype": "float32", "threads": 2}'
    python -P products.py '{"file": "weights.parquet", "stored": "bfloat16", "dtype": "float32", "threads": 2}'

A program by its path, which imports nothing of the package that is measured, so that a slow package cannot excuse
itself. Each line on standard input asks for one round; the answer is a line of JSON. Matrix products: one pass through
all shapes, by the fastest of the ways that PyTorch has for them here. A file: read, checked and copied once.
"""

from __future__ import annotations

import json
import sys
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

_TRIALS: Final = 3
_CHUNK: Final = 1 << 20


def products(request: dict[str, Any]) -> tuple[Callable[[], float], dict[str, Any]]:
    """One pass through the products, in seconds; and which way was chosen, of which."""
    import torch

    torch.set_num_threads(request["threads"])
    torch.set_grad_enabled(False)
    dtype, tokens, shapes = getattr(torch, request["dtype"]), request["tokens"], request["shapes"]
    # a set for each product, so that the weights come from memory as they do in a model
    weights = [(torch.randn(rows, columns) * columns**-0.5).to(dtype) for rows, columns in shapes]
    inputs = [torch.randn(tokens, columns).to(dtype) for _, columns in shapes]
    bias = [torch.zeros(rows, dtype=dtype) for rows, _ in shapes]
    linear = torch.nn.functional.linear

    def by_linear() -> None:
        for x, weight, b in zip(inputs, weights, bias, strict=True):
            linear(x, weight, b)

    ways: dict[str, Callable[[], None]] = {"linear": by_linear}
    transposed = [weight.t().contiguous() for weight in weights]

    def by_addmm() -> None:
        for x, weight, b in zip(inputs, transposed, bias, strict=True):
            torch.addmm(b, x, weight)

    ways["addmm"] = by_addmm
    mkldnn = torch.ops.mkldnn
    try:
        packed = [mkldnn._reorder_linear_weight(weight) for weight in weights]

        def by_packed() -> None:
            for x, weight, b in zip(inputs, packed, bias, strict=True):
                mkldnn._linear_pointwise(x, weight, b, "none", [], "")

        by_packed()
        ways["packed"] = by_packed
    # private to PyTorch: absent in some builds, and refused for a dtype that the processor does not take
    except (AttributeError, RuntimeError, TypeError):
        pass

    def seconds(way: Callable[[], None]) -> float:
        start = time.perf_counter()
        way()
        return time.perf_counter() - start

    trials = {name: min(seconds(way) for _ in range(_TRIALS)) for name, way in ways.items()}
    best = min(trials, key=trials.__getitem__)
    return lambda: seconds(ways[best]), {"way": best, "trials_s": trials}


def reading(request: dict[str, Any]) -> tuple[Callable[[], float], dict[str, Any]]:
    """The bytes of a file read, checked and copied to where they would be used, in seconds.

    They are copied to new memory in the dtype that computes, as a load does, on one thread or on all.
    """
    import torch

    torch.set_num_threads(1)
    path = Path(request["file"])
    stored, computed = (getattr(torch, request[name]) for name in ("stored", "dtype"))
    size = path.stat().st_size // stored.itemsize * stored.itemsize

    def part(copy: Any, start: int, stop: int) -> int:
        check, buffer = 0, bytearray(_CHUNK)
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            while start < stop and (count := file.readinto(memoryview(buffer)[: min(_CHUNK, stop - start)])):
                check = zlib.crc32(memoryview(buffer)[:count], check)
                read = torch.frombuffer(buffer, dtype=stored, count=count // stored.itemsize)
                copy[start // stored.itemsize :][: len(read)].copy_(read)
                start += count
        return check

    def seconds(threads: int) -> float:
        start = time.perf_counter()
        copy = torch.empty(size // stored.itemsize, dtype=computed)
        edges = [size // stored.itemsize * index // threads * stored.itemsize for index in range(threads + 1)]
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(part, [copy] * threads, edges[:-1], edges[1:]):
                pass
        return time.perf_counter() - start

    seconds(1)  # into the page cache
    trials = {count: min(seconds(count) for _ in range(_TRIALS)) for count in {1, request["threads"]}}
    best = min(trials, key=trials.__getitem__)
    return lambda: seconds(best), {"way": f"{best} threads", "trials_s": trials, "bytes": size}


def main() -> None:
    """Make ready, say so, then answer each line."""
    request = json.loads(sys.argv[1])
    run, chosen = reading(request) if "file" in request else products(request)
    print(json.dumps(chosen), flush=True)
    for _ in sys.stdin:
        print(json.dumps({"ms": run() * 1000}), flush=True)
    print(json.dumps({}), flush=True)


if __name__ == "__main__":
    main()
