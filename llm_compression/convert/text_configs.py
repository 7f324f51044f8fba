"""The sizes of a text encoder, from the configuration files of a Hugging Face or sentence-transformers directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final

from llm_compression.convert.tensor_files import read_json, read_json_list
from llm_compression.errors import CheckpointError
from llm_compression.inference.text_config import BERT, CLIP_TEXT, TextConfig

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
}
_CLIP_END_TOKEN: Final = 49407
# What OpenAI's export says instead of the end token; transformers then pools at the largest id.
_OLD_EXPORT_EOS: Final = 2
# Settings that lead to another architecture, and the values that do not.
_BERT_SUPPORTED: Final[Mapping[str, tuple[Any, ...]]] = {
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
}
_MODULES: Final = ("Transformer", "Pooling", "Normalize")
_POOLING_KEYS: Final[Mapping[str, str]] = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
# What tokenizers that know no limit write.
_NO_LIMIT: Final = 10**6


def transformer_directory(directory: Path) -> Path:
    """Where a sentence-transformers directory has its transformer; any other directory is its own.

    Raises:
        CheckpointError: ``modules.json`` names a module that is not supported.
    """
    modules = _modules(directory)
    return directory / modules["Transformer"] if modules else directory


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
    for key, supported in _BERT_SUPPORTED.items():
        if values.get(key, supported[0]) not in supported:
            raise CheckpointError(f"{file}: {key}: {values[key]!r}, expected {supported[0]!r}")
    keys = {**_KEYS, "type_vocab_size": "type_vocab_size"}
    found: dict[str, Any] = {field: values[key] for field, key in keys.items() if key in values}
    found |= {"pooling": _pooling(root), "max_length": _max_length(directory, values), **overrides}
    missing = [key for field, key in keys.items() if field not in found]
    if missing:
        raise CheckpointError(f"{file}: no {', '.join(missing)}, expected every size and the activation")
    if found["pooling"] is None:
        raise CheckpointError(
            f"{root}: nothing says how tokens are pooled (no modules.json of sentence-transformers), expected "
            "overrides={'pooling': 'mean' or 'cls'}"
        )
    return TextConfig(model_type=BERT, **found)


def clip_text_from_huggingface(file: Path, overrides: Mapping[str, Any]) -> TextConfig:
    """Read the text tower's part of a CLIPModel's ``config.json``.

    Args:
        file: The ``config.json``.
        overrides: Of these only ``hidden_act``, which holds for both towers.

    Raises:
        CheckpointError: The part is missing, or leaves out what cannot be guessed.
        ConfigError: A value is invalid.
    """
    values = read_json(file)
    text, older = values.get("text_config"), values.get("text_config_dict")
    for key, value in (("text_config", text), ("text_config_dict", older)):
        if value is not None and not isinstance(value, dict):
            raise CheckpointError(f"{file}: {key}: {value!r}, expected an object")
    if text is None and older is None:
        raise CheckpointError(f"{file}: no text_config, expected the sizes of the text tower")
    text, older = text or {}, older or {}
    if older and (differing := sorted(key for key in _KEYS.values() if key in text and text[key] != older.get(key))):
        raise CheckpointError(f"{file}: text_config and text_config_dict differ in {differing}, expected one of them")
    text = {**_CLIP_DEFAULTS, **text, **older}
    if "hidden_act" in overrides:
        text["hidden_act"] = overrides["hidden_act"]
    if text.get("hidden_act") is None:
        raise CheckpointError(
            f"{file}: no hidden_act in text_config, expected the activation; transformers reads such a file as "
            "'quick_gelu'; if that is what the model was trained with, pass overrides={'hidden_act': 'quick_gelu'}"
        )
    # where the end token is the last of the vocabulary both poolings are one
    eos = text.get("eos_token_id", _CLIP_END_TOKEN if text["vocab_size"] == _CLIP_END_TOKEN + 1 else None)
    if eos is None:
        raise CheckpointError(f"{file}: no eos_token_id in text_config, expected the end token, where a text is pooled")
    return TextConfig(
        model_type=CLIP_TEXT,
        **{field: text[key] for field, key in _KEYS.items()},
        pooling="argmax" if eos == _OLD_EXPORT_EOS else "eos",
        eos_token_id=None if eos == _OLD_EXPORT_EOS else eos,
        max_length=text["max_position_embeddings"],
        projection_dim=values.get("projection_dim", 512),
    )


def _modules(root: Path) -> dict[str, str]:
    """Path by kind of each module of a sentence-transformers directory; empty for another one."""
    file = root / "modules.json"
    if not file.exists():
        return {}
    found: dict[str, str] = {}
    for module in read_json_list(file):
        kind = str(module.get("type", "")).rpartition(".")[2] if isinstance(module, dict) else ""
        place = str(module.get("path", "")) if isinstance(module, dict) else ""
        if kind not in _MODULES or kind in found:
            raise CheckpointError(f"{file}: module {module!r}, expected one each of {', '.join(_MODULES)}")
        if PurePosixPath(place).is_absolute() or ".." in PurePosixPath(place).parts:
            raise CheckpointError(f"{file}: path {place!r}, expected one inside the directory")
        found[kind] = place
    if not {"Transformer", "Pooling"} <= set(found):
        raise CheckpointError(f"{file}: modules {sorted(found)}, expected a Transformer and a Pooling")
    return found


def _pooling(root: Path) -> str | None:
    """How a sentence-transformers directory pools; None where nothing says it."""
    modules = _modules(root)
    if not modules:
        return None
    defaults = root / "config_sentence_transformers.json"
    if defaults.exists() and (name := read_json(defaults).get("default_prompt_name")) is not None:
        raise CheckpointError(f"{defaults}: default_prompt_name: {name!r}, expected none: texts are taken as they are")
    file = root / modules["Pooling"] / "config.json"
    values = read_json(file)
    mode = values.get("pooling_mode")
    if mode is None:
        modes = [key for key, on in values.items() if key.startswith("pooling_mode_") and on]
        mode = _POOLING_KEYS.get(modes[0], modes[0]) if len(modes) == 1 else modes
    if mode not in _POOLING_KEYS.values():
        raise CheckpointError(f"{file}: pooling {mode!r}, expected one of {', '.join(_POOLING_KEYS.values())}")
    return str(mode)


def _max_length(directory: Path, values: Mapping[str, Any]) -> int:
    """Tokens at which a text is cut, as sentence-transformers decides it."""
    positions = values.get("max_position_embeddings", _NO_LIMIT)
    stated, file = None, directory / "sentence_bert_config.json"
    if file.exists():
        sentence = read_json(file)
        if sentence.get("do_lower_case"):
            raise CheckpointError(f"{file}: do_lower_case: true, expected the tokenizer to do it")
        stated = sentence.get("max_seq_length")
    file = directory / "tokenizer_config.json"
    if stated is None and file.exists():
        stated = read_json(file).get("model_max_length")
    # the limit that transformers writes where there is none is no whole number of its file format
    if not isinstance(stated, int) or stated > _NO_LIMIT:
        stated = positions
    return int(min(stated, positions))
