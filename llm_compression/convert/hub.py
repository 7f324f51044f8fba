"""A checkpoint named by its hub id, fetched through huggingface_hub where that is installed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from llm_compression.errors import CheckpointError

INSTALL: Final = "pip install 'llm-compression[hub]'"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_CONFIGS: Final = ("config.json", "preprocessor_config.json", "processor_config.json", "open_clip_config.json")
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
        has_weights: Whether a directory holds weights that can be read.

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
    for weights in _WEIGHTS:
        try:
            directory = Path(snapshot_download(hub_id, revision=revision, allow_patterns=[*_CONFIGS, *weights]))
        # the library raises its own errors, its HTTP client's and the operating system's
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise CheckpointError(
                f"{hub_id}: no such file or directory, and not to be had from the hub: {reason}"
            ) from error
        if has_weights(directory):
            return directory
    raise CheckpointError(f"{hub_id}: the hub has it, but none of {', '.join(kind[0] for kind in _WEIGHTS)} in it")
