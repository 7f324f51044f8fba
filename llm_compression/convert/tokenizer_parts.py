"""The pipelines that transformers builds for BertTokenizer and CLIPTokenizer, as parts of a ``tokenizer.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

Kind = Literal["bert", "clip"]

# By kind: the class of transformers, the model inside its file, and the special tokens it has unless told otherwise.
CLASSES: Final[Mapping[Kind, str]] = {"bert": "BertTokenizer", "clip": "CLIPTokenizer"}
MODELS: Final[Mapping[Kind, str]] = {"bert": "WordPiece", "clip": "BPE"}
DEFAULT_TOKENS: Final[Mapping[Kind, Mapping[str, str]]] = {
    "bert": {
        "unk_token": "[UNK]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "mask_token": "[MASK]",
    },
    "clip": {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    },
}
# In front of a text and at its end.
AROUND: Final[Mapping[Kind, tuple[str, str]]] = {"bert": ("cls_token", "sep_token"), "clip": ("bos_token", "eos_token")}

# What may be in a part without changing an id; older files leave out the last three of these.
_NO_IDS: Final = frozenset({"trim_offsets", "use_regex", "byte_fallback", "ignore_merges", "dropout"})
_SPLIT: Final = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
# transformers 5 names the special tokens in front; they are taken out of a text before it is split
_SPLITS: Final = (_SPLIT, r"<\|startoftext\|>|<\|endoftext\|>|" + _SPLIT)


def normalizer(kind: Kind, config: Mapping[str, Any]) -> dict[str, Any]:
    """What is done to a text first; BERT's by ``tokenizer_config.json``."""
    if kind == "bert":
        return {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": config.get("tokenize_chinese_chars", True),
            "strip_accents": config.get("strip_accents"),
            "lowercase": config.get("do_lower_case", True),
        }
    space = {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}
    return {"type": "Sequence", "normalizers": [{"type": "NFC"}, space, {"type": "Lowercase"}]}


def pre_tokenizers(kind: Kind) -> tuple[dict[str, Any], ...]:
    """How a text is split, in each of the ways that give the same words."""
    if kind == "bert":
        return ({"type": "BertPreTokenizer"},)
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return tuple(
        {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Removed", "invert": True},
                level,
            ],
        }
        for regex in _SPLITS
    )


def model(kind: Kind, unknown: str) -> dict[str, Any]:
    """The model without its vocabulary."""
    if kind == "bert":
        prefix = {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
        return {"type": "WordPiece", "unk_token": unknown, **prefix}
    affixes = {"continuing_subword_prefix": "", "end_of_word_suffix": "</w>", "fuse_unk": False}
    return {"type": "BPE", "unk_token": unknown, **affixes}


def around(kind: Kind, before: str, after: str, ids: Mapping[str, int]) -> dict[str, Any]:
    """What puts a token in front of a text and one behind it."""
    processor = "BertProcessing" if kind == "bert" else "RobertaProcessing"
    offsets = {} if kind == "bert" else {"trim_offsets": False, "add_prefix_space": False}
    return {"type": processor, "sep": [after, ids[after]], "cls": [before, ids[before]], **offsets}


def tokens_around(processor: Any) -> tuple[list[int], list[int]] | None:
    """Ids in front of a text and behind it; None for a post-processor of another kind.

    Raises:
        KeyError, TypeError, IndexError: It is no post-processor.
    """
    if not isinstance(processor, Mapping):
        return ([], [])
    if processor.get("type") in ("BertProcessing", "RobertaProcessing"):
        return ([processor["cls"][1]], [processor["sep"][1]])
    if processor.get("type") != "TemplateProcessing":
        return None
    parts: tuple[list[int], list[int]] = ([], [])
    seen = 0
    for piece in processor["single"]:
        if "Sequence" in piece:
            seen = 1
        else:
            parts[seen].extend(processor["special_tokens"][piece["SpecialToken"]["id"]]["ids"])
    return parts


def same(found: Any, expected: Any) -> bool:
    """Whether a part gives the ids of the expected one: equal but for what changes none."""
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        keys = (set(found) | set(expected)) - _NO_IDS - {"vocab", "merges"}
        # an absent prefix is an empty one
        return all(same(found.get(key) or "", expected.get(key) or "") for key in keys)
    if isinstance(expected, list) and isinstance(found, list):
        return len(found) == len(expected) and all(map(same, found, expected))
    return bool(found == expected)


def lowers(part: Any) -> bool:
    """Whether a normalizer lower-cases a text."""
    if not isinstance(part, Mapping):
        return False
    if part.get("type") == "Sequence":
        return any(map(lowers, part.get("normalizers", ())))
    return part.get("type") == "Lowercase" or bool(part.get("lowercase"))
