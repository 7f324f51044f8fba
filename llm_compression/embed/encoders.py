"""Which encoder a run needs: the image tower, both towers of a CLIP, or a text encoder alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from llm_compression.errors import ConfigError
from llm_compression.inference.clip_file import is_clip
from llm_compression.inference.weight_loader import WeightLoader
from llm_compression.multimodal.clip_engine import CLIPEngine
from llm_compression.multimodal.image_encoding import ImageEncoding
from llm_compression.multimodal.vision_config import MODEL_TYPE as VISION
from llm_compression.multimodal.vision_encoder import VisionEncoder
from llm_compression.text.arrow_engine import ArrowEngine

AnyEncoder: TypeAlias = ImageEncoding | ArrowEngine


class Towers(NamedTuple):
    """What embeds the images of rows, and what embeds their texts; None where nothing does."""

    images: ImageEncoding | None
    texts: ArrowEngine | None


def towers_of(encoder: AnyEncoder, text_column: str | None) -> Towers:
    """The parts of an encoder that a run needs.

    Raises:
        ConfigError: Texts are asked for and it has no text tower, or they are not and it has nothing else.
    """
    if isinstance(encoder, ArrowEngine):
        if text_column is None:
            raise ConfigError("the model embeds texts and no images, expected the name of a text column")
        return Towers(None, encoder)
    if text_column is None:
        return Towers(encoder, None)
    if isinstance(encoder, CLIPEngine):
        return Towers(encoder.vision, encoder.text)
    raise ConfigError(f"text column {text_column!r}: {type(encoder).__name__} has no text tower, expected a CLIPEngine")


def embeds_images(model: str | os.PathLike[str], text_column: str | None) -> bool:
    """Whether a model embeds images; nothing is read where no texts are asked for, as then it must.

    Raises:
        ConfigError: Texts are asked for, and the model embeds images alone.
        MissingFileError: There is no weight file.
        WeightFormatError: It is damaged.
    """
    if text_column is None:
        return True
    config = WeightLoader(Path(model)).config or {}
    if is_clip(config):
        return True
    if config.get("model_type") in (VISION, None):
        raise ConfigError(
            f"{model}: the model embeds images alone and cannot embed the text column {text_column!r}, expected one "
            "with both towers, as convert writes it without --vision-only, or a sentence encoder"
        )
    return False


def open_encoder(model: str | os.PathLike[str], device: str, dtype: str, text_column: str | None) -> AnyEncoder:
    """The encoder of a run: the image tower alone where no texts are asked for.

    Raises:
        LlmCompressionError: As the encoder's constructor, and as `embeds_images`.
    """
    if text_column is None:
        return VisionEncoder(model, device, dtype)
    return CLIPEngine(model, device, dtype) if embeds_images(model, text_column) else ArrowEngine(model, device, dtype)


def description(encoder: AnyEncoder, text_column: str | None) -> dict[str, Any]:
    """What of an encoder decides the bits of a row, as fields of `Settings`."""
    images, texts = towers_of(encoder, text_column)
    one = images if isinstance(images, VisionEncoder) else None if texts is None else texts.encoder
    assert one is not None
    return {
        "weights_sha256": one.weight_loader.sha256(),
        "preprocessing": one.processor.to_dict() if isinstance(one, VisionEncoder) else {},
        "dimension": one.dimension,
        "dtype": str(one.dtype).removeprefix("torch."),
        "text_column": text_column,
        "tokenizer_sha256": None if texts is None else texts.tokenizer_sha256,
    }
