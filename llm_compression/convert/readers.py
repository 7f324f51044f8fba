"""Opens a checkpoint, a directory or a file, and says which family it is.

The tensor names decide the family; the configuration beside the weights says the rest. What neither says is an error,
never a guess: a wrong activation or head count gives embeddings that look right and are not.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from llm_compression.convert import hub, preprocessing
from llm_compression.convert.checkpoint_config import from_huggingface, from_open_clip, from_shapes
from llm_compression.convert.key_maps import OPENAI, UNSUPPORTED, Family
from llm_compression.convert.tensor_files import TensorStore, open_tensors, read_json
from llm_compression.convert.text_configs import (
    bert_from_huggingface,
    clip_text_from_huggingface,
    transformer_directory,
)
from llm_compression.errors import CheckpointError, ConfigError
from llm_compression.inference.text_config import TextConfig
from llm_compression.inference.tokenizer import TOKENIZER_FILE
from llm_compression.multimodal.clip_config import ClipConfig
from llm_compression.multimodal.image_processor import ImageProcessor
from llm_compression.multimodal.vision_config import VisionConfig

OPEN_CLIP_CONFIG: Final = "open_clip_config.json"

_HUGGINGFACE_FILES: Final = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_OPEN_CLIP_FILES: Final = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_SUFFIXES: Final = (".safetensors", ".bin", ".pt", ".pth")


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint.

    Attributes:
        family: Whose tensor names it has.
        name: Hub id, or name of the directory or file.
        revision: The commit of a hub checkpoint, or what the caller called it.
        files: Its weight files, sorted by name.
        config: Sizes of the image tower, of both towers, or of a text encoder.
        preprocessing: What turns an image into its input; None for a text encoder.
        tensors: The tensors by name.
        tokenizer: The file that turns a text into its input; None for an image tower, or where there is none.
    """

    family: Family
    name: str
    revision: str | None
    files: tuple[Path, ...]
    config: VisionConfig | ClipConfig | TextConfig
    preprocessing: ImageProcessor | None
    tensors: TensorStore
    tokenizer: Path | None = None


@contextmanager
def open_checkpoint(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    vision_only: bool = False,
) -> Iterator[Checkpoint]:
    """Open a checkpoint for reading.

    Args:
        source: A Hugging Face directory (``CLIPModel``, ``CLIPVisionModelWithProjection``, ``CLIPVisionModel``), an
            open_clip directory or state dict, one of OpenAI's TorchScript archives, a directory of BERT or of
            sentence-transformers, or a hub id. The network is used only for a string that is no existing path and has
            the form ``organisation/name``. Loading a TorchScript archive is what OpenAI's own code does with it; no
            method of it is called.
        revision: Branch, tag or commit of a hub id; recorded as it is for a path.
        overrides: Fields of VisionConfig, of TextConfig for a BERT, that take the place of what the checkpoint says or
            leaves out.
        vision_only: Whether to leave out the text tower of a ``CLIPModel``.

    Raises:
        CheckpointError: The source is missing, damaged, incomplete or of an unsupported architecture.
    """
    overrides = dict(overrides or {})
    path = Path(source)
    name = path.resolve().name
    if not path.exists():
        if not isinstance(source, str) or not hub.is_hub_id(source):
            raise CheckpointError(f"{source}: no such file or directory")
        name = source
        path = hub.download(source, revision, lambda directory: bool(_find(directory)))
        revision = path.name
    files = _weight_files(transformer_directory(path) if path.is_dir() else path)
    directory = files[0].parent
    with open_tensors(files) as tensors:
        family = _family(tensors, files[0])
        _reject_unsupported(tensors, files[0])
        tokenizer = directory / TOKENIZER_FILE if (directory / TOKENIZER_FILE).is_file() else None
        try:
            if family in ("bert", "bert_prefixed"):
                _require_fields(overrides, TextConfig)
                text = bert_from_huggingface(path if path.is_dir() else directory, directory, overrides)
                if tokenizer is None:
                    raise CheckpointError(f"{directory}: no {TOKENIZER_FILE}, expected the tokenizer of the encoder")
                yield Checkpoint(family, name, revision, files, text, None, tensors, tokenizer)
                return
            _require_fields(overrides, VisionConfig)
            config = _config(family, tensors, directory, overrides)
            clip = None
            if not vision_only and _holds_text(family, tensors, directory):
                clip = ClipConfig(clip_text_from_huggingface(directory / "config.json", overrides), config)
        except ConfigError as error:
            raise CheckpointError(f"{directory}: {error}") from error
        processor = _preprocessing(family, directory, config.image_size)
        if clip is not None:
            yield Checkpoint("clip", name, revision, files, clip, processor, tensors, tokenizer)
        else:
            yield Checkpoint(family, name, revision, files, config, processor, tensors)


def _require_fields(overrides: Mapping[str, Any], config_class: type[VisionConfig] | type[TextConfig]) -> None:
    allowed = [field.name for field in fields(config_class) if field.name != "model_type"]
    if unknown := sorted(set(overrides) - set(allowed)):
        raise CheckpointError(f"overrides: unknown {unknown}, expected some of {', '.join(allowed)}")


def _holds_text(family: Family, tensors: TensorStore, directory: Path) -> bool:
    """Whether this is a whole CLIPModel; a standalone image tower has another class, or no text tensors."""
    if family != "huggingface" or not any(name.startswith("text_model.") for name in tensors.shapes):
        return False
    values = read_json(directory / "config.json")
    return values.get("model_type") == "clip" and (values.get("architectures") or ["CLIPModel"]) == ["CLIPModel"]


def _weight_files(path: Path) -> tuple[Path, ...]:
    """The weight file, or every shard sorted by name."""
    if path.is_dir():
        found = _find(path)
        if found is None:
            lone = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES)
            if len(lone) != 1:
                names = ", ".join((*_HUGGINGFACE_FILES, *_OPEN_CLIP_FILES))
                held = f"several weight files ({', '.join(file.name for file in lone)})" if lone else "no weight file"
                raise CheckpointError(f"{path}: holds {held}, expected one of {names}, or name the file itself")
            found = lone[0]
        path = found
    return _shards(path) if path.name.endswith(".index.json") else (path,)


def _find(directory: Path) -> Path | None:
    """The weight file or index that a directory is known by."""
    config = directory / "config.json"
    # timm's repositories have a config.json without model_type, and a model.safetensors with timm's names
    if config.exists() and "model_type" not in read_json(config):
        names = (*_OPEN_CLIP_FILES, *_HUGGINGFACE_FILES)
    else:
        names = (*_HUGGINGFACE_FILES, *_OPEN_CLIP_FILES)
    return next((directory / name for name in names if (directory / name).exists()), None)


def _shards(index: Path) -> tuple[Path, ...]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: no weight_map, expected the file of every tensor")
    names = sorted({str(name) for name in weight_map.values()})
    if outside := [name for name in names if Path(name).name != name]:
        raise CheckpointError(f"{index}: shards {outside}, expected file names in the same directory")
    if missing := [name for name in names if not (index.parent / name).exists()]:
        raise CheckpointError(f"{index}: names shards that are missing: {', '.join(missing)}")
    return tuple(index.parent / name for name in names)


def _family(tensors: TensorStore, file: Path) -> Family:
    names = tensors.shapes
    if any(name.startswith("visual.") for name in names):
        return "openai" if tensors.kind == "torchscript" else "open_clip"
    if any(name.startswith("vision_model.") for name in names):
        return "huggingface"
    if "embeddings.class_embedding" in names:
        return "huggingface_bare"
    if "embeddings.word_embeddings.weight" in names:
        return "bert"
    if "bert.embeddings.word_embeddings.weight" in names:
        return "bert_prefixed"
    shown = ", ".join(list(names)[:3]) or "none"
    raise CheckpointError(
        f"{file}: no image tower of CLIP in it, and no BERT: expected tensors named embeddings.word_embeddings.weight, "
        f"vision_model.*, embeddings.class_embedding or visual.*, "
        f"found {shown}{', ...' if len(names) > 3 else ''}"
    )


def _reject_unsupported(tensors: TensorStore, file: Path) -> None:
    for pattern, what in UNSUPPORTED.items():
        if found := next((name for name in tensors.shapes if fnmatchcase(name, pattern)), None):
            raise CheckpointError(
                f"{file}: {what} ({found}), expected CLIP's own vision transformer with a pre-layernorm and CLS pooling"
            )


def _config(family: Family, tensors: TensorStore, directory: Path, overrides: Mapping[str, Any]) -> VisionConfig:
    if family in ("huggingface", "huggingface_bare"):
        has_projection = "visual_projection.weight" in tensors.shapes
        return from_huggingface(directory / "config.json", has_projection, overrides)
    # without a configuration the absence of this tensor is all that tells such a tower
    if (before := OPENAI["vision_model.pre_layrnorm.weight"].source) not in tensors.shapes:
        raise CheckpointError(f"{directory}: no pre-layernorm ({before} is missing), expected one before the blocks")
    if family == "openai":
        return from_shapes(tensors.shapes, directory, overrides, openai=True)
    if (file := directory / OPEN_CLIP_CONFIG).exists():
        return from_open_clip(file, overrides)
    return from_shapes(tensors.shapes, directory, overrides, openai=False)


def _preprocessing(family: Family, directory: Path, image_size: int) -> ImageProcessor:
    if family in ("huggingface", "huggingface_bare"):
        return preprocessing.from_huggingface(directory, image_size)
    file = directory / OPEN_CLIP_CONFIG
    stated = read_json(file).get("preprocess_cfg") if family == "open_clip" and file.exists() else None
    if stated is not None and not isinstance(stated, dict):
        raise CheckpointError(f"{file}: preprocess_cfg: {stated!r}, expected an object")
    # OpenAI's own code crops where torchvision does, as open_clip
    return preprocessing.from_open_clip(stated or {}, file, image_size)
