"""The sizes of a text encoder, from the configuration files of a Hugging Face or sentence-transformers directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from llm_compression.convert import config_keys
from llm_compression.convert.checkpoint_config import made, nested_config
from llm_compression.convert.sentence_modules import max_length, pooling
from llm_compression.convert.tensor_files import read_json
from llm_compression.errors import CheckpointError
from llm_compression.text.text_config import BERT, CLIP_TEXT, TextConfig

# Field of TextConfig and key of config.json, the same for both families.
_KEYS: Final[Mapping[str, str]] = {
    "vocab_size": "vocab_size",
    "num_positions": "max_position_embeddings",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "layer_norm_eps": "layer_norm_eps",
    "hidden_act": "hidden_act",
}
# CLIPTextConfig's defaults: transformers before 5 left a value out of a nested text_config where it was the default.
_CLIP_DEFAULTS: Final[Mapping[str, Any]] = {
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "hidden_size": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "intermediate_size": 2048,
    "layer_norm_eps": 1e-5,
    "hidden_act": "quick_gelu",
}
# BertConfig's; an activation is never guessed.
_BERT_DEFAULTS: Final[Mapping[str, Any]] = {
    "vocab_size": 30522,
    "max_position_embeddings": 512,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "type_vocab_size": 2,
}
_CLIP_END_TOKEN: Final = 49407
# What OpenAI's export says instead of the end token; transformers then pools at the largest id.
_OLD_EXPORT_EOS: Final = 2


def bert_from_huggingface(root: Path, directory: Path, overrides: Mapping[str, Any]) -> TextConfig:
    """Read a ``config.json`` of BERT and, in a sentence-transformers directory, how it pools.

    Args:
        root: The checkpoint's directory.
        directory: Where its transformer is.
        overrides: Fields that take the place of the files'.

    Raises:
        CheckpointError: A file is missing or names another model, or a value that is needed stands nowhere.
        ConfigError: A value is invalid.
    """
    file = directory / "config.json"
    if not file.exists():
        raise CheckpointError(f"{file}: missing; the activation and the number of heads stand nowhere else")
    values = read_json(file)
    if values.get("model_type") != "bert":
        raise CheckpointError(f"{file}: model_type: {values.get('model_type')!r}, expected 'bert'")
    keys = {**_KEYS, "type_vocab_size": "type_vocab_size"}
    read = {"model_type", "architectures", *keys.values()}
    config_keys.refuse_unknown(file, values, read, config_keys.BERT, config_keys.HUGGINGFACE_SUPPORTED)
    stated = {**_BERT_DEFAULTS, **values}
    positions = stated["max_position_embeddings"]
    limit = max_length(directory, positions) if isinstance(positions, int) else positions
    found: dict[str, Any] = {field: stated[key] for field, key in keys.items() if key in stated}
    found |= {"pooling": pooling(root), "max_length": limit, **overrides}
    if found.get("hidden_act") is None:
        raise CheckpointError(
            f"{file}: no hidden_act, expected the activation; transformers reads such a file as 'gelu'; if that is "
            "what the model was trained with, pass overrides={'hidden_act': 'gelu'} (on the command line, "
            "--hidden-act gelu)"
        )
    if found["pooling"] is None:
        raise CheckpointError(
            f"{root}: nothing says how tokens are pooled (no modules.json of sentence-transformers), expected "
            "overrides={'pooling': 'mean' or 'cls'}"
        )
    return made(TextConfig, {"model_type": BERT, **found}, file, overrides, _KEYS)


def clip_text_from_huggingface(file: Path, overrides: Mapping[str, Any], *, in_modules: bool = False) -> TextConfig:
    """Read the text tower's part of a CLIPModel's ``config.json``.

    Args:
        file: The ``config.json``.
        overrides: Of these only ``hidden_act``, which holds for both towers.
        in_modules: Whether a module Transformer of sentence-transformers holds the model, whose settings then count.

    Raises:
        CheckpointError: The part is missing, or leaves out what cannot be guessed.
        ConfigError: A value is invalid.
    """
    values = read_json(file)
    text = nested_config(values, file, "text", _CLIP_DEFAULTS, {"hidden_act": "hidden_act"}, overrides)
    read = {"model_type", "eos_token_id", *_CLIP_DEFAULTS}
    place = f"{file}: text_config"
    config_keys.refuse_unknown(place, text, read, config_keys.CLIP, config_keys.HUGGINGFACE_SUPPORTED)
    if text.get("model_type", CLIP_TEXT) != CLIP_TEXT:
        raise CheckpointError(f"{place}: model_type: {text['model_type']!r}, expected {CLIP_TEXT!r}")
    if "hidden_act" in overrides:
        text["hidden_act"] = overrides["hidden_act"]
    if text.get("hidden_act") is None:
        raise CheckpointError(
            f"{file}: no hidden_act in text_config, expected the activation; transformers reads such a file as "
            "'quick_gelu'; if that is what the model was trained with, pass overrides={'hidden_act': 'quick_gelu'}"
        )
    text = {**_CLIP_DEFAULTS, **text}
    eos, positions = _end_token(values, file, text), text["max_position_embeddings"]
    limit = max_length(file.parent, positions, settings=in_modules) if isinstance(positions, int) else positions
    found = {
        "model_type": CLIP_TEXT,
        **{field: text[key] for field, key in _KEYS.items()},
        "pooling": "argmax" if eos == _OLD_EXPORT_EOS else "eos",
        "eos_token_id": None if eos == _OLD_EXPORT_EOS else eos,
        "max_length": limit,
        "projection_dim": values.get("projection_dim", 512),
    }
    given = {field: value for field, value in overrides.items() if field == "hidden_act"}
    return made(TextConfig, found, file, given, _KEYS)


def _end_token(values: Mapping[str, Any], file: Path, text: Mapping[str, Any]) -> Any:
    """The ``eos_token_id`` of a text tower; 2 stands for the largest id of a text.

    Its default was 2 until transformers 4.31 and is 49407 since. In OpenAI's vocabulary, where 49407 comes last, both
    mean one token; in any other they do not.
    """
    older, whole = values.get("text_config_dict"), text["vocab_size"] == _CLIP_END_TOKEN + 1
    stated = text.get("eos_token_id", _CLIP_END_TOKEN if whole else None)
    # what transformers reads is then its default
    lost = older is not None and "eos_token_id" not in older
    if lost and whole and stated == _OLD_EXPORT_EOS:
        return _CLIP_END_TOKEN
    if stated is None:
        raise CheckpointError(f"{file}: no eos_token_id in text_config, expected the end token, where a text is pooled")
    if lost and stated != _CLIP_END_TOKEN:
        raise CheckpointError(
            f"{file}: text_config has eos_token_id {stated!r}, text_config_dict leaves it out, which transformers "
            f"reads as {_CLIP_END_TOKEN}; take text_config_dict out of the file, or put eos_token_id into it"
        )
    return stated
