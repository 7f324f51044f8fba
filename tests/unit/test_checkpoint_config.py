"""Sizes from a configuration file or from shapes; what neither says is an error, never a guess."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_compression.convert.checkpoint_config import from_shapes
from llm_compression.convert.readers import open_checkpoint
from llm_compression.errors import CheckpointError
from llm_compression.harness.clip.checkpoints import VARIANTS, Layout, make_checkpoint
from llm_compression.multimodal.vision_config import VisionConfig

TINY = VARIANTS["tiny"]


def config_of(directory: Path, **overrides: Any) -> VisionConfig:
    with open_checkpoint(directory, overrides=overrides, vision_only=True) as checkpoint:
        assert isinstance(checkpoint.config, VisionConfig)
        return checkpoint.config


def edited(directory: Path, layout: Layout, edit: Callable[[dict[str, Any]], object]) -> Path:
    make_checkpoint(directory, "tiny", layout=layout)
    file = directory / ("open_clip_config.json" if layout == "open_clip" else "config.json")
    values = json.loads(file.read_text())
    edit(values)
    file.write_text(json.dumps(values))
    return directory


# Hugging Face


def test_the_top_level_projection_governs_a_clip_model(tmp_path: Path) -> None:
    """CLIPModel builds its projection from the top-level ``projection_dim``, whatever the nested one says."""
    edited(tmp_path, "hf_clip_model", lambda values: values["vision_config"].update(projection_dim=512))
    assert config_of(tmp_path).projection_dim == 16


def test_sizes_that_older_transformers_leaves_out_are_its_defaults(tmp_path: Path) -> None:
    """Older transformers leave a default out of a nested vision_config: CLIPVisionConfig's sizes stand for it."""

    def keep_the_activation(values: dict[str, Any]) -> None:
        values["vision_config"] = {"hidden_act": "gelu"}
        del values["projection_dim"]

    edited(tmp_path, "hf_clip_model", keep_the_activation)
    (tmp_path / "preprocessor_config.json").unlink()
    assert config_of(tmp_path) == VisionConfig(patch_size=32, hidden_act="gelu")


@pytest.mark.requirement("9.7")
@pytest.mark.parametrize("layout", ["hf", "hf_clip_model"])
def test_a_missing_activation_is_never_guessed(tmp_path: Path, layout: Layout) -> None:
    """An activation that no file states is an error that says how to give it; given, it is used."""
    edited(tmp_path, layout, lambda values: values.get("vision_config", values).pop("hidden_act"))
    with pytest.raises(CheckpointError, match=r"no hidden_act.*overrides=\{'hidden_act': 'quick_gelu'\}"):
        config_of(tmp_path)
    assert config_of(tmp_path, hidden_act="gelu").hidden_act == "gelu"


def test_two_equal_numbers_are_a_size(tmp_path: Path) -> None:
    """transformers allows ``[32, 32]`` for a size; a tower that is not square is an error."""
    edited(tmp_path, "hf", lambda values: values.update(image_size=[32, 32]))
    assert config_of(tmp_path).image_size == 32
    edited(tmp_path, "hf", lambda values: values.update(image_size=[32, 24]))
    with pytest.raises(CheckpointError, match=r"image_size: \[32, 24\], expected a positive whole number"):
        config_of(tmp_path)


def test_the_older_vision_config_dict_wins_as_in_transformers(tmp_path: Path) -> None:
    """transformers puts ``vision_config_dict`` over ``vision_config``."""
    sizes = {"hidden_act": "gelu", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 8, "image_size": 32, "patch_size": 8}
    edited(tmp_path, "hf_clip_model", lambda values: values.update(vision_config_dict=sizes))
    config = config_of(tmp_path)
    assert (config.hidden_act, config.num_heads) == ("gelu", 8)


def test_a_contradiction_between_the_two_is_an_error(tmp_path: Path) -> None:
    """What only ``vision_config`` states, transformers replaces by a default: which one is meant cannot be known."""

    def contradict(values: dict[str, Any]) -> None:
        older = dict(values["vision_config"])
        del older["hidden_act"]
        values["vision_config"]["hidden_act"] = "gelu"
        values["vision_config_dict"] = older

    edited(tmp_path, "hf_clip_model", contradict)
    with pytest.raises(CheckpointError, match=r"vision_config has hidden_act 'gelu', .*reads as 'quick_gelu'"):
        config_of(tmp_path)
    assert config_of(tmp_path, hidden_act="gelu").hidden_act == "gelu"


def test_a_file_without_a_class_is_judged_by_its_tensors(tmp_path: Path) -> None:
    """``architectures`` may be missing: the tower has a projection where the file has one."""
    edited(tmp_path, "hf", lambda values: values.pop("architectures"))
    assert config_of(tmp_path).projection_dim == 16
    edited(tmp_path / "plain", "hf_vision", lambda values: values.pop("architectures"))
    assert config_of(tmp_path / "plain").projection_dim is None


@pytest.mark.requirement("9.7")
@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda v: v.update(model_type="siglip_vision_model"), "model_type: 'siglip_vision_model', expected 'clip' or"),
        (lambda v: v.pop("model_type"), "model_type: None"),
        (lambda v: v.update(architectures=["CLIPForImageClassification"]), r"architectures: .*Classification'\], exp"),
        (lambda v: v.update(hidden_act="gelu_new"), "hidden_act: 'gelu_new', expected one of quick_gelu, gelu"),
        (lambda v: v.update(num_channels=1), "num_channels: 1, expected 3"),
        (lambda v: v.update(num_attention_heads=5), "hidden_size: 32 is not a multiple of num_heads 5"),
        (
            lambda v: v.update(num_hidden_layers="2"),
            "config.json: num_hidden_layers: '2', expected a positive whole number",
        ),
        (lambda v: v.update(layer_norm_eps=None), "layer_norm_eps: None, expected a positive number"),
        (lambda v: v.update(projection_dim=0), "projection_dim: 0, expected a positive whole number"),
        (lambda v: v.update(patch_size=None), "patch_size: None, expected a positive whole number"),
    ],
)
def test_a_bad_config_json_is_named(tmp_path: Path, edit: Callable[[dict[str, Any]], object], message: str) -> None:
    """Another model, an unknown activation, an impossible size: the key, the value and what was expected."""
    with pytest.raises(CheckpointError, match=message):
        config_of(edited(tmp_path, "hf", edit))


@pytest.mark.parametrize("key", ["vision_config", "vision_config_dict"])
def test_a_nested_configuration_has_to_be_an_object(tmp_path: Path, key: str) -> None:
    """A vision_config of another kind, or none at all, is an error."""
    with pytest.raises(CheckpointError, match=f"{key}: 'x', expected an object"):
        config_of(edited(tmp_path, "hf_clip_model", lambda values: values.update({key: "x"})))
    with pytest.raises(CheckpointError, match="no vision_config, expected the sizes of the image tower"):
        config_of(edited(tmp_path, "hf_clip_model", lambda values: values.pop("vision_config")))


def test_hugging_face_weights_need_their_config_json(tmp_path: Path) -> None:
    """Without config.json nothing says the activation."""
    make_checkpoint(tmp_path, "tiny")
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json: missing; the activation and the number of heads"):
        config_of(tmp_path)


@pytest.mark.parametrize(("content", "message"), [("{", "not readable as JSON"), ("[1]", "holds a list, expected a")])
def test_a_config_json_that_is_no_object_is_an_error(tmp_path: Path, content: str, message: str) -> None:
    """Broken JSON and JSON of another kind are errors that name the file."""
    make_checkpoint(tmp_path, "tiny")
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=f"config.json: {message}"):
        config_of(tmp_path)


# open_clip


def test_open_clip_without_quick_gelu_is_exact_gelu(tmp_path: Path) -> None:
    """open_clip's configurations leave ``quick_gelu`` out where it is false, as LAION's do."""
    edited(tmp_path, "open_clip", lambda values: values["model_cfg"].pop("quick_gelu"))
    assert config_of(tmp_path).hidden_act == "gelu"


def test_open_clip_defaults(tmp_path: Path) -> None:
    """What a vision_cfg leaves out is what CLIPVisionCfg has: ViT-B/16 with 64 channels a head."""

    def keep_the_dimension(values: dict[str, Any]) -> None:
        values["model_cfg"] = {"embed_dim": 512, "vision_cfg": {}, "text_cfg": {}}

    edited(tmp_path, "open_clip", keep_the_dimension)
    assert config_of(tmp_path) == VisionConfig(hidden_act="gelu")


def test_open_clip_sizes_of_vit_h(tmp_path: Path) -> None:
    """ViT-H has head width 80: the head count comes from the configuration, never from width / 64."""
    sizes = {"image_size": 224, "layers": 32, "width": 1280, "head_width": 80, "patch_size": 14}
    edited(tmp_path, "open_clip", lambda values: values["model_cfg"].update(vision_cfg=sizes))
    config = config_of(tmp_path)
    assert (config.num_heads, config.intermediate_size) == (16, 5120)


@pytest.mark.parametrize(
    "harmless",
    [
        {"patch_dropout": 0.5},
        {"pool_type": "tok", "final_ln_after_pool": True},
        {"timm_model_name": None, "timm_pool": "avg"},
        {"attentional_pool": False, "attn_pooler_queries": 256},
        {"ls_init_value": None, "act_kwargs": None, "norm_kwargs": None, "a_setting_to_come": None},
    ],
)
def test_open_clip_settings_that_change_nothing(tmp_path: Path, harmless: dict[str, Any]) -> None:
    """Patch dropout is for training; with CLS pooling the last norm is the same before and after it."""
    edited(tmp_path, "open_clip", lambda values: values["model_cfg"]["vision_cfg"].update(harmless))
    assert config_of(tmp_path) == TINY


def test_open_clip_epsilon(tmp_path: Path) -> None:
    """``norm_kwargs`` may set the epsilon."""
    edited(tmp_path, "open_clip", lambda values: values["model_cfg"]["vision_cfg"].update(norm_kwargs={"eps": 1e-6}))
    assert config_of(tmp_path).layer_norm_eps == 1e-6


@pytest.mark.requirement("9.7")
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"pool_type": "avg"}, "vision_cfg.pool_type: 'avg', expected 'tok'"),
        ({"global_average_pool": True}, "vision_cfg.global_average_pool: True, expected False"),
        ({"attentional_pool": "parallel"}, "vision_cfg.attentional_pool: 'parallel', expected False"),
        ({"no_ln_pre": True}, "vision_cfg.no_ln_pre: True, expected False"),
        ({"timm_model_name": "convnext_base"}, "vision_cfg.timm_model_name: 'convnext_base'"),
        ({"ls_init_value": 1e-4}, "vision_cfg.ls_init_value: 0.0001, expected none"),
        ({"qk_norm": True}, "vision_cfg.qk_norm: True, expected False"),
        ({"act_kwargs": {"approximate": "tanh"}}, "vision_cfg.act_kwargs: .*tanh"),
        ({"norm_kwargs": {"elementwise_affine": False}}, "vision_cfg.norm_kwargs: .*expected nothing but 'eps'"),
        ({"layers": [3, 4, 6, 3]}, r"vision_cfg.layers: \[3, 4, 6, 3\], .*a list means a ResNet"),
        ({"window_size": 7}, r"unknown vision_cfg settings \['window_size'\]"),
        ({"width": "wide"}, "vision_cfg.width: 'wide', expected a positive number"),
        ({"head_width": 64}, "num_heads: 0, expected a positive whole number"),
        ({"image_size": [32, 16]}, r"vision_cfg.image_size: \[32, 16\]"),
    ],
)
def test_an_unsupported_open_clip_setting_is_named(tmp_path: Path, setting: dict[str, Any], message: str) -> None:
    """Pooling other than CLS, no pre-norm, attention pools, timm, layer scale, and what no one has heard of."""
    with pytest.raises(CheckpointError, match=message):
        config_of(edited(tmp_path, "open_clip", lambda values: values["model_cfg"]["vision_cfg"].update(setting)))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda v: v.pop("model_cfg"), "no model_cfg with a vision_cfg"),
        (lambda v: v["model_cfg"].pop("vision_cfg"), "no model_cfg with a vision_cfg"),
        (lambda v: v["model_cfg"].pop("embed_dim"), "model_cfg has no embed_dim"),
        (lambda v: v["model_cfg"].update(quick_gelu="yes"), "model_cfg.quick_gelu: 'yes', expected true or false"),
    ],
)
def test_an_incomplete_open_clip_config_is_named(
    tmp_path: Path, edit: Callable[[dict[str, Any]], object], message: str
) -> None:
    """A configuration that is not open_clip's, or lacks what has no default, is an error."""
    with pytest.raises(CheckpointError, match=message):
        config_of(edited(tmp_path, "open_clip", edit))


@pytest.mark.requirement("9.7")
def test_open_clip_without_a_configuration_needs_activation_and_heads(tmp_path: Path) -> None:
    """Shapes give every size; the activation and the head count they do not, so the caller has to."""
    make_checkpoint(tmp_path, "tiny", layout="open_clip")
    (tmp_path / "open_clip_config.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"no open_clip_config\.json .*no tensor shape says hidden_act or num_hea"
    ):
        config_of(tmp_path)
    with pytest.raises(CheckpointError, match="no tensor shape says num_heads;"):
        config_of(tmp_path, hidden_act="quick_gelu")
    assert config_of(tmp_path, hidden_act="quick_gelu", num_heads=4) == TINY


# OpenAI


def test_openai_sizes_of_vit_l_14_336() -> None:
    """Every size of OpenAI's largest model follows from its shapes: 16 heads of 64 channels, 577 positions."""
    shapes = {
        "visual.conv1.weight": (1024, 3, 14, 14),
        "visual.positional_embedding": (577, 1024),
        "visual.proj": (1024, 768),
        "visual.transformer.resblocks.0.mlp.c_fc.weight": (4096, 1024),
        **{f"visual.transformer.resblocks.{n}.ln_1.weight": (1024,) for n in range(24)},
    }
    assert from_shapes(shapes, Path(), {}, openai=True) == VisionConfig(
        image_size=336,
        patch_size=14,
        hidden_size=1024,
        num_layers=24,
        num_heads=16,
        intermediate_size=4096,
        projection_dim=768,
    )


def test_an_openai_archive_of_another_width_needs_its_heads(tmp_path: Path) -> None:
    """width // 64 says nothing for a width that is no multiple of 64."""
    path = make_checkpoint(tmp_path, "tiny", layout="openai")
    with pytest.raises(CheckpointError, match="a width of 32 is no multiple of 64, and no tensor shape says num_heads"):
        config_of(path)
    assert config_of(path, num_heads=4) == TINY


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"visual.conv1.weight": None}, r"visual\.conv1\.weight: missing, expected 4 dimensions"),
        ({"visual.proj": (1024,)}, r"visual\.proj: shape \[1024\], expected 2 dimensions"),
        ({"visual.positional_embedding": (12, 64)}, "12 positions, expected one and a square number"),
        ({"visual.positional_embedding": (1, 64)}, "1 positions, expected one and a square number"),
    ],
)
def test_shapes_that_give_no_sizes(change: dict[str, tuple[int, ...] | None], message: str) -> None:
    """A tensor that is missing or has another number of dimensions, and a grid that is not square, are named."""
    shapes = {
        "visual.conv1.weight": (64, 3, 8, 8),
        "visual.positional_embedding": (10, 64),
        "visual.proj": (64, 8),
        "visual.transformer.resblocks.0.mlp.c_fc.weight": (128, 64),
        **change,
    }
    known = {name: shape for name, shape in shapes.items() if shape is not None}
    with pytest.raises(CheckpointError, match=message):
        from_shapes(known, Path(), {}, openai=True)
