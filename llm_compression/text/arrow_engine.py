"""ArrowEngine: text in, embeddings out; tokenizer and TextEncoder together."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor

from llm_compression.embedding_provider import EmbeddingMethods, require_batch_size
from llm_compression.embeddings import Array
from llm_compression.errors import ConfigError, TextError
from llm_compression.inference.clip_file import is_clip
from llm_compression.inference.weight_loader import WeightLoader
from llm_compression.text.text_config import TextConfig
from llm_compression.text.text_encoder import TextEncoder
from llm_compression.text.text_inputs import Texts, list_texts
from llm_compression.text.tokenizer import CLEANERS, TOKENIZER_FILE, load_tokenizer


class ArrowEngine(EmbeddingMethods):
    """Embeds texts with a BERT sentence encoder, or with the text tower of a CLIP.

    Args:
        model_path: A directory that holds ``weights.parquet`` and ``tokenizer.json``, or the weight file.
        device: Where it runs; the CPU unless given.
        dtype: What it computes in: ``float32``, ``bfloat16``, ``float16``, or ``auto``: bfloat16 where the processor
            multiplies it natively, float32 elsewhere; bfloat16 or float16 on CUDA.
        clean: ``none``: texts go to the tokenizer as they are; ``openai``: cleaned first as OpenAI's CLIP code does it
            (ftfy, HTML unescaped twice, white space collapsed, lower case), which needs the extra ``openai-text``.

    Attributes:
        encoder: The `TextEncoder`.
        tokenizer: What gives it ids.

    Raises:
        MissingFileError: The weight file or the tokenizer is missing.
        WeightFormatError: The weight file is damaged, or its tensors do not fit the model.
        ConfigError: The configuration is missing or unsupported, the tokenizer is not the model's, or an argument is
            unknown.
        MissingDependencyError: A library that the tokenizer or the cleaning needs is not installed.
    """

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "auto",
        *,
        clean: str = "none",
    ) -> None:
        self._set_cleaner(clean)
        self.encoder = TextEncoder(model_path, device, dtype)
        self._open_tokenizer(_recorded_sha256(self.encoder.weight_loader))

    def _set_cleaner(self, clean: str) -> None:
        if clean not in CLEANERS:
            raise ConfigError(f"clean: {clean!r}, expected one of {', '.join(CLEANERS)}")
        self._cleaner, self._clean = clean, CLEANERS[clean]
        if self._clean is not None:
            self._clean("")  # what it needs is missed now and not at the first text

    def _open_tokenizer(self, sha256: str | None) -> None:
        """Read the tokenizer beside the weights, and note what it is where the weights do not say."""
        file = self.encoder.weight_loader.path.parent / TOKENIZER_FILE
        self._tokenizer_sha256 = sha256 or (_sha256_of(file) if file.is_file() else None)
        self.tokenizer = self._opened = load_tokenizer(
            file, self.config.max_length, self.config.vocab_size, self._tokenizer_sha256
        )

    def __getstate__(self) -> dict[str, Any]:
        # a copy is opened again from the files of the model, as its encoder is; a tokenizer set since goes along
        replaced = None if self.tokenizer is self._opened else self.tokenizer
        opened = {"encoder": self.encoder, "tokenizer_sha256": self._tokenizer_sha256}
        return {"clean": self._cleaner, **opened, "tokenizer": replaced}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self._set_cleaner(state["clean"])
        self.encoder = state["encoder"]
        self._open_tokenizer(state["tokenizer_sha256"])
        if state["tokenizer"] is not None:
            self.tokenizer = state["tokenizer"]

    @property
    def config(self) -> TextConfig:
        """Sizes of the encoder."""
        return self.encoder.config

    @property
    def tokenizer_sha256(self) -> str | None:
        """Hash of the file of the tokenizer."""
        return self._tokenizer_sha256

    @property
    def dimension(self) -> int:
        """Width of an embedding."""
        return self.encoder.dimension

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.encoder.device

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return self.encoder.dtype

    @overload
    def encode(
        self,
        texts: Texts,
        normalize: bool = True,
        batch_size: int = 32,
        *,
        convert_to_tensor: Literal[False] = False,
        show_progress: bool | None = False,
    ) -> Array: ...

    @overload
    def encode(
        self,
        texts: Texts,
        normalize: bool = True,
        batch_size: int = 32,
        *,
        convert_to_tensor: Literal[True],
        show_progress: bool | None = False,
    ) -> Tensor: ...

    def encode(
        self,
        texts: Texts,
        normalize: bool = True,
        batch_size: int = 32,
        *,
        convert_to_tensor: bool = False,
        show_progress: bool | None = False,
    ) -> Array | Tensor:
        """Embed texts: one, any iterable of them, an Arrow array of strings, or a pandas or polars Series.

        Args:
            texts: Texts, as ``str`` or ``Text``; each is cut at ``config.max_length`` tokens.
            normalize: Whether each embedding gets unit length.
            batch_size: Texts per forward pass.
            convert_to_tensor: Whether to return a tensor, on the CPU, in place of an array.
            show_progress: Whether to show a progress bar on stderr; None shows it on a terminal.

        Returns:
            numpy float32 (n, dimension), in the order given; two dimensions also for one text, no rows for an empty
            list.

        Raises:
            TextError: A text is no str, holds a lone surrogate, or has nothing in it that the tokenizer reads, as an
                empty one; carries its position.
            ConfigError: ``batch_size`` is not a positive whole number.
        """
        require_batch_size(batch_size)
        ids = self.tokenize(texts)
        rows = self.encoder.encode_ids(ids, normalize, batch_size, convert_to_tensor=True, show_progress=show_progress)
        return rows if convert_to_tensor else rows.numpy()

    def tokenize(self, texts: Texts) -> list[list[int]]:
        """The token ids of each text, special ones included.

        Raises:
            TextError: As `encode`.
        """
        listed = list_texts(texts)
        if self._clean is not None:
            listed = list(map(self._clean, listed))
        rows = self.tokenizer(listed)
        for position, row in enumerate(rows):
            if len(row) <= self.tokenizer.num_special:
                raise TextError("empty, or nothing in it that the tokenizer reads", position=position)
        return rows


def _recorded_sha256(loader: WeightLoader) -> str | None:
    """What the weight file says about its tokenizer; None where it says nothing."""
    if loader.metadata is None:
        return None
    constants = loader.metadata.preprocessing
    if is_clip(loader.config):
        constants = constants.get("text", {})
    return constants.get("tokenizer_sha256")


def _sha256_of(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
