"""What a checkpoint says about preprocessing, as an ImageProcessor; what cannot be said by one is an error."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any, Final

from llm_compression.convert.tensor_files import read_json
from llm_compression.errors import CheckpointError, ConfigError
from llm_compression.multimodal.image_processor import CLIP_MEAN, CLIP_STD, ImageProcessor

PROCESSOR_TYPES: Final = (
    "CLIPImageProcessor",
    "CLIPImageProcessorFast",
    "CLIPImageProcessorPil",
    "CLIPFeatureExtractor",
)
BICUBIC: Final = 3  # PIL.Image.Resampling.BICUBIC

# Keys that do not change a pixel.
_HARMLESS: Final = frozenset(
    {
        "_valid_processor_keys",
        "processor_class",
        "data_format",
        "input_data_format",
        "return_tensors",
        "device",
        "disable_grouping",
    }
)
# Steps that the reference always takes.
_ALWAYS: Final = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")


def from_huggingface(directory: Path, image_size: int) -> ImageProcessor:
    """Read ``processor_config.json`` (newer, nested) or ``preprocessor_config.json``; CLIP's constants without either.

    Raises:
        CheckpointError: A key has a value that ImageProcessor cannot express.
    """
    nested, flat = directory / "processor_config.json", directory / "preprocessor_config.json"
    if nested.exists() and isinstance(values := read_json(nested).get("image_processor"), dict):
        return _from_huggingface_values(values, nested, image_size)
    if flat.exists():
        return _from_huggingface_values(read_json(flat), flat, image_size)
    return _processor(flat, image_size=image_size)


def from_open_clip(preprocess_cfg: Mapping[str, Any], where: Path, image_size: int) -> ImageProcessor:
    """Read the ``preprocess_cfg`` of an open_clip configuration, whose absent keys mean CLIP's constants.

    The crop starts where torchvision's does, which open_clip calls.

    Raises:
        CheckpointError: A key has a value that ImageProcessor cannot express.
    """
    # "random" is for training only; evaluation is bicubic then
    _require(where, preprocess_cfg, "interpolation", ("bicubic", "random"))
    _require(where, preprocess_cfg, "resize_mode", ("shortest",))
    _require(where, preprocess_cfg, "mode", ("RGB",))
    _require(where, preprocess_cfg, "fill_color", (0,))
    size = preprocess_cfg.get("size")
    if size is not None and square(where, "size", size) != image_size:
        raise CheckpointError(f"{where}: size: {size!r}, expected the image size of the model, {image_size}")
    known = {"interpolation", "resize_mode", "mode", "fill_color", "size", "mean", "std"}
    if unknown := sorted(key for key, value in preprocess_cfg.items() if key not in known and value is not None):
        raise CheckpointError(f"{where}: unknown preprocess_cfg keys {unknown}, expected some of {sorted(known)}")
    return _processor(
        where,
        image_size=image_size,
        mean=_channels(where, "mean", preprocess_cfg.get("mean"), CLIP_MEAN),
        std=_channels(where, "std", preprocess_cfg.get("std"), CLIP_STD),
        crop_offset="round",
    )


def square(where: Path, key: str, value: Any) -> int:
    """A size given as a whole number or as two equal ones.

    Raises:
        CheckpointError: It is neither.
    """
    if isinstance(value, Mapping) and set(value) == {"height", "width"}:
        value = [value["height"], value["width"]]
    if isinstance(value, list | tuple) and len(value) == 2 and value[0] == value[1]:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise CheckpointError(f"{where}: {key}: {value!r}, expected a positive whole number (squares only)")
    return value


def _from_huggingface_values(values: Mapping[str, Any], where: Path, image_size: int) -> ImageProcessor:
    for key in ("image_processor_type", "feature_extractor_type"):
        _require(where, values, key, PROCESSOR_TYPES)
    for key in _ALWAYS:
        if key in values and values[key] is None:
            # not an absent key: the reference leaves the step out
            raise CheckpointError(f"{where}: {key}: None, expected True")
        _require(where, values, key, (True,))
    if not isinstance(values.get("size"), Mapping):
        _require(where, values, "default_to_square", (False,))
    _require(where, values, "do_pad", (False,))
    _require(where, values, "resample", (BICUBIC,))
    factor = values.get("rescale_factor")
    if factor is not None and not (isinstance(factor, Real) and math.isclose(factor, 1 / 255, rel_tol=1e-12)):
        raise CheckpointError(f"{where}: rescale_factor: {factor!r}, expected {1 / 255!r}")
    known = {
        *_HARMLESS,
        *_ALWAYS,
        *("image_processor_type", "feature_extractor_type", "do_pad", "resample", "rescale_factor"),
        *("size", "crop_size", "image_mean", "image_std", "default_to_square"),
    }
    if unknown := {key: value for key, value in values.items() if key not in known and value is not None}:
        raise CheckpointError(f"{where}: unknown settings {unknown}; take out those that do not change a pixel")
    crop = square(where, "crop_size", _or_default(values.get("crop_size"), 224))
    if crop != image_size:
        raise CheckpointError(f"{where}: crop_size: {crop}, expected the image size of the model, {image_size}")
    return _processor(
        where,
        image_size=image_size,
        resize_size=_short_edge(where, _or_default(values.get("size"), 224)),
        mean=_channels(where, "image_mean", values.get("image_mean"), CLIP_MEAN),
        std=_channels(where, "image_std", values.get("image_std"), CLIP_STD),
    )


def _short_edge(where: Path, size: Any) -> int:
    if isinstance(size, Mapping) and set(size) == {"shortest_edge"}:
        size = size["shortest_edge"]
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise CheckpointError(f"{where}: size: {size!r}, expected a whole number or {{'shortest_edge': number}}")
    return size


def _or_default(value: Any, default: Any) -> Any:
    """What CLIPImageProcessor takes for a key that its file leaves out."""
    return default if value is None else value


def _require(where: Path, values: Mapping[str, Any], key: str, supported: tuple[Any, ...]) -> None:
    value = values.get(key)
    if value is not None and value not in supported:
        expected = " or ".join(repr(one) for one in supported)
        raise CheckpointError(f"{where}: {key}: {value!r}, expected {expected}")


def _channels(where: Path, key: str, value: Any, default: tuple[float, ...]) -> tuple[float, ...]:
    value = _or_default(value, default)
    if not isinstance(value, list | tuple) or not all(isinstance(one, Real) for one in value):
        raise CheckpointError(f"{where}: {key}: {value!r}, expected three numbers")
    return tuple(float(one) for one in value)


def _processor(where: Path, **constants: Any) -> ImageProcessor:
    try:
        return ImageProcessor(**constants)
    except ConfigError as error:
        raise CheckpointError(f"{where}: {error}") from error
