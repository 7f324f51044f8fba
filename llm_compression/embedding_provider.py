"""EmbeddingProvider: the one interface of all encoders, and what they do alike. It knows none of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol, overload, runtime_checkable

from llm_compression.embeddings import Array, Embeddings, cosine
from llm_compression.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


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
