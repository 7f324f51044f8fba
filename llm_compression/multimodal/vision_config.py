"""VisionConfig: the sizes of a CLIP image tower, validated once where they are made."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from llm_compression.errors import ConfigError

MODEL_TYPE: Final = "clip_vision_model"
ACTIVATIONS: Final = ("quick_gelu", "gelu")


@dataclass(frozen=True)
class VisionConfig:
    """Sizes of a CLIP image tower; the defaults are those of ``openai/clip-vit-base-patch16``.

    Attributes:
        image_size: Height and width of the input, in pixels.
        patch_size: Height and width of a patch, in pixels; divides ``image_size``.
        hidden_size: Width of the transformer.
        num_layers: Transformer blocks.
        num_heads: Attention heads; divides ``hidden_size``.
        intermediate_size: Width of the MLP's hidden layer.
        projection_dim: Width of the embedding; None for a checkpoint without a visual projection.
        layer_norm_eps: Epsilon of every layer norm.
        hidden_act: ``quick_gelu`` (OpenAI) or ``gelu`` (exact, erf).

    Raises:
        ConfigError: A value has the wrong type, is out of range, or does not fit another.
    """

    image_size: int = 224
    patch_size: int = 16
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    intermediate_size: int = 3072
    projection_dim: int | None = 512
    layer_norm_eps: float = 1e-5
    hidden_act: str = "quick_gelu"

    def __post_init__(self) -> None:
        for name in ("image_size", "patch_size", "hidden_size", "num_layers", "num_heads", "intermediate_size"):
            _require_positive_int(name, getattr(self, name))
        if self.projection_dim is not None:
            _require_positive_int("projection_dim", self.projection_dim)
        eps = self.layer_norm_eps
        if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 < eps <= sys.float_info.max:
            raise ConfigError(f"layer_norm_eps: {eps!r}, expected a positive number")
        if self.hidden_act not in ACTIVATIONS:
            raise ConfigError(f"hidden_act: {self.hidden_act!r}, expected one of {', '.join(ACTIVATIONS)}")
        if self.image_size % self.patch_size:
            raise ConfigError(f"image_size: {self.image_size} is not a multiple of patch_size {self.patch_size}")
        if self.hidden_size % self.num_heads:
            raise ConfigError(f"hidden_size: {self.hidden_size} is not a multiple of num_heads {self.num_heads}")

    @property
    def num_patches(self) -> int:
        """Patches of one image."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def num_positions(self) -> int:
        """Tokens of one image: the class token and the patches."""
        return self.num_patches + 1

    @property
    def dimension(self) -> int:
        """Width of the embedding: ``projection_dim``, or ``hidden_size`` without a projection."""
        return self.hidden_size if self.projection_dim is None else self.projection_dim

    def to_dict(self) -> dict[str, Any]:
        """The fields as a JSON-ready dictionary, with ``model_type``."""
        return {"model_type": MODEL_TYPE, **asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> VisionConfig:
        """Read what `to_dict` wrote; every field is required, since a default here would be a guess.

        Raises:
            ConfigError: A field is missing or unknown, the model type is another, or a value is invalid.
        """
        given = dict(values)
        model_type = given.pop("model_type", MODEL_TYPE)
        if model_type != MODEL_TYPE:
            raise ConfigError(f"model_type: {model_type!r}, expected {MODEL_TYPE!r}")
        names = {field.name for field in fields(cls)}
        if set(given) != names:
            raise ConfigError(f"config: missing {sorted(names - set(given))}, unknown {sorted(set(given) - names)}")
        return cls(**given)

    def expected_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor of the tower, under its Hugging Face name, in the order of a weight file."""
        width, mlp, patch = self.hidden_size, self.intermediate_size, self.patch_size
        shapes: dict[str, tuple[int, ...]] = {
            "vision_model.embeddings.class_embedding": (width,),
            "vision_model.embeddings.patch_embedding.weight": (width, 3, patch, patch),
            "vision_model.embeddings.position_embedding.weight": (self.num_positions, width),
            "vision_model.pre_layrnorm.weight": (width,),
            "vision_model.pre_layrnorm.bias": (width,),
        }
        for layer in range(self.num_layers):
            prefix = f"vision_model.encoder.layers.{layer}."
            for norm in ("layer_norm1", "layer_norm2"):
                shapes |= {f"{prefix}{norm}.weight": (width,), f"{prefix}{norm}.bias": (width,)}
            for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
                shapes |= {
                    f"{prefix}self_attn.{name}.weight": (width, width),
                    f"{prefix}self_attn.{name}.bias": (width,),
                }
            shapes |= {f"{prefix}mlp.fc1.weight": (mlp, width), f"{prefix}mlp.fc1.bias": (mlp,)}
            shapes |= {f"{prefix}mlp.fc2.weight": (width, mlp), f"{prefix}mlp.fc2.bias": (width,)}
        shapes |= {"vision_model.post_layernorm.weight": (width,), "vision_model.post_layernorm.bias": (width,)}
        if self.projection_dim is not None:
            shapes["visual_projection.weight"] = (self.projection_dim, width)
        return shapes


def _require_positive_int(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name}: {value!r}, expected a positive whole number")
