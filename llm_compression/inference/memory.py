"""What becomes of freed memory: back to the system after a load, kept for the next pass while encoding."""

from __future__ import annotations

import ctypes
import os
from typing import Final

import pyarrow as pa
import torch

# glibc keeps blocks up to this size for reuse, and never larger ones.
REUSABLE_BYTES: Final = 32 << 20


def release_memory() -> None:
    """Return what Arrow's pool and the C library keep of freed memory to the system; a no-op where they cannot."""
    pa.default_memory_pool().release_unused()
    # glibc's own call; other C libraries have none, and Windows cannot open the process as a library
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def reuse_freed_memory() -> None:
    """Have the C library keep what a pass frees for the next one, instead of faulting each page in again.

    glibc returns freed memory above a threshold, which grows to twice the largest block that was freed so far. A block
    of nearly the largest size that it counts, never written and so never in memory, sets it for good; other C libraries
    lose nothing by it.
    """
    torch.empty(REUSABLE_BYTES - (1 << 20), dtype=torch.uint8, device="cpu")
