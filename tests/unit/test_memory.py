"""What becomes of freed memory: the system gets it back after a load, and a pass reuses what the one before freed."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys

import pytest

# faults of the second of two passes that each write and free blocks of 9 MB, as the layers of a pass do
_PROGRAM = """
import ctypes
import resource
import torch
from llm_compression.inference.memory import release_memory, reuse_freed_memory

# PR_SET_THP_DISABLE of linux/prctl.h: a fault for each page, also where the system gives larger ones
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)
reuse_freed_memory()

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        blocks = [torch.ones(9 << 18) for _ in range(3)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
again = faults()
release_memory()
print(again, faults())
"""


@pytest.mark.requirement("8.2")
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have rules of their own")
def test_a_pass_reuses_what_the_one_before_freed() -> None:
    """8.2: no page of an activation is asked of the system again, until the memory is handed back."""
    blocks = 3 * (9 << 20) // resource.getpagesize()
    command = [sys.executable, "-c", _PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    again, released = map(int, done.stdout.split())
    assert again < blocks / 10
    # so a fault is seen where there is one
    assert released > blocks / 2
