"""The sizes of an image tower, from a family's own configuration file or from the shapes of its tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from llm_compression.convert import config_keys
from llm_compression.convert.key_maps import OPENAI
from llm_compression.convert.preprocessing import square
from llm_compression.convert.tensor_files import read_json
from llm_compression.errors import CheckpointError, ConfigError
from llm_compression.multimodal.vision_config import VisionConfig
from llm_compression.text.text_config import TextConfig

ConfigT = TypeVar("ConfigT", VisionConfig, TextConfig)

# Classes of transformers by whether they have a visual projection.
ARCHITECTURES: Final[Mapping[str, bool]] = {
    "CLIPModel": True,
    "CLIPVisionModelWithProjection": True,
    "CLIPVisionModel": False,
}

# Field of VisionConfig, key of config.json, and CLIPVisionConfig's default: transformers before 5 left a value out of
# a nested vision_config where it was the default.
_HUGGINGFACE_KEYS: Final = (
    ("image_size", "image_size", 224),
    ("patch_size", "patch_size", 32),
    ("hidden_size", "hidden_size", 768),
    ("num_layers", "num_hidden_layers", 12),
    ("num_heads", "num_attention_heads", 12),
    ("intermediate_size", "intermediate_size", 3072),
    ("layer_norm_eps", "layer_norm_eps", 1e-5),
    ("hidden_act", "hidden_act", "quick_gelu"),
)

_WHOLE_READ: Final = frozenset(
    {"model_type", "architectures", "projection_dim"}
    | {f"{tower}_config{older}" for tower in ("text", "vision") for older in ("", "_dict")}
)

# Settings of open_clip's vision_cfg that lead to another architecture, and the values that do not.
_OPEN_CLIP_SUPPORTED: Final[Mapping[str, tuple[Any, ...]]] = {
    "timm_model_name": ("",),
    "ls_init_value": (),
    "attentional_pool": (False,),
    "global_average_pool": (False,),
    "no_ln_pre": (False,),
    "pool_type": ("tok",),
    "act_kwargs": ({},),
    "block_type": ("default",),
    "qk_norm": (False,),
    "scaled_cosine_attn": (False,),
    "scale_heads": (False,),
    "scale_attn_inner": (False,),
    "scale_attn": (False,),
    "scale_fc": (False,),
    "input_patchnorm": (False,),
}
_OPEN_CLIP_READ: Final = frozenset(
    {"image_size", "patch_size", "width", "layers", "head_width", "mlp_ratio", "norm_kwargs"}
)
_OPEN_CLIP_MODEL_READ: Final = frozenset({"embed_dim", "vision_cfg", "quick_gelu"})
# With CLS pooling these change nothing: how positions were first filled, dropout, when the last norm is applied, and
# settings of poolers and towers that are not there.
_OPEN_CLIP_HARMLESS: Final = frozenset(
    {"patch_dropout", "pos_embed_type", "final_ln_after_pool", "output_tokens"}
    | {"attn_pooler_queries", "attn_pooler_heads", "n_queries"}
    | {"timm_model_pretrained", "timm_pool", "timm_proj", "timm_proj_bias", "timm_drop", "timm_drop_path"}
)


def from_huggingface(file: Path, has_projection: bool, overrides: Mapping[str, Any]) -> VisionConfig:
    """Read a ``config.json``.

    Args:
        file: The ``config.json``.
        has_projection: Whether the checkpoint has a visual projection, for a file that names no class.
        overrides: Fields that take the place of the file's.

    Raises:
        CheckpointError: The file is missing, names another model, or leaves the activation out.
        ConfigError: A value is invalid.
    """
    if not file.exists():
        raise CheckpointError(f"{file}: missing; the activation and the number of heads stand nowhere else")
    values = read_json(file)
    model_type = values.get("model_type")
    if model_type not in ("clip", "clip_vision_model"):
        raise CheckpointError(f"{file}: model_type: {model_type!r}, expected 'clip' or 'clip_vision_model'")
    whole = model_type == "clip"
    classes = values.get("architectures") or []
    if not isinstance(classes, list) or len(classes) > 1 or not set(classes) <= set(ARCHITECTURES):
        raise CheckpointError(f"{file}: architectures: {classes!r}, expected one of {', '.join(ARCHITECTURES)}")
    if whole:
        config_keys.refuse_unknown(file, values, _WHOLE_READ, config_keys.CLIP, config_keys.HUGGINGFACE_SUPPORTED)
        names = {key: field for field, key, _ in _HUGGINGFACE_KEYS}
        vision = nested_config(
            values, file, "vision", {key: one for _, key, one in _HUGGINGFACE_KEYS}, names, overrides
        )
    else:
        vision = dict(values)
    read = {key for _, key, _ in _HUGGINGFACE_KEYS} | {"model_type", "architectures", "num_channels"}
    place = f"{file}: vision_config" if whole else file
    config_keys.refuse_unknown(place, vision, read, config_keys.CLIP, config_keys.HUGGINGFACE_SUPPORTED)
    if vision.get("model_type", "clip_vision_model") != "clip_vision_model":
        raise CheckpointError(f"{place}: model_type: {vision['model_type']!r}, expected 'clip_vision_model'")
    channels = vision.get("num_channels", 3)
    if channels != 3:
        raise CheckpointError(f"{file}: num_channels: {channels!r}, expected 3")
    found = {field: vision.get(key, default) for field, key, default in _HUGGINGFACE_KEYS}
    for field in ("image_size", "patch_size"):
        found[field] = square(file, field, found[field])
    projects = ARCHITECTURES[classes[0]] if classes else whole or has_projection
    # CLIPModel builds its projection from its own key, whatever the nested configuration says
    found["projection_dim"] = values.get("projection_dim", 512) if projects else None
    # never guessed: a wrong activation gives embeddings that look right
    found["hidden_act"] = vision.get("hidden_act")
    found |= overrides
    if found["hidden_act"] is None:
        raise CheckpointError(
            f"{file}: no hidden_act{' in vision_config' if whole else ''}, expected the activation; transformers reads "
            "such a file as 'quick_gelu'; if that is what the model was trained with, pass "
            "overrides={'hidden_act': 'quick_gelu'} (on the command line, --hidden-act quick_gelu)"
        )
    return made(VisionConfig, found, file, overrides, {field: key for field, key, _ in _HUGGINGFACE_KEYS})


def from_open_clip(file: Path, overrides: Mapping[str, Any]) -> VisionConfig:
    """Read an ``open_clip_config.json``, whose absent keys mean open_clip's own defaults.

    Raises:
        CheckpointError: It describes another architecture.
        ConfigError: A value is invalid.
    """
    whole = read_json(file)
    model = whole.get("model_cfg")
    vision = model.get("vision_cfg") if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(vision, dict):
        raise CheckpointError(f"{file}: no model_cfg with a vision_cfg, expected open_clip's own layout")
    config_keys.refuse_unknown(file, whole, ("model_cfg", "preprocess_cfg"), ())
    config_keys.refuse_unknown(f"{file}: model_cfg", model, _OPEN_CLIP_MODEL_READ, config_keys.OPEN_CLIP_MODEL)
    vision = {key: value for key, value in vision.items() if value is not None}
    for key, supported in _OPEN_CLIP_SUPPORTED.items():
        if key in vision and vision[key] not in supported:
            expected = " or ".join(repr(one) for one in supported) or "none"
            raise CheckpointError(f"{file}: vision_cfg.{key}: {vision[key]!r}, expected {expected}")
    if unknown := sorted(set(vision) - set(_OPEN_CLIP_SUPPORTED) - _OPEN_CLIP_READ - _OPEN_CLIP_HARMLESS):
        raise CheckpointError(f"{file}: unknown vision_cfg settings {unknown}: what they change is not known")
    layers = vision.get("layers", 12)
    if not isinstance(layers, int):
        raise CheckpointError(f"{file}: vision_cfg.layers: {layers!r}, expected a number (a list means a ResNet)")
    norm = vision.get("norm_kwargs", {})
    if not isinstance(norm, dict) or not set(norm) <= {"eps"}:
        raise CheckpointError(f"{file}: vision_cfg.norm_kwargs: {norm!r}, expected nothing but 'eps'")
    quick = model.get("quick_gelu", False)
    if not isinstance(quick, bool):
        raise CheckpointError(f"{file}: model_cfg.quick_gelu: {quick!r}, expected true or false")
    width, head_width = vision.get("width", 768), vision.get("head_width", 64)
    ratio = vision.get("mlp_ratio", 4.0)
    for key, value in (("width", width), ("head_width", head_width), ("mlp_ratio", ratio)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise CheckpointError(f"{file}: vision_cfg.{key}: {value!r}, expected a positive number")
    found = {
        "image_size": square(file, "vision_cfg.image_size", vision.get("image_size", 224)),
        "patch_size": square(file, "vision_cfg.patch_size", vision.get("patch_size", 16)),
        "hidden_size": width,
        "num_layers": layers,
        "num_heads": width // head_width,
        "intermediate_size": int(width * ratio),
        "projection_dim": model.get("embed_dim"),
        "layer_norm_eps": norm.get("eps", 1e-5),
        "hidden_act": "quick_gelu" if quick else "gelu",
    }
    if found["projection_dim"] is None:
        raise CheckpointError(f"{file}: model_cfg has no embed_dim, expected the width of the embedding")
    keys = {"hidden_size": "vision_cfg.width", "num_layers": "vision_cfg.layers", "projection_dim": "embed_dim"}
    return made(VisionConfig, found | dict(overrides), file, overrides, keys)


def from_shapes(
    shapes: Mapping[str, tuple[int, ...]], where: Path, overrides: Mapping[str, Any], *, openai: bool
) -> VisionConfig:
    """Derive the sizes from tensors under OpenAI's names.

    Activation and head count leave no trace in a shape. OpenAI's models all have quick_gelu and 64 channels a head; for
    any other checkpoint they have to be given.

    Args:
        shapes: Shape by tensor name.
        where: The checkpoint's directory, for messages.
        overrides: Fields that take the place of the derived ones.
        openai: Whether this is one of OpenAI's own archives.

    Raises:
        CheckpointError: A tensor that is needed is missing or has another number of dimensions, or something that no
            shape says is not given.
        ConfigError: A value is invalid.
    """
    width, _, patch, _ = _shape(shapes, OPENAI["vision_model.embeddings.patch_embedding.weight"].source, 4, where)
    positions, _ = _shape(shapes, OPENAI["vision_model.embeddings.position_embedding.weight"].source, 2, where)
    mlp, _ = _shape(shapes, OPENAI["vision_model.encoder.layers.{n}.mlp.fc1.weight"].source.format(n=0), 2, where)
    _, projection = _shape(shapes, OPENAI["visual_projection.weight"].source, 2, where)
    block = OPENAI["vision_model.encoder.layers.{n}.layer_norm1.weight"].source
    grid = math.isqrt(max(positions - 1, 0))
    if grid * grid != positions - 1 or not grid:
        raise CheckpointError(f"{where}: {positions} positions, expected one and a square number")
    found: dict[str, Any] = {
        "image_size": grid * patch,
        "patch_size": patch,
        "hidden_size": width,
        "num_layers": next(n for n in range(len(shapes) + 1) if block.format(n=n) not in shapes),
        "intermediate_size": mlp,
        "projection_dim": projection,
        "layer_norm_eps": 1e-5,
    }
    if openai and width % 64 == 0:
        found["num_heads"] = width // 64
    if openai:
        found["hidden_act"] = "quick_gelu"
    found |= overrides
    if unknown := [field for field in ("hidden_act", "num_heads") if field not in found]:
        reason = f"a width of {width} is no multiple of 64" if openai else "no open_clip_config.json beside the weights"
        raise CheckpointError(
            f"{where}: {reason}, and no tensor shape says {' or '.join(unknown)}; "
            f"{'' if openai else 'put the open_clip_config.json of this model there, or '}"
            "pass overrides={'hidden_act': 'quick_gelu' or 'gelu', 'num_heads': ...} "
            "(on the command line, --hidden-act and --num-heads)"
        )
    return VisionConfig(**found)


def made(
    config_class: type[ConfigT],
    values: Mapping[str, Any],
    file: Path,
    overrides: Mapping[str, Any],
    keys: Mapping[str, str],
) -> ConfigT:
    """The configuration of some values.

    Args:
        config_class: VisionConfig or TextConfig.
        values: Value by field.
        file: The file that they come from, for messages.
        overrides: Fields that do not come from the file.
        keys: The key of the file by field, where it has another name.

    Raises:
        CheckpointError: A value is invalid; with the file and the key, or the argument, that it comes from.
    """
    try:
        return config_class(**values)
    except ConfigError as error:
        field, _, reason = str(error).partition(":")
        # of two that do not fit each other, the one that was given
        if any(re.search(rf"\b{name}\b", str(error)) for name in overrides):
            raise CheckpointError(f"overrides: {error}") from error
        raise CheckpointError(f"{file}: {keys.get(field, field)}:{reason}") from error


def nested_config(
    values: Mapping[str, Any],
    file: Path,
    tower: str,
    defaults: Mapping[str, Any],
    names: Mapping[str, str],
    overrides: Mapping[str, Any],
) -> dict[str, Any]:
    """The part of a CLIPModel's ``config.json`` for one tower, with the older dictionary put over it.

    transformers makes a whole configuration of the older dictionary, its defaults included, and lets it win. What the
    newer part says is then lost where the older dictionary leaves it out: a contradiction wherever it is no default.

    Args:
        values: The file's content.
        file: The file, for messages.
        tower: ``text`` or ``vision``.
        defaults: transformers' default of each key that changes a row.
        names: The field that overrides each key, where there is one.
        overrides: Fields that take the place of the file's.

    Raises:
        CheckpointError: Neither part is there, one is no object, or they contradict each other.
    """
    new, old = f"{tower}_config", f"{tower}_config_dict"
    stated, older = values.get(new), values.get(old)
    for key, value in ((new, stated), (old, older)):
        if value is not None and not isinstance(value, dict):
            raise CheckpointError(f"{file}: {key}: {value!r}, expected an object")
    if stated is None and older is None:
        image = "image" if tower == "vision" else tower
        raise CheckpointError(f"{file}: no {new}, expected the sizes of the {image} tower")
    stated = stated or {}
    if older is None:
        return dict(stated)
    for key, default in defaults.items():
        if key in older or names.get(key) in overrides or stated.get(key, default) == default:
            continue
        way = f"say which is right with overrides={{{names[key]!r}: ...}}, or " if key in names else ""
        raise CheckpointError(
            f"{file}: {new} has {key} {stated[key]!r}, {old} leaves it out, which transformers reads as {default!r}; "
            f"{way}take {old} out of the file"
        )
    return {**stated, **older}


def _shape(shapes: Mapping[str, tuple[int, ...]], name: str, dimensions: int, where: Path) -> tuple[int, ...]:
    shape = shapes.get(name)
    if shape is None or len(shape) != dimensions:
        found = "missing" if shape is None else f"shape {list(shape)}"
        raise CheckpointError(f"{where}: {name}: {found}, expected {dimensions} dimensions")
    return shape
