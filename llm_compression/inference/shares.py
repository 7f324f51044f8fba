"""A batch as equal shares, each computed by a thread of its own: no operation is split, so no thread waits for another.

``benchmarks/peers/shares.py`` times both forms on the machine it runs on, and says where the choice is the slower.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Final

import torch
from torch import Tensor

from llm_compression.inference.paths import choose
from llm_compression.inference.threads import available_cpus, workers
from llm_compression.settings import own_settings

# Rows of a share. Each thread reads all weights, which for fewer rows takes longer than the waiting; with more rows a
# product that is split is as fast.
MIN_ROWS: Final = 250
MAX_ROWS: Final = 850


def by_shares(run: Callable[[slice], Tensor], x: Tensor) -> Tensor:
    """``run(slice(None))``, from as many shares as PyTorch has threads where that is the faster on a CPU.

    What does not divide evenly goes through afterwards, with all threads: a thread with an item more than the others
    has them wait. Only in inference mode, so that a training is one graph; a hook of a module then sees a share.

    Args:
        run: Takes a slice of the batch to its rows; called from several threads at once.
        x: (n, rows, ...), what the batch is.

    Returns:
        What ``run`` returns for the whole batch.
    """
    threads = min(torch.get_num_threads(), available_cpus())
    share = items_of_share(x, threads)
    if share == 0:
        return run(slice(None))

    def alone(part: slice) -> Tensor:
        with own_settings(), torch.inference_mode():  # modes of the calling thread only
            return run(part)

    shared = share * threads
    tasks = list[Future[Tensor]]()
    try:
        tasks += (workers().submit(alone, slice(start, start + share)) for start in range(0, shared, share))
    except RuntimeError:
        # no thread can be started, or the interpreter is about to end
        wait(tasks)
        return run(slice(None))
    wait(tasks)
    parts = [task.result() for task in tasks]
    if shared < len(x):
        parts.append(run(slice(shared, None)))
    return torch.cat(parts)


def items_of_share(x: Tensor, threads: int) -> int:
    """Items of (n, rows, ...) that each thread takes; 0 where the batch is left whole."""
    share = len(x) // threads
    can = threads > 1 and share > 0 and x.device.type == "cpu" and torch.is_inference_mode_enabled()
    preferred = "shares" if can and MIN_ROWS <= share * x.shape[1] <= MAX_ROWS else "whole"
    form = choose("batch", preferred, ("shares", "whole") if can else ("whole",))
    return share if form == "shares" else 0
