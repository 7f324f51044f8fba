"""TextConfig: valid where it is made, and the same after a round trip."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given

from llm_compression.errors import ConfigError
from llm_compression.text.text_config import TextConfig
from tests.text_models import TINY_BERT, TINY_CLIP, TINY_CLIP_TEXT, text_configs


@pytest.mark.requirement("15.7")
@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        (TINY_BERT, "model_type", "roberta"),
        (TINY_BERT, "vocab_size", 0),
        (TINY_BERT, "num_positions", True),
        (TINY_BERT, "num_layers", 2.0),
        (TINY_BERT, "hidden_size", 17),
        (TINY_BERT, "layer_norm_eps", float("nan")),
        (TINY_BERT, "hidden_act", "gelu_new"),
        (TINY_BERT, "pooling", "eos"),
        (TINY_BERT, "pooling", "max"),
        (TINY_BERT, "max_length", 13),
        (TINY_BERT, "type_vocab_size", None),
        (TINY_BERT, "projection_dim", 4),
        (TINY_BERT, "eos_token_id", 1),
        (TINY_CLIP_TEXT, "pooling", "mean"),
        (TINY_CLIP_TEXT, "eos_token_id", None),
        (TINY_CLIP_TEXT, "eos_token_id", 15),
        (TINY_CLIP_TEXT, "type_vocab_size", 2),
        (TINY_CLIP_TEXT, "projection_dim", 0),
    ],
)
def test_an_invalid_value_is_named(config: TextConfig, field: str, value: object) -> None:
    """15.7: IF a value is missing, unknown or invalid, THEN ConfigError with the field and the value found."""
    with pytest.raises(ConfigError, match=f"(?s){field}.*{value}"):
        replace(config, **{field: value})  # type: ignore[arg-type]  # on purpose


@pytest.mark.requirement("15.7")
@pytest.mark.parametrize("field", [name for name in TINY_BERT.to_dict() if name != "model_type"])
def test_every_field_is_required_from_a_file(field: str) -> None:
    """15.7: a missing value, also one that the class has a default for, is a ConfigError that names it."""
    values = {name: value for name, value in TINY_BERT.to_dict().items() if name != field}
    with pytest.raises(ConfigError, match=f"missing .*{field}"):
        TextConfig.from_dict(values)


@pytest.mark.requirement("15.7")
def test_an_unknown_field_of_a_file_is_named() -> None:
    """15.7: an unknown value is a ConfigError that names it."""
    with pytest.raises(ConfigError, match=r"unknown .*rotary"):
        TextConfig.from_dict({**TINY_BERT.to_dict(), "rotary": True})


@pytest.mark.property(17)
@given(config=text_configs())
def test_a_configuration_survives_a_round_trip(config: TextConfig) -> None:
    """Property 17: for any valid sizes, what is read back from a file equals what was written."""
    assert TextConfig.from_dict(config.to_dict()) == config


@pytest.mark.requirement("15.7")
def test_the_towers_of_a_clip_project_to_one_width() -> None:
    """15.7: towers of different widths, or a text part that is no CLIP's, are a ConfigError."""
    with pytest.raises(ConfigError, match="projection_dim: 10 of the text, 11 of the image"):
        replace(TINY_CLIP, vision=replace(TINY_CLIP.vision, projection_dim=11))
    with pytest.raises(ConfigError, match=r"text\.model_type: 'bert'"):
        replace(TINY_CLIP, text=TINY_BERT)
