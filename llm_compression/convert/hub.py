"""A checkpoint named by its hub id, fetched through huggingface_hub where that is installed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from llm_compression.convert.sentence_modules import transformer_directory
from llm_compression.errors import CheckpointError

INSTALL: Final = "pip install 'llm-compression[hub]'"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# All that a path would offer beside the weights, inner folders included: `*` also stands for a folder there.
CONFIGS: Final = (
    *("*config.json", "modules.json", "*tokenizer.json", "*vocab.json", "*vocab.txt", "*merges.txt"),
    *("*special_tokens_map.json", "*added_tokens.json", "config_sentence_transformers.json"),
)
# A repository may hold the same weights several times; the first kind it has is the only one fetched.
_WEIGHTS: Final = (
    ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json"),
    ("open_clip_model.safetensors",),
    ("pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json"),
    ("open_clip_pytorch_model.bin",),
)


def is_hub_id(source: str) -> bool:
    """Whether this has the form ``organisation/name``."""
    return _HUB_ID.fullmatch(source) is not None


def download(hub_id: str, revision: str | None, has_weights: Callable[[Path], bool]) -> Path:
    """Fetch a checkpoint, or find it in the library's cache.

    Args:
        hub_id: ``organisation/name``.
        revision: A branch, tag or commit; the main branch unless given.
        has_weights: Whether a directory holds weights that can be read; asked of the one that ``modules.json`` names.

    Returns:
        The directory, whose name is the commit.

    Raises:
        CheckpointError: The library is not installed, the hub cannot be reached, or it has no such checkpoint.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise CheckpointError(
            f"{hub_id}: no such file or directory; reading it as a hub id needs huggingface_hub: {INSTALL}"
        ) from error
    folder, inner = "", Path()
    for weights in ((), *_WEIGHTS):
        try:
            patterns = [*CONFIGS, *(f"{folder}{name}" for name in weights)]
            directory = Path(snapshot_download(hub_id, revision=revision, allow_patterns=patterns))
        # the library raises its own errors, its HTTP client's and the operating system's
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise CheckpointError(
                f"{hub_id}: no such file or directory, and not to be had from the hub: {reason}"
            ) from error
        if weights and has_weights(inner):
            return directory
        # where modules.json, once it is here, says that the weights are
        inner = transformer_directory(directory)
        folder = "" if inner == directory else f"{inner.relative_to(directory).as_posix()}/"
    raise CheckpointError(f"{hub_id}: the hub has it, but none of {', '.join(kind[0] for kind in _WEIGHTS)} in it")
