"""Opens a checkpoint, a directory or a file, and says which family it is.

The tensor names decide the family; the configuration beside the weights says the rest. What neither says is an error,
never a guess: a wrong activation or head count gives embeddings that look right and are not.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from llm_compression.convert import hub, preprocessing, wrappers
from llm_compression.convert.checkpoint_config import from_huggingface, from_open_clip, from_shapes
from llm_compression.convert.key_maps import COUNTERS, OLD_NORMS, OPENAI, OPENAI_SIZES, UNSUPPORTED, Family
from llm_compression.convert.sentence_modules import MODULES_FILE, read_modules, transformer_directory
from llm_compression.convert.tensor_files import TensorStore, open_tensors, read_json
from llm_compression.convert.text_configs import bert_from_huggingface, clip_text_from_huggingface
from llm_compression.convert.tokenizer_files import TokenizerSource, check_tokenizer, read_tokenizer
from llm_compression.convert.tokenizer_parts import Kind
from llm_compression.errors import CheckpointError, CheckpointWarning, ConfigError
from llm_compression.multimodal.clip_config import ClipConfig
from llm_compression.multimodal.image_processor import ImageProcessor
from llm_compression.multimodal.vision_config import VisionConfig
from llm_compression.text.text_config import TextConfig
from llm_compression.text.tokenizer import TOKENIZER_FILE

OPEN_CLIP_CONFIG: Final = "open_clip_config.json"

_HUGGINGFACE_FILES: Final = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_OPEN_CLIP_FILES: Final = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
# The end token of OpenAI's vocabulary.
_OPENAI_END: Final = 49407
_SUFFIXES: Final = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")


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
        tokenizer: What turns a text into its input; None for an image tower, or where there is none.
        settings: Activation, pooling and tokenizer, each with the file or the argument that it came from.
        notes: What a user should know: settings that took the place of others, and what could not be tried.
        states: What changes when one of its files is written, by file, as it was before any was read.
    """

    family: Family
    name: str
    revision: str | None
    files: tuple[Path, ...]
    config: VisionConfig | ClipConfig | TextConfig
    preprocessing: ImageProcessor | None
    tensors: TensorStore
    tokenizer: TokenizerSource | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    states: Mapping[Path, tuple[int, ...]] = field(default_factory=dict)

    def require_unchanged(self) -> None:
        """Refuse a checkpoint that was written while it was read, of which a part may be that of another.

        Raises:
            CheckpointError: A file of it changed or is gone since it was opened.
        """
        now = file_states(self.states)
        if changed := sorted(str(file) for file, state in self.states.items() if now.get(file) != state):
            raise CheckpointError(f"{', '.join(changed)}: changed while the checkpoint was read, expected it whole")


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
    root = path if path.is_dir() else path.parent
    files = _weight_files(transformer_directory(path) if path.is_dir() else path)
    directory = files[0].parent
    states = file_states((*files, *(file for place in {root, directory} for file in _beside(place))))
    with open_tensors(files) as tensors:
        _unwrap(tensors, files[0])
        family = _family(tensors, files[0])
        _reject_unsupported(tensors, files[0])
        opened = Checkpoint(family, name, revision, files, VisionConfig(), None, tensors, states=states)
        try:
            if family in ("bert", "bert_prefixed"):
                _require_fields(overrides, TextConfig)
                checkpoint = _text_encoder(opened, root if path.is_dir() else directory, directory, overrides)
            else:
                _require_fields(overrides, VisionConfig)
                checkpoint = _clip(opened, root, directory, overrides, vision_only=vision_only)
        except ConfigError as error:
            raise CheckpointError(f"{directory}: {error}") from error
        yield checkpoint


def file_states(files: Iterable[Path]) -> dict[Path, tuple[int, ...]]:
    """What changes when a file is written or replaced, for each that is there."""
    found: dict[Path, tuple[int, ...]] = {}
    for file in files:
        try:
            state = file.stat()
        except OSError:
            continue  # whoever reads it says why it cannot
        found[file] = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns)
    return found


def _beside(directory: Path) -> Iterator[Path]:
    """The files of a directory, and of a sentence-transformers module in it, that say something of a checkpoint."""
    for folder in (directory, *directory.glob("[0-9]*_*/")):
        yield from (file for pattern in hub.CONFIGS for file in folder.glob(pattern))


def _text_encoder(opened: Checkpoint, root: Path, directory: Path, overrides: Mapping[str, Any]) -> Checkpoint:
    """A BERT, with its pooling and its tokenizer."""
    config = bert_from_huggingface(root, directory, overrides)
    tokenizer, notes = _tokenizer(directory, "bert", config)
    if tokenizer is None:
        raise CheckpointError(
            f"{directory}: no {TOKENIZER_FILE} and no vocab.txt, expected the tokenizer of the encoder"
        )
    pooling = "the argument overrides" if "pooling" in overrides else f"{read_modules(root)['Pooling']}/config.json"
    settings = {
        "activation": _origin(config.hidden_act, "hidden_act of config.json", overrides),
        "pooling": f"{config.pooling}, from {pooling}",
        "tokenizer": tokenizer.origin,
    }
    return replace(opened, config=config, tokenizer=tokenizer, settings=settings, notes=notes)


def _clip(
    opened: Checkpoint, root: Path, directory: Path, overrides: Mapping[str, Any], *, vision_only: bool
) -> Checkpoint:
    """A CLIP: both towers, or the image tower alone."""
    family, tensors = opened.family, opened.tensors
    if "Pooling" in (modules := read_modules(root)):
        raise CheckpointError(f"{root / MODULES_FILE}: modules {list(modules)}, expected a CLIPModel without a Pooling")
    config = _config(family, tensors, directory, overrides)
    settings, notes = {"activation": _activation(opened, config, directory, overrides)}, tuple[str, ...]()
    settings["pooling"] = "class token of an image, as every CLIP"
    processor = _preprocessing(family, directory, config.image_size)
    opened = replace(opened, config=config, preprocessing=processor)
    if vision_only or not _holds_text(family, tensors, directory):
        return replace(opened, settings=settings)
    file = directory / "config.json"
    text = clip_text_from_huggingface(file, overrides, in_modules="Transformer" in modules)
    tokenizer, notes = _tokenizer(directory, "clip", text)
    if text.pooling == "argmax":
        # where rows were added behind it, the end token is not the last one
        end = _OPENAI_END if tokenizer is None and text.vocab_size > _OPENAI_END else None
        if tokenizer is not None and tokenizer.around is not None and tokenizer.around[1]:
            end = tokenizer.around[1][-1]
        text = replace(text, eos_token_id=end if end != text.vocab_size - 1 else None)
    if text.hidden_act != config.hidden_act:
        settings["activation"] += f"; {text.hidden_act} in the text tower"
    rule = "largest id of a text (eos_token_id 2)" if text.pooling == "argmax" else f"end token {text.eos_token_id}"
    settings["pooling"] = f"class token of an image; {rule}, from text_config of config.json"
    settings["tokenizer"] = "none: no text can be encoded" if tokenizer is None else tokenizer.origin
    clip = ClipConfig(text, config)
    return replace(opened, family="clip", config=clip, tokenizer=tokenizer, settings=settings, notes=notes)


def _tokenizer(directory: Path, kind: Kind, config: TextConfig) -> tuple[TokenizerSource | None, tuple[str, ...]]:
    """The tokenizer beside the weights, tried as the engine will use it, and what is to be said of it."""
    file = directory / "config.json"
    stated = read_json(file).get("tokenizer_class") if file.is_file() else None
    tokenizer = read_tokenizer(directory, kind, stated)
    if tokenizer is None:
        return None, ()
    where = directory / tokenizer.origin.split(" ")[0]
    return tokenizer, (*tokenizer.warnings, *check_tokenizer(tokenizer, config, where))


def _origin(value: str, place: str, overrides: Mapping[str, Any]) -> str:
    return f"{value}, from {'the argument overrides' if 'hidden_act' in overrides else place}"


def _activation(opened: Checkpoint, config: VisionConfig, directory: Path, overrides: Mapping[str, Any]) -> str:
    """The activation of an image tower and where it came from; OpenAI's weights with another one are a warning."""
    file = directory / OPEN_CLIP_CONFIG
    model = read_json(file).get("model_cfg", {}) if file.is_file() else {}
    if opened.family in ("huggingface", "huggingface_bare"):
        place = "hidden_act of config.json"
    elif opened.family == "openai":
        place = "what all of OpenAI's archives have"
    elif "quick_gelu" in model:
        place = f"quick_gelu of {OPEN_CLIP_CONFIG}"
    else:
        place = f"open_clip's default, since {OPEN_CLIP_CONFIG} has no quick_gelu"
    openai = opened.family == "openai" or "openai" in opened.name.lower() or set(opened.tensors.shapes) >= OPENAI_SIZES
    if openai and file.is_file() and not model.get("quick_gelu") and "hidden_act" not in overrides:
        warnings.warn(
            f"{file}: no quick_gelu beside weights of OpenAI, which were trained with it; {config.hidden_act} was "
            "taken; if that is wrong, pass overrides={'hidden_act': 'quick_gelu'} (on the command line, "
            "--hidden-act quick_gelu)",
            CheckpointWarning,
            stacklevel=2,
        )
    return _origin(config.hidden_act, place, overrides)


def _unwrap(tensors: TensorStore, file: Path) -> None:
    """Take off what wrappers put before every name, and give older names their present form."""
    if prefix := wrappers.prefix_of(tensors.shapes, file):
        tensors.rename(lambda name: name.removeprefix(prefix))
    if wrappers.is_stripped_tower(tensors.shapes):
        tensors.rename(lambda name: name if name in COUNTERS else f"visual.{name}")
    if any(name.endswith(tuple(OLD_NORMS)) for name in tensors.shapes):
        tensors.rename(_present_name)


def _present_name(name: str) -> str:
    for old, new in OLD_NORMS.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


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
