"""The seeded checkpoints against transformers: its from_pretrained loads every Hugging Face layout, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPImageProcessor, CLIPModel, CLIPVisionModel, CLIPVisionModelWithProjection

from llm_compression.convert import convert_checkpoint
from llm_compression.harness.checkpoint_weights import make_weights
from llm_compression.harness.checkpoints import VARIANTS, Layout, make_checkpoint
from llm_compression.inference.weight_loader import WeightLoader
from llm_compression.multimodal.image_processor import ImageProcessor

TINY = VARIANTS["tiny"]


def load(model_class: Any, directory: Path) -> Any:
    model, info = model_class.from_pretrained(directory, output_loading_info=True)
    assert {key: list(values) for key, values in info.items() if values} == {}
    return model


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
    convert_checkpoint(tmp_path / "saved", tmp_path / "out")
    loader = WeightLoader(tmp_path / "out")
    weights = make_weights(TINY)
    found = loader.load_weights()
    assert set(found) == {name for name in weights if projection or not name.startswith("visual_projection")}
    assert all(torch.equal(tensor, weights[name]) for name, tensor in found.items())
    assert loader.metadata is not None
    assert loader.config == {**TINY.to_dict(), "projection_dim": projection}
    assert loader.metadata.preprocessing == ImageProcessor(32, 40, mean=mean).to_dict()
