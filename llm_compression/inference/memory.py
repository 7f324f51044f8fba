"""Handing memory back to the system after a load."""

from __future__ import annotations

import ctypes
import os

import pyarrow as pa


def release_memory() -> None:
    """Return what Arrow's pool and the C library keep of freed memory to the system; a no-op where they cannot."""
    pa.default_memory_pool().release_unused()
    # glibc's own call; other C libraries have none, and Windows cannot open the process as a library
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)
