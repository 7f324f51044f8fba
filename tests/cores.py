"""Transformer cores for tests: weights given as tensors instead of a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from llm_compression.inference.inference_core import InferenceCore
from llm_compression.inference.layer_weights import CLIP_LAYER_NAMES, core_slots
from llm_compression.inference.placement import Slot

SIZES: dict[str, Any] = {"hidden_size": 12, "num_layers": 3, "num_heads": 3, "intermediate_size": 20}


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
    fill(core_slots(core, "", names, torch.device("cpu"), dtype), tensors)


def tokens(n: int = 2, count: int = 5, width: int = 12) -> torch.Tensor:
    """Seeded input of a core, (n, count, width)."""
    return torch.randn(n, count, width, generator=torch.Generator().manual_seed(count))


def block_tensors(seed: int, width: int = 12, mlp: int = 20) -> dict[str, torch.Tensor]:
    """One block, under the names of CLIP's family."""
    generator = torch.Generator().manual_seed(seed)
    shapes = dict.fromkeys(
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"), (width, width)
    )
    shapes |= {"mlp.fc1": (mlp, width), "mlp.fc2": (width, mlp)}
    tensors = {f"{name}.weight": torch.randn(shape, generator=generator) / 4 for name, shape in shapes.items()}
    tensors |= {f"{name}.bias": torch.randn(shape[0], generator=generator) for name, shape in shapes.items()}
    for name in ("layer_norm1", "layer_norm2"):
        tensors |= {f"{name}.{part}": torch.randn(width, generator=generator) for part in ("weight", "bias")}
    return tensors


def loaded(dtype: torch.dtype = torch.float32, **options: Any) -> InferenceCore:
    """A small core with seeded weights."""
    core = InferenceCore(**SIZES, **options)
    fill_core(core, [block_tensors(index) for index in range(3)], dtype)
    return core
