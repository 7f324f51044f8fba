"""EmbeddingProvider: the one interface of all encoders, of images and of texts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, overload, runtime_checkable

from llm_compression.embeddings import Array, Embeddings, cosine
from llm_compression.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

MODEL_VARIABLE: Final = "LLM_COMPRESSION_MODEL"


@runtime_checkable
class EmbeddingProvider(Protocol):
    """What turns inputs into embeddings, one row for each; an input that cannot be encoded is an error, never a row."""

    @property
    def dimension(self) -> int:
        """Width of an embedding."""
        ...

    @overload
    def encode(
        self,
        items: Any,
        /,
        normalize: bool = True,
        batch_size: int = 32,
        *,
        convert_to_tensor: Literal[False] = False,
        show_progress: bool | None = False,
    ) -> Array: ...

    @overload
    def encode(
        self,
        items: Any,
        /,
        normalize: bool = True,
        batch_size: int = 32,
        *,
        convert_to_tensor: Literal[True],
        show_progress: bool | None = False,
    ) -> Tensor: ...

    def encode(
        self,
        items: Any,
        /,
        normalize: bool = True,
        batch_size: int = 32,
        *,
        convert_to_tensor: bool = False,
        show_progress: bool | None = False,
    ) -> Array | Tensor:
        """Embed inputs.

        Args:
            items: What the encoder takes: images here, texts there; one, or a list of them.
            normalize: Whether each embedding gets unit length.
            batch_size: Inputs per forward pass.
            convert_to_tensor: Whether to return a tensor, on the CPU, in place of an array.
            show_progress: Whether to show a progress bar on stderr; None shows it on a terminal.

        Returns:
            numpy float32 (n, dimension), in the order given.

        Raises:
            LlmCompressionError: An input cannot be encoded.
        """
        ...

    def encode_batch(
        self, items: Any, /, normalize: bool = True, batch_size: int = 32, *, show_progress: bool | None = None
    ) -> Array:
        """The rows of `encode`, with a progress bar on stderr: True shows it, None only on a terminal."""
        ...

    def similarity(self, a: Embeddings, b: Embeddings, /) -> Array:
        """Cosine of each row of ``a`` to each of ``b``: (n, dimension) and (m, dimension) to float32 (n, m).

        Raises:
            ConfigError: These are not two tables of embeddings of one width.
        """
        ...


class EmbeddingMethods:
    """What every provider of this package does in the same way."""

    if TYPE_CHECKING:

        def encode(  # noqa: D102  # the provider's own
            self, items: Any, /, normalize: bool = True, batch_size: int = 32, *, show_progress: bool | None = False
        ) -> Any: ...

    def encode_batch(
        self, items: Any, /, normalize: bool = True, batch_size: int = 32, *, show_progress: bool | None = None
    ) -> Array:
        """The rows of `encode`, with a progress bar on stderr: True shows it, None only on a terminal."""
        rows: Array = self.encode(items, normalize, batch_size, show_progress=show_progress)
        return rows

    def similarity(self, a: Embeddings, b: Embeddings, /) -> Array:
        """Cosine of each row of ``a`` to each of ``b``, whatever their lengths: float32 (n, m).

        Args:
            a: (n, dimension): an array, a tensor, an Arrow column, a table with the column ``embedding``, or the path
                of an ``.npy`` or ``.parquet`` file that the command ``encode`` wrote.
            b: (m, dimension), likewise.

        Raises:
            ConfigError: These are not two tables of embeddings of one width, or a row has no direction.
        """
        return cosine(a, b)


def require_batch_size(batch_size: object) -> None:
    """Refuse what is not a positive whole number.

    Raises:
        ConfigError: It is not.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigError(f"batch_size: {batch_size!r}, expected a positive whole number")


def get_default_provider(model_path: str | os.PathLike[str] | None = None) -> EmbeddingProvider:
    """The provider of the model that was named; no other one ever takes its place.

    Args:
        model_path: A directory that holds ``weights.parquet``, or the file; what the environment variable
            ``LLM_COMPRESSION_MODEL`` says unless given.

    Returns:
        A CLIPEngine, VisionEncoder or ArrowEngine, as the weight file's configuration says.

    Raises:
        ConfigError: No model is named, or the file's configuration is of none of these.
        MissingFileError: There is no such weight file.
        WeightFormatError: The file is damaged.
    """
    named = model_path if model_path is not None else os.environ.get(MODEL_VARIABLE)
    if not named:
        raise ConfigError(f"no model is named: expected a path, or one in the variable {MODEL_VARIABLE}")
    from llm_compression.inference.clip_file import is_clip
    from llm_compression.inference.weight_loader import WeightLoader
    from llm_compression.multimodal import vision_config
    from llm_compression.text import text_config

    path = Path(named)
    config = WeightLoader(path).config or {}
    model_type = config.get("model_type")
    if is_clip(config):
        from llm_compression.multimodal.clip_engine import CLIPEngine

        return CLIPEngine(path)
    if model_type == text_config.BERT:
        from llm_compression.text.arrow_engine import ArrowEngine

        return ArrowEngine(path)
    if model_type == vision_config.MODEL_TYPE:
        from llm_compression.multimodal.vision_encoder import VisionEncoder

        return VisionEncoder(path)
    raise ConfigError(f"{path}: model_type: {model_type!r}, expected clip, {vision_config.MODEL_TYPE} or bert")
