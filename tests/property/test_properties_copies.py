"""Property of copies: what was pickled or copied gives the bits of the original."""

from __future__ import annotations

import copy
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm_compression.harness.clip.checkpoint_weights import make_weights
from llm_compression.inference.weight_format import WEIGHTS_FILE, WeightMetadata, write_weights
from llm_compression.multimodal.vision_config import VisionConfig
from llm_compression.multimodal.vision_encoder import VisionEncoder
from llm_compression.text.text_config import TextConfig
from llm_compression.text.text_encoder import TextEncoder
from tests.strategies import BATCH_SIZES, SEEDS, random_pixels, vision_configs
from tests.text_models import text_configs, text_weights, token_rows

WAYS = st.sampled_from((copy.deepcopy, copy.copy, lambda encoder: pickle.loads(pickle.dumps(encoder))))


@pytest.mark.property(33)
@pytest.mark.requirement("27.6", "27.7")
@given(config=vision_configs(), seed=SEEDS, n=BATCH_SIZES, way=WAYS)
def test_a_copy_of_an_image_tower(config: VisionConfig, seed: int, n: int, way: Callable[[Any], Any]) -> None:
    """Property 33: *For any* configuration of an image tower, any pixels, and any configuration of a text encoder and
    token ids, an encoder that was pickled and unpickled, or copied, gives in float32 the bits of the original."""
    with tempfile.TemporaryDirectory() as directory:
        metadata = WeightMetadata(config=config.to_dict())
        write_weights(Path(directory, WEIGHTS_FILE), make_weights(config, seed).items(), metadata)
        original = VisionEncoder(directory, dtype="float32")
        copied = way(original)
    pixels = random_pixels(n, config.image_size, seed)
    assert torch.equal(torch.as_tensor(copied.encode_pixels(pixels)), torch.as_tensor(original.encode_pixels(pixels)))


@pytest.mark.property(33)
@pytest.mark.requirement("27.6", "27.7")
@given(config=text_configs(), seed=st.integers(0, 99), way=WAYS, data=st.data())
def test_a_copy_of_a_text_encoder(
    config: TextConfig, seed: int, way: Callable[[Any], Any], data: st.DataObject
) -> None:
    """Property 33: *For any* configuration of an image tower, any pixels, and any configuration of a text encoder and
    token ids, an encoder that was pickled and unpickled, or copied, gives in float32 the bits of the original."""
    rows = data.draw(token_rows(config))
    with tempfile.TemporaryDirectory() as directory:
        metadata = WeightMetadata(config=config.to_dict())
        write_weights(Path(directory, WEIGHTS_FILE), text_weights(config, seed).items(), metadata)
        original = TextEncoder(directory, dtype="float32")
        copied = way(original)
    assert torch.equal(torch.as_tensor(copied.encode_ids(rows)), torch.as_tensor(original.encode_ids(rows)))
