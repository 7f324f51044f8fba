"""This machine, as PyTorch sees it: the processors, instruction sets and devices that an encoder will use."""

from __future__ import annotations

from typing import Final

import torch

from llm_compression.harness.paired.machine import MachineInfo, machine
from llm_compression.inference.processor import instruction_sets
from llm_compression.inference.threads import available_cpus

PACKAGES: Final = ("torch", "pyarrow", "numpy", "pillow", "transformers")
# those that decide how fast a matrix product is, in PyTorch's names
_FLAGS: Final = (
    *("avx2", "fma3", "avx512_f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8"),
    *("neon", "dot", "bf16", "i8mm", "sve"),
)


def this_machine() -> MachineInfo:
    """This machine, now; every report carries it."""
    return machine(
        PACKAGES,
        cores=available_cpus(),
        flags=[flag for flag in _FLAGS if flag in instruction_sets()],
        gpus=[torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    )
