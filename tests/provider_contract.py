"""What every EmbeddingProvider promises, as one suite: subclass `ProviderContract` and give it a provider."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llm_compression.embedding_provider import EmbeddingProvider
from llm_compression.errors import ConfigError, LlmCompressionError


class ProviderContract:
    """A subclass has the fixtures ``provider``, ``items`` (three inputs) and ``bad_item`` (one that it refuses)."""

    @pytest.mark.requirement("18.1")
    def test_it_has_the_interface(self, provider: EmbeddingProvider) -> None:
        """18.1: it satisfies the protocol, and knows the width of its rows."""
        assert isinstance(provider, EmbeddingProvider)
        assert isinstance(provider.dimension, int)
        assert provider.dimension > 0

    @pytest.mark.requirement("18.1")
    def test_a_row_for_each_input(self, provider: EmbeddingProvider, items: list[Any]) -> None:
        """18.1: float32 (n, dimension) on the CPU for one input, for a list, and for none."""
        for given, rows in ((items, 3), (items[:1], 1), (items[0], 1), ([], 0)):
            found = provider.encode(given)
            assert found.shape == (rows, provider.dimension)
            assert (found.dtype, found.device.type) == (torch.float32, "cpu")

    @pytest.mark.requirement("18.1")
    def test_rows_have_unit_length_when_asked(self, provider: EmbeddingProvider, items: list[Any]) -> None:
        """18.1: normalised rows have length one and the direction of the others."""
        unit, plain = provider.encode(items), provider.encode(items, normalize=False)
        assert torch.allclose(unit.norm(dim=1), torch.ones(3), atol=1e-5)
        assert torch.allclose(plain / plain.norm(dim=1, keepdim=True), unit, atol=1e-5)

    @pytest.mark.requirement("18.1")
    def test_batches_and_order_do_not_matter(self, provider: EmbeddingProvider, items: list[Any]) -> None:
        """18.1: each row belongs to its input, whatever the batch and the order."""
        rows = provider.encode(items)
        assert (rows[0] - rows[1]).norm() > 1e-3
        assert torch.allclose(provider.encode(items, batch_size=1), rows, atol=1e-5)
        assert torch.allclose(provider.encode(items[::-1], batch_size=2).flip(0), rows, atol=1e-5)

    @pytest.mark.requirement("18.2")
    def test_encode_batch_gives_the_rows_of_encode(
        self, provider: EmbeddingProvider, items: list[Any], capsys: pytest.CaptureFixture[str]
    ) -> None:
        """18.2: ``encode_batch`` gives the rows of ``encode``, with a progress bar where it is asked for."""
        rows = provider.encode(items)
        assert torch.allclose(provider.encode_batch(items, batch_size=2), rows, atol=1e-5)
        assert capsys.readouterr().err == ""  # stderr is no terminal
        assert torch.allclose(provider.encode_batch(items, True, 1, show_progress=True), rows, atol=1e-5)
        assert "3/3" in capsys.readouterr().err

    @pytest.mark.requirement("18.1")
    def test_similarity_is_a_multiple_of_the_cosine(self, provider: EmbeddingProvider, items: list[Any]) -> None:
        """18.1: ``similarity`` is a positive multiple of the cosine, whatever the lengths of the rows."""
        rows = provider.encode(items, normalize=False)
        found = provider.similarity(rows, rows[:2])
        cosine = torch.nn.functional.cosine_similarity(rows[:, None], rows[None, :2], dim=2)
        assert (found.shape, found.dtype) == ((3, 2), torch.float32)
        assert found[0, 0] > 0
        assert torch.allclose(found / found[0, 0], cosine, atol=1e-5)
        assert torch.allclose(provider.similarity(rows * 3, rows[:2]), found, atol=1e-4)

    @pytest.mark.requirement("18.1")
    def test_a_bad_input_is_an_error_with_its_place(
        self, provider: EmbeddingProvider, items: list[Any], bad_item: Any
    ) -> None:
        """18.1: an input that cannot be encoded is an error that carries its position, never a row."""
        for bad in (bad_item, None, object()):
            with pytest.raises(LlmCompressionError) as caught:
                provider.encode([items[0], bad, items[1]], batch_size=1)
            assert getattr(caught.value, "position", None) == 1
        with pytest.raises(LlmCompressionError):
            provider.encode(None)

    @pytest.mark.requirement("18.1")
    @pytest.mark.parametrize("batch_size", [0, -3, 1.5, "2", None])
    def test_a_bad_batch_size_is_an_error(self, provider: EmbeddingProvider, items: list[Any], batch_size: int) -> None:
        """18.1: a batch size that is no positive whole number is a ConfigError, also where nothing is given."""
        for given in (items, []):
            with pytest.raises(ConfigError, match="batch_size"):
                provider.encode(given, batch_size=batch_size)

    @pytest.mark.requirement("18.1")
    @pytest.mark.parametrize("shape", [(3,), (3, 1), (2, 2, 2)])
    def test_similarity_takes_embeddings_only(self, provider: EmbeddingProvider, shape: tuple[int, ...]) -> None:
        """18.1: tables of other widths or dimensions, integers and lists are ConfigErrors."""
        rows = torch.ones(2, provider.dimension)
        for other in (torch.ones(shape), torch.ones(2, provider.dimension, dtype=torch.int64), [[1.0]]):
            with pytest.raises(ConfigError):
                provider.similarity(rows, other)  # type: ignore[arg-type]  # on purpose
