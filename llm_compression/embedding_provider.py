"""EmbeddingProvider: the one interface of all encoders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor


@runtime_checkable
class EmbeddingProvider(Protocol):
    """What turns inputs into embeddings, one row for each; an input that cannot be encoded is an error, never a row."""

    @property
    def dimension(self) -> int:
        """Width of an embedding."""
        ...

    def encode(self, items: Any, /, normalize: bool = True, batch_size: int = 32) -> Tensor:
        """Embed inputs.

        Args:
            items: What the encoder takes: images here, texts there; one, or a list of them.
            normalize: Whether each embedding gets unit length.
            batch_size: Inputs per forward pass.

        Returns:
            float32 (n, dimension), on the CPU, in the order given.

        Raises:
            LlmCompressionError: An input cannot be encoded.
        """
        ...
