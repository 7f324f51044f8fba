"""Text encoders and CLIP models for tests: seeded weights, tokenizers of whole words, hypothesis strategies."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from hypothesis import strategies as st

from llm_compression.harness.clip.checkpoint_weights import make_weights
from llm_compression.inference.weight_format import WEIGHTS_FILE, WeightMetadata, write_weights
from llm_compression.multimodal.clip_config import ClipConfig
from llm_compression.multimodal.image_processor import ImageProcessor
from llm_compression.multimodal.vision_config import VisionConfig
from llm_compression.text.text_config import BERT, CLIP_TEXT, TextConfig
from llm_compression.text.tokenizer import TOKENIZER_FILE, write_word_tokenizer

WORDS: Final = ("red", "green", "blue", "round", "square", "large", "small", "a", "photo", "of", "the", "cat", "dog")
VOCABULARY: Final = len(WORDS) + 2  # and the two special tokens

TINY_BERT: Final = TextConfig(
    model_type=BERT,
    vocab_size=VOCABULARY,
    num_positions=12,
    hidden_size=16,
    num_layers=2,
    num_heads=4,
    intermediate_size=24,
    layer_norm_eps=1e-12,
    hidden_act="gelu",
    pooling="mean",
    max_length=8,
    type_vocab_size=2,
)
TINY_CLIP_TEXT: Final = replace(
    TINY_BERT,
    model_type=CLIP_TEXT,
    layer_norm_eps=1e-5,
    hidden_act="quick_gelu",
    pooling="eos",
    type_vocab_size=None,
    eos_token_id=VOCABULARY - 1,
    projection_dim=10,
)
TINY_CLIP: Final = ClipConfig(
    TINY_CLIP_TEXT,
    VisionConfig(
        image_size=16,
        patch_size=8,
        hidden_size=12,
        num_layers=1,
        num_heads=2,
        intermediate_size=20,
        projection_dim=10,
    ),
)


def text_weights(config: TextConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    """Seeded weights under their Hugging Face names, drawn so that every block moves its input."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in config.expected_shapes().items():
        tensor = torch.randn(shape, generator=generator)
        if name.endswith(".bias"):
            tensor *= 0.1
        elif len(shape) == 1:
            tensor = 1 + 0.2 * tensor
        elif "embedding" not in name:
            tensor *= 1.4 * shape[1] ** -0.5
        tensors[name] = tensor
    return tensors


def clip_weights(config: ClipConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    """Seeded weights of both towers and a logit scale, in the order of a weight file."""
    found = {**text_weights(config.text, seed), **make_weights(config.vision, seed), "logit_scale": torch.tensor(1.5)}
    return {name: found[name] for name in config.expected_shapes()}


def write_text_model(
    directory: Path, config: TextConfig | ClipConfig, seed: int = 0, tensors: dict[str, torch.Tensor] | None = None
) -> Path:
    """A weight file and a tokenizer of `WORDS` beside it."""
    directory.mkdir(parents=True, exist_ok=True)
    write_word_tokenizer(directory / TOKENIZER_FILE, WORDS, "<start>", "<end>")
    text: dict[str, Any] = {"tokenizer_sha256": hashlib.sha256((directory / TOKENIZER_FILE).read_bytes()).hexdigest()}
    preprocessing = text
    if isinstance(config, ClipConfig):
        preprocessing = {"text": text, "vision": ImageProcessor(config.vision.image_size).to_dict()}
    if tensors is None:
        tensors = clip_weights(config, seed) if isinstance(config, ClipConfig) else text_weights(config, seed)
    metadata = WeightMetadata(config=config.to_dict(), preprocessing=preprocessing)
    write_weights(directory / WEIGHTS_FILE, tensors.items(), metadata)
    return directory


@st.composite
def text_configs(draw: st.DrawFn, model_type: str | None = None) -> TextConfig:
    """Tiny text encoders of both families, every pooling, head widths that are not all powers of two."""
    family = model_type or draw(st.sampled_from((BERT, CLIP_TEXT)))
    heads, positions = draw(st.integers(1, 4)), draw(st.integers(4, 20))
    vocabulary = draw(st.integers(5, 40))
    pooling = draw(st.sampled_from(("mean", "cls") if family == BERT else ("eos", "argmax")))
    return TextConfig(
        model_type=family,
        vocab_size=vocabulary,
        num_positions=positions,
        hidden_size=heads * draw(st.integers(3, 12)),
        num_layers=draw(st.integers(1, 3)),
        num_heads=heads,
        intermediate_size=draw(st.integers(1, 50)),
        layer_norm_eps=draw(st.sampled_from((1e-5, 1e-6, 1e-12))),
        hidden_act=draw(st.sampled_from(("quick_gelu", "gelu"))),
        pooling=pooling,
        max_length=draw(st.integers(3, positions)),
        type_vocab_size=draw(st.integers(1, 3)) if family == BERT else None,
        # 2 is what transformers takes for the sign of an old export
        eos_token_id=draw(st.integers(3, vocabulary - 1)) if pooling == "eos" else None,
        projection_dim=None if family == BERT else draw(st.integers(1, 30)),
    )


@st.composite
def token_rows(draw: st.DrawFn, config: TextConfig, max_rows: int = 5) -> list[list[int]]:
    """Token ids of some texts, of different lengths, each with an end token where the encoder needs one."""
    end = config.vocab_size - 1 if config.eos_token_id is None else config.eos_token_id
    rows = []
    for _ in range(draw(st.integers(1, max_rows))):
        row = draw(st.lists(st.integers(0, config.vocab_size - 1), min_size=1, max_size=config.max_length - 1))
        rows.append([*row, end] if not config.is_bert else row)
    return rows
