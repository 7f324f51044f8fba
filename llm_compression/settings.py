"""Settings of PyTorch that belong to the caller, apart from which this package computes."""

from __future__ import annotations

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
_HELD: Final = (
    _products(torch.backends.cuda.matmul),
    _products(_MKLDNN.matmul),
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
    while any thread is in here.
    """
    enabled = [kind for kind in _KINDS if torch.is_autocast_enabled(kind)]
    _hold()
    inside, _thread.inside = _inside(), True
    try:
        for kind in enabled:
            torch.set_autocast_enabled(kind, False)
        yield
    finally:
        for kind in enabled:
            torch.set_autocast_enabled(kind, True)
        _thread.inside = inside
        _release()


def _inside() -> bool:
    return getattr(_thread, "inside", False)


def _hold() -> None:
    global _holders  # one for the process, as the settings are
    with _counting:
        _holders += 1
        for each in _HELD:
            found = each.get()
            if found not in each.own:
                _before.append((each, found))
                each.set(each.own[0])


def _release() -> None:
    global _holders
    with _counting:
        _holders -= 1
        if _holders == 0:
            for each, value in reversed(_before):
                each.set(value)
            _before.clear()


def undisturbed(function: Callable[P, R]) -> Callable[P, R]:
    """The function inside `own_settings`; as it is where the thread is in there already."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if _inside():
            return function(*args, **kwargs)
        with own_settings():
            return function(*args, **kwargs)

    return run
