"""Properties of text encoders over random small configurations."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm_compression.text.text_config import BERT, CLIP_TEXT, TextConfig
from llm_compression.text.text_encoder import TextEncoder
from tests.conftest import AssertWithin
from tests.strategies import SEEDS
from tests.text_models import text_configs, text_weights, token_rows, write_text_model


def _encoder(config: TextConfig, seed: int) -> TextEncoder:
    with tempfile.TemporaryDirectory() as directory:
        model = write_text_model(Path(directory), config, tensors=text_weights(config, seed))
        return TextEncoder(model, dtype="float32")


@pytest.mark.property(20)
@given(data=st.data(), config=text_configs(), seed=SEEDS, batch_size=st.integers(1, 4))
def test_a_row_depends_on_its_text_alone(
    data: st.DataObject, config: TextConfig, seed: int, batch_size: int, assert_within: AssertWithin
) -> None:
    """Property 20: for any texts, order and batch size, each row is the one that its text gives alone."""
    encoder, rows = _encoder(config, seed), data.draw(token_rows(config, 6))
    order = data.draw(st.permutations(range(len(rows))))
    alone = torch.cat([encoder.encode_ids([row], False, convert_to_tensor=True) for row in rows])
    together = encoder.encode_ids([rows[i] for i in order], False, batch_size, convert_to_tensor=True)
    assert_within("precision-float32-minilm", together, alone[order])
    assert encoder.encode_ids([], False, batch_size, convert_to_tensor=True).shape == (0, config.dimension)


@pytest.mark.property(21)
@given(data=st.data(), config=text_configs(BERT), seed=SEEDS)
def test_what_is_padded_does_not_count(
    data: st.DataObject, config: TextConfig, seed: int, assert_within: AssertWithin
) -> None:
    """Property 21: for any text and any ids behind it that are marked as padding, the row is that of the text."""
    encoder, row = _encoder(config, seed), data.draw(token_rows(config, 1))[0]
    behind = data.draw(st.lists(st.integers(0, config.vocab_size - 1), max_size=config.num_positions - len(row)))
    padding = torch.tensor([[False] * len(row) + [True] * len(behind)])
    with torch.inference_mode():
        padded = encoder(torch.tensor([[*row, *behind]]), padding)
    assert_within("precision-float32-minilm", padded, encoder.encode_ids([row], False, convert_to_tensor=True))


@pytest.mark.property(21)
@given(data=st.data(), config=text_configs(CLIP_TEXT), seed=SEEDS)
def test_nothing_behind_the_end_token_counts(
    data: st.DataObject, config: TextConfig, seed: int, assert_within: AssertWithin
) -> None:
    """Property 21: for any text and any ids behind its end token, the row is that of the text, by the causal mask."""
    encoder, row = _encoder(config, seed), data.draw(token_rows(config, 1))[0]
    end = config.vocab_size - 1 if config.eos_token_id is None else config.eos_token_id
    row = [*(token for token in row[:-1] if token != end), end]
    behind = data.draw(st.lists(st.integers(0, config.vocab_size - 1), max_size=config.num_positions - len(row)))
    with torch.inference_mode():
        longer = encoder(torch.tensor([[*row, *behind]]))
    assert_within("precision-float32-minilm", longer, encoder.encode_ids([row], False, convert_to_tensor=True))
