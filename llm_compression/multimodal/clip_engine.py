"""CLIPEngine: images and texts in one space."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from llm_compression.embeddings import Array, Embeddings, cosine
from llm_compression.errors import ConfigError, ImageError, TextError
from llm_compression.inference.clip_file import LOGIT_SCALE
from llm_compression.multimodal.clip_config import ClipConfig
from llm_compression.multimodal.image_encoding import ImageEncoding, KeptRows, OnError
from llm_compression.multimodal.image_inputs import ImageLike, Images, Refused
from llm_compression.multimodal.vision_encoder import VisionEncoder
from llm_compression.text.arrow_engine import ArrowEngine
from llm_compression.text.text_inputs import Text, Texts, list_texts

Query: TypeAlias = Text | ImageLike | npt.NDArray[Any] | Tensor


class SearchResult(NamedTuple):
    """The nearest rows of a search, nearest first.

    Attributes:
        indices: numpy int64 (k,), the rows of the embeddings that were searched.
        scores: numpy float32 (k,), their cosine to the query.
    """

    indices: npt.NDArray[np.int64]
    scores: Array


class CLIPEngine(ImageEncoding):
    """Both towers of a CLIP model.

    `encode_image` and `encode_text` say what they take. `encode` takes images as every encoder of images does, a string
    being a path, and among them words that are marked: ``engine.encode(["cat.jpg", Text("a cat")])``.

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

    @overload
    def encode_image(
        self,
        images: Images,
        normalize: bool = True,
        batch_size: int = 32,
        *,
        convert_to_tensor: Literal[False] = False,
        on_error: Literal["raise", "null"] = "raise",
        show_progress: bool | None = False,
    ) -> Array: ...

    @overload
    def encode_image(
        self,
        images: Images,
        normalize: bool = True,
        batch_size: int = 32,
        *,
        convert_to_tensor: Literal[True],
        on_error: Literal["raise", "null"] = "raise",
        show_progress: bool | None = False,
    ) -> Tensor: ...

    @overload
    def encode_image(
        self,
        images: Images,
        normalize: bool = True,
        batch_size: int = 32,
        *,
        convert_to_tensor: Literal[False] = False,
        on_error: Literal["skip"],
        show_progress: bool | None = False,
    ) -> KeptRows[Array]: ...

    @overload
    def encode_image(
        self,
        images: Images,
        normalize: bool = True,
        batch_size: int = 32,
        *,
        convert_to_tensor: Literal[True],
        on_error: Literal["skip"],
        show_progress: bool | None = False,
    ) -> KeptRows[Tensor]: ...

    def encode_image(
        self,
        images: Images,
        normalize: bool = True,
        batch_size: int = 32,
        *,
        convert_to_tensor: bool = False,
        on_error: OnError = "raise",
        show_progress: bool | None = False,
    ) -> Any:
        """Embed images, as `VisionEncoder.encode` does: numpy float32 (n, dimension)."""
        kept = self.vision._encode(images, normalize, batch_size, on_error, show_progress)
        return kept.given(convert_to_tensor, on_error)

    @overload
    def encode_text(
        self,
        texts: Texts,
        normalize: bool = True,
        batch_size: int = 32,
        *,
        convert_to_tensor: Literal[False] = False,
        show_progress: bool | None = False,
    ) -> Array: ...

    @overload
    def encode_text(
        self,
        texts: Texts,
        normalize: bool = True,
        batch_size: int = 32,
        *,
        convert_to_tensor: Literal[True],
        show_progress: bool | None = False,
    ) -> Tensor: ...

    def encode_text(
        self,
        texts: Texts,
        normalize: bool = True,
        batch_size: int = 32,
        *,
        convert_to_tensor: bool = False,
        show_progress: bool | None = False,
    ) -> Array | Tensor:
        """Embed texts, as `ArrowEngine.encode` does: numpy float32 (n, dimension)."""
        rows = self.text.encode(texts, normalize, batch_size, convert_to_tensor=True, show_progress=show_progress)
        return rows if convert_to_tensor else rows.numpy()

    def _read_batches(self, images: Iterator[Any], batch_size: int, errors: list[ImageError]) -> Iterator[_Mixed]:
        """Images go through the image tower's own batches, in which a text is an image without a row."""
        texts: dict[int, str] = {}
        found: list[ImageError] = []
        start = 0

        def pictures() -> Iterator[Any]:
            for position, item in enumerate(images):
                if isinstance(item, Text):
                    texts[position] = item.text
                    yield Refused(ValueError("a text"))
                elif isinstance(item, str) and not _is_there(item):
                    yield Refused(FileNotFoundError(f"no such file; words are marked: Text({item!r})"), item)
                else:
                    yield item

        for pixels in self.vision._read_batches(pictures(), batch_size, found):
            end = start + len(pixels) + len(found)
            words = {position - start: texts.pop(position) for position in range(start, end) if position in texts}
            wrong = [error for error in found if (error.position or 0) - start not in words]
            errors.extend(wrong)
            found.clear()
            # a row of the batch for each image that was read and each text
            kept = sorted(set(range(end - start)) - {(error.position or 0) - start for error in wrong})
            rows = {place: row for row, place in enumerate(kept)}
            pictured = [rows[place] for place in kept if place not in words]
            yield _Mixed(pixels, pictured, {rows[place]: text for place, text in words.items()})
            start = end

    def _embed_batch(self, batch: _Mixed, normalize: bool) -> Tensor:
        out = torch.empty(len(batch), self.dimension, dtype=torch.float32, device="cpu")
        try:
            if batch.pictured:
                out[batch.pictured] = self.vision._embed_batch(batch.pixels, normalize)
            if batch.texts:
                texts = list(batch.texts.values())
                out[list(batch.texts)] = self.encode_text(texts, normalize, len(texts), convert_to_tensor=True)
        except ImageError as error:
            raise ImageError(error.reason, position=_among(batch.pictured, error.position)) from error
        except TextError as error:
            raise TextError(error.reason, position=_among(list(batch.texts), error.position)) from error
        return out

    def logits(self, images: Embeddings, texts: Embeddings, /) -> Array:
        """The model's logits: ``exp(logit_scale)`` times the cosine of each image to each text, float32 (n, m).

        Args:
            images: (n, dimension), normalised or not, in any form that `similarity` takes.
            texts: (m, dimension), likewise.

        Raises:
            ConfigError: These are not two tables of embeddings of one width.
        """
        return cosine(images, texts) * np.float32(self.logit_scale)

    def classify(self, images: Images, labels: Texts, template: str = "a photo of a {}", batch_size: int = 32) -> Array:
        """How probable each label is for each image, among these labels.

        Args:
            images: What `encode_image` takes.
            labels: What the images may show, each once.
            template: The sentence a label is put into, at ``{}``.
            batch_size: Inputs per forward pass.

        Returns:
            numpy float32 (n, labels), each row summing to one: the softmax of the logits.

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
        logits = torch.from_numpy(self.logits(self.encode_image(images, batch_size=batch_size), texts))
        return logits.softmax(1).numpy()

    def search(self, query: Query, embeddings: Embeddings, k: int) -> SearchResult:
        """The rows of some embeddings that are nearest to a query.

        Args:
            query: Words, as ``Text("a cat")``; an image, a string being its path; or an embedding, (dimension,) or
                (1, dimension).
            embeddings: (n, dimension), of images or texts, normalised or not, in any form that `similarity` takes.
            k: How many rows, at most n.

        Raises:
            ConfigError: ``k`` is no number from 1 to n, or these are not embeddings.
            TextError: The text cannot be embedded.
            ImageError: The image cannot be read.
        """
        if isinstance(query, Tensor) or (isinstance(query, np.ndarray) and query.dtype.kind == "f" and query.ndim < 3):
            row: npt.NDArray[Any] | Tensor = query[None] if query.ndim == 1 else query
        else:
            row = self.encode(query)
        if len(row) != 1:
            raise ConfigError(f"query: {len(row)} inputs, expected one")
        scores = cosine(row, embeddings)[0]
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k <= len(scores):
            raise ConfigError(f"k: {k!r}, expected 1 to {len(scores)}, the number of embeddings")
        indices = np.argsort(-scores, kind="stable")[: int(k)]
        return SearchResult(indices, scores[indices])


class _Mixed(NamedTuple):
    """A batch of images and texts.

    Attributes:
        pixels: float32 (pictures, 3, S, S).
        pictured: Their rows in the batch.
        texts: The texts, by their rows in the batch.
    """

    pixels: Tensor
    pictured: list[int]
    texts: dict[int, str]

    def __len__(self) -> int:
        return len(self.pictured) + len(self.texts)


def _is_there(path: str) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):  # words make too long a name
        return False


def _among(places: Sequence[int], position: int | None) -> int | None:
    """The position that an error names, in the list from which ``places`` were taken."""
    return None if position is None else places[position]
