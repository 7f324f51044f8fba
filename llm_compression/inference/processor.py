"""What PyTorch and oneDNN will use of this processor; the one file that asks, so that a cap set on either counts too.

PyTorch lists what the processor has (`torch.cpu.get_capabilities`). oneDNN, which multiplies the matrices, may be held
to less by ``ONEDNN_MAX_CPU_ISA``; its names are those of its documentation, *CPU Dispatcher Control*.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from typing import Any, Final

import torch

ISA_VARIABLES: Final = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
# oneDNN's levels that leave out every instruction that multiplies bfloat16, and those that leave out AMX alone
_WITHOUT_BFLOAT16: Final = frozenset(
    ("SSE41", "AVX", "AVX2", "AVX_VNNI", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")
)
_WITHOUT_AMX: Final = _WITHOUT_BFLOAT16 | {"AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX10_1_512", "AVX10_2_512"}


def multiplies_bfloat16() -> bool:
    """Whether bfloat16 products run on instructions of their own, so that they are faster than float32's."""
    native = {"avx512_bf16", "amx_bf16", "bf16"} & instruction_sets()  # the last is ARM's
    return bool(native) and _isa_cap() not in _WITHOUT_BFLOAT16 and _onednn_takes_bfloat16()


def has_amx() -> bool:
    """Whether they run on AMX."""
    return "amx_bf16" in instruction_sets() and _isa_cap() not in _WITHOUT_AMX


@cache
def instruction_sets() -> frozenset[str]:
    """The instruction sets of this processor, in PyTorch's names."""
    return frozenset(name for name, present in _capabilities().items() if present is True)


def _capabilities() -> Mapping[str, Any]:
    if hasattr(torch.cpu, "get_capabilities"):
        found: Mapping[str, Any] = torch.cpu.get_capabilities()
        return found
    # PyTorch before 2.11 has a private function for each, and none for ARM
    private = {"avx512_bf16": "_is_avx512_bf16_supported", "amx_bf16": "_is_amx_tile_supported"}
    return {name: getattr(torch.cpu, function, bool)() for name, function in private.items()}


def _isa_cap() -> str:
    """The level that oneDNN is held to; empty where it is not."""
    return next((os.environ[name].upper() for name in ISA_VARIABLES if os.environ.get(name)), "")


@cache
def _onednn_takes_bfloat16() -> bool:
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    # private to PyTorch; built without oneDNN it is absent
    except (AttributeError, RuntimeError):
        return False
