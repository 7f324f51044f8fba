"""ClipConfig: the sizes of both towers of a CLIP model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_compression.errors import ConfigError
from llm_compression.inference.clip_file import LOGIT_SCALE, MODEL_TYPE, tower_config
from llm_compression.multimodal.vision_config import VisionConfig
from llm_compression.text.text_config import CLIP_TEXT, TextConfig


@dataclass(frozen=True)
class ClipConfig:
    """Sizes of a CLIP model.

    Attributes:
        text: The text tower's.
        vision: The image tower's.

    Raises:
        ConfigError: The text part is no CLIP's, or the towers do not project to one width.
    """

    text: TextConfig
    vision: VisionConfig

    def __post_init__(self) -> None:
        if self.text.model_type != CLIP_TEXT:
            raise ConfigError(f"text.model_type: {self.text.model_type!r}, expected {CLIP_TEXT!r}")
        found = (self.text.projection_dim, self.vision.projection_dim)
        if found[0] != found[1] or found[0] is None:
            raise ConfigError(f"projection_dim: {found[0]} of the text, {found[1]} of the image, expected one width")

    def to_dict(self) -> dict[str, Any]:
        """Both configurations as a JSON-ready dictionary, with ``model_type``."""
        return {"model_type": MODEL_TYPE, "text": self.text.to_dict(), "vision": self.vision.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: Path = Path("config")) -> ClipConfig:
        """Read what `to_dict` wrote.

        Raises:
            ConfigError: A part is missing or unknown, or a value is invalid.
        """
        if values.get("model_type") != MODEL_TYPE:
            raise ConfigError(f"{where}: model_type: {values.get('model_type')!r}, expected {MODEL_TYPE!r}")
        text = TextConfig.from_dict(tower_config(values, "text", where))
        return cls(text, VisionConfig.from_dict(tower_config(values, "vision", where)))

    def expected_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor, in the order of a weight file.

        The text tower comes first: what is outside the blocks between the towers, a row group that both read, is then
        small, and the token embedding is in one of its own.
        """
        return {**self.text.expected_shapes(), LOGIT_SCALE: (), **self.vision.expected_shapes()}
