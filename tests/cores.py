"""Transformer cores for tests: weights given as tensors instead of a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from llm_compression.inference.inference_core import CLIP_LAYER_NAMES, InferenceCore
from llm_compression.inference.placement import Slot


def fill(slots: Iterable[Slot], tensors: Mapping[str, torch.Tensor]) -> None:
    """Give every slot its tensors, as a load from a file does."""
    for slot in slots:
        slot.take(*(tensors[name] for name in slot.names))


def fill_core(
    core: InferenceCore,
    blocks: Sequence[Mapping[str, torch.Tensor]],
    dtype: torch.dtype,
    names: Mapping[str, str] = CLIP_LAYER_NAMES,
) -> None:
    """Give each block of a core its tensors, under the names of a family."""
    tensors = {f"{index}.{name}": tensor for index, block in enumerate(blocks) for name, tensor in block.items()}
    fill(core.slots("", names, torch.device("cpu"), dtype), tensors)
