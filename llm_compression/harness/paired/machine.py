"""The machine and the versions behind a measurement; every report carries them."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import psutil

_CPUINFO: Final = Path("/proc/cpuinfo")
# those that decide how fast arithmetic is, in Linux's names for x86 and ARM
_FLAGS: Final = frozenset(
    (
        *("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8"),
        *("asimd", "asimddp", "bf16", "i8mm", "sve"),
    )
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
        gpus: Devices that were or could have been used, by name.
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


def machine(
    packages: Iterable[str] = (),
    *,
    cores: int | None = None,
    flags: Sequence[str] | None = None,
    gpus: Sequence[str] = (),
) -> MachineInfo:
    """This machine, now.

    Args:
        packages: Distributions whose versions a figure depends on.
        cores: Processors that this process may use; its affinity where none is given.
        flags: Instruction sets, where what is measured has names of its own; else those that Linux lists.
        gpus: Names of the devices that what is measured may use.
    """
    return MachineInfo(
        processor=_processor(),
        cores=_affinity() if cores is None else cores,
        flags=_listed_flags() if flags is None else tuple(flags),
        memory_mb=round(psutil.virtual_memory().total / 1e6),
        load_average=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        gpus=tuple(gpus),
        system=platform.platform(),
        python=platform.python_version(),
        versions=_versions(packages),
    )


def _affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpuinfo(*names: str) -> str:
    """The first value of one of these fields; empty where the system does not list it."""
    lines = _CPUINFO.read_text(encoding="utf-8").splitlines() if _CPUINFO.is_file() else []
    fields = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in fields if name.strip() in names and value.strip()), "")


def _listed_flags() -> tuple[str, ...]:
    return tuple(sorted(_FLAGS.intersection(_cpuinfo("flags", "Features").split())))


def _processor() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _versions(packages: Iterable[str]) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
