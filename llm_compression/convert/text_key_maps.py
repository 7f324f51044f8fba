"""Name tables of text encoders, and of both towers of a CLIP, as in `key_maps`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from llm_compression.convert.key_maps import HUGGINGFACE, Entry
from llm_compression.inference.clip_file import LOGIT_SCALE
from llm_compression.inference.layer_weights import BERT_LAYER_NAMES, CLIP_LAYER_NAMES

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

# Patterns of tensors that have no use in an encoder, and what the report calls them.
BERT_LEFT_OUT: Final[Mapping[str, str]] = {
    "pooler.*": "pooler",
    "bert.pooler.*": "pooler",
    "cls.*": "pre-training heads",
    "embeddings.position_ids": "position ids",
    "bert.embeddings.position_ids": "position ids",
}
# Heads that stand beside a BERT in a model that holds one.
BERT_PREFIXED_LEFT_OUT: Final[Mapping[str, str]] = {
    **BERT_LEFT_OUT,
    "classifier.*": "classifier",
    "qa_outputs.*": "question answering head",
}
CLIP_LEFT_OUT: Final[Mapping[str, str]] = {
    "text_model.embeddings.position_ids": "position ids",
    "vision_model.embeddings.position_ids": "position ids",
}
