"""VisionConfig: the sizes of CLIP, checked where they are written."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import pytest

from llm_compression.errors import ConfigError
from llm_compression.inference.weight_format import WeightMetadata, write_weights
from llm_compression.inference.weight_loader import WeightLoader
from llm_compression.multimodal.vision_config import VisionConfig

SMALL = VisionConfig(
    image_size=24, patch_size=8, hidden_size=20, num_layers=1, num_heads=4, intermediate_size=7, projection_dim=None
)


@pytest.mark.requirement("1.1")
def test_defaults_are_clip_b16() -> None:
    """1.1: WHEN VisionConfig is constructed without arguments, THE VisionConfig SHALL hold the sizes of CLIP ViT-B/16:
    16-pixel patches, 196 patches, 12 layers, 12 heads, width 768, MLP width 3072 and projection width 512."""
    config = VisionConfig()
    assert dataclasses.astuple(config) == (224, 16, 768, 12, 12, 3072, 512, 1e-5, "quick_gelu")
    assert config.num_patches == 196
    parameters = sum(math.prod(shape) for shape in config.expected_shapes().values())
    assert round(parameters / 1e6, 1) == 86.2


@pytest.mark.requirement("1.2")
@pytest.mark.parametrize(
    ("image", "patch", "patches"), [(224, 16, 196), (224, 32, 49), (224, 14, 256), (336, 14, 576), (8, 8, 1)]
)
def test_derived_values(image: int, patch: int, patches: int) -> None:
    """1.2: THE VisionConfig SHALL derive `num_patches` as the square of `image_size // patch_size` and `num_positions`
    as `num_patches + 1`."""
    config = VisionConfig(image_size=image, patch_size=patch)
    assert (config.num_patches, config.num_positions) == (patches, patches + 1)


@pytest.mark.requirement("5.6")
def test_dimension_is_that_of_the_last_step() -> None:
    """5.6: WHERE the checkpoint has no visual projection, THE VisionEncoder SHALL return the class row after the
    post-layernorm, with `dimension` equal to `hidden_size`."""
    assert (VisionConfig().dimension, SMALL.dimension) == (512, 20)


@pytest.mark.requirement("1.3")
@pytest.mark.parametrize("value", [0, -1, 2.0, 8.5, "16", None, True, math.nan, [16]])
@pytest.mark.parametrize(
    "name",
    ["image_size", "patch_size", "hidden_size", "num_layers", "num_heads", "intermediate_size", "projection_dim"],
)
def test_a_size_that_is_not_a_positive_whole_number(name: str, value: Any) -> None:
    """1.3: IF a size is not a positive whole number, `image_size` is not a multiple of `patch_size`, or `hidden_size`
    is not a multiple of `num_heads`, THEN THE VisionConfig SHALL raise ConfigError with the field, the value found and
    what was expected."""
    if (name, value) == ("projection_dim", None):
        assert VisionConfig(projection_dim=None).projection_dim is None
        return
    with pytest.raises(ConfigError, match=re.escape(f"{name}: {value!r}, expected a positive whole number")):
        VisionConfig(**{name: value})


@pytest.mark.requirement("1.3")
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_size": 225}, "image_size: 225 is not a multiple of patch_size 16"),
        ({"patch_size": 15}, "image_size: 224 is not a multiple of patch_size 15"),
        ({"image_size": 8}, "image_size: 8 is not a multiple of patch_size 16"),
        ({"hidden_size": 770}, "hidden_size: 770 is not a multiple of num_heads 12"),
        ({"num_heads": 7}, "hidden_size: 768 is not a multiple of num_heads 7"),
    ],
)
def test_sizes_that_do_not_divide(values: dict[str, int], message: str) -> None:
    """1.3: IF a size is not a positive whole number, `image_size` is not a multiple of `patch_size`, or `hidden_size`
    is not a multiple of `num_heads`, THEN THE VisionConfig SHALL raise ConfigError with the field, the value found and
    what was expected."""
    with pytest.raises(ConfigError, match=re.escape(message)):
        VisionConfig(**values)  # type: ignore[arg-type]  # mypy does not see that the keys are sizes


@pytest.mark.requirement("12.6")
@pytest.mark.parametrize("value", [0, -1e-5, math.nan, math.inf, -math.inf, "1e-5", None, True])
def test_an_epsilon_that_is_not_a_positive_number(value: Any) -> None:
    """12.6: IF the Package refuses an input or a file, THEN THE Package SHALL raise a subclass of `LlmCompressionError`
    whose message has the value found and what was expected."""
    with pytest.raises(ConfigError, match=re.escape(f"layer_norm_eps: {value!r}, expected a positive number")):
        VisionConfig(layer_norm_eps=value)


@pytest.mark.requirement("1.4")
@pytest.mark.parametrize("value", ["relu", "gelu_new", "gelu_pytorch_tanh", "GELU", "", None, 3, ["gelu"]])
def test_an_unknown_activation(value: Any) -> None:
    """1.4: IF `hidden_act` is neither `quick_gelu` nor `gelu`, THEN THE VisionConfig SHALL raise ConfigError with the
    value found and the accepted values."""
    with pytest.raises(ConfigError, match=re.escape(f"hidden_act: {value!r}, expected one of quick_gelu, gelu")):
        VisionConfig(hidden_act=value)
    assert [VisionConfig(hidden_act=name).hidden_act for name in ("quick_gelu", "gelu")] == ["quick_gelu", "gelu"]


@pytest.mark.requirement("1.5")
@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(VisionConfig)])
def test_a_field_keeps_its_value(name: str) -> None:
    """1.5: IF code assigns to a field of a VisionConfig, THEN THE VisionConfig SHALL raise an error and keep its
    value."""
    config = VisionConfig()
    before = getattr(config, name)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, name, 32)
    with pytest.raises(dataclasses.FrozenInstanceError):
        delattr(config, name)
    assert getattr(config, name) == before


@pytest.mark.requirement("1.6")
def test_round_trip_through_a_weight_file(tmp_path: Path) -> None:
    """1.6: WHEN a VisionConfig is written to a Weight File and read back, THE VisionConfig SHALL equal the one that was
    written."""
    config = dataclasses.replace(SMALL, hidden_act="gelu", layer_norm_eps=1e-12)
    write_weights(tmp_path / "weights.parquet", [], WeightMetadata(config=config.to_dict()))
    read = WeightLoader(tmp_path).config
    assert read is not None
    assert VisionConfig.from_dict(read) == config


@pytest.mark.requirement("12.6")
@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(VisionConfig)])
def test_a_missing_field_is_not_guessed(name: str) -> None:
    """12.6: IF the Package refuses an input or a file, THEN THE Package SHALL raise a subclass of `LlmCompressionError`
    whose message has the value found and what was expected."""
    values = VisionConfig().to_dict()
    del values[name]
    with pytest.raises(ConfigError, match=re.escape(f"missing ['{name}'], unknown []")):
        VisionConfig.from_dict(values)


@pytest.mark.requirement("12.6")
def test_unknown_fields_and_model_types() -> None:
    """12.6: IF the Package refuses an input or a file, THEN THE Package SHALL raise a subclass of `LlmCompressionError`
    whose message has the value found and what was expected."""
    values = SMALL.to_dict()
    assert values["model_type"] == "clip_vision_model"
    with pytest.raises(ConfigError, match=r"missing \[\], unknown \['dropout'\]"):
        VisionConfig.from_dict({**values, "dropout": 0.1})
    with pytest.raises(ConfigError, match="model_type: 'bert', expected 'clip_vision_model'"):
        VisionConfig.from_dict({**values, "model_type": "bert"})
    with pytest.raises(ConfigError, match="hidden_act: 'tanh'"):
        VisionConfig.from_dict({**values, "hidden_act": "tanh"})


@pytest.mark.requirement("4.3")
def test_every_tensor_of_a_tower() -> None:
    """4.3: IF tensors are missing, unexpected or mis-shaped, THEN THE VisionEncoder SHALL raise one WeightFormatError
    that lists every one of them, mis-shaped ones with the shape found and the shape expected."""
    block = {
        "layer_norm1.weight": (20,),
        "layer_norm1.bias": (20,),
        "layer_norm2.weight": (20,),
        "layer_norm2.bias": (20,),
        **{f"self_attn.{name}_proj.weight": (20, 20) for name in ("q", "k", "v", "out")},
        **{f"self_attn.{name}_proj.bias": (20,) for name in ("q", "k", "v", "out")},
        "mlp.fc1.weight": (7, 20),
        "mlp.fc1.bias": (7,),
        "mlp.fc2.weight": (20, 7),
        "mlp.fc2.bias": (20,),
    }
    expected = {
        "vision_model.embeddings.class_embedding": (20,),
        "vision_model.embeddings.patch_embedding.weight": (20, 3, 8, 8),
        "vision_model.embeddings.position_embedding.weight": (10, 20),
        "vision_model.pre_layrnorm.weight": (20,),
        "vision_model.pre_layrnorm.bias": (20,),
        **{f"vision_model.encoder.layers.0.{name}": shape for name, shape in block.items()},
        "vision_model.post_layernorm.weight": (20,),
        "vision_model.post_layernorm.bias": (20,),
    }
    assert SMALL.expected_shapes() == expected
    projected = dataclasses.replace(SMALL, projection_dim=5, num_layers=3).expected_shapes()
    assert projected["visual_projection.weight"] == (5, 20)
    assert len(projected) == len(expected) + 2 * len(block) + 1
