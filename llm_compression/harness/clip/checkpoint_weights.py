"""Seeded weights of CLIP towers, drawn so that a mistake in a forward pass shows in the embedding."""

from __future__ import annotations

import math
from typing import Final

import torch

from llm_compression.multimodal.vision_config import VisionConfig

HOT_CHANNELS: Final = 6
TEXT_WIDTH: Final = 32
TEXT_HEADS: Final = 4
TEXT_LAYERS: Final = 1
VOCABULARY: Final = 64
CONTEXT: Final = 16

Tensors = dict[str, torch.Tensor]


def make_weights(config: VisionConfig, seed: int = 0) -> Tensors:
    """The float32 weights of a tower, under their Hugging Face names.

    Scales are chosen so that every block moves its input by about as much as it is, attention prefers some patches, and
    two images end up far apart: a mistake anywhere then shows in the embedding.
    """
    generator = torch.Generator().manual_seed(seed)
    width = config.hidden_size
    scales = {
        "class_embedding": width**-0.5,
        "patch_embedding.weight": (3 * config.patch_size**2) ** -0.5,
        "position_embedding.weight": 0.02,
        "q_proj.weight": 1.5 * width**-0.5,
        "k_proj.weight": 1.5 * width**-0.5,
        "v_proj.weight": 1.4 * width**-0.5,
        "out_proj.weight": 1.4 * width**-0.5,
        "fc1.weight": 1.4 * width**-0.5,
        "fc2.weight": 1.4 * config.intermediate_size**-0.5,
        "visual_projection.weight": width**-0.5,
        ".bias": 0.05,
    }
    tensors: Tensors = {}
    for name, shape in config.expected_shapes().items():
        tensor = torch.randn(shape, generator=generator)
        scale = next((scale for suffix, scale in scales.items() if name.endswith(suffix)), None)
        # what is left is a layer norm's weight
        tensors[name] = 1 + 0.1 * tensor if scale is None else tensor.mul_(scale)
    _heat(tensors, width, generator)
    return tensors


def make_text_weights(projection_dim: int, dtype: torch.dtype, seed: int = 0) -> Tensors:
    """A small text tower and a logit scale, under their Hugging Face names."""
    generator = torch.Generator().manual_seed(seed + 1)
    width, mlp = TEXT_WIDTH, 2 * TEXT_WIDTH
    shapes: dict[str, tuple[int, ...]] = {
        "text_model.embeddings.token_embedding.weight": (VOCABULARY, width),
        "text_model.embeddings.position_embedding.weight": (CONTEXT, width),
        "text_model.final_layer_norm.weight": (width,),
        "text_model.final_layer_norm.bias": (width,),
        "text_projection.weight": (projection_dim, width),
        "logit_scale": (),
    }
    for layer in range(TEXT_LAYERS):
        prefix = f"text_model.encoder.layers.{layer}."
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= {f"{prefix}self_attn.{name}.weight": (width, width), f"{prefix}self_attn.{name}.bias": (width,)}
        for name in ("layer_norm1", "layer_norm2"):
            shapes |= {f"{prefix}{name}.weight": (width,), f"{prefix}{name}.bias": (width,)}
        shapes |= {f"{prefix}mlp.fc1.weight": (mlp, width), f"{prefix}mlp.fc1.bias": (mlp,)}
        shapes |= {f"{prefix}mlp.fc2.weight": (width, mlp), f"{prefix}mlp.fc2.bias": (width,)}
    tensors: Tensors = {}
    for name, shape in shapes.items():
        tensors[name] = (width**-0.5 * torch.randn(shape, generator=generator)).to(dtype)
    return {**tensors, "logit_scale": torch.tensor(2.6592, dtype=dtype)}


def _heat(tensors: Tensors, width: int, generator: torch.Generator) -> None:
    """Make a few channels hot: 10 to 30 times at width 768 into the blocks, up to 3 times in each block's norms."""
    channels = torch.randperm(width, generator=generator)[: max(1, min(HOT_CHANNELS, width // 16))]
    # in a narrow tower the same factor would leave nothing of the other channels
    share = min(1.0, math.sqrt(width / 768))
    for name, tensor in tensors.items():
        drawn = torch.rand(len(channels), generator=generator)
        if name == "vision_model.pre_layrnorm.weight":
            tensor[channels] *= 1 + (9 + 20 * drawn) * share
        elif name.endswith(("layer_norm1.weight", "layer_norm2.weight")):
            tensor[channels] *= 1 + 2 * drawn
