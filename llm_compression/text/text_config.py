"""TextConfig: the sizes of a text encoder, validated once where they are made."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from llm_compression.errors import ConfigError
from llm_compression.inference.inference_core import ACTIVATIONS
from llm_compression.inference.layer_weights import BERT_LAYER_NAMES, CLIP_LAYER_NAMES

BERT: Final = "bert"
CLIP_TEXT: Final = "clip_text_model"
# By model type: over the unmasked tokens or the first one; at the first end token or at the largest id.
POOLINGS: Final[Mapping[str, tuple[str, ...]]] = {BERT: ("mean", "cls"), CLIP_TEXT: ("eos", "argmax")}

_SIZES: Final = (
    *("vocab_size", "num_positions", "hidden_size", "num_layers"),
    *("num_heads", "intermediate_size", "max_length"),
)


@dataclass(frozen=True)
class TextConfig:
    """Sizes of a text encoder.

    Attributes:
        model_type: ``bert`` (post-norm, token types) or ``clip_text_model`` (pre-norm, causal, a final layer norm).
        vocab_size: Rows of the token embedding.
        num_positions: Rows of the position embedding.
        hidden_size: Width of the transformer.
        num_layers: Transformer blocks.
        num_heads: Attention heads; divides ``hidden_size``.
        intermediate_size: Width of the MLP's hidden layer.
        layer_norm_eps: Epsilon of every layer norm.
        hidden_act: ``quick_gelu`` or ``gelu`` (exact, erf).
        pooling: How tokens become one row. BERT: ``mean`` over the tokens or ``cls``, the first one. CLIP: ``eos``, the
            first token equal to ``eos_token_id``, or ``argmax``, the first one of the largest id, which is the end
            token in vocabularies where that comes last.
        max_length: Tokens of a text, special ones included; longer ones are truncated.
        type_vocab_size: Rows of BERT's token type embedding; None for CLIP.
        eos_token_id: The end token, for the pooling ``eos``. For ``argmax`` the token that every text must have, where
            that is not the last of the vocabulary, and None where it is. None for BERT.
        projection_dim: Width of CLIP's text projection; None without one, as in BERT.

    Raises:
        ConfigError: A value has the wrong type, is out of range, or does not fit another.
    """

    model_type: str
    vocab_size: int
    num_positions: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    layer_norm_eps: float
    hidden_act: str
    pooling: str
    max_length: int
    type_vocab_size: int | None = None
    eos_token_id: int | None = None
    projection_dim: int | None = None

    def __post_init__(self) -> None:
        if self.model_type not in POOLINGS:
            raise ConfigError(f"model_type: {self.model_type!r}, expected one of {', '.join(POOLINGS)}")
        for name in _SIZES:
            _require_int(name, getattr(self, name), 1)
        eps = self.layer_norm_eps
        if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 < eps <= sys.float_info.max:
            raise ConfigError(f"layer_norm_eps: {eps!r}, expected a positive number")
        if self.hidden_act not in ACTIVATIONS:
            raise ConfigError(f"hidden_act: {self.hidden_act!r}, expected one of {', '.join(ACTIVATIONS)}")
        if self.pooling not in POOLINGS[self.model_type]:
            raise ConfigError(f"pooling: {self.pooling!r}, expected one of {', '.join(POOLINGS[self.model_type])}")
        if self.hidden_size % self.num_heads:
            raise ConfigError(f"hidden_size: {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        if self.max_length > self.num_positions:
            raise ConfigError(f"max_length: {self.max_length}, expected at most num_positions {self.num_positions}")
        self._check_optional()

    def _check_optional(self) -> None:
        wanted = {
            "type_vocab_size": self.is_bert,
            "eos_token_id": self.pooling == "eos" or (self.pooling == "argmax" and self.eos_token_id is not None),
            "projection_dim": not self.is_bert and self.projection_dim is not None,
        }
        for name, is_wanted in wanted.items():
            value = getattr(self, name)
            if is_wanted:
                _require_int(name, value, 0 if name == "eos_token_id" else 1)
            elif value is not None:
                raise ConfigError(f"{name}: {value!r}, expected None for {self.model_type} with pooling {self.pooling}")
        if self.eos_token_id is not None and self.eos_token_id >= self.vocab_size:
            raise ConfigError(f"eos_token_id: {self.eos_token_id}, expected less than vocab_size {self.vocab_size}")

    @property
    def is_bert(self) -> bool:
        """Whether this is a BERT; a CLIP text tower otherwise."""
        return self.model_type == BERT

    @property
    def dimension(self) -> int:
        """Width of the embedding."""
        return self.hidden_size if self.projection_dim is None else self.projection_dim

    @property
    def layer_prefix(self) -> str:
        """What stands before the number of a block in a tensor's name."""
        return "encoder.layer." if self.is_bert else "text_model.encoder.layers."

    @property
    def layer_names(self) -> Mapping[str, str]:
        """What the parts of a block are called."""
        return BERT_LAYER_NAMES if self.is_bert else CLIP_LAYER_NAMES

    def to_dict(self) -> dict[str, Any]:
        """The fields as a JSON-ready dictionary."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TextConfig:
        """Read what `to_dict` wrote; every field is required, since a default here would be a guess.

        Raises:
            ConfigError: A field is missing or unknown, the model type is another, or a value is invalid.
        """
        if values.get("model_type") not in POOLINGS:
            raise ConfigError(f"model_type: {values.get('model_type')!r}, expected one of {', '.join(POOLINGS)}")
        names = {field.name for field in fields(cls)}
        if set(values) != names:
            raise ConfigError(f"config: missing {sorted(names - set(values))}, unknown {sorted(set(values) - names)}")
        return cls(**values)

    def expected_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor, under its Hugging Face name, in the order of a weight file."""
        width, mlp = self.hidden_size, self.intermediate_size
        part_shapes = {"norm1": (width,), "norm2": (width,), "fc1": (mlp, width), "fc2": (width, mlp)}
        blocks: dict[str, tuple[int, ...]] = {}
        for layer in range(self.num_layers):
            for part, name in self.layer_names.items():
                shape = part_shapes.get(part, (width, width))
                prefix = f"{self.layer_prefix}{layer}.{name}"
                blocks |= {f"{prefix}.weight": shape, f"{prefix}.bias": shape[:1]}
        if self.type_vocab_size is not None:
            return {
                "embeddings.word_embeddings.weight": (self.vocab_size, width),
                "embeddings.position_embeddings.weight": (self.num_positions, width),
                "embeddings.token_type_embeddings.weight": (self.type_vocab_size, width),
                "embeddings.LayerNorm.weight": (width,),
                "embeddings.LayerNorm.bias": (width,),
                **blocks,
            }
        return {
            "text_model.embeddings.token_embedding.weight": (self.vocab_size, width),
            "text_model.embeddings.position_embedding.weight": (self.num_positions, width),
            **blocks,
            "text_model.final_layer_norm.weight": (width,),
            "text_model.final_layer_norm.bias": (width,),
            **({"text_projection.weight": (self.projection_dim, width)} if self.projection_dim is not None else {}),
        }


def _require_int(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name}: {value!r}, expected a whole number of at least {least}")
