"""What is used of a processor: what PyTorch lists, less what oneDNN is held to."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from llm_compression.inference import processor
from llm_compression.inference.processor import ISA_VARIABLES, has_amx, instruction_sets, multiplies_bfloat16

pytestmark = pytest.mark.requirement("29.3")

AVX2 = {"avx2": True, "avx512_bf16": False, "architecture": "x86_64", "l1d_cache_size": 32768}
AVX512 = AVX2 | {"avx512_f": True, "avx512_bw": True, "avx512_vnni": True}
ZEN4 = AVX512 | {"avx512_bf16": True}
AMX = ZEN4 | {"amx_tile": True, "amx_bf16": True, "amx_int8": True}
ARM = {"architecture": "aarch64", "neon": True, "bf16": True}


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No cap, and no answer of another test."""
    for name in ISA_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for function in (instruction_sets, processor._onednn_takes_bfloat16):
        function.cache_clear()
    yield
    for function in (instruction_sets, processor._onednn_takes_bfloat16):
        function.cache_clear()


def pretend(patch: pytest.MonkeyPatch, capabilities: dict[str, Any], takes_bfloat16: bool = True) -> None:
    """Make PyTorch list these, and oneDNN take bfloat16 or not."""
    patch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    operators = types.SimpleNamespace(_is_mkldnn_bf16_supported=lambda: takes_bfloat16)
    patch.setattr(torch.ops, "mkldnn", operators)


@pytest.mark.parametrize(
    ("capabilities", "native", "amx"),
    [(AVX2, False, False), (AVX512, False, False), (ZEN4, True, False), (AMX, True, True), (ARM, True, False)],
)
def test_processors(monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, Any], native: bool, amx: bool) -> None:
    """29.3: THE Package SHALL take what `auto` and the form of attention rest on from PyTorch's own probes, and follow
    the instruction set that oneDNN is held to."""
    pretend(monkeypatch, capabilities)
    assert (multiplies_bfloat16(), has_amx()) == (native, amx)
    assert instruction_sets() == {name for name, present in capabilities.items() if present is True}


@pytest.mark.parametrize("variable", ISA_VARIABLES)
@pytest.mark.parametrize(
    ("cap", "native", "amx"),
    [
        ("SSE41", False, False),
        ("AVX2", False, False),
        ("avx2", False, False),
        ("AVX2_VNNI_2", False, False),
        ("AVX512_CORE", False, False),
        ("AVX512_CORE_VNNI", False, False),
        ("AVX512_CORE_BF16", True, False),
        ("AVX512_CORE_FP16", True, False),
        ("AVX10_1_512", True, False),
        ("AVX512_CORE_AMX", True, True),
        ("AVX10_1_512_AMX_FP16", True, True),
        ("ALL", True, True),
        ("DEFAULT", True, True),
        ("", True, True),
    ],
)
def test_a_cap_on_onednn(monkeypatch: pytest.MonkeyPatch, variable: str, cap: str, native: bool, amx: bool) -> None:
    """29.3: THE Package SHALL take what `auto` and the form of attention rest on from PyTorch's own probes, and follow
    the instruction set that oneDNN is held to."""
    pretend(monkeypatch, AMX)
    monkeypatch.setenv(variable, cap)
    assert (multiplies_bfloat16(), has_amx()) == (native, amx)


def test_onednn_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """29.3: an instruction that oneDNN does not use makes no product faster, whoever lists it."""
    pretend(monkeypatch, AMX, takes_bfloat16=False)
    assert not multiplies_bfloat16()
    processor._onednn_takes_bfloat16.cache_clear()
    monkeypatch.setattr(torch.ops, "mkldnn", types.SimpleNamespace())
    assert not multiplies_bfloat16()


def test_an_older_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """29.3: before `torch.cpu.get_capabilities` there was a private probe for each; without any, nothing is assumed."""
    pretend(monkeypatch, AMX)
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    assert (multiplies_bfloat16(), has_amx()) == (True, False)
    instruction_sets.cache_clear()
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name)
    assert (multiplies_bfloat16(), has_amx()) == (False, False)


def test_auto_follows_a_cap_for_real() -> None:
    """29.3: a process held to AVX2 computes in float32 whatever the processor has, and packs it."""
    code = (
        "import torch\n"
        "from llm_compression.inference.linear import auto_dtype, packs\n"
        "cpu = torch.device('cpu')\n"
        "print(auto_dtype(cpu), packs(cpu, torch.float32) is torch.backends.mkldnn.is_available())"
    )
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert run.stdout.split() == ["torch.float32", "True"]
