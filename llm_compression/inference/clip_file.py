"""How one weight file holds both towers of a CLIP: whose each tensor is, and whose each part of the config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from llm_compression.errors import ConfigError

MODEL_TYPE: Final = "clip"
LOGIT_SCALE: Final = "logit_scale"
PARTS: Final = ("text", "vision")

_TEXT: Final = ("text_model.", "text_projection.")
_VISION: Final = ("vision_model.", "visual_projection.")
# Prefixes of the tensors that one tower leaves to the others.
OUTSIDE_TEXT: Final = (*_VISION, LOGIT_SCALE)
OUTSIDE_VISION: Final = (*_TEXT, LOGIT_SCALE)


def is_clip(config: Mapping[str, Any] | None) -> bool:
    """Whether a weight file's config says that it holds both towers."""
    return config is not None and config.get("model_type") == MODEL_TYPE


def tower_config(config: Mapping[str, Any], tower: Literal["text", "vision"], where: Path) -> Mapping[str, Any]:
    """The config of one tower of a file that holds both; that of any other file as it is.

    Raises:
        ConfigError: The config does not have both parts, or has others.
    """
    if not is_clip(config):
        return config
    if set(config) != {"model_type", *PARTS} or not all(isinstance(config[part], Mapping) for part in PARTS):
        raise ConfigError(f"{where}: config of both towers: {sorted(config)}, expected model_type, text and vision")
    part: Mapping[str, Any] = config[tower]
    return part
