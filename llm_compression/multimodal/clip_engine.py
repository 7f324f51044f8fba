"""CLIPEngine: images and texts in one space."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from llm_compression.embedding_provider import EmbeddingMethods, cosine, require_batch_size
from llm_compression.errors import ConfigError, ImageError, TextError
from llm_compression.inference.arrow_engine import ArrowEngine, Texts
from llm_compression.inference.clip_file import LOGIT_SCALE
from llm_compression.inference.tokenizer import list_texts
from llm_compression.multimodal.clip_config import ClipConfig
from llm_compression.multimodal.image_processor import ImageLike, Images
from llm_compression.multimodal.vision_encoder import VisionEncoder

Query: TypeAlias = str | ImageLike | Tensor


class SearchResult(NamedTuple):
    """The nearest rows of a search, nearest first.

    Attributes:
        indices: int64 (k,), the rows of the embeddings that were searched.
        scores: float32 (k,), their cosine to the query.
    """

    indices: Tensor
    scores: Tensor


class CLIPEngine(EmbeddingMethods):
    """Both towers of a CLIP model.

    Args:
        model_path: A directory that holds ``weights.parquet`` and ``tokenizer.json``, or the weight file.
        device: Where it runs; the CPU unless given.
        dtype: What it computes in, as in VisionEncoder.
        clean: What is done to a text before it is tokenized, as in ArrowEngine.

    Attributes:
        config: Sizes of both towers.
        vision: The `VisionEncoder`.
        text: The `ArrowEngine`.
        logit_scale: What a cosine is multiplied with to give a logit.
        dimension: Width of an embedding.

    Raises:
        MissingFileError: The weight file or the tokenizer is missing.
        WeightFormatError: The weight file is damaged, or its tensors do not fit the model.
        ConfigError: The file does not hold both towers, or an argument is unknown.
    """

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "auto",
        *,
        clean: str = "none",
    ) -> None:
        self.vision = VisionEncoder(model_path, device, dtype)
        loader = self.vision.weight_loader
        self.config = ClipConfig.from_dict(loader.config or {}, loader.path)
        # each tower checked its own tensors; this is the one that is neither's
        loader.check(self.config.expected_shapes())
        self.text = ArrowEngine(model_path, device, dtype, clean=clean)
        self.logit_scale = float(loader.get_layer(LOGIT_SCALE).float().exp())

    @property
    def dimension(self) -> int:
        """Width of an embedding."""
        return self.vision.dimension

    def encode(
        self, items: Any, /, normalize: bool = True, batch_size: int = 32, *, show_progress: bool | None = False
    ) -> Tensor:
        """Embed images and texts: a ``str`` is a text, everything else an image, a file named by a ``Path``.

        Args:
            items: One, or a list in which both may stand.
            normalize: Whether each embedding gets unit length.
            batch_size: Inputs per forward pass.
            show_progress: Whether to show a progress bar on stderr; None shows it on a terminal.

        Returns:
            float32 (n, dimension), on the CPU, in the order given.

        Raises:
            TextError: A text cannot be embedded; carries its position among ``items``.
            ImageError: An image cannot be read; carries its position among ``items``.
            ConfigError: ``batch_size`` is not a positive whole number.
        """
        require_batch_size(batch_size)
        if isinstance(items, str):
            return self.encode_text(items, normalize, batch_size, show_progress=show_progress)
        if not isinstance(items, list | tuple) or not any(isinstance(item, str) for item in items):
            return self.encode_image(items, normalize, batch_size, show_progress=show_progress)
        out = torch.empty(len(items), self.dimension)
        texts = [position for position, item in enumerate(items) if isinstance(item, str)]
        images = [position for position, item in enumerate(items) if not isinstance(item, str)]
        for places, tower in ((texts, self.encode_text), (images, self.encode_image)):
            try:
                out[places] = tower([items[i] for i in places], normalize, batch_size, show_progress=show_progress)
            except TextError as error:
                raise TextError(error.reason, position=_among(places, error.position)) from error
            except ImageError as error:
                position = _among(places, error.position)
                raise ImageError(error.reason, position=position, name=error.name) from error
        return out

    def encode_image(
        self, images: Images, normalize: bool = True, batch_size: int = 32, *, show_progress: bool | None = False
    ) -> Tensor:
        """Embed images, as `VisionEncoder.encode` does: float32 (n, dimension)."""
        return self.vision.encode(images, normalize, batch_size, show_progress=show_progress)

    def encode_text(
        self, texts: Texts, normalize: bool = True, batch_size: int = 32, *, show_progress: bool | None = False
    ) -> Tensor:
        """Embed texts, as `ArrowEngine.encode` does: float32 (n, dimension)."""
        return self.text.encode(texts, normalize, batch_size, show_progress=show_progress)

    def similarity(self, images: Tensor, texts: Tensor, /) -> Tensor:
        """The model's logits: ``exp(logit_scale)`` times the cosine of each image to each text, float32 (n, m).

        Args:
            images: (n, dimension), normalised or not; embeddings of texts serve as well.
            texts: (m, dimension).

        Raises:
            ConfigError: These are not two tables of embeddings of one width.
        """
        return cosine(images, texts) * self.logit_scale

    def classify(
        self, images: Images, labels: Sequence[str], template: str = "a photo of a {}", batch_size: int = 32
    ) -> Tensor:
        """How probable each label is for each image, among these labels.

        Args:
            images: What `encode_image` takes.
            labels: What the images may show, each once.
            template: The sentence a label is put into, at ``{}``.
            batch_size: Inputs per forward pass.

        Returns:
            float32 (n, labels), each row summing to one: the softmax of the logits.

        Raises:
            TextError: There are no labels, one stands there twice, or one cannot be embedded; carries its position.
            ImageError: An image cannot be read; carries its position and name.
            ConfigError: The template does not have one ``{}``.
        """
        if not isinstance(template, str) or template.count("{}") != 1:
            raise ConfigError(f"template: {template!r}, expected a sentence with one {{}}")
        listed = list_texts(labels)
        if not listed:
            raise TextError("no labels, expected one or more")
        for position, label in enumerate(listed):
            if not label.strip():
                raise TextError("an empty label", position=position)
            if label in listed[:position]:
                raise TextError(f"the label {label!r} stands there twice", position=position)
        texts = self.encode_text([template.replace("{}", label) for label in listed], batch_size=batch_size)
        return self.similarity(self.encode_image(images, batch_size=batch_size), texts).softmax(1)

    def search(self, query: Query, embeddings: Tensor, k: int) -> SearchResult:
        """The rows of some embeddings that are nearest to a query.

        Args:
            query: A text (``str``), an image, or an embedding: (dimension,) or (1, dimension).
            embeddings: (n, dimension), of images or texts, normalised or not.
            k: How many rows, at most n.

        Raises:
            ConfigError: ``k`` is no number from 1 to n, or these are not embeddings.
            TextError: The text cannot be embedded.
            ImageError: The image cannot be read.
        """
        row = query.reshape(1, -1) if isinstance(query, Tensor) else self.encode(query)
        if len(row) != 1:
            raise ConfigError(f"query: {len(row)} inputs, expected one")
        scores = cosine(row, embeddings)[0]
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= len(scores):
            raise ConfigError(f"k: {k!r}, expected 1 to {len(scores)}, the number of embeddings")
        found = scores.topk(k)
        return SearchResult(found.indices, found.values)


def _among(places: Sequence[int], position: int | None) -> int | None:
    """The position that an error names, in the list from which ``places`` were taken."""
    return None if position is None else places[position]
