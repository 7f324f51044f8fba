"""Image encoders behind one interface: this package's, and the transformers baseline it is measured against."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm_compression.embedding_provider import EmbeddingMethods, require_batch_size
from llm_compression.errors import CheckpointError, MissingDependencyError
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
                output = self.model(pixel_values=pixels)
                embeddings = (output.image_embeds if self._projects else output.pooler_output).float()
            out[start : start + len(batch)] = torch.nn.functional.normalize(embeddings) if normalize else embeddings
        return out


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
