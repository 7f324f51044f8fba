"""What training code puts around a state dict: entries that hold it, prefixes before every name, objects beside it."""

from __future__ import annotations

import argparse
import collections
import datetime
import pathlib
from collections.abc import Collection, Mapping
from typing import Any, Final

import numpy as np
import torch

from llm_compression.convert.key_maps import COUNTERS, MARKERS, STRIPPED_TOWER
from llm_compression.errors import CheckpointError

# Entries under which training code keeps a state dict. Which of several is meant cannot be known.
_ENTRIES: Final = (
    *("state_dict", "model_state_dict", "model", "module", "net", "network", "params", "weights"),
    *("ema", "ema_state_dict", "model_ema", "teacher", "student"),
)
# Segments that wrappers put before a name, in any number and order.
_SEGMENTS: Final = frozenset(
    {"module", "_orig_mod", "_fsdp_wrapped_module", "model", "clip_model", "clip", "net", "network"}
)
# What torch.load may rebuild beside tensors, with the name that a pickle has for it: data, nothing that runs code.
_MULTIARRAY: Final = (getattr(np, "_core", None) or np.core).multiarray  # NumPy 2 renamed it
_NUMPY_DTYPES: Final = (
    *(f"{kind}{bits}DType" for kind in ("Int", "UInt") for bits in (8, 16, 32, 64)),
    *("Float16DType", "Float32DType", "Float64DType", "BoolDType", "StrDType"),
)
SAFE_TYPES: Final[tuple[tuple[Any, str], ...]] = (
    (argparse.Namespace, "argparse.Namespace"),
    (collections.defaultdict, "collections.defaultdict"),
    *((one, f"builtins.{one.__name__}") for one in (list, dict, set, int, float, str)),
    *((one, f"datetime.{one.__name__}") for one in (datetime.date, datetime.datetime, datetime.timedelta)),
    # pure paths in the place of those that could reach a disk, and that another system cannot make
    *((pathlib.PurePosixPath, f"{place}.PosixPath") for place in ("pathlib", "pathlib._local")),
    *((pathlib.PureWindowsPath, f"{place}.WindowsPath") for place in ("pathlib", "pathlib._local")),
    *((one, f"pathlib.{one.__name__}") for one in (pathlib.PurePosixPath, pathlib.PureWindowsPath)),
    (np.dtype, "numpy.dtype"),
    (np.ndarray, "numpy.ndarray"),
    *((getattr(np.dtypes, name), f"numpy.dtypes.{name}") for name in _NUMPY_DTYPES),
    *(
        (getattr(_MULTIARRAY, name), f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for name in ("scalar", "_reconstruct")
    ),
)


def state_dict_in(content: Any, where: object, depth: int = 0) -> Mapping[Any, Any]:
    """The tensors by name in what a pickle holds.

    Raises:
        CheckpointError: There is no dictionary of tensors in it, or there are several.
    """
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{where}: holds a {type(content).__name__}, expected a dictionary of tensors")
    held = [key for key in _ENTRIES if isinstance(content.get(key), Mapping) and _holds_tensors(content[key])]
    # a tensor beside such an entry is a state of a generator or the like, unless it has the name of a parameter
    named = any(isinstance(value, torch.Tensor) and "." in str(key) for key, value in content.items())
    if named or not held or depth > 3:
        return content
    if len(held) > 1:
        raise CheckpointError(
            f"{where}: holds several state dicts, {held}, expected one: save the one that is meant by itself"
        )
    return state_dict_in(content[held[0]], where, depth + 1)


def prefix_of(names: Collection[str], where: object) -> str:
    """What wrappers put before the names of a model; empty where there is nothing, or no model that is known.

    Raises:
        CheckpointError: A prefix that no wrapper here is known to put, several, or one that not every name has.
    """
    for marker in MARKERS:
        found = {name.removesuffix(marker) for name in names if name == marker or name.endswith(f".{marker}")}
        if not found:
            continue
        if "" in found:
            return ""
        if len(found) > 1:
            raise CheckpointError(
                f"{where}: several models, under {sorted(found)}: save the one that is meant by itself"
            )
        prefix = found.pop()
        if unknown := [segment for segment in prefix.rstrip(".").split(".") if segment not in _SEGMENTS]:
            raise CheckpointError(
                f"{where}: {prefix!r} stands before the names of its tensors, and no wrapper is known to put "
                f"{'.'.join(unknown)!r} there: save the model's own state dict, or take the prefix off"
            )
        if others := sorted(name for name in names if not name.startswith(prefix) and name not in COUNTERS):
            raise CheckpointError(
                f"{where}: {prefix!r} stands before the names of the model, but not before {others[:5]}: take these "
                "out, or save the model's own state dict"
            )
        return prefix
    return ""


def is_stripped_tower(names: Collection[str]) -> bool:
    """Whether these are the names of OpenAI's image tower without ``visual.``, as a tower saved by itself has them."""
    return set(names) >= STRIPPED_TOWER


def _holds_tensors(content: Mapping[Any, Any]) -> bool:
    """Whether this is a state dict, or has one in turn."""
    return any(
        isinstance(value, torch.Tensor) or (key in _ENTRIES and isinstance(value, Mapping) and _holds_tensors(value))
        for key, value in content.items()
    )
