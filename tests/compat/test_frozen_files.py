"""Frozen weight files of every layout there was, each beside the script that wrote it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from llm_compression import ConfigError, ImageProcessor, VisionConfig, VisionEncoder, WeightFormatError, WeightLoader
from tests.conftest import AssertWithin

HERE = Path(__file__).parent
EARLIER, FORMAT_1 = HERE / "earlier_layout", HERE / "format_1"
CONFIG = VisionConfig(16, 8, 16, 2, 2, 24, 8)


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    """The weights of the earlier layout without the config.json."""
    shutil.copy(EARLIER / "weights.parquet", tmp_path)
    return tmp_path


def check(encoder: VisionEncoder, assert_within: AssertWithin) -> None:
    found = encoder.encode_pixels(torch.from_numpy(np.load(EARLIER / "pixels.npy")), normalize=False)
    assert_within("precision-float32-b16", found, torch.from_numpy(np.load(EARLIER / "expected.npy")))


@pytest.mark.requirement("3.7")
def test_earlier_layout_yields_its_tensors() -> None:
    """3.7: WHERE a Weight File has the Earlier Layout, THE WeightLoader SHALL yield its tensors."""
    loader = WeightLoader(EARLIER)
    assert loader.metadata is None
    weights = loader.load_weights()
    assert {name: tuple(tensor.shape) for name, tensor in weights.items()} == CONFIG.expected_shapes()
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}


@pytest.mark.requirement("3.8")
def test_earlier_layout_takes_the_config_beside_it(assert_within: AssertWithin) -> None:
    """3.8: WHERE a Weight File has the Earlier Layout, THE VisionEncoder SHALL take the model config from a
    `config.json` beside the file or from the caller."""
    encoder = VisionEncoder(EARLIER, dtype="float32")
    assert encoder.config == CONFIG
    assert encoder.processor.to_dict() == ImageProcessor(16).to_dict()
    check(encoder, assert_within)


@pytest.mark.requirement("3.8")
def test_earlier_layout_takes_the_callers_config(alone: Path, assert_within: AssertWithin) -> None:
    """3.8: ... or from the caller; one that contradicts the file's own is refused."""
    check(VisionEncoder(alone, dtype="float32", config=CONFIG), assert_within)
    with pytest.raises(ConfigError, match="num_heads=4"):
        VisionEncoder(EARLIER, config=VisionConfig(16, 8, 16, 2, 4, 24, 8))


@pytest.mark.requirement("3.9")
def test_earlier_layout_without_a_config(alone: Path) -> None:
    """3.9: IF a Weight File has the Earlier Layout and neither the caller nor a `config.json` gives a config, THEN THE
    VisionEncoder SHALL raise ConfigError that says where a config was looked for."""
    with pytest.raises(ConfigError, match=r"config\.json") as caught:
        VisionEncoder(alone)
    assert str(alone) in str(caught.value)


@pytest.mark.requirement("3.9")
def test_earlier_layout_with_a_broken_config(alone: Path) -> None:
    """3.9: a `config.json` that is not a JSON object, or lacks a field, is refused by name."""
    (alone / "config.json").write_text("{")
    with pytest.raises(WeightFormatError, match=r"config\.json: not JSON"):
        VisionEncoder(alone)
    (alone / "config.json").write_text(json.dumps({"image_size": 16}))
    with pytest.raises(ConfigError, match=r"missing .*hidden_act"):
        VisionEncoder(alone)


@pytest.mark.requirement("3.5", "3.6")
def test_format_1(assert_within: AssertWithin) -> None:
    """3.5, 3.6: a file of format version 1 gives the config, the bits and the embeddings that it was written with."""
    loader = WeightLoader(FORMAT_1)
    assert loader.metadata is not None
    assert loader.verify() == "2b0ba0028f4488b475f6ec5cf9a70748c616a41784abe551b87539836c46f3b3"
    earlier = WeightLoader(EARLIER).load_weights()
    weights = loader.load_weights()
    assert list(weights) == list(earlier)
    assert all(torch.equal(weights[name], earlier[name]) for name in earlier)
    encoder = VisionEncoder(FORMAT_1, dtype="float32")
    assert encoder.config == CONFIG
    check(encoder, assert_within)
