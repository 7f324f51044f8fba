"""Opening a model by what its weight file says it is: beside `embed.encoders` the one file that knows every encoder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from llm_compression.embedding_provider import EmbeddingProvider
from llm_compression.errors import ConfigError
from llm_compression.inference.clip_file import is_clip
from llm_compression.inference.weight_loader import WeightLoader
from llm_compression.multimodal import vision_config
from llm_compression.multimodal.clip_engine import CLIPEngine
from llm_compression.multimodal.vision_encoder import VisionEncoder
from llm_compression.text import text_config
from llm_compression.text.arrow_engine import ArrowEngine

MODEL_VARIABLE: Final = "LLM_COMPRESSION_MODEL"


def get_default_provider(model_path: str | os.PathLike[str] | None = None) -> EmbeddingProvider:
    """The provider of the model that was named; no other one ever takes its place.

    Args:
        model_path: A directory that holds ``weights.parquet``, or the file; what the environment variable
            ``LLM_COMPRESSION_MODEL`` says unless given.

    Returns:
        A CLIPEngine, VisionEncoder or ArrowEngine, as the weight file's configuration says.

    Raises:
        ConfigError: No model is named, or the file's configuration is of none of these.
        MissingFileError: There is no such weight file.
        WeightFormatError: The file is damaged.
    """
    named = model_path if model_path is not None else os.environ.get(MODEL_VARIABLE)
    if not named:
        raise ConfigError(f"no model is named: expected a path, or one in the variable {MODEL_VARIABLE}")
    path = Path(named)
    config = WeightLoader(path).config or {}
    model_type = config.get("model_type")
    if is_clip(config):
        return CLIPEngine(path)
    if model_type == text_config.BERT:
        return ArrowEngine(path)
    if model_type == vision_config.MODEL_TYPE:
        return VisionEncoder(path)
    raise ConfigError(f"{path}: model_type: {model_type!r}, expected clip, {vision_config.MODEL_TYPE} or bert")
