"""What a directory of sentence-transformers says beside the transformer's own files: modules, pooling, length."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final

from llm_compression.convert import config_keys
from llm_compression.convert.tensor_files import read_json, read_json_list
from llm_compression.errors import CheckpointError

MODULES_FILE: Final = "modules.json"
# By the last part of their type, in the order in which they run; the first takes the input.
_FIRST: Final = ("Transformer", "CLIPModel")
_KINDS: Final = (*_FIRST, "Pooling", "Normalize")
_MODULE_KEYS: Final = ("idx", "name", "path", "type")
_POOLING_KEYS: Final[Mapping[str, str]] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_POOLINGS: Final = ("mean", "cls")
# Where sentence-transformers looks for a Transformer's settings, in this order.
_SENTENCE_FILES: Final = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
# What tokenizers that know no limit write.
_NO_LIMIT: Final = 10**6


def transformer_directory(directory: Path) -> Path:
    """Where a sentence-transformers directory has its transformer; any other directory is its own.

    Raises:
        CheckpointError: ``modules.json`` names a module that is not supported.
    """
    modules = read_modules(directory)
    return directory / next(iter(modules.values())) if modules else directory


def read_modules(root: Path) -> dict[str, str]:
    """Path by kind of each module of a sentence-transformers directory, in order; empty for another one.

    Raises:
        CheckpointError: A module is not supported, or not where sentence-transformers would run it.
    """
    file = root / MODULES_FILE
    if not file.exists():
        return {}
    found: dict[str, str] = {}
    for module in read_json_list(file):
        kind = str(module.get("type", "")).rpartition(".")[2] if isinstance(module, dict) else ""
        if kind not in _KINDS or kind in found:
            raise CheckpointError(f"{file}: module {module!r}, expected one each of {', '.join(_KINDS)}")
        config_keys.refuse_unknown(file, module, _MODULE_KEYS, (), {"kwargs": ([], {})})
        place = str(module.get("path", ""))
        if PurePosixPath(place).is_absolute() or ".." in PurePosixPath(place).parts:
            raise CheckpointError(f"{file}: path {place!r}, expected one inside the directory")
        found[kind] = place
    order = [_KINDS.index(kind) for kind in found]
    firsts = [kind for kind in found if kind in _FIRST]
    if len(firsts) != 1 or order != sorted(order) or (firsts == ["CLIPModel"] and "Pooling" in found):
        raise CheckpointError(
            f"{file}: modules {list(found)}, expected a Transformer and a Pooling, or a CLIPModel, and a Normalize at "
            "the end or none"
        )
    if "Normalize" in found and (normalize := root / found["Normalize"] / "config.json").is_file():
        config_keys.refuse_unknown(normalize, read_json(normalize), (), (), config_keys.NORMALIZE_SUPPORTED)
    _check_prompts(root)
    return found


def pooling(root: Path) -> str | None:
    """How a sentence-transformers directory of a BERT pools; None where nothing says it.

    Raises:
        CheckpointError: It pools in a way that is not supported.
    """
    modules = read_modules(root)
    if not modules:
        return None
    if not {"Transformer", "Pooling"} <= set(modules):
        raise CheckpointError(f"{root / MODULES_FILE}: modules {list(modules)}, expected a Transformer and a Pooling")
    file = root / modules["Pooling"] / "config.json"
    values = read_json(file)
    config_keys.refuse_unknown(file, values, ("pooling_mode", *_POOLING_KEYS), config_keys.POOLING)
    mode: Any = values.get("pooling_mode")
    if "pooling_mode" not in values:
        on = [key for key in values if key in _POOLING_KEYS and values[key]]
        mode = _POOLING_KEYS[on[0]] if len(on) == 1 else on
        if not any(key in values for key in _POOLING_KEYS):
            mode = "mean"
    if isinstance(mode, list) and len(mode) == 1:
        mode = mode[0]
    if mode not in _POOLINGS:
        raise CheckpointError(f"{file}: pooling {mode!r}, expected one of {', '.join(_POOLINGS)}")
    return str(mode)


def _stated_length(directory: Path) -> tuple[str, Any]:
    """The length that a module Transformer states, and where; None where it states none.

    Raises:
        CheckpointError: A setting of the module changes a row in a way that is not supported.
    """
    file = next((directory / name for name in _SENTENCE_FILES if (directory / name).is_file()), None)
    if file is None:
        return "", None
    values = read_json(file)
    if values.get("do_lower_case"):
        raise CheckpointError(f"{file}: do_lower_case: true, expected the tokenizer to do it")
    supported, read = config_keys.SENTENCE_BERT_SUPPORTED, ("max_seq_length", "do_lower_case")
    config_keys.refuse_unknown(file, values, read, config_keys.SENTENCE_BERT, supported)
    return f"{file}: max_seq_length", values.get("max_seq_length")


def max_length(directory: Path, positions: int, *, settings: bool = True) -> int:
    """Tokens at which a text is cut, as sentence-transformers and transformers decide it.

    Args:
        directory: Where the transformer is.
        positions: How many positions it has.
        settings: Whether a module Transformer's settings count.

    Raises:
        CheckpointError: A file says something that is not supported.
    """
    where, stated = _stated_length(directory) if settings else ("", None)
    file = directory / "tokenizer_config.json"
    if stated is None and file.exists():
        where, stated = f"{file}: model_max_length", read_json(file).get("model_max_length")
    # the limit that transformers writes where there is none is no whole number of its file format
    if stated is None or (isinstance(stated, int | float) and stated > _NO_LIMIT):
        return positions
    if not isinstance(stated, int) or isinstance(stated, bool):
        raise CheckpointError(f"{where}: {stated!r}, expected a whole number")
    if stated < 1:
        raise CheckpointError(f"{where}: {stated}, expected a positive whole number")
    return min(stated, positions)


def _check_prompts(root: Path) -> None:
    """A prompt that sentence-transformers would put in front of every text is refused."""
    file = root / "config_sentence_transformers.json"
    if not file.is_file():
        return
    values = read_json(file)
    config_keys.refuse_unknown(file, values, ("default_prompt_name",), config_keys.SENTENCE_TRANSFORMERS)
    name, prompts = values.get("default_prompt_name"), values.get("prompts") or {}
    if name is not None and (not isinstance(prompts, dict) or prompts.get(name, name)):
        raise CheckpointError(f"{file}: default_prompt_name: {name!r}, expected none: texts are taken as they are")
