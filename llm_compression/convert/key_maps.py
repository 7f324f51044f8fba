"""Name tables of all families of checkpoints, and what else is known of their names: data and no code.

A table says, for each tensor of a weight file, which tensor of the checkpoint it comes from and what is done to it.
``{n}`` stands for the number of a transformer block.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

from llm_compression.inference.clip_file import LOGIT_SCALE
from llm_compression.inference.layer_weights import BERT_LAYER_NAMES, CLIP_LAYER_NAMES

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

_BERT_NAMES: Final = (
    "embeddings.word_embeddings.weight",
    "embeddings.position_embeddings.weight",
    "embeddings.token_type_embeddings.weight",
    "embeddings.LayerNorm.weight",
    "embeddings.LayerNorm.bias",
    *(f"encoder.layer.{{n}}.{part}.{kind}" for part in BERT_LAYER_NAMES.values() for kind in ("weight", "bias")),
)
_CLIP_TEXT_NAMES: Final = (
    "text_model.embeddings.token_embedding.weight",
    "text_model.embeddings.position_embedding.weight",
    *(
        f"text_model.encoder.layers.{{n}}.{part}.{kind}"
        for part in CLIP_LAYER_NAMES.values()
        for kind in ("weight", "bias")
    ),
    "text_model.final_layer_norm.weight",
    "text_model.final_layer_norm.bias",
    "text_projection.weight",
    LOGIT_SCALE,
)

# A BertModel's own names, those of a model that holds one under `bert`, and a CLIPModel's.
BERT: Final[Mapping[str, Entry]] = {name: Entry(name) for name in _BERT_NAMES}
BERT_PREFIXED: Final[Mapping[str, Entry]] = {name: Entry(f"bert.{name}") for name in _BERT_NAMES}
CLIP: Final[Mapping[str, Entry]] = {**{name: Entry(name) for name in _CLIP_TEXT_NAMES}, **HUGGINGFACE}

TABLES: Final[Mapping[Family, Mapping[str, Entry]]] = {
    "huggingface": HUGGINGFACE,
    "huggingface_bare": HUGGINGFACE_BARE,
    "open_clip": OPENAI,
    "openai": OPENAI,
    "clip": CLIP,
    "bert": BERT,
    "bert_prefixed": BERT_PREFIXED,
}

# Patterns (as of fnmatch) of tensors that an encoder has no use for, and what the report calls them.
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
_BERT_LEFT_OUT: Final[Mapping[str, str]] = {
    "pooler.*": "pooler",
    "bert.pooler.*": "pooler",
    "cls.*": "pre-training heads",
    "embeddings.position_ids": "position ids",
    "bert.embeddings.position_ids": "position ids",
}
# Heads that stand beside a BERT in a model that holds one.
_BERT_PREFIXED_LEFT_OUT: Final[Mapping[str, str]] = {
    **_BERT_LEFT_OUT,
    "classifier.*": "classifier",
    "qa_outputs.*": "question answering head",
}
_CLIP_LEFT_OUT: Final[Mapping[str, str]] = {
    "text_model.embeddings.position_ids": "position ids",
    "vision_model.embeddings.position_ids": "position ids",
}
LEFT_OUT: Final[Mapping[Family, Mapping[str, str]]] = {
    "huggingface": _HUGGINGFACE_LEFT_OUT,
    "huggingface_bare": _HUGGINGFACE_LEFT_OUT,
    "open_clip": _OPENAI_LEFT_OUT,
    "openai": _OPENAI_LEFT_OUT,
    "clip": _CLIP_LEFT_OUT,
    "bert": _BERT_LEFT_OUT,
    "bert_prefixed": _BERT_PREFIXED_LEFT_OUT,
}
# What a report and a weight file call the families that are all Hugging Face's.
FORMATS: Final[Mapping[Family, str]] = {
    "huggingface_bare": "huggingface",
    "clip": "huggingface",
    "bert_prefixed": "bert",
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

# One tensor that each family has, without and with the prefix of its tower; the longest that fits decides.
MARKERS: Final = (
    "vision_model.embeddings.class_embedding",
    "visual.class_embedding",
    "bert.embeddings.word_embeddings.weight",
    "embeddings.word_embeddings.weight",
    "embeddings.class_embedding",
    "class_embedding",
)
# Counters that averaging code (torch.optim.swa_utils) keeps beside the tensors of a model.
COUNTERS: Final = frozenset({"n_averaged"})
# What OpenAI's image tower has where it was saved by itself, without `visual.`.
STRIPPED_TOWER: Final = frozenset({"class_embedding", "conv1.weight", "positional_embedding", "ln_pre.weight"})
# Ends of names in TensorFlow's BERT, which transformers reads too, and what they are today.
OLD_NORMS: Final[Mapping[str, str]] = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
# Tensors that only OpenAI's own archives hold.
OPENAI_SIZES: Final = frozenset({"input_resolution", "context_length", "vocab_size"})
