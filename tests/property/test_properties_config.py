"""Properties of VisionConfig and PatchEmbedding."""

from __future__ import annotations

import math
import tempfile
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # the name that PyTorch's users know
from hypothesis import given
from hypothesis import strategies as st

from llm_compression.errors import ConfigError
from llm_compression.inference.paths import forced
from llm_compression.inference.weight_format import WeightMetadata, write_weights
from llm_compression.inference.weight_loader import WeightLoader
from llm_compression.multimodal.vision_config import VisionConfig
from llm_compression.multimodal.vision_encoder import PatchEmbedding
from tests.strategies import SEEDS, random_pixels, vision_configs

SIZES = ("image_size", "patch_size", "hidden_size", "num_layers", "num_heads", "intermediate_size", "projection_dim")
NOT_A_SIZE = (
    st.integers(max_value=0) | st.floats() | st.text(max_size=3) | st.booleans() | st.binary(max_size=2) | st.just([4])
)


@pytest.mark.property(7)
@given(config=vision_configs(), n=st.integers(0, 3), seed=SEEDS, packed=st.booleans())
def test_patch_embedding_is_a_convolution(config: VisionConfig, n: int, seed: int, packed: bool) -> None:
    """Property 7: *For any* configuration and pixels, PatchEmbedding equals the product of the flattened projection
    with each patch, cut out by plain indexing and taken row by row."""
    size, patch, width = config.image_size, config.patch_size, config.hidden_size
    pixels = random_pixels(n, size, seed)
    weight = torch.randn(width, 3, patch, patch, generator=torch.Generator().manual_seed(seed))
    embedding = PatchEmbedding(config)
    assert embedding.projection.bias is None
    with forced(linear="packed" if packed else "plain"):
        embedding.projection.load(weight, torch.device("cpu"), torch.float32)
    with torch.inference_mode():
        out = embedding(pixels)
    assert out.shape == (n, config.num_patches, width)
    exact = torch.empty(n, config.num_patches, width, dtype=torch.float64)
    for row in range(size // patch):
        for column in range(size // patch):
            cut = pixels[:, :, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            exact[:, row * (size // patch) + column] = cut.double().flatten(1) @ weight.double().flatten(1).T
    scale = math.sqrt(3) * patch  # of the sums, whose terms have unit variance
    torch.testing.assert_close(out / scale, exact.float() / scale)
    convolved = F.conv2d(pixels.double(), weight.double(), stride=patch).flatten(2).transpose(1, 2)
    torch.testing.assert_close(convolved, exact)


@pytest.mark.property(7)
@given(config=vision_configs(), seed=SEEDS)
def test_a_new_patch_embedding_is_the_convolution_it_holds(config: VisionConfig, seed: int) -> None:
    """Property 7: *For any* configuration and pixels, PatchEmbedding equals the product of the flattened projection
    with each patch, cut out by plain indexing and taken row by row: also before any weights were loaded."""
    pixels, embedding = random_pixels(2, config.image_size, seed), PatchEmbedding(config)
    with torch.inference_mode():
        expected = F.conv2d(pixels, embedding.projection.weight, stride=config.patch_size).flatten(2).transpose(1, 2)
        torch.testing.assert_close(embedding(pixels), expected)


@pytest.mark.property(8)
@given(config=vision_configs())
def test_derived_values_and_round_trip(config: VisionConfig) -> None:
    """Property 8: *For any* valid sizes, the derived values of VisionConfig follow from its fields, and the
    configuration read back from a weight file equals the one written; for invalid ones, construction raises ConfigError
    that names the field."""
    assert config.num_patches == (config.image_size // config.patch_size) ** 2
    assert config.num_positions == config.num_patches + 1
    assert config.dimension == (config.projection_dim or config.hidden_size)
    assert VisionConfig.from_dict(config.to_dict()) == config
    with tempfile.TemporaryDirectory() as directory:
        write_weights(Path(directory, "weights.parquet"), [], WeightMetadata(config=config.to_dict()))
        metadata = WeightLoader(directory).metadata
        assert metadata is not None
        assert VisionConfig.from_dict(metadata.config) == config


@pytest.mark.property(8)
@given(config=vision_configs(), data=st.data())
def test_an_invalid_field_is_named(config: VisionConfig, data: st.DataObject) -> None:
    """Property 8: *For any* valid sizes, the derived values of VisionConfig follow from its fields, and the
    configuration read back from a weight file equals the one written; for invalid ones, construction raises ConfigError
    that names the field."""
    name = data.draw(st.sampled_from([field.name for field in fields(VisionConfig)]))
    bad: Any
    if name == "hidden_act":
        bad = data.draw(st.text() | st.none() | st.sampled_from(("gelu_new", "QUICK_GELU", "relu", "gelu ")))
        if bad in ("gelu", "quick_gelu"):
            return
    elif name == "layer_norm_eps":
        bad = data.draw(st.floats(max_value=0) | st.sampled_from((math.nan, math.inf, None, "1e-5", True)))
    else:
        bad = data.draw(NOT_A_SIZE if name == "projection_dim" else NOT_A_SIZE | st.none())
    with pytest.raises(ConfigError) as caught:
        replace(config, **{name: bad})
    assert str(caught.value).startswith(f"{name}: {bad!r}, expected ")
    with pytest.raises(ConfigError):
        VisionConfig.from_dict({**config.to_dict(), name: bad})


@pytest.mark.property(8)
@given(config=vision_configs(), more=st.integers(1, 100))
def test_sizes_that_do_not_divide_are_named(config: VisionConfig, more: int) -> None:
    """Property 8: *For any* valid sizes, the derived values of VisionConfig follow from its fields, and the
    configuration read back from a weight file equals the one written; for invalid ones, construction raises ConfigError
    that names the field."""
    for whole, part in (("image_size", "patch_size"), ("hidden_size", "num_heads")):
        value, divisor = getattr(config, whole) + more, getattr(config, part)
        if value % divisor == 0:
            assert getattr(replace(config, **{whole: value}), whole) == value
            continue
        with pytest.raises(ConfigError) as caught:
            replace(config, **{whole: value})
        assert str(caught.value).startswith(f"{whole}: {value} is not a multiple of {part} {divisor}")
