"""What every EmbeddingProvider promises, as one suite: subclass `ProviderContract` and give it a provider."""

from __future__ import annotations

from collections import UserList, deque
from typing import Any

import numpy as np
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

    @pytest.mark.requirement("18.1", "28.1")
    def test_a_row_for_each_input(self, provider: EmbeddingProvider, items: list[Any]) -> None:
        """18.1, 28.1: numpy float32 (n, dimension) for one input, for a list, and for none; a tensor where asked."""
        for given, rows in ((items, 3), (items[:1], 1), (items[0], 1), ([], 0), (tuple(items), 3)):
            found = provider.encode(given)
            assert (type(found), found.dtype.name) == (np.ndarray, "float32")
            assert found.shape == (rows, provider.dimension)
            assert found.flags.writeable
            tensor = provider.encode(given, convert_to_tensor=True)
            assert (type(tensor), tensor.dtype, tensor.device.type) == (torch.Tensor, torch.float32, "cpu")
            assert np.array_equal(tensor.numpy(), found)

    @pytest.mark.requirement("18.1", "28.6")
    def test_inputs_of_an_iterator(self, provider: EmbeddingProvider, items: list[Any]) -> None:
        """18.1, 28.6: an iterator, a generator and a sequence of any class give the rows of the list."""
        rows = provider.encode(items)
        values = dict(zip("abc", items, strict=True)).values()
        for given in (iter(items), (item for item in items), UserList(items), deque(items), values):
            assert np.allclose(provider.encode(given, batch_size=2), rows, atol=1e-5)
        nothing: list[Any] = [iter(()), UserList(), {}.values()]
        for none in nothing:
            assert provider.encode(none).shape == (0, provider.dimension)
        with pytest.raises(LlmCompressionError, match="no order"):
            provider.encode({1, 2})

    @pytest.mark.requirement("18.1")
    def test_rows_have_unit_length_when_asked(self, provider: EmbeddingProvider, items: list[Any]) -> None:
        """18.1: normalised rows have length one and the direction of the others."""
        unit, plain = provider.encode(items), provider.encode(items, normalize=False)
        assert np.allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-5)
        assert np.allclose(plain / np.linalg.norm(plain, axis=1, keepdims=True), unit, atol=1e-5)

    @pytest.mark.requirement("18.1")
    def test_batches_and_order_do_not_matter(self, provider: EmbeddingProvider, items: list[Any]) -> None:
        """18.1: each row belongs to its input, whatever the batch and the order."""
        rows = provider.encode(items)
        assert np.linalg.norm(rows[0] - rows[1]) > 1e-3
        assert np.allclose(provider.encode(items, batch_size=1), rows, atol=1e-5)
        assert np.allclose(provider.encode(items[::-1], batch_size=2)[::-1], rows, atol=1e-5)

    @pytest.mark.requirement("18.2")
    def test_encode_batch_gives_the_rows_of_encode(
        self, provider: EmbeddingProvider, items: list[Any], capsys: pytest.CaptureFixture[str]
    ) -> None:
        """18.2: ``encode_batch`` gives the rows of ``encode``, with a progress bar where it is asked for."""
        rows = provider.encode(items)
        assert np.allclose(provider.encode_batch(items, batch_size=2), rows, atol=1e-5)
        assert capsys.readouterr().err == ""  # stderr is no terminal
        assert np.allclose(provider.encode_batch(items, True, 1, show_progress=True), rows, atol=1e-5)
        assert "3/3" in capsys.readouterr().err

    @pytest.mark.requirement("18.1", "28.2")
    def test_similarity_is_the_cosine(self, provider: EmbeddingProvider, items: list[Any]) -> None:
        """18.1, 28.2: ``similarity`` is the cosine, whatever the lengths of the rows, of arrays and of tensors."""
        rows = provider.encode(items, normalize=False)
        found = provider.similarity(rows, rows[:2])
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        assert (type(found), found.shape, found.dtype.name) == (np.ndarray, (3, 2), "float32")
        assert np.allclose(found, unit @ unit[:2].T, atol=1e-5)
        for a, b in ((rows * 3, rows[:2]), (torch.from_numpy(rows), rows[:2]), (rows, torch.from_numpy(rows)[:2])):
            assert np.allclose(provider.similarity(a, b), found, atol=1e-6)

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
        rows = np.ones((2, provider.dimension), np.float32)
        for other in (torch.ones(shape), np.ones(shape), np.ones(rows.shape, np.int64), [[1.0]], None, 1.0, "rows.txt"):
            with pytest.raises(ConfigError):
                provider.similarity(rows, other)
