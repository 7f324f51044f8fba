"""The forms of a computation that give the same numbers in another way; the one place where one of them is chosen.

Each choice follows the processor, the dtype, the threads and the sizes at hand. Tests force it, so that every machine
runs every form that it can:

    with forced(attention="bmm", batch="shares"): ...
    LLM_COMPRESSION_PATHS="attention=bmm,linear=plain" python -m pytest

A form that is forced runs wherever it is possible; `ran` says which forms did.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Final

from llm_compression.errors import ConfigError

PATHS_VARIABLE: Final = "LLM_COMPRESSION_PATHS"
FORMS: Final[Mapping[str, tuple[str, ...]]] = {
    "linear": ("packed", "plain"),  # weights in oneDNN's layout, or as they are
    "attention": ("fused", "bmm"),  # PyTorch's kernel, or two batched products
    "batch": ("shares", "whole"),  # a thread for each share of a batch, or all threads for each operation
}

# of the process and not of a thread: a batch in shares is computed by threads of its own
_forced: Final[dict[str, str]] = {}
_ran: Final[set[tuple[str, str]]] = set()


def choose(choice: str, preferred: str, possible: Collection[str]) -> str:
    """The form that is to run: the forced one where it is possible, else the preferred one; noted for `ran`.

    Raises:
        ConfigError: ``LLM_COMPRESSION_PATHS`` names no form.
    """
    wanted = _forced.get(choice) or _from_environment().get(choice)
    form = wanted if wanted is not None and wanted in possible else preferred
    _ran.add((choice, form))
    return form


@contextmanager
def forced(**forms: str) -> Iterator[None]:
    """Have these forms run where they are possible, in every thread of the process.

    Raises:
        ConfigError: There is no such choice or form.
    """
    _check(forms)
    before = dict(_forced)
    _forced.update(forms)
    try:
        yield
    finally:
        _forced.clear()
        _forced.update(before)


def ran() -> frozenset[tuple[str, str]]:
    """Every (choice, form) that this process has taken."""
    return frozenset(_ran)


@cache
def _from_environment() -> Mapping[str, str]:
    setting = os.environ.get(PATHS_VARIABLE, "")
    pairs = [each.strip().partition("=") for each in setting.split(",") if each.strip()]
    forms = {choice: form for choice, _, form in pairs}
    _check(forms)
    return forms


def _check(forms: Mapping[str, str]) -> None:
    for choice, form in forms.items():
        if form not in FORMS.get(choice, ()):
            known = ", ".join(f"{name}={'|'.join(values)}" for name, values in FORMS.items())
            raise ConfigError(f"paths: {choice}={form}, expected of {known}")
