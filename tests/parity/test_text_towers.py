"""Random small BERTs and CLIPs against transformers: embeddings, logits, both pooling rules, padding."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig, BertModel, CLIPConfig, CLIPModel

from llm_compression.convert import convert_checkpoint
from llm_compression.multimodal.clip_config import ClipConfig
from llm_compression.multimodal.clip_engine import CLIPEngine
from llm_compression.multimodal.vision_config import VisionConfig
from llm_compression.multimodal.vision_encoder import VisionEncoder
from llm_compression.text.text_config import BERT, CLIP_TEXT, TextConfig
from llm_compression.text.text_encoder import TextEncoder
from llm_compression.text.tokenizer import write_word_tokenizer
from tests.conftest import AssertWithin
from tests.strategies import SEEDS, random_pixels, vision_configs
from tests.text_models import TINY_CLIP, clip_weights, text_configs, text_weights, token_rows

_NAMES = {"num_layers": "num_hidden_layers", "num_heads": "num_attention_heads"}
_SIZES = ("hidden_size", "intermediate_size", "layer_norm_eps", "hidden_act")


def _padded(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    return ids, torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])


def _write_tokenizer(directory: Path, vocabulary: int) -> None:
    write_word_tokenizer(directory / "tokenizer.json", [f"w{i}" for i in range(vocabulary - 2)], "<start>", "<end>")


def _settings(config: TextConfig | VisionConfig) -> dict[str, Any]:
    values = {name: getattr(config, name) for name in _SIZES}
    return values | {theirs: getattr(config, ours) for ours, theirs in _NAMES.items()}


def _bert(config: TextConfig, seed: int) -> Any:
    settings = _settings(config) | {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.num_positions,
        "type_vocab_size": config.type_vocab_size,
    }
    model: Any = BertModel(BertConfig(**settings), add_pooling_layer=False)
    model.load_state_dict(text_weights(config, seed))
    return model.eval()


def _clip(config: ClipConfig, seed: int) -> Any:
    text = _settings(config.text) | {
        "vocab_size": config.text.vocab_size,
        "max_position_embeddings": config.text.num_positions,
        # what the old export says, where transformers pools at the largest id
        "eos_token_id": 2 if config.text.eos_token_id is None else config.text.eos_token_id,
        "bos_token_id": 0,
        "pad_token_id": 0,
    }
    vision = _settings(config.vision) | {"image_size": config.vision.image_size, "patch_size": config.vision.patch_size}
    settings = CLIPConfig(text_config=text, vision_config=vision, projection_dim=config.text.projection_dim)
    model: Any = CLIPModel(settings)
    model.load_state_dict(clip_weights(config, seed))
    return model.eval()


def _engine(model: Any, vocabulary: int) -> CLIPEngine:
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(Path(directory, "source"))
        _write_tokenizer(Path(directory, "source"), vocabulary)
        convert_checkpoint(Path(directory, "source"), Path(directory, "out"))
        return CLIPEngine(Path(directory, "out"), dtype="float32")


@st.composite
def clip_configs(draw: st.DrawFn) -> ClipConfig:
    """Tiny CLIP models, both pooling rules."""
    text, vision = draw(text_configs(CLIP_TEXT)), draw(vision_configs())
    # a CLIP's texts are cut where its positions end
    text = replace(text, max_length=text.num_positions)
    if text.eos_token_id is not None:
        text = replace(text, eos_token_id=text.vocab_size - 1)  # the end token of the tokenizer beside it
    return ClipConfig(text, replace(vision, projection_dim=text.projection_dim))


@pytest.mark.property(18)
@given(data=st.data(), config=text_configs(BERT), seed=SEEDS)
def test_random_berts(data: st.DataObject, config: TextConfig, seed: int, assert_within: AssertWithin) -> None:
    """Property 18: for any sizes, pooling and padding, TextEncoder equals BertModel with the same pooling."""
    rows = data.draw(token_rows(config))
    model = _bert(config, seed)
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(Path(directory, "source"))
        _write_tokenizer(Path(directory, "source"), config.vocab_size)
        overrides = {"pooling": config.pooling, "max_length": config.max_length}
        convert_checkpoint(Path(directory, "source"), Path(directory, "out"), overrides=overrides)
        encoder = TextEncoder(Path(directory, "out"), dtype="float32")
    assert encoder.config == config
    ids, mask = _padded(rows)
    with torch.inference_mode():
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    weights = mask[..., None].float()
    wanted = hidden[:, 0] if config.pooling == "cls" else (hidden * weights).sum(1) / weights.sum(1)
    assert_within("precision-float32-minilm", encoder.encode_ids(rows, False, convert_to_tensor=True), wanted)


@pytest.mark.property(18)
@given(data=st.data(), config=clip_configs(), seed=SEEDS)
def test_random_clips(data: st.DataObject, config: ClipConfig, seed: int, assert_within: AssertWithin) -> None:
    """Property 18: for any sizes and either pooling rule, both towers and the logits equal those of CLIPModel."""
    rows = data.draw(token_rows(config.text))
    pixels = random_pixels(data.draw(st.integers(1, 3)), config.vision.image_size, seed)
    model = _clip(config, seed)
    engine = _engine(model, config.text.vocab_size)
    assert engine.config == config
    ids, mask = _padded(rows)
    with torch.inference_mode():
        wanted = model(input_ids=ids, attention_mask=mask, pixel_values=pixels)
    texts, images = (
        engine.text.encoder.encode_ids(rows, convert_to_tensor=True),
        engine.vision.encode_pixels(pixels, convert_to_tensor=True),
    )
    assert_within("precision-float32-minilm", texts, wanted.text_embeds)
    assert_within("precision-float32-minilm", images, wanted.image_embeds)
    # relative to the scale: a logit is a difference, and one near zero has no digits of its own
    scale = model.logit_scale.exp().item()
    assert engine.logit_scale == pytest.approx(scale, rel=1e-6)
    difference = (torch.from_numpy(engine.logits(images, texts)) - wanted.logits_per_image) / scale
    assert_within("precision-float32-minilm", 1 + difference.abs().amax().reshape(1, 1), torch.ones(1, 1))


@pytest.mark.requirement("17.2")
@pytest.mark.parametrize("pooling", ["eos", "argmax"])
@pytest.mark.parametrize("seed", range(10))
def test_logits_of_a_whole_model(pooling: str, seed: int, assert_within: AssertWithin) -> None:
    """17.2: the logits of images against texts, row by row, equal those of CLIPModel for both pooling rules."""
    text = TINY_CLIP.text
    if pooling == "argmax":
        text = replace(text, pooling=pooling, eos_token_id=None)
    config = replace(TINY_CLIP, text=replace(text, max_length=text.num_positions))
    model = _clip(config, seed)
    engine = _engine(model, text.vocab_size)
    texts = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9 w10", "w2 w2"]
    pixels = random_pixels(3, config.vision.image_size, seed)
    ids, mask = _padded(engine.text.tokenize(texts))
    with torch.inference_mode():
        wanted = model(input_ids=ids, attention_mask=mask, pixel_values=pixels).logits_per_image
    found = engine.logits(engine.vision.encode_pixels(pixels), engine.encode_text(texts))
    assert_within("precision-float32-minilm", found, wanted)


@pytest.mark.property(19)
@given(config=clip_configs(), seed=SEEDS)
def test_the_image_tower_of_a_whole_clip(config: ClipConfig, seed: int) -> None:
    """Property 19: from a file of both towers VisionEncoder gives the rows that it gives from one of its own alone."""
    pixels = random_pixels(2, config.vision.image_size, seed)
    with tempfile.TemporaryDirectory() as directory:
        _clip(config, seed).save_pretrained(Path(directory, "source"))
        convert_checkpoint(Path(directory, "source"), Path(directory, "both"))
        convert_checkpoint(Path(directory, "source"), Path(directory, "one"), vision_only=True)
        both, one = (VisionEncoder(Path(directory, name), dtype="float32") for name in ("both", "one"))
    assert both.config == one.config == config.vision
    assert torch.equal(
        both.encode_pixels(pixels, convert_to_tensor=True), one.encode_pixels(pixels, convert_to_tensor=True)
    )
