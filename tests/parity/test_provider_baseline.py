"""The transformers baseline under the contract that every provider is put through."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llm_compression.embedding_provider import EmbeddingProvider
from llm_compression.harness.clip.checkpoints import make_checkpoint
from llm_compression.multimodal.vision_provider import CLIPVisionProvider
from tests.provider_contract import ProviderContract


class TestCLIPVisionProvider(ProviderContract):
    """18.1: CLIPVisionProvider is an EmbeddingProvider."""

    @pytest.fixture
    def provider(self, tmp_path: Path) -> EmbeddingProvider:
        """A tiny image tower through transformers."""
        return CLIPVisionProvider(make_checkpoint(tmp_path, "tiny"))

    @pytest.fixture
    def items(self) -> list[Any]:
        """Pictures."""
        rng = np.random.default_rng(1)
        return [Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)) for _ in range(3)]

    @pytest.fixture
    def bad_item(self) -> Any:
        """Bytes that are no picture."""
        return b"no picture"
