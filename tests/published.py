"""Checkpoints as their authors publish them, made by transformers itself with tiny seeded weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, CLIPConfig, CLIPModel, CLIPTokenizer

from llm_compression.multimodal.image_processor import CLIP_MEAN, CLIP_STD

# Words whose ids depend on each thing that a BERT tokenizer may do: case, accents, Chinese, pieces, marks.
BERT_WORDS: Final = (
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "##s", "cafe", "café", "A", "Cat", "Café", "!", "猫"),
    *("x猫y", "x", "y", "[", "]", "mask", "MASK", "dog", "tok", "red", "the"),
)
TEXTS: Final = (
    "A Cat",
    "a cat",
    "Café cafe café",
    "x猫y 猫",
    "the red dog cats!",
    "a tok [MASK] tok",
    "a cat the dog red tok cat a dog the red a cat",
)
MODULES: Final = (
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
)


def write_json(file: Path, values: object) -> None:
    """A JSON file, its directory made if need be."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")


def change_json(file: Path, changes: Mapping[str, Any]) -> None:
    """Set keys of a JSON object, which may not be there yet; the value ``"absent"`` takes one out."""
    values = (json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}) | dict(changes)
    write_json(file, {key: value for key, value in values.items() if value != "absent"})


@cache
def _bert() -> Any:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(BERT_WORDS) + 6,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=24,
        max_position_embeddings=20,
        initializer_range=0.5,
    )
    return BertModel(config).eval()


def bert_tokenizer() -> Tokenizer:
    """What BertTokenizer writes."""
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(BERT_WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens([AddedToken(word, normalized=False, special=True) for word in BERT_WORDS[:5]])
    return tokenizer


def write_sentence_bert(directory: Path) -> Path:
    """A directory of sentence-transformers as all-MiniLM-L6-v2 has it."""
    _bert().save_pretrained(directory)
    bert_tokenizer().save(str(directory / "tokenizer.json"))
    named = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    own = {"do_lower_case": True, "tokenizer_class": "BertTokenizer", **named}
    write_json(directory / "tokenizer_config.json", own)
    write_json(directory / "modules.json", MODULES)
    write_json(
        directory / "1_Pooling" / "config.json", {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True}
    )
    write_json(directory / "sentence_bert_config.json", {"max_seq_length": 9, "do_lower_case": False})
    write_json(directory / "config_sentence_transformers.json", {"__version__": {"sentence_transformers": "2.0.0"}})
    return directory


@cache
def clip_vocabulary() -> dict[str, int]:
    """Every byte, alone and at the end of a word, some merges, and the two special tokens."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    units = list(bytes_to_unicode().values())
    merged = ["ca", "cat</w>", "do", "dog</w>", "re", "red</w>"]
    words = [*units, *(unit + "</w>" for unit in units), *merged, "<|startoftext|>", "<|endoftext|>"]
    return {word: number for number, word in enumerate(words)}


CLIP_MERGES: Final = (("c", "a"), ("ca", "t</w>"), ("d", "o"), ("do", "g</w>"), ("r", "e"), ("re", "d</w>"))


@cache
def _clip(rows: int = 0) -> Any:
    torch.manual_seed(0)
    size = len(clip_vocabulary())
    text = {
        "vocab_size": size + rows,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 24,
        "bos_token_id": size - 2,
        "eos_token_id": size - 1,
        "projection_dim": 10,
        "initializer_range": 0.3,
        "initializer_factor": 5.0,
    }
    vision = {
        "hidden_size": 12,
        "intermediate_size": 20,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "image_size": 16,
        "patch_size": 8,
        "projection_dim": 10,
        "initializer_factor": 5.0,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=10)).eval()


def write_clip(directory: Path, rows: int = 0) -> Path:
    """A directory of CLIPModel with its processor and tokenizer."""
    _clip(rows).save_pretrained(directory)
    merges: Any = list(CLIP_MERGES)
    tokenizer = CLIPTokenizer(vocab=clip_vocabulary(), merges=merges)
    tokenizer.model_max_length = 24
    tokenizer.save_pretrained(directory)
    write_json(
        directory / "preprocessor_config.json",
        {
            "crop_size": 16,
            "do_center_crop": True,
            "do_normalize": True,
            "do_resize": True,
            "feature_extractor_type": "CLIPFeatureExtractor",
            "image_mean": list(CLIP_MEAN),
            "image_std": list(CLIP_STD),
            "resample": 3,
            "size": 16,
        },
    )
    return directory
