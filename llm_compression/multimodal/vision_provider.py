"""Image encoders behind one interface: this package's, and the transformers baseline it is measured against."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from llm_compression.embedding_provider import EmbeddingMethods
from llm_compression.errors import CheckpointError, ImageError, MissingDependencyError
from llm_compression.inference.linear import resolve_device, resolve_dtype
from llm_compression.multimodal.image_encoding import ImageEncoding
from llm_compression.multimodal.image_inputs import Images
from llm_compression.multimodal.image_processor import read_image, without_frames
from llm_compression.multimodal.vision_encoder import VisionEncoder


class VisionProvider(EmbeddingMethods, ABC):
    """An `EmbeddingProvider` for images."""

    @property
    @abstractmethod
    def dimension(self) -> int:
        """Width of an embedding."""

    @abstractmethod
    def encode(
        self, images: Images, normalize: bool = True, batch_size: int = 32, *, show_progress: bool | None = False
    ) -> Any:
        """Embed images, as `VisionEncoder.encode` does: numpy float32 (n, dimension)."""


class ArrowVisionProvider(ImageEncoding, VisionProvider):
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

    def _read_batches(self, images: Iterator[Any], batch_size: int, errors: list[ImageError]) -> Iterator[Tensor]:
        return self.encoder._read_batches(images, batch_size, errors)

    def _embed_batch(self, batch: Tensor, normalize: bool) -> Tensor:
        return self.encoder._embed_batch(batch, normalize)


class CLIPVisionProvider(ImageEncoding, VisionProvider):
    """The baseline: the same tower through transformers, with its PIL image processor.

    Args:
        model_path: A Hugging Face directory of a CLIP model, or a hub id.
        device: Where it runs; the CPU unless given.
        dtype: What it computes in; ``auto`` as in `VisionEncoder`.

    Raises:
        MissingDependencyError: transformers is not installed.
        CheckpointError: transformers cannot load the model.
    """

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "float32",
    ) -> None:
        try:
            from transformers import CLIPVisionModel, CLIPVisionModelWithProjection
            from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
        except ImportError as error:
            raise MissingDependencyError(
                "CLIPVisionProvider needs transformers: pip install 'llm-compression[transformers]'"
            ) from error
        self.device = resolve_device(device)
        self.dtype = resolve_dtype(dtype, self.device)
        try:
            model, projects = _load_tower(
                CLIPVisionModelWithProjection, CLIPVisionModel, os.fspath(model_path), self.dtype
            )
            beside = Path(model_path) / "preprocessor_config.json"
            size = model.config.image_size
            self.processor: Any = (
                CLIPImageProcessorPil.from_pretrained(os.fspath(model_path))
                if beside.is_file() or not Path(model_path).exists()
                else CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
            )
        except CheckpointError:
            raise
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise CheckpointError(f"{model_path}: transformers cannot load it: {error}") from error
        self.model: Any = model.to(self.device).eval()
        self._projects = projects

    @property
    def dimension(self) -> int:
        """Width of an embedding."""
        return int(self.model.config.projection_dim if self._projects else self.model.config.hidden_size)

    def _read_batches(
        self, images: Iterator[Any], batch_size: int, errors: list[ImageError]
    ) -> Iterator[list[Image.Image]]:
        numbered = enumerate(images)
        while chunk := list(islice(numbered, batch_size)):
            opened = []
            for position, source in chunk:
                try:
                    opened.append(read_image(source, position))
                except ImageError as error:
                    errors.append(without_frames(error))
            yield opened

    def _embed_batch(self, batch: list[Image.Image], normalize: bool) -> Tensor:
        pixels = self.processor(batch, return_tensors="pt")["pixel_values"].to(self.device, self.dtype)
        with torch.inference_mode():
            output = self.model(pixel_values=pixels)
            embeddings: Tensor = (output.image_embeds if self._projects else output.pooler_output).float().cpu()
            return torch.nn.functional.normalize(embeddings) if normalize else embeddings


def _load_tower(projecting: Any, plain: Any, model_path: str, dtype: torch.dtype) -> tuple[Any, bool]:
    """The image tower, and whether it has a projection; transformers fills what a checkpoint lacks with random numbers.

    Raises:
        CheckpointError: The checkpoint lacks a tensor of the tower, or one has another shape.
    """
    loaded = projecting.from_pretrained(model_path, dtype=dtype, output_loading_info=True)
    projects = set(loaded[1]["missing_keys"]) != {"visual_projection.weight"}
    if not projects:
        loaded = plain.from_pretrained(model_path, dtype=dtype, output_loading_info=True)
    model, info = loaded
    if info["missing_keys"] or info["mismatched_keys"]:
        raise CheckpointError(
            f"{model_path}: missing {sorted(info['missing_keys'])}, mis-shaped {sorted(info['mismatched_keys'])}"
        )
    return model, projects
