"""Where a model's weight file is, and what a path is that holds none."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Final

from llm_compression.errors import MissingFileError, WeightFormatError
from llm_compression.inference.weight_format import WEIGHTS_FILE

# Suffixes of the weight files of other projects' checkpoints.
_CHECKPOINT_SUFFIXES: Final = (".safetensors", ".bin", ".pt", ".pth", ".safetensors.index.json", ".bin.index.json")
_PARQUET_MAGIC: Final = b"PAR1"


def weight_file_of(model_path: str | os.PathLike[str]) -> Path:
    """The weight file that a path names: itself, or the one in a directory.

    Raises:
        MissingFileError: There is none; where a checkpoint lies there instead, the message gives the command that
            converts it.
        WeightFormatError: The path is a file of a checkpoint.
    """
    path = Path(model_path)
    if path.is_file():
        if _is_checkpoint(path) and not _is_parquet(path):
            command = _convert(_source(path))
            raise WeightFormatError(f"{path}: a file of a checkpoint, expected a weight file; {command}")
        return path
    if not path.is_dir():
        hub_id = f"; if it is a hub id, {_convert(path)}" if _may_be_hub_id(os.fspath(model_path)) else ""
        raise MissingFileError(
            f"{path}: no such file, expected a weight file or a directory that holds a {WEIGHTS_FILE}{hub_id}"
        )
    file = path / WEIGHTS_FILE
    if not file.is_file():
        found = sorted(each.name for each in path.iterdir() if _is_checkpoint(each))
        if found:
            raise MissingFileError(
                f"{file}: no such file; {path} is a checkpoint ({', '.join(found[:3])}), expected a weight file; "
                f"{_convert(path)}"
            )
        raise MissingFileError(f"{file}: no such file, expected a weight file or a directory that holds one")
    return file


def _is_checkpoint(file: Path) -> bool:
    return file.name.endswith(_CHECKPOINT_SUFFIXES)


def _is_parquet(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(len(_PARQUET_MAGIC)) == _PARQUET_MAGIC


def _may_be_hub_id(text: str) -> bool:
    """Whether this has the form ``organisation/name`` and no such organisation is a directory here."""
    parts = text.split("/")
    named = len(parts) == 2 and all(part and not part.startswith((".", "~")) for part in parts)
    return named and not parts[1].endswith(".parquet") and not Path(parts[0]).exists()


def _source(file: Path) -> Path:
    """What to convert for a file of a checkpoint: its directory where that says how it is built."""
    described = any((file.parent / name).is_file() for name in ("config.json", "open_clip_config.json"))
    return file.parent if described else file


def _convert(source: Path) -> str:
    name = source.stem if source.is_file() else source.absolute().name
    return f"convert it first: llm-compression convert {shlex.quote(str(source))} {shlex.quote(f'models/{name}')}"
