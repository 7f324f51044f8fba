"""Seeded checkpoints in the layouts that real ones have, for tests and gates that have no network.

The same variant and seed give the same weights in every layout. Every bias is non-zero, so that a dropped one shows,
and a few channels run hot through the layer norms, as they do in trained towers: without them a low-precision error
would go unseen.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, get_args

import torch
from safetensors.torch import save_file
from torch import nn

from llm_compression.errors import ConfigError
from llm_compression.harness.clip.checkpoint_weights import (
    CONTEXT,
    TEXT_HEADS,
    TEXT_LAYERS,
    TEXT_WIDTH,
    VOCABULARY,
    Tensors,
    make_text_weights,
    make_weights,
)
from llm_compression.multimodal.image_processor import CLIP_MEAN, CLIP_STD
from llm_compression.multimodal.vision_config import VisionConfig

Layout = Literal["hf", "hf_sharded", "hf_bin", "hf_clip_model", "hf_vision", "hf_vision_bare", "open_clip", "openai"]
LAYOUTS: Final[tuple[Layout, ...]] = get_args(Layout)

VARIANTS: Final[Mapping[str, VisionConfig]] = {
    "tiny": VisionConfig(
        image_size=32,
        patch_size=8,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        intermediate_size=64,
        projection_dim=16,
    ),
    "b32": VisionConfig(patch_size=32),
    "b16": VisionConfig(patch_size=16),
}
DTYPES: Final[Mapping[str, torch.dtype]] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def make_checkpoint(
    directory: str | Path,
    variant: str | VisionConfig,
    *,
    layout: Layout = "hf",
    dtype: str = "float32",
    seed: int = 0,
) -> Path:
    """Write a checkpoint.

    Args:
        directory: Where to write it; made if it does not exist.
        variant: ``tiny``, ``b32``, ``b16``, or any sizes.
        layout: ``hf`` (CLIPVisionModelWithProjection, or CLIPVisionModel for sizes without a projection),
            ``hf_sharded`` (the same with an index), ``hf_bin`` (the same as a pickle), ``hf_clip_model`` (CLIPModel,
            with a small text tower), ``hf_vision`` and ``hf_vision_bare`` (CLIPVisionModel, which drops the projection,
            with and without prefix), ``open_clip``, or ``openai`` (a TorchScript archive whose matrices are float16 and
            whose norms are float32, whatever ``dtype`` says).
        dtype: ``float32``, ``float16`` or ``bfloat16``.
        seed: Of the weights.

    Returns:
        What to convert: the directory, or the archive for ``openai``.

    Raises:
        ConfigError: An argument is unknown, or the layout cannot hold these sizes.
    """
    if layout not in LAYOUTS:
        raise ConfigError(f"layout: {layout!r}, expected one of {', '.join(LAYOUTS)}")
    if dtype not in DTYPES:
        raise ConfigError(f"dtype: {dtype!r}, expected one of {', '.join(DTYPES)}")
    if isinstance(variant, str) and variant not in VARIANTS:
        raise ConfigError(f"variant: {variant!r}, expected one of {', '.join(VARIANTS)}")
    config = VARIANTS[variant] if isinstance(variant, str) else variant
    if layout in ("hf_clip_model", "open_clip", "openai") and config.projection_dim is None:
        raise ConfigError(f"projection_dim: None, expected a number for the layout {layout}")
    tensors = {name: tensor.to(DTYPES[dtype]) for name, tensor in make_weights(config, seed).items()}
    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    if layout == "openai":
        return _write_openai(path / "model.pt", config, tensors, seed)
    if layout == "open_clip":
        _write_open_clip(path, config, tensors, seed)
    else:
        _write_huggingface(path, config, tensors, layout, dtype, seed)
    return path


def _write_huggingface(
    directory: Path, config: VisionConfig, tensors: Tensors, layout: Layout, dtype: str, seed: int
) -> None:
    vision = {
        "attention_dropout": 0.0,
        "hidden_act": config.hidden_act,
        "hidden_size": config.hidden_size,
        "image_size": config.image_size,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": config.intermediate_size,
        "layer_norm_eps": config.layer_norm_eps,
        "model_type": "clip_vision_model",
        "num_attention_heads": config.num_heads,
        "num_channels": 3,
        "num_hidden_layers": config.num_layers,
        "patch_size": config.patch_size,
        "projection_dim": config.projection_dim or 512,
    }
    model_class = "CLIPVisionModelWithProjection"
    if layout in ("hf_vision", "hf_vision_bare") or config.projection_dim is None:
        model_class = "CLIPVisionModel"
        tensors = {name: tensor for name, tensor in tensors.items() if name != "visual_projection.weight"}
    if layout == "hf_vision_bare":
        tensors = {name.removeprefix("vision_model."): tensor for name, tensor in tensors.items()}
    values: dict[str, Any] = {"architectures": [model_class], "dtype": dtype, **vision}
    if layout == "hf_clip_model":
        values = {
            "architectures": ["CLIPModel"],
            "dtype": dtype,
            "initializer_factor": 1.0,
            "logit_scale_init_value": 2.6592,
            "model_type": "clip",
            "projection_dim": config.projection_dim,
            "text_config": _text_config(config),
            "vision_config": vision,
        }
        tensors = {**make_text_weights(config.dimension, DTYPES[dtype], seed), **tensors}
    _write_json(directory / "config.json", values)
    _write_json(directory / "preprocessor_config.json", _preprocessor_config(config.image_size))
    if layout == "hf_bin":
        torch.save(tensors, directory / "pytorch_model.bin")
    elif layout == "hf_sharded":
        _write_shards(directory, tensors)
    else:
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def _write_shards(directory: Path, tensors: Tensors, shards: int = 3) -> None:
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        # every third name: the tensors of one block lie in all of them
        part = {name: tensors[name] for name in names[shard::shards]}
        save_file(part, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    size = sum(tensor.nbytes for tensor in tensors.values())
    _write_json(
        directory / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": weight_map}
    )


def _write_open_clip(directory: Path, config: VisionConfig, tensors: Tensors, seed: int) -> None:
    width, mlp = config.hidden_size, config.intermediate_size
    ratio = mlp / width
    if int(width * ratio) != mlp:  # open_clip truncates
        ratio = (mlp + 0.5) / width
    vision: dict[str, Any] = {
        "image_size": config.image_size,
        "layers": config.num_layers,
        "width": width,
        "head_width": width // config.num_heads,
        "mlp_ratio": ratio,
        "patch_size": config.patch_size,
    }
    text = {
        "context_length": CONTEXT,
        "vocab_size": VOCABULARY,
        "width": TEXT_WIDTH,
        "heads": TEXT_HEADS,
        "layers": TEXT_LAYERS,
    }
    model: dict[str, Any] = {"embed_dim": config.projection_dim, "vision_cfg": vision, "text_cfg": text}
    if config.hidden_act == "quick_gelu":
        model["quick_gelu"] = True
    if config.layer_norm_eps != 1e-5:
        vision["norm_kwargs"] = {"eps": config.layer_norm_eps}
    preprocess = {"mean": list(CLIP_MEAN), "std": list(CLIP_STD), "interpolation": "bicubic", "resize_mode": "shortest"}
    _write_json(directory / "open_clip_config.json", {"model_cfg": model, "preprocess_cfg": preprocess})
    dtype = tensors["vision_model.pre_layrnorm.weight"].dtype
    renamed = {**_openai_names(tensors), **_openai_names(make_text_weights(config.dimension, dtype, seed))}
    save_file(renamed, directory / "open_clip_model.safetensors", metadata={"format": "pt"})


def _write_openai(file: Path, config: VisionConfig, tensors: Tensors, seed: int) -> Path:
    root = _Node()
    named = {**_openai_names(tensors), **_openai_names(make_text_weights(config.dimension, torch.float32, seed))}
    for name, tensor in named.items():
        # as OpenAI's convert_weights leaves them: matrices of products half precision, the rest single
        half = any(part in name for part in (".attn.", ".mlp.", "conv1", "proj"))
        _attach(root, name, nn.Parameter(tensor.to(torch.float16 if half else torch.float32), requires_grad=False))
    for name, size in (
        ("input_resolution", config.image_size),
        ("context_length", CONTEXT),
        ("vocab_size", VOCABULARY),
    ):
        root.register_buffer(name, torch.tensor(size))
    with warnings.catch_warnings():
        # the layout is TorchScript, deprecated or not
        warnings.filterwarnings("ignore", r"`torch\.jit\.(script|save)` is deprecated", DeprecationWarning)
        torch.jit.save(torch.jit.script(root), file)
    return file


class _Node(nn.Module):
    """A module that only holds others."""


def _attach(root: nn.Module, name: str, parameter: nn.Parameter) -> None:
    *path, leaf = name.split(".")
    node = root
    for part in path:
        if not hasattr(node, part):
            node.add_module(part, _Node())
        node = node.get_submodule(part)
    node.register_parameter(leaf, parameter)


def _openai_names(tensors: Tensors) -> Tensors:
    """Tensors of either tower under OpenAI's names: q, k and v stacked, projections transposed."""
    simple = {
        "vision_model.embeddings.class_embedding": "visual.class_embedding",
        "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
        "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
        "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "logit_scale": "logit_scale",
    }
    parts = (
        ("vision_model.encoder.layers.", "visual.transformer.resblocks."),
        ("text_model.encoder.layers.", "transformer.resblocks."),
        ("vision_model.pre_layrnorm", "visual.ln_pre"),
        ("vision_model.post_layernorm", "visual.ln_post"),
        ("text_model.final_layer_norm", "ln_final"),
        ("layer_norm1", "ln_1"),
        ("layer_norm2", "ln_2"),
        ("self_attn.out_proj", "attn.out_proj"),
        ("mlp.fc1", "mlp.c_fc"),
        ("mlp.fc2", "mlp.c_proj"),
        ("self_attn.q_proj.", "attn.in_proj_"),
    )
    renamed: Tensors = {}
    for name, tensor in tensors.items():
        if name in ("visual_projection.weight", "text_projection.weight"):
            renamed["visual.proj" if name.startswith("visual") else "text_projection"] = tensor.t().contiguous()
            continue
        if ".k_proj." in name or ".v_proj." in name:
            continue
        if ".q_proj." in name:
            tensor = torch.cat([tensors[name.replace(".q_proj.", f".{one}_proj.")] for one in "qkv"])
        new = simple.get(name, name)
        for old, part in parts:
            new = new.replace(old, part)
        renamed[new] = tensor
    return renamed


def _text_config(config: VisionConfig) -> dict[str, Any]:
    return {
        "hidden_act": config.hidden_act,
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 2 * TEXT_WIDTH,
        "num_hidden_layers": TEXT_LAYERS,
        "num_attention_heads": TEXT_HEADS,
        "max_position_embeddings": CONTEXT,
        "vocab_size": VOCABULARY,
        "projection_dim": config.projection_dim,
        "pad_token_id": 1,
        "bos_token_id": VOCABULARY - 2,
        "eos_token_id": VOCABULARY - 1,
        "model_type": "clip_text_model",
    }


def _preprocessor_config(image_size: int) -> dict[str, Any]:
    return {
        "crop_size": {"height": image_size, "width": image_size},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(CLIP_MEAN),
        "image_processor_type": "CLIPImageProcessor",
        "image_std": list(CLIP_STD),
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": image_size},
    }


def _write_json(file: Path, values: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write a checkpoint from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m llm_compression.harness.clip.checkpoints",
        description="Write a seeded CLIP checkpoint in the layout of a real one.",
        epilog="example: python -m llm_compression.harness.clip.checkpoints b16 /tmp/b16 --layout hf --seed 0",
    )
    parser.add_argument("variant", choices=tuple(VARIANTS), metavar="VARIANT", help=", ".join(VARIANTS))
    parser.add_argument("out", type=Path, metavar="OUT", help="directory to write")
    parser.add_argument("--layout", choices=LAYOUTS, default="hf", help="default: %(default)s")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float32", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    given = parser.parse_args(arguments)
    path = make_checkpoint(given.out, given.variant, layout=given.layout, dtype=given.dtype, seed=given.seed)
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
