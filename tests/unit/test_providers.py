"""The contract of `tests/provider_contract.py` for this package's encoders, and which of them is the default."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llm_compression.embedding_provider import EmbeddingProvider
from llm_compression.errors import ConfigError, WeightFormatError
from llm_compression.harness.clip.checkpoint_weights import make_weights
from llm_compression.inference.weight_format import WEIGHTS_FILE, WeightMetadata, write_weights
from llm_compression.multimodal.clip_engine import CLIPEngine
from llm_compression.multimodal.vision_encoder import VisionEncoder
from llm_compression.multimodal.vision_provider import ArrowVisionProvider
from llm_compression.open_model import MODEL_VARIABLE, get_default_provider
from llm_compression.text.arrow_engine import ArrowEngine
from llm_compression.text.text_inputs import Text
from tests.provider_contract import ProviderContract
from tests.text_models import TINY_BERT, TINY_CLIP, TINY_CLIP_TEXT, write_text_model


def _pictures() -> list[Image.Image]:
    rng = np.random.default_rng(1)
    return [Image.fromarray(rng.integers(0, 256, (30, 20, 3), dtype=np.uint8)) for _ in range(3)]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT."""
    return write_text_model(tmp_path_factory.mktemp("bert"), TINY_BERT)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP."""
    return write_text_model(tmp_path_factory.mktemp("clip"), TINY_CLIP)


@pytest.fixture(scope="module")
def vision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny image tower."""
    directory, config = tmp_path_factory.mktemp("vision"), TINY_CLIP.vision
    write_weights(directory / WEIGHTS_FILE, make_weights(config).items(), WeightMetadata(config=config.to_dict()))
    return directory


class TestArrowEngine(ProviderContract):
    """18.1: ArrowEngine is an EmbeddingProvider."""

    @pytest.fixture
    def provider(self, bert: Path) -> EmbeddingProvider:
        """In float32, where batches agree."""
        return ArrowEngine(bert, dtype="float32")

    @pytest.fixture
    def items(self) -> list[Any]:
        """Texts."""
        return ["a red cat", "the dog", "blue"]

    @pytest.fixture
    def bad_item(self) -> Any:
        """A text without a word."""
        return ""


class TestCLIPEngineOfTexts(TestArrowEngine):
    """18.1: CLIPEngine is an EmbeddingProvider of texts that are marked."""

    @pytest.fixture
    def provider(self, clip: Path) -> EmbeddingProvider:
        """In float32."""
        return CLIPEngine(clip, dtype="float32")

    @pytest.fixture
    def items(self) -> list[Any]:
        """Texts."""
        return [Text("a red cat"), Text("the dog"), Text("blue")]

    @pytest.fixture
    def bad_item(self) -> Any:
        """A text without a word."""
        return Text("")


class TestArrowEngineOfMarkedTexts(TestCLIPEngineOfTexts):
    """18.1: ArrowEngine takes texts that are marked as well."""

    @pytest.fixture
    def provider(self, bert: Path) -> EmbeddingProvider:
        """In float32, where batches agree."""
        return ArrowEngine(bert, dtype="float32")


class TestVisionEncoder(ProviderContract):
    """18.1: VisionEncoder is an EmbeddingProvider."""

    @pytest.fixture
    def provider(self, vision: Path) -> EmbeddingProvider:
        """In float32."""
        return VisionEncoder(vision, dtype="float32")

    @pytest.fixture
    def items(self) -> list[Any]:
        """Pictures."""
        return list(_pictures())

    @pytest.fixture
    def bad_item(self) -> Any:
        """Bytes that are no picture."""
        return b"no picture"


class TestArrowVisionProvider(TestVisionEncoder):
    """18.1: ArrowVisionProvider is an EmbeddingProvider."""

    @pytest.fixture
    def provider(self, vision: Path) -> EmbeddingProvider:
        """In float32."""
        return ArrowVisionProvider(vision, dtype="float32")


class TestCLIPEngineOfImages(TestVisionEncoder):
    """18.1: CLIPEngine is an EmbeddingProvider of images."""

    @pytest.fixture
    def provider(self, clip: Path) -> EmbeddingProvider:
        """In float32."""
        return CLIPEngine(clip, dtype="float32")


@pytest.mark.requirement("18.3")
def test_the_default_is_what_the_file_is(bert: Path, clip: Path, vision: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """18.3: WHEN a model is named, by path or by variable, its own kind of provider is returned; the path wins."""
    assert isinstance(get_default_provider(bert), ArrowEngine)
    assert isinstance(get_default_provider(clip / WEIGHTS_FILE), CLIPEngine)
    monkeypatch.setenv(MODEL_VARIABLE, os.fspath(vision))
    assert isinstance(get_default_provider(), VisionEncoder)
    assert isinstance(get_default_provider(bert), ArrowEngine)


@pytest.mark.requirement("18.4")
@pytest.mark.parametrize("value", [None, ""])
def test_without_a_name_there_is_no_default(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """18.4: IF no model is named, THEN ConfigError says where one is looked for."""
    monkeypatch.delenv(MODEL_VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(MODEL_VARIABLE, value)
    with pytest.raises(ConfigError, match=MODEL_VARIABLE):
        get_default_provider()


@pytest.mark.requirement("18.4")
def test_nothing_takes_the_place_of_a_model_that_does_not_load(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """18.4: a named model that is missing, damaged or of another kind is its error, also where another would load."""
    monkeypatch.setenv(MODEL_VARIABLE, os.fspath(bert))
    with pytest.raises(FileNotFoundError):
        get_default_provider(tmp_path / "missing")
    (tmp_path / WEIGHTS_FILE).write_bytes(b"PAR1")
    with pytest.raises(WeightFormatError):
        get_default_provider(tmp_path)
    with pytest.raises(ConfigError, match="model_type: 'clip_text_model'"):
        get_default_provider(write_text_model(tmp_path / "text", TINY_CLIP_TEXT))
