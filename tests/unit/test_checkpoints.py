"""The seeded checkpoints: what real ones look like on disk, the same weights in every layout."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llm_compression.errors import ConfigError
from llm_compression.harness.clip.checkpoint_weights import make_weights
from llm_compression.harness.clip.checkpoints import LAYOUTS, VARIANTS, Layout, make_checkpoint
from llm_compression.multimodal.vision_config import VisionConfig

TINY = VARIANTS["tiny"]
WIDE = VisionConfig(image_size=16, patch_size=8, hidden_size=768, num_layers=1, num_heads=12, intermediate_size=768)


def load_archive(path: Path) -> dict[str, torch.Tensor]:
    with warnings.catch_warnings():
        # the layout under test is TorchScript
        warnings.filterwarnings("ignore", r"`torch\.jit\.load` is deprecated", DeprecationWarning)
        loaded = torch.jit.load(path)
    state: dict[str, torch.Tensor] = loaded.state_dict()
    return state


@pytest.mark.requirement("13.4")
def test_variants_are_the_clip_sizes() -> None:
    """``b16`` and ``b32`` have the exact sizes of CLIP: 197 and 50 positions, 86.2 M and 87.8 M parameters."""
    for name, positions, millions in (("b16", 197, 86.2), ("b32", 50, 87.8)):
        config = VARIANTS[name]
        parameters = sum(torch.Size(shape).numel() for shape in config.expected_shapes().values())
        assert (config.num_positions, round(parameters / 1e6, 1)) == (positions, millions)


@pytest.mark.requirement("13.4")
def test_the_same_seed_gives_the_same_bits_and_another_seed_others() -> None:
    """Weights depend on the sizes and the seed, and on nothing else."""
    first, again, other = make_weights(TINY, 7), make_weights(TINY, 7), make_weights(TINY, 8)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_weights_are_those_of_the_tower_and_no_bias_is_zero() -> None:
    """Every tensor of the tower is there, in file order, finite; a bias of zero would hide that it was dropped."""
    weights = make_weights(TINY)
    assert [(name, tuple(tensor.shape)) for name, tensor in weights.items()] == list(TINY.expected_shapes().items())
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    assert all((tensor != 0).all() for name, tensor in weights.items() if name.endswith(".bias"))


@pytest.mark.requirement("13.4")
def test_a_few_channels_run_hot() -> None:
    """At the width of CLIP six channels of the pre-layernorm are 10 to 30 times the others, and stand out in blocks."""
    weights = make_weights(WIDE)
    pre = weights["vision_model.pre_layrnorm.weight"]
    hot = (pre > 5).nonzero().flatten()
    assert len(hot) == 6
    assert 7 < pre[hot].min() < pre[hot].max() < 45
    blocks = weights["vision_model.encoder.layers.0.layer_norm1.weight"]
    assert blocks[hot].mean() > 1.3 * blocks.mean()


@pytest.mark.requirement("13.4")
@pytest.mark.parametrize(
    ("layout", "files", "architecture", "sample"),
    [
        ("hf", {"model.safetensors"}, "CLIPVisionModelWithProjection", "visual_projection.weight"),
        ("hf_clip_model", {"model.safetensors"}, "CLIPModel", "text_model.final_layer_norm.weight"),
        ("hf_vision", {"model.safetensors"}, "CLIPVisionModel", "vision_model.pre_layrnorm.weight"),
        ("hf_vision_bare", {"model.safetensors"}, "CLIPVisionModel", "pre_layrnorm.weight"),
    ],
)
def test_hugging_face_layouts(tmp_path: Path, layout: Layout, files: set[str], architecture: str, sample: str) -> None:
    """Each layout has the file names, the class and the tensor names that transformers writes."""
    path = make_checkpoint(tmp_path / "made", "tiny", layout=layout)
    assert path == tmp_path / "made"
    assert {file.name for file in path.iterdir()} == files | {"config.json", "preprocessor_config.json"}
    assert json.loads((path / "config.json").read_text())["architectures"] == [architecture]
    names = load_file(path / "model.safetensors").keys()
    assert sample in names
    assert ("visual_projection.weight" in names) == (architecture != "CLIPVisionModel")


def test_the_sharded_layout_has_an_index_of_every_tensor(tmp_path: Path) -> None:
    """Every tensor stands in the index and in the shard that the index says."""
    path = make_checkpoint(tmp_path, "tiny", layout="hf_sharded")
    weight_map = json.loads((path / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(weight_map) == set(TINY.expected_shapes())
    shards = {file: load_file(path / file) for file in set(weight_map.values())}
    assert len(shards) == 3
    assert all(name in shards[file] for name, file in weight_map.items())


def test_the_pickled_layout_is_a_state_dict(tmp_path: Path) -> None:
    """``pytorch_model.bin`` is what torch.save makes of a state dict."""
    state = torch.load(make_checkpoint(tmp_path, "tiny", layout="hf_bin") / "pytorch_model.bin", weights_only=True)
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == TINY.expected_shapes()


@pytest.mark.requirement("13.4")
def test_the_open_clip_layout(tmp_path: Path) -> None:
    """open_clip's names, q, k and v stacked, the projection [W, D], and sizes as its hub repositories state them."""
    path = make_checkpoint(tmp_path, "tiny", layout="open_clip")
    weights, state = make_weights(TINY), load_file(path / "open_clip_model.safetensors")
    block = "vision_model.encoder.layers.1.self_attn."
    stacked = torch.cat([weights[f"{block}{one}_proj.weight"] for one in "qkv"])
    assert torch.equal(state["visual.transformer.resblocks.1.attn.in_proj_weight"], stacked)
    assert torch.equal(state["visual.proj"], weights["visual_projection.weight"].t())
    assert {"token_embedding.weight", "ln_final.weight", "text_projection", "logit_scale"} <= set(state)
    model = json.loads((path / "open_clip_config.json").read_text())["model_cfg"]
    assert model["vision_cfg"] == {
        "image_size": 32,
        "layers": 2,
        "width": 32,
        "head_width": 8,
        "mlp_ratio": 2.0,
        "patch_size": 8,
    }
    assert (model["embed_dim"], model["quick_gelu"]) == (16, True)


def test_the_open_clip_ratio_survives_its_truncation(tmp_path: Path) -> None:
    """open_clip's MLP is ``int(width * mlp_ratio)`` wide, and int(49 * (1 / 49)) is 0."""
    config = VisionConfig(
        image_size=8, patch_size=8, hidden_size=49, num_layers=1, num_heads=7, intermediate_size=1, projection_dim=3
    )
    path = make_checkpoint(tmp_path, config, layout="open_clip")
    ratio = json.loads((path / "open_clip_config.json").read_text())["model_cfg"]["vision_cfg"]["mlp_ratio"]
    assert (int(49 * (1 / 49)), int(49 * ratio)) == (0, 1)


@pytest.mark.requirement("13.4")
def test_the_openai_layout_is_a_torchscript_archive_of_mixed_precision(tmp_path: Path) -> None:
    """A real archive: TorchScript code inside, OpenAI's names, float16 matrices, float32 norms, three sizes."""
    path = make_checkpoint(tmp_path, "tiny", layout="openai")
    assert any(name.endswith("/constants.pkl") for name in zipfile.ZipFile(path).namelist())
    state = load_archive(path)
    assert {state[name].item() for name in ("input_resolution", "context_length", "vocab_size")} == {32, 16, 64}
    half = {name for name, tensor in state.items() if tensor.dtype == torch.float16}
    assert {"visual.conv1.weight", "visual.proj", "visual.transformer.resblocks.0.attn.in_proj_bias"} <= half
    assert not half & {"visual.class_embedding", "visual.positional_embedding", "visual.ln_pre.weight", "ln_final.bias"}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_checkpoint_has_the_dtype_asked_for(tmp_path: Path, dtype: str) -> None:
    """Every tensor is stored in the dtype that was asked for."""
    tensors = load_file(make_checkpoint(tmp_path, "tiny", dtype=dtype) / "model.safetensors")
    assert {str(tensor.dtype) for tensor in tensors.values()} == {f"torch.{dtype}"}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_writing_twice_gives_the_same_tensors(tmp_path: Path, layout: Layout) -> None:
    """A checkpoint is a function of its arguments."""
    read: dict[str, Callable[[Path], dict[str, torch.Tensor]]] = {
        ".safetensors": load_file,
        ".bin": torch.load,
        ".pt": load_archive,
    }
    runs = []
    for run in ("a", "b"):
        make_checkpoint(tmp_path / run, "tiny", layout=layout)
        files = sorted(file for file in (tmp_path / run).iterdir() if file.suffix in read)
        runs.append([read[file.suffix](file) for file in files])
    for first, second in zip(*runs, strict=True):
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variant": "b64"}, "variant: 'b64', expected one of tiny, b32, b16"),
        ({"layout": "tf"}, "layout: 'tf', expected one of hf, "),
        ({"dtype": "int8"}, "dtype: 'int8', expected one of float32, "),
        ({"variant": VisionConfig(projection_dim=None), "layout": "openai"}, "projection_dim: None"),
    ],
)
def test_a_wrong_argument_is_named(tmp_path: Path, arguments: dict[str, object], message: str) -> None:
    """An unknown variant, layout or dtype, and sizes that a layout cannot hold, are errors; nothing is written."""
    with pytest.raises(ConfigError, match=message):
        make_checkpoint(tmp_path / "out", **{"variant": "tiny", **arguments})  # type: ignore[arg-type]  # on purpose
    assert not (tmp_path / "out").exists()


def test_the_command_writes_a_checkpoint(tmp_path: Path) -> None:
    """``python -m llm_compression.harness.clip.checkpoints VARIANT OUT`` writes it and says where."""
    command = [sys.executable, "-m", "llm_compression.harness.clip.checkpoints", "tiny", str(tmp_path / "made")]
    done = subprocess.run([*command, "--layout", "hf_bin"], capture_output=True, text=True, check=True)
    assert done.stdout == f"wrote {tmp_path / 'made'}\n"
    assert (tmp_path / "made" / "pytorch_model.bin").exists()
    assert subprocess.run([*command, "--layout", "tf"], capture_output=True, check=False).returncode == 2
