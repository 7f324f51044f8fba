"""Preprocessing as a checkpoint states it; what ImageProcessor cannot express is an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llm_compression.convert.preprocessing import from_huggingface, from_open_clip
from llm_compression.errors import CheckpointError
from llm_compression.multimodal.image_processor import CLIP_MEAN, CLIP_STD, ImageProcessor

HALF = [0.5, 0.5, 0.5]


def written(directory: Path, values: Any, name: str = "preprocessor_config.json") -> Path:
    (directory / name).write_text(json.dumps(values))
    return directory


def test_without_a_file_the_constants_are_those_of_clip(tmp_path: Path) -> None:
    """No preprocessor_config.json: CLIP's constants at the image size of the model."""
    assert from_huggingface(tmp_path, 336).to_dict() == ImageProcessor(336).to_dict()
    assert from_huggingface(tmp_path, 336).to_dict() == {
        "image_size": 336,
        "resize_size": 336,
        "mean": list(CLIP_MEAN),
        "std": list(CLIP_STD),
        "crop_offset": "floor",
    }


@pytest.mark.parametrize(
    ("size", "crop"),
    [(256, 224), ({"shortest_edge": 256}, {"height": 224, "width": 224}), (256, [224, 224]), (256, None)],
)
def test_sizes_old_and_new(tmp_path: Path, size: Any, crop: Any) -> None:
    """``size`` is a number or ``shortest_edge``, ``crop_size`` a number or height and width; left out, it is 224."""
    processor = from_huggingface(written(tmp_path, {"size": size, "crop_size": crop}), 224)
    assert (processor.resize_size, processor.image_size) == (256, 224)


def test_the_file_of_openai_clip_vit_base_patch32(tmp_path: Path) -> None:
    """The file as the hub has had it since 2021, with a class that transformers has renamed."""
    values = {
        "crop_size": 224,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "size": 224,
    }
    assert from_huggingface(written(tmp_path, values), 224).to_dict() == ImageProcessor().to_dict()


@pytest.mark.requirement("5.9")
def test_mean_and_std_are_taken_from_the_file(tmp_path: Path) -> None:
    """A model trained with other constants keeps them."""
    processor = from_huggingface(written(tmp_path, {"image_mean": HALF, "image_std": [0.1, 0.2, 0.3]}), 224)
    assert (processor.mean, processor.std) == ((0.5, 0.5, 0.5), (0.1, 0.2, 0.3))


def test_a_nested_processor_config_wins_as_in_transformers(tmp_path: Path) -> None:
    """transformers 5 nests the image processor in processor_config.json and reads that first."""
    written(tmp_path, {"image_mean": [0.1, 0.1, 0.1]})
    written(
        tmp_path, {"image_processor": {"image_mean": HALF}, "processor_class": "CLIPProcessor"}, "processor_config.json"
    )
    assert from_huggingface(tmp_path, 224).mean == (0.5, 0.5, 0.5)
    written(tmp_path, {"processor_class": "CLIPProcessor"}, "processor_config.json")  # older: nothing nested
    assert from_huggingface(tmp_path, 224).mean == (0.1, 0.1, 0.1)


@pytest.mark.requirement("12.6")
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"resample": 2}, "resample: 2, expected 3"),
        ({"do_resize": False}, "do_resize: False, expected True"),
        ({"do_center_crop": False}, "do_center_crop: False, expected True"),
        ({"do_rescale": False}, "do_rescale: False, expected True"),
        ({"do_normalize": False}, "do_normalize: False, expected True"),
        ({"do_convert_rgb": False}, "do_convert_rgb: False, expected True"),
        ({"do_pad": True}, "do_pad: True, expected False"),
        ({"rescale_factor": 1 / 127.5}, "rescale_factor: 0.0078.*, expected 0.00392"),
        ({"size": {"height": 224, "width": 224}}, r"size: \{'height'.*expected a whole number or \{'shortest_edge'"),
        ({"size": {"longest_edge": 224}}, "size: .*longest_edge"),
        ({"size": 0}, "size: 0, expected"),
        ({"crop_size": 0}, "crop_size: 0, expected"),
        ({"crop_size": {"height": 224, "width": 200}}, r"crop_size: \[224, 200\], expected .*squares only"),
        ({"crop_size": 256}, "crop_size: 256, expected the image size of the model, 224"),
        ({"image_mean": [0.5]}, r"mean: \(0\.5,\), expected three finite numbers"),
        ({"image_mean": "clip"}, "image_mean: 'clip', expected three numbers"),
        ({"image_std": [0.1, 0.0, 0.1]}, r"std: .*expected three finite numbers \(std: positive\)"),
        (
            {"image_processor_type": "ViTImageProcessor"},
            "image_processor_type: 'ViTImageProcessor', expected 'CLIPImage",
        ),
        ({"do_thumbnail": True}, "unknown settings {'do_thumbnail': True}"),
    ],
)
def test_what_cannot_be_expressed_names_the_key_and_the_value(
    tmp_path: Path, setting: dict[str, Any], message: str
) -> None:
    """Another filter, a step left out, a shape that is not square: never a silent difference in the pixels."""
    with pytest.raises(CheckpointError, match=f"preprocessor_config.json: {message}"):
        from_huggingface(written(tmp_path, setting), 224)


def test_settings_that_are_null_are_not_there(tmp_path: Path) -> None:
    """transformers writes null for what is not set."""
    values = {"do_thumbnail": None, "size": None, "resample": None, "do_pad": None, "data_format": "channels_first"}
    assert from_huggingface(written(tmp_path, values), 224).to_dict() == ImageProcessor().to_dict()


def test_open_clip_crops_where_torchvision_does() -> None:
    """open_clip uses torchvision's CenterCrop, whose offset is ``int(round((H - C) / 2))``."""
    assert from_open_clip({}, Path("x"), 224).to_dict() == ImageProcessor(crop_offset="round").to_dict()


def test_open_clip_constants() -> None:
    """``preprocess_cfg``: mean, std, and settings that say what is done anyway."""
    stated = {"mean": HALF, "std": HALF, "interpolation": "bicubic", "resize_mode": "shortest", "size": [224, 224]}
    processor = from_open_clip({**stated, "mode": "RGB", "fill_color": 0, "to_come": None}, Path("x"), 224)
    assert (processor.mean, processor.std, processor.image_size) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 224)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"interpolation": "bilinear"}, "interpolation: 'bilinear', expected 'bicubic' or 'random'"),
        ({"resize_mode": "squash"}, "resize_mode: 'squash', expected 'shortest'"),
        ({"resize_mode": "longest"}, "resize_mode: 'longest', expected 'shortest'"),
        ({"mode": "L"}, "mode: 'L', expected 'RGB'"),
        ({"size": 336}, "size: 336, expected the image size of the model, 224"),
        ({"std": [1, 2]}, "std: .*expected three finite numbers"),
        ({"gamma": 2.2}, r"unknown preprocess_cfg keys \['gamma'\]"),
    ],
)
def test_open_clip_settings_that_cannot_be_expressed(setting: dict[str, Any], message: str) -> None:
    """Another filter or way of resizing is an error that names the key and the value."""
    with pytest.raises(CheckpointError, match=f"open_clip_config.json: {message}"):
        from_open_clip(setting, Path("open_clip_config.json"), 224)
