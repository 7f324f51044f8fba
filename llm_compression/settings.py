"""Settings of PyTorch that belong to the caller, apart from which this package computes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Final, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")

# what `torch.set_float32_matmul_precision` sets: float32 products from fewer bits
_PRODUCTS: Final[tuple[Any, ...]] = (
    torch.backends.cuda.matmul,
    torch.backends.mkldnn.matmul,  # type: ignore[attr-defined]  # set at import, unseen by mypy
)
_WHOLE: Final = ("none", "ieee")
_KINDS: Final = ("cpu", "cuda", "xpu", "mps")

_counting = threading.Lock()
_holders = 0
_before: list[tuple[Any, str]] = []


@contextmanager
def own_settings() -> Iterator[None]:
    """Compute in the dtypes that the code says: without the caller's autocast, and float32 products from all bits.

    Autocast is a setting of the thread. The precision of products is one of the process: where it was lowered, it is
    raised while any thread is in here.
    """
    enabled = [kind for kind in _KINDS if torch.is_autocast_enabled(kind)]
    _hold_products()
    try:
        for kind in enabled:
            torch.set_autocast_enabled(kind, False)
        yield
    finally:
        for kind in enabled:
            torch.set_autocast_enabled(kind, True)
        _release_products()


def _hold_products() -> None:
    global _holders  # one for the process, as the setting is
    with _counting:
        _holders += 1
        for each in _PRODUCTS:
            if each.fp32_precision not in _WHOLE:
                _before.append((each, each.fp32_precision))
                each.fp32_precision = "ieee"


def _release_products() -> None:
    global _holders
    with _counting:
        _holders -= 1
        if _holders == 0:
            for each, value in _before:
                each.fp32_precision = value
            _before.clear()


def undisturbed(function: Callable[P, R]) -> Callable[P, R]:
    """The function inside `own_settings`."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with own_settings():
            return function(*args, **kwargs)

    return run
