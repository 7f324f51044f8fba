"""Image encoders behind one interface: this package's, and the transformers baseline it is measured against."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm_compression.embedding_provider import EmbeddingMethods, require_batch_size
from llm_compression.errors import CheckpointError
from llm_compression.inference.linear import resolve_device, resolve_dtype
from llm_compression.multimodal.image_processor import Images, list_images, read_image
from llm_compression.multimodal.vision_encoder import VisionEncoder
from llm_compression.progress import progress


class VisionProvider(EmbeddingMethods, ABC):
    """An `EmbeddingProvider` for images."""

    @property
    @abstractmethod
    def dimension(self) -> int:
        """Width of an embedding."""

    @abstractmethod
    def encode(
        self, images: Images, normalize: bool = True, batch_size: int = 32, *, show_progress: bool | None = False
    ) -> Tensor:
        """Embed images, as `VisionEncoder.encode` does: float32 (n, dimension)."""


class ArrowVisionProvider(VisionProvider):
    """A `VisionEncoder` as a provider.

    Args:
        model_path: A directory that holds ``weights.parquet``, or the file.
        device: Where it runs; the CPU unless given.
        dtype: What it computes in, as in `VisionEncoder`.

    Raises:
        LlmCompressionError: As `VisionEncoder`.
    """

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "auto",
    ) -> None:
        self.encoder = VisionEncoder(model_path, device, dtype)

    @property
    def dimension(self) -> int:
        """Width of an embedding."""
        return self.encoder.dimension

    def encode(
        self, images: Images, normalize: bool = True, batch_size: int = 32, *, show_progress: bool | None = False
    ) -> Tensor:
        """Embed images: float32 (n, dimension).

        Raises:
            ImageError: An image cannot be read; carries its position and name.
        """
        return self.encoder.encode(images, normalize, batch_size, show_progress=show_progress)


class CLIPVisionProvider(VisionProvider):
    """The baseline: the same tower through transformers, with its PIL image processor.

    Args:
        model_path: A Hugging Face directory of a CLIP model, or a hub id.
        device: Where it runs; the CPU unless given.
        dtype: What it computes in; ``auto`` as in `VisionEncoder`.

    Raises:
        ImportError: transformers is not installed.
        CheckpointError: transformers cannot load the model.
    """

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "float32",
    ) -> None:
        try:
            from transformers import CLIPVisionModelWithProjection
            from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
        except ImportError as error:
            raise ImportError(
                "CLIPVisionProvider needs transformers: pip install 'llm-compression[transformers]'"
            ) from error
        self.device = resolve_device(device)
        self.dtype = resolve_dtype(dtype, self.device)
        try:
            model: Any = CLIPVisionModelWithProjection.from_pretrained(os.fspath(model_path), dtype=self.dtype)
            beside = Path(model_path) / "preprocessor_config.json"
            size = model.config.image_size
            self.processor: Any = (
                CLIPImageProcessorPil.from_pretrained(os.fspath(model_path))
                if beside.is_file() or not Path(model_path).exists()
                else CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
            )
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(f"{model_path}: transformers cannot load it: {error}") from error
        self.model = model.to(self.device).eval()

    @property
    def dimension(self) -> int:
        """Width of an embedding."""
        return int(self.model.config.projection_dim)

    def encode(
        self, images: Images, normalize: bool = True, batch_size: int = 32, *, show_progress: bool | None = False
    ) -> Tensor:
        """Embed images: float32 (n, dimension).

        Raises:
            ImageError: An image cannot be read; carries its position and name.
            ConfigError: ``batch_size`` is not a positive whole number.
        """
        require_batch_size(batch_size)
        sources = list_images(images)
        out = torch.empty(len(sources), self.dimension)
        starts = range(0, len(sources), batch_size)
        for start in progress(starts, total=len(starts), label="encoding", enabled=show_progress):
            batch = sources[start : start + batch_size]
            opened = [read_image(source, start + i) for i, source in enumerate(batch)]
            pixels = self.processor(opened, return_tensors="pt")["pixel_values"].to(self.device, self.dtype)
            with torch.inference_mode():
                embeddings = self.model(pixel_values=pixels).image_embeds.float()
            out[start : start + len(batch)] = torch.nn.functional.normalize(embeddings) if normalize else embeddings
        return out
