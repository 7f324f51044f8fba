"""Name tables, one per family of checkpoints: data and no code.

A table says, for each tensor of a weight file, which tensor of the checkpoint it comes from and what is done to it.
``{n}`` stands for the number of a transformer block.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

Operation = Literal["copy", "transpose", "split3"]
Family = Literal["huggingface", "huggingface_bare", "open_clip", "openai", "clip", "bert", "bert_prefixed"]


class Entry(NamedTuple):
    """Where a tensor comes from.

    Attributes:
        source: Its name in the checkpoint.
        operation: ``copy``; ``transpose`` (two dimensions); ``split3``: one of three equal chunks of its rows.
        part: Which chunk, for ``split3``.
    """

    source: str
    operation: Operation = "copy"
    part: int = 0


# OpenAI's names, which open_clip keeps. q, k and v are stacked in this order; the projection is stored [W, D].
OPENAI: Final[Mapping[str, Entry]] = {
    "vision_model.embeddings.class_embedding": Entry("visual.class_embedding"),
    "vision_model.embeddings.patch_embedding.weight": Entry("visual.conv1.weight"),
    "vision_model.embeddings.position_embedding.weight": Entry("visual.positional_embedding"),
    "vision_model.pre_layrnorm.weight": Entry("visual.ln_pre.weight"),
    "vision_model.pre_layrnorm.bias": Entry("visual.ln_pre.bias"),
    "vision_model.encoder.layers.{n}.layer_norm1.weight": Entry("visual.transformer.resblocks.{n}.ln_1.weight"),
    "vision_model.encoder.layers.{n}.layer_norm1.bias": Entry("visual.transformer.resblocks.{n}.ln_1.bias"),
    "vision_model.encoder.layers.{n}.layer_norm2.weight": Entry("visual.transformer.resblocks.{n}.ln_2.weight"),
    "vision_model.encoder.layers.{n}.layer_norm2.bias": Entry("visual.transformer.resblocks.{n}.ln_2.bias"),
    "vision_model.encoder.layers.{n}.self_attn.q_proj.weight": Entry(
        "visual.transformer.resblocks.{n}.attn.in_proj_weight", "split3", 0
    ),
    "vision_model.encoder.layers.{n}.self_attn.q_proj.bias": Entry(
        "visual.transformer.resblocks.{n}.attn.in_proj_bias", "split3", 0
    ),
    "vision_model.encoder.layers.{n}.self_attn.k_proj.weight": Entry(
        "visual.transformer.resblocks.{n}.attn.in_proj_weight", "split3", 1
    ),
    "vision_model.encoder.layers.{n}.self_attn.k_proj.bias": Entry(
        "visual.transformer.resblocks.{n}.attn.in_proj_bias", "split3", 1
    ),
    "vision_model.encoder.layers.{n}.self_attn.v_proj.weight": Entry(
        "visual.transformer.resblocks.{n}.attn.in_proj_weight", "split3", 2
    ),
    "vision_model.encoder.layers.{n}.self_attn.v_proj.bias": Entry(
        "visual.transformer.resblocks.{n}.attn.in_proj_bias", "split3", 2
    ),
    "vision_model.encoder.layers.{n}.self_attn.out_proj.weight": Entry(
        "visual.transformer.resblocks.{n}.attn.out_proj.weight"
    ),
    "vision_model.encoder.layers.{n}.self_attn.out_proj.bias": Entry(
        "visual.transformer.resblocks.{n}.attn.out_proj.bias"
    ),
    "vision_model.encoder.layers.{n}.mlp.fc1.weight": Entry("visual.transformer.resblocks.{n}.mlp.c_fc.weight"),
    "vision_model.encoder.layers.{n}.mlp.fc1.bias": Entry("visual.transformer.resblocks.{n}.mlp.c_fc.bias"),
    "vision_model.encoder.layers.{n}.mlp.fc2.weight": Entry("visual.transformer.resblocks.{n}.mlp.c_proj.weight"),
    "vision_model.encoder.layers.{n}.mlp.fc2.bias": Entry("visual.transformer.resblocks.{n}.mlp.c_proj.bias"),
    "vision_model.post_layernorm.weight": Entry("visual.ln_post.weight"),
    "vision_model.post_layernorm.bias": Entry("visual.ln_post.bias"),
    "visual_projection.weight": Entry("visual.proj", "transpose"),
}

# A weight file's own names are those of Hugging Face.
HUGGINGFACE: Final[Mapping[str, Entry]] = {name: Entry(name) for name in OPENAI}

# transformers 5.6 and newer save a standalone CLIPVisionModel without the prefix.
HUGGINGFACE_BARE: Final[Mapping[str, Entry]] = {name: Entry(name.removeprefix("vision_model.")) for name in OPENAI}

TABLES: Final[Mapping[Family, Mapping[str, Entry]]] = {
    "huggingface": HUGGINGFACE,
    "huggingface_bare": HUGGINGFACE_BARE,
    "open_clip": OPENAI,
    "openai": OPENAI,
}

# Patterns (as of fnmatch) of tensors that an image encoder has no use for, and what the report calls them.
_OPENAI_LEFT_OUT: Final[Mapping[str, str]] = {
    "transformer.*": "text tower",
    "token_embedding.weight": "text tower",
    "positional_embedding": "text tower",
    "ln_final.*": "text tower",
    "text_projection": "text tower",
    "text_projection.*": "text tower",
    "attn_mask": "text tower",
    "text.*": "text tower",
    "logit_scale": "logit scale",
    "logit_bias": "logit scale",
    "input_resolution": "sizes",
    "context_length": "sizes",
    "vocab_size": "sizes",
}
_HUGGINGFACE_LEFT_OUT: Final[Mapping[str, str]] = {
    "text_model.*": "text tower",
    "text_projection.*": "text tower",
    "logit_scale": "logit scale",
    "vision_model.embeddings.position_ids": "position ids",
    "embeddings.position_ids": "position ids",
}
LEFT_OUT: Final[Mapping[Family, Mapping[str, str]]] = {
    "huggingface": _HUGGINGFACE_LEFT_OUT,
    "huggingface_bare": _HUGGINGFACE_LEFT_OUT,
    "open_clip": _OPENAI_LEFT_OUT,
    "openai": _OPENAI_LEFT_OUT,
}

# Patterns of tensors that only another architecture has, and what that architecture is.
UNSUPPORTED: Final[Mapping[str, str]] = {
    "visual.trunk.*": "a timm image tower",
    "visual.layer1.*": "a ResNet image tower",
    "visual.attnpool.*": "a ResNet image tower with an attention pool",
    "visual.attn_pool.*": "attentional pooling",
    "visual.attn_pool_contrastive.*": "attentional pooling",
    "*.ls_1.gamma": "layer scale",
    "*.ls_2.gamma": "layer scale",
    "vision_model.head.*": "a SigLIP attention pool",
    "vision_model.embeddings.patch_embedding.bias": "a SigLIP image tower",
}
