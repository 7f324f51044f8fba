"""The cells of `nox -s processors`, as data: under what the tests run, and what a machine needs for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

# the tests that compare numbers, and those of what is chosen by processor
NUMBERS: Final = (
    "tests/unit/test_attention.py",
    "tests/unit/test_clip_engine.py",
    "tests/unit/test_inference_core.py",
    "tests/unit/test_linear.py",
    "tests/unit/test_paths.py",
    "tests/unit/test_processor.py",
    "tests/unit/test_shares.py",
    "tests/unit/test_text_encoder.py",
    "tests/unit/test_vision_encoder.py",
    "tests/property/test_properties_core.py",
    "tests/property/test_properties_encoder.py",
    "tests/property/test_properties_text.py",
    "tests/parity/test_minilm.py",
    "tests/parity/test_parity_transformers.py",
    "tests/parity/test_paths.py",
    "tests/parity/test_text_towers.py",
)
# those that the forms alone decide
FORMS: Final = (
    "tests/unit/test_inference_core.py",
    "tests/unit/test_vision_encoder.py",
    "tests/property/test_properties_core.py",
    "tests/property/test_properties_encoder.py",
    "tests/parity/test_parity_transformers.py",
)


@dataclass(frozen=True)
class Cell:
    """What one process runs the tests under.

    Attributes:
        name: How the table calls it.
        environment: Variables of the process: instruction sets that the libraries are held to, threads, forced forms.
        needs: Instruction sets without which it would be another cell, in PyTorch's names.
        forces: The forms that must have run, ``choice=form``.
        tests: What is run.
        in_commit: Whether `.ci/run` has it; the others are jobs of the workflow.
    """

    name: str
    environment: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    forces: tuple[str, ...] = ()
    tests: tuple[str, ...] = NUMBERS
    in_commit: bool = False


def _held(onednn: str, aten: str, *needs: str, in_commit: bool = False) -> Cell:
    environment = {"ONEDNN_MAX_CPU_ISA": onednn, "ATEN_CPU_CAPABILITY": aten}
    return Cell(f"held to {onednn}, {aten}", environment, needs, in_commit=in_commit)


def _forced(*forms: str, threads: int = 2) -> Cell:
    environment = {"LLM_COMPRESSION_PATHS": ",".join(forms), "LLM_COMPRESSION_TEST_THREADS": str(threads)}
    return Cell(f"{', '.join(forms)} on {threads} threads", environment, forces=forms, tests=FORMS)


def _threads(count: int) -> Cell:
    return Cell(f"{count} threads", {"LLM_COMPRESSION_TEST_THREADS": str(count)}, tests=FORMS)


CELLS: Final = (
    _held("SSE41", "default"),
    _held("AVX2", "avx2", "avx2", in_commit=True),
    _held("AVX512_CORE", "avx512", "avx512_f", in_commit=True),
    _held("AVX512_CORE_VNNI", "avx512", "avx512_vnni"),
    _held("AVX512_CORE_BF16", "avx512", "avx512_bf16"),
    Cell("not held", needs=()),
    _threads(2),
    _threads(4),
    _forced("linear=plain"),
    _forced("linear=packed"),
    _forced("attention=bmm", "batch=whole"),
    _forced("attention=fused", "batch=shares"),
    _forced("attention=bmm", "batch=shares", threads=4),
)
