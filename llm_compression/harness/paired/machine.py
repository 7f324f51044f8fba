"""The machine and the versions behind a measurement; every report carries them."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import psutil
import torch

from llm_compression.inference.processor import instruction_sets
from llm_compression.inference.threads import available_cpus

PACKAGES: Final = ("torch", "pyarrow", "numpy", "pillow", "transformers")
# those that decide how fast a matrix product is, in PyTorch's names
_FLAGS: Final = (
    *("avx2", "fma3", "avx512_f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8"),
    *("neon", "dot", "bf16", "i8mm", "sve"),
)


@dataclass(frozen=True)
class MachineInfo:
    """Where a measurement was taken.

    Attributes:
        processor: Its model, as the system names it.
        cores: Processors that this process may use.
        flags: Its instruction sets that matter here; empty where the system does not list them.
        memory_mb: Main memory, in MB (10^6 bytes).
        load_average: Processes that ran or waited to, over the last minute; None where the system does not say.
        gpus: CUDA devices, by name.
        system: Operating system and kernel.
        python: Version of Python.
        versions: Package to version; a package that is not installed is left out.
    """

    processor: str
    cores: int
    flags: tuple[str, ...]
    memory_mb: int
    load_average: float | None
    gpus: tuple[str, ...]
    system: str
    python: str
    versions: Mapping[str, str]


def machine() -> MachineInfo:
    """This machine, now."""
    return MachineInfo(
        processor=_processor(),
        cores=available_cpus(),
        flags=tuple(flag for flag in _FLAGS if flag in instruction_sets()),
        memory_mb=round(psutil.virtual_memory().total / 1e6),
        load_average=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        gpus=tuple(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())),
        system=platform.platform(),
        python=platform.python_version(),
        versions=_versions(),
    )


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
