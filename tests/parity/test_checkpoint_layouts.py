"""The seeded checkpoints against the code that real ones are for: transformers, and OpenAI's modules in PyTorch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPImageProcessor, CLIPModel, CLIPVisionModel, CLIPVisionModelWithProjection

from llm_compression.convert import convert_checkpoint
from llm_compression.harness.clip.checkpoint_weights import make_weights
from llm_compression.harness.clip.checkpoints import VARIANTS, Layout, make_checkpoint
from llm_compression.inference.weight_loader import WeightLoader
from llm_compression.multimodal.image_processor import ImageProcessor
from llm_compression.multimodal.vision_config import VisionConfig
from llm_compression.multimodal.vision_encoder import VisionEncoder
from tests.strategies import random_pixels

TINY = VARIANTS["tiny"]


def load(model_class: Any, directory: Path) -> Any:
    model, info = model_class.from_pretrained(directory, output_loading_info=True)
    assert {key: list(values) for key, values in info.items() if values} == {}
    return model


@pytest.mark.requirement("13.4")
@pytest.mark.parametrize(
    ("layout", "model_class"),
    [
        ("hf", CLIPVisionModelWithProjection),
        ("hf_sharded", CLIPVisionModelWithProjection),
        ("hf_bin", CLIPVisionModelWithProjection),
        ("hf_clip_model", CLIPModel),
        ("hf_vision", CLIPVisionModel),
        ("hf_vision_bare", CLIPVisionModel),
    ],
)
def test_transformers_loads_what_the_harness_writes(tmp_path: Path, layout: Layout, model_class: Any) -> None:
    """No tensor is missing, unexpected or mis-shaped, and every one has the bits that it was made of."""
    model = load(model_class, make_checkpoint(tmp_path, "tiny", layout=layout))
    weights, state = make_weights(TINY), model.state_dict()
    bare = "embeddings.class_embedding" in state
    found = {name: state.get(name.removeprefix("vision_model.") if bare else name) for name in weights}
    if model_class is CLIPVisionModel:
        assert found.pop("visual_projection.weight") is None
    assert all(tensor is not None and torch.equal(tensor, weights[name]) for name, tensor in found.items())


@pytest.mark.requirement("9.1", "9.2", "9.4")
@pytest.mark.parametrize(
    ("layout", "model_class", "projection"),
    [
        ("hf", CLIPVisionModelWithProjection, 16),
        ("hf_clip_model", CLIPModel, 16),
        ("hf_vision", CLIPVisionModel, None),
    ],
)
@pytest.mark.parametrize("shard_size", ["1GB", "20KB"])
def test_what_transformers_saves_is_converted_to_the_bit(
    tmp_path: Path, layout: Layout, model_class: Any, projection: int | None, shard_size: str
) -> None:
    """Files that transformers itself wrote, whole or sharded, with its image processor beside them."""
    model = load(model_class, make_checkpoint(tmp_path / "made", "tiny", layout=layout))
    model.save_pretrained(tmp_path / "saved", max_shard_size=shard_size)
    mean = [0.5, 0.4, 0.3]
    processor = CLIPImageProcessor(image_mean=mean, size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32})
    processor.save_pretrained(tmp_path / "saved")
    convert_checkpoint(tmp_path / "saved", tmp_path / "out", vision_only=True)
    loader = WeightLoader(tmp_path / "out")
    weights = make_weights(TINY)
    found = loader.load_weights()
    assert set(found) == {name for name in weights if projection or not name.startswith("visual_projection")}
    assert all(torch.equal(tensor, weights[name]) for name, tensor in found.items())
    assert loader.metadata is not None
    assert loader.config == {**TINY.to_dict(), "projection_dim": projection}
    assert loader.metadata.preprocessing == ImageProcessor(32, 40, mean=mean).to_dict()


class Block(nn.Module):
    """A residual attention block under OpenAI's names, whose attention is PyTorch's own."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width, mlp = config.hidden_size, config.intermediate_size
        self.attn = nn.MultiheadAttention(width, config.num_heads, batch_first=True)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, mlp), "c_proj": nn.Linear(mlp, width)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        hidden = self.mlp["c_fc"](self.ln_2(x))
        moved: torch.Tensor = x + self.mlp["c_proj"](hidden * torch.sigmoid(1.702 * hidden))
        return moved


class Tower(nn.Module):
    """An image tower under OpenAI's names, which open_clip keeps."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width, dimension = config.hidden_size, config.dimension
        self.conv1 = nn.Conv2d(3, width, config.patch_size, config.patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(config.num_positions, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = nn.ModuleDict(
            {"resblocks": nn.Sequential(*[Block(config) for _ in range(config.num_layers)])}
        )
        self.proj = nn.Parameter(torch.empty(width, dimension))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = self.conv1(pixels).flatten(2).transpose(1, 2)  # (n, patches, width)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1) + self.positional_embedding
        x = self.transformer["resblocks"](self.ln_pre(x))
        embedding: torch.Tensor = self.ln_post(x[:, 0]) @ self.proj
        return embedding


@pytest.mark.requirement("9.3")
@pytest.mark.parametrize("layout", ["open_clip", "openai"])
def test_a_converted_tower_is_the_one_that_openai_modules_compute(
    tmp_path: Path, layout: Layout, assert_within: Callable[[str, torch.Tensor, torch.Tensor], None]
) -> None:
    """q, k and v in PyTorch's order, the projection transposed, every tensor under its name: the same embeddings."""
    config = VisionConfig(
        image_size=32,
        patch_size=8,
        hidden_size=128,
        num_layers=3,
        num_heads=2,
        intermediate_size=192,
        projection_dim=24,
    )
    source = make_checkpoint(tmp_path / "source", config, layout=layout)
    if layout == "openai":
        with warnings.catch_warnings():
            # the layout under test is TorchScript
            warnings.filterwarnings("ignore", r"`torch\.jit\.load` is deprecated", DeprecationWarning)
            archive = torch.jit.load(source)
        state: dict[str, torch.Tensor] = archive.state_dict()
    else:
        state = load_file(source / "open_clip_model.safetensors")
    tower = Tower(config).eval()
    visual = {name.removeprefix("visual."): t.float() for name, t in state.items() if name.startswith("visual.")}
    tower.load_state_dict(visual)
    convert_checkpoint(source, tmp_path)
    pixels = random_pixels(4, 32, seed=1)
    with torch.inference_mode():
        expected = tower(pixels)
    found = VisionEncoder(tmp_path, dtype="float32").encode_pixels(pixels, normalize=False, convert_to_tensor=True)
    assert_within("precision-float32-b16", found, expected)
