"""The errors: one base, and messages that name what was found and what was expected."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from llm_compression.errors import CheckpointError, ConfigError, ImageError, LlmCompressionError, WeightFormatError
from llm_compression.inference.inference_core import InferenceCore
from llm_compression.inference.weight_format import WeightMetadata, write_weights
from llm_compression.inference.weight_loader import WeightLoader
from llm_compression.multimodal.image_processor import ImageProcessor
from llm_compression.multimodal.vision_config import VisionConfig
from llm_compression.multimodal.vision_encoder import PatchEmbedding, VisionEncoder


@pytest.mark.requirement("12.6")
@pytest.mark.parametrize("error", [CheckpointError, ConfigError, ImageError, WeightFormatError])
def test_one_base(error: type[Exception]) -> None:
    """12.6: IF the Package refuses an input or a file, THEN THE Package SHALL raise a subclass of `LlmCompressionError`
    whose message has the value found and what was expected."""
    assert issubclass(error, LlmCompressionError)
    assert issubclass(error, ValueError)  # what code that does not know this package would catch
    assert str(error("width: 7, expected 8")).endswith("width: 7, expected 8")


@pytest.mark.requirement("6.6")
@pytest.mark.parametrize(
    ("position", "name", "message"),
    [
        (None, None, "image: too small"),
        (0, None, "image 0: too small"),
        (3, "a/b.png", "image 3 (a/b.png): too small"),
        (None, "a/b.png", "image (a/b.png): too small"),
    ],
)
def test_an_image_error_says_which_image(position: int | None, name: str | None, message: str) -> None:
    """6.6: IF an image is missing or cannot be read, THEN THE ImageProcessor SHALL raise ImageError with the position
    of the image in the call and its name."""
    error = ImageError("too small", position=position, name=name)
    assert str(error) == message
    assert (error.reason, error.position, error.name) == ("too small", position, name)


Refusal = Callable[[VisionEncoder, Path], Any]
CORE = InferenceCore(hidden_size=8, num_layers=1, num_heads=2, intermediate_size=8)
REFUSALS: dict[str, tuple[Refusal, type[Exception], str, str]] = {
    "size": (lambda _e, _p: VisionConfig(patch_size=0), ConfigError, "0", "positive whole number"),
    "activation": (lambda _e, _p: VisionConfig(hidden_act="relu"), ConfigError, "relu", "quick_gelu, gelu"),
    "heads": (
        lambda _e, _p: InferenceCore(hidden_size=8, num_layers=1, num_heads=3, intermediate_size=8),
        ConfigError,
        "3",
        "multiple",
    ),
    "dtype": (lambda e, _p: VisionEncoder(e.weight_loader.path, dtype="int8"), ConfigError, "int8", "bfloat16"),
    "batch size": (lambda e, _p: e.encode([], batch_size=0), ConfigError, "0", "positive whole number"),
    "crop": (lambda _e, _p: ImageProcessor(crop_offset="ceil"), ConfigError, "ceil", "floor, round"),
    "not a weight file": (lambda _e, p: WeightLoader(p / "text"), WeightFormatError, "Parquet", "text"),
    "stored dtype": (
        lambda _e, p: write_weights(p / "w", [("a", torch.zeros(1, dtype=torch.complex64))], WeightMetadata({})),
        WeightFormatError,
        "complex64",
        "float32",
    ),
    "image type": (lambda e, _p: e.encode(3), ImageError, "int", "a path"),
    "image array": (lambda e, _p: e.encode(np.zeros((2, 2, 2), np.uint8)), ImageError, "(2, 2, 2)", "(H, W, 3)"),
    "column": (lambda e, _p: e.encode(pa.array([1, 2])), ImageError, "int64", "string"),
    "pixels": (lambda e, _p: e.encode_pixels(torch.zeros(1, 3, 9, 9)), ImageError, "(1, 3, 9, 9)", "(n, 3, 32, 32)"),
    "patches": (
        lambda _e, _p: PatchEmbedding(VisionConfig())(torch.zeros(1, 1, 224, 224)),
        ImageError,
        "(1, 1, 224, 224)",
        "(n, 3, 224, 224)",
    ),
    "moving": (lambda e, _p: e.to("meta"), LlmCompressionError, "VisionEncoder", "device"),
}


@pytest.mark.requirement("12.6")
@pytest.mark.parametrize("what", REFUSALS)
def test_a_refusal_says_what_was_found_and_what_was_expected(
    tiny_encoder: VisionEncoder, tmp_path: Path, what: str
) -> None:
    """12.6: IF the Package refuses an input or a file, THEN THE Package SHALL raise a subclass of `LlmCompressionError`
    whose message has the value found and what was expected."""
    (tmp_path / "text").write_text("this is no weight file", encoding="utf-8")
    refusal, error, found, expected = REFUSALS[what]
    with pytest.raises(error, match=re.escape(found)) as caught:
        refusal(tiny_encoder, tmp_path)
    assert isinstance(caught.value, LlmCompressionError)
    assert expected in str(caught.value)
