"""Settings of PyTorch that belong to the caller, apart from which this package computes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Final, NamedTuple, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")

_KINDS: Final = ("cpu", "cuda", "xpu", "mps")


class _Held(NamedTuple):
    """A setting of the process, and what it is while this package computes."""

    get: Callable[[], Any]
    set: Callable[[Any], Any]
    own: tuple[Any, ...]  # values that need no change; the first is what is set


def _products(backend: Any) -> _Held:
    """What `torch.set_float32_matmul_precision` and `torch.backends.fp32_precision` set: products from fewer bits."""

    def give_back(value: str) -> None:
        backend.fp32_precision = "none"  # it may have come from the setting above this one
        if backend.fp32_precision != value:
            backend.fp32_precision = value

    return _Held(lambda: backend.fp32_precision, give_back, ("ieee", "none"))


_MKLDNN: Final[Any] = torch.backends.mkldnn  # a class in the place of its module, which types do not know
_PRECISIONS: Final = (
    _products(torch.backends.cuda.matmul),
    _products(_MKLDNN.matmul),
)
# usually set by a context of one thread
_SWITCHES: Final = (
    _Held(
        lambda: _MKLDNN.enabled,
        # not the property, which `torch.backends.disable_global_flags` freezes
        lambda value: _MKLDNN.set_flags(_enabled=value, _fp32_precision=None),
        (True,),
    ),
    # the kernels of attention, also on a CPU
    _Held(torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.enable_flash_sdp, (True,)),
    _Held(torch.backends.cuda.mem_efficient_sdp_enabled, torch.backends.cuda.enable_mem_efficient_sdp, (True,)),
    _Held(torch.backends.cuda.math_sdp_enabled, torch.backends.cuda.enable_math_sdp, (True,)),
    _Held(torch.backends.cuda.cudnn_sdp_enabled, torch.backends.cuda.enable_cudnn_sdp, (True,)),
)

_counting = threading.Lock()
_holders = 0
_before: list[tuple[_Held, Any]] = []
_thread = threading.local()


@contextmanager
def own_settings() -> Iterator[None]:
    """Compute by the kernels and in the dtypes that the code says, whatever the caller has set.

    Without the caller's autocast, which is a setting of the thread; and with oneDNN, every kernel of attention and
    float32 products from all bits. These are settings of the process: where one was changed, it is as PyTorch starts
    while a thread is in here. Precision is so until the last thread leaves. A kernel or oneDNN is given back by the
    thread that found it off, which may be in a context that ends next; another that computes goes on with what it is
    given, in other bits of rounding.
    """
    enabled = [kind for kind in _KINDS if torch.is_autocast_enabled(kind)]
    found_off = _hold()
    inside, _thread.inside = _inside(), True
    try:
        for kind in enabled:
            torch.set_autocast_enabled(kind, False)
        yield
    finally:
        for kind in enabled:
            torch.set_autocast_enabled(kind, True)
        _thread.inside = inside
        _release(found_off)


def _inside() -> bool:
    return getattr(_thread, "inside", False)


def _hold() -> list[tuple[_Held, Any]]:
    """Set what is not as PyTorch starts; gives the switches among it."""
    global _holders  # one for the process, as the settings are
    with _counting:
        _holders += 1
        _before.extend(_set_own(_PRECISIONS))
        return _set_own(_SWITCHES)


def _set_own(settings: tuple[_Held, ...]) -> list[tuple[_Held, Any]]:
    changed = [(each, found) for each in settings if (found := each.get()) not in each.own]
    for each, _ in changed:
        each.set(each.own[0])
    return changed


def _release(found_off: list[tuple[_Held, Any]]) -> None:
    global _holders
    with _counting:
        _holders -= 1
        _give_back(found_off)
        if _holders == 0:
            _give_back(_before)


def _give_back(changed: list[tuple[_Held, Any]]) -> None:
    for each, value in reversed(changed):
        each.set(value)
    changed.clear()


def _after_fork() -> None:
    """In a child only the thread that forked goes on: no other holds anything, or will release it."""
    global _counting, _holders
    _counting, _holders = threading.Lock(), int(_inside())
    if not _holders:
        _give_back(_before)


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)


def undisturbed(function: Callable[P, R]) -> Callable[P, R]:
    """The function inside `own_settings`; as it is where the thread is in there already."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if _inside():
            return function(*args, **kwargs)
        with own_settings():
            return function(*args, **kwargs)

    return run
