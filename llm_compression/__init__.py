"""A CLIP image encoder whose weights live in Parquet; importing this package imports no torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from llm_compression import moved as _moved

if TYPE_CHECKING:
    from llm_compression.convert import convert_checkpoint as convert_checkpoint
    from llm_compression.embedding_provider import EmbeddingProvider as EmbeddingProvider
    from llm_compression.errors import CheckpointError as CheckpointError
    from llm_compression.errors import ConfigError as ConfigError
    from llm_compression.errors import ImageError as ImageError
    from llm_compression.errors import LlmCompressionError as LlmCompressionError
    from llm_compression.errors import MissingDependencyError as MissingDependencyError
    from llm_compression.errors import MissingFileError as MissingFileError
    from llm_compression.errors import MissingTensorError as MissingTensorError
    from llm_compression.errors import TensorError as TensorError
    from llm_compression.errors import TextError as TextError
    from llm_compression.errors import UnavailableError as UnavailableError
    from llm_compression.errors import WeightFormatError as WeightFormatError
    from llm_compression.inference.inference_core import InferenceCore as InferenceCore
    from llm_compression.inference.weight_loader import WeightLoader as WeightLoader
    from llm_compression.models import shapes_model as shapes_model
    from llm_compression.multimodal.clip_config import ClipConfig as ClipConfig
    from llm_compression.multimodal.clip_engine import CLIPEngine as CLIPEngine
    from llm_compression.multimodal.image_encoding import KeptRows as KeptRows
    from llm_compression.multimodal.image_processor import ImageProcessor as ImageProcessor
    from llm_compression.multimodal.vision_config import VisionConfig as VisionConfig
    from llm_compression.multimodal.vision_encoder import PatchEmbedding as PatchEmbedding
    from llm_compression.multimodal.vision_encoder import VisionEncoder as VisionEncoder
    from llm_compression.multimodal.vision_provider import ArrowVisionProvider as ArrowVisionProvider
    from llm_compression.multimodal.vision_provider import CLIPVisionProvider as CLIPVisionProvider
    from llm_compression.multimodal.vision_provider import VisionProvider as VisionProvider
    from llm_compression.open_model import get_default_provider as get_default_provider
    from llm_compression.text.arrow_engine import ArrowEngine as ArrowEngine
    from llm_compression.text.text_config import TextConfig as TextConfig
    from llm_compression.text.text_encoder import TextEncoder as TextEncoder
    from llm_compression.text.text_inputs import Text as Text

__version__ = "0.1.0"
_moved.install()

_HOMES: Final = {
    "convert_checkpoint": "llm_compression.convert",
    "EmbeddingProvider": "llm_compression.embedding_provider",
    "get_default_provider": "llm_compression.open_model",
    "CheckpointError": "llm_compression.errors",
    "ConfigError": "llm_compression.errors",
    "ImageError": "llm_compression.errors",
    "LlmCompressionError": "llm_compression.errors",
    "MissingDependencyError": "llm_compression.errors",
    "MissingFileError": "llm_compression.errors",
    "MissingTensorError": "llm_compression.errors",
    "TensorError": "llm_compression.errors",
    "TextError": "llm_compression.errors",
    "UnavailableError": "llm_compression.errors",
    "WeightFormatError": "llm_compression.errors",
    "ArrowEngine": "llm_compression.text.arrow_engine",
    "InferenceCore": "llm_compression.inference.inference_core",
    "TextConfig": "llm_compression.text.text_config",
    "TextEncoder": "llm_compression.text.text_encoder",
    "Text": "llm_compression.text.text_inputs",
    "WeightLoader": "llm_compression.inference.weight_loader",
    "shapes_model": "llm_compression.models",
    "ClipConfig": "llm_compression.multimodal.clip_config",
    "CLIPEngine": "llm_compression.multimodal.clip_engine",
    "KeptRows": "llm_compression.multimodal.image_encoding",
    "ImageProcessor": "llm_compression.multimodal.image_processor",
    "VisionConfig": "llm_compression.multimodal.vision_config",
    "PatchEmbedding": "llm_compression.multimodal.vision_encoder",
    "VisionEncoder": "llm_compression.multimodal.vision_encoder",
    "ArrowVisionProvider": "llm_compression.multimodal.vision_provider",
    "CLIPVisionProvider": "llm_compression.multimodal.vision_provider",
    "VisionProvider": "llm_compression.multimodal.vision_provider",
}
__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
