"""Converting a checkpoint: its tensors renamed, checked and written one at a time."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

import torch

from llm_compression.convert.key_maps import COUNTERS, FORMATS, LEFT_OUT, TABLES, Entry
from llm_compression.convert.readers import Checkpoint, open_checkpoint
from llm_compression.convert.tensor_files import sha256_of
from llm_compression.errors import CheckpointError, ConfigError, WeightFormatError
from llm_compression.files import put_aside, whole_file
from llm_compression.inference.weight_format import DTYPES, WEIGHTS_FILE, WeightMetadata, write_weights
from llm_compression.inference.weight_loader import WeightLoader
from llm_compression.multimodal.clip_config import ClipConfig
from llm_compression.progress import progress as progress_bar
from llm_compression.text.tokenizer import TOKENIZER_FILE

CASTS: Final = ("float32", "bfloat16", "float16")
CODECS: Final = ("none", "zstd", "lz4", "snappy", "gzip")
_STORED: Final = ("float32", "float16", "bfloat16", "float64")
_NUMBERED = re.compile(r"(.*\.layers?\.)(\d+)(\..*)")


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did.

    Attributes:
        path: The weight file.
        format: Family of the source: ``huggingface``, ``open_clip``, ``openai`` or ``bert``.
        num_tensors: Tensors written.
        num_params: Parameters written.
        bytes_in: Size of the source's weight files.
        bytes_out: Size of the weight file.
        source_sha256: sha256 of the source's weight file, or over its shards sorted by name.
        tensors_sha256: sha256 over the tensors written, as the file records it.
        left_out: How many tensors of the source were left out, by what they belong to.
        tokenizer: The tokenizer beside the weight file; None where the source has none, or needs none. A copy of the
            source's ``tokenizer.json``, or one with what its other files say applied.
        settings: Activation, pooling and tokenizer, each with the file or the argument that it came from.
        notes: What to know: settings that took the place of others, and what could not be tried.
    """

    path: Path
    format: str
    num_tensors: int
    num_params: int
    bytes_in: int
    bytes_out: int
    source_sha256: str
    tensors_sha256: str
    left_out: Mapping[str, int]
    tokenizer: Path | None = None
    settings: Mapping[str, str] = field(default_factory=dict, compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)


def convert_checkpoint(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    dtype: str | None = None,
    compression: str = "none",
    *,
    revision: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    progress: bool | None = False,
    vision_only: bool = False,
) -> ConversionReport:
    """Convert a CLIP checkpoint, or a BERT sentence encoder, to a weight file.

    A Hugging Face ``CLIPModel`` becomes a file of both towers and the logit scale; other CLIP checkpoints one of their
    image tower. The source's ``tokenizer.json`` is copied beside the file, which records its sha256.

    Lossless unless asked otherwise: every tensor keeps the data type and the bits of the source. The file appears under
    its name only once it is whole; until then a file that was there stays as it was.

    Args:
        source: A Hugging Face directory (``CLIPModel``, ``CLIPVisionModelWithProjection``, ``CLIPVisionModel``), an
            open_clip directory or state dict, one of OpenAI's TorchScript archives, a directory of BERT or of
            sentence-transformers, or, where huggingface_hub is installed, a hub id such as
            ``openai/clip-vit-base-patch16``. Loading a TorchScript archive is what OpenAI's own code does with it; no
            method of it is called.
        out: A directory, which will hold ``weights.parquet``, or a path ending in ``.parquet``.
        dtype: ``float32``, ``bfloat16`` or ``float16`` to cast every tensor; None keeps what the source has.
        compression: Parquet codec: ``none``, ``zstd``, ``lz4``, ``snappy`` or ``gzip``.
        revision: Branch, tag or commit of a hub id; recorded as it is for a path.
        overrides: Fields of VisionConfig (``hidden_act``, ``num_heads``, ...), of TextConfig for a BERT (``pooling``,
            ...), that take the place of what the checkpoint says or leaves out; ``hidden_act`` holds for both towers.
        progress: Whether to show a progress bar on stderr; None shows it on a terminal.
        vision_only: Whether to leave out the text tower of a ``CLIPModel``.

    Raises:
        CheckpointError: The source is missing, damaged or of an unsupported architecture; tensors are missing,
            unexpected or mis-shaped (all in one message); a weight is NaN or infinite, or becomes so in ``dtype``.
        ConfigError: ``dtype`` or ``compression`` is unknown, or ``out`` is a file of another kind.
    """
    if dtype is not None and dtype not in CASTS:
        raise ConfigError(f"dtype: {dtype!r}, expected None (as in the source) or one of {', '.join(CASTS)}")
    if compression not in CODECS:
        raise ConfigError(f"compression: {compression!r}, expected one of {', '.join(CODECS)}")
    target = _target(Path(out))
    with open_checkpoint(source, revision=revision, overrides=overrides, vision_only=vision_only) as checkpoint:
        entries, left_out = _match(checkpoint)
        sha256, family = sha256_of(checkpoint.files), FORMATS.get(checkpoint.family, checkpoint.family)
        origin = {
            "name": checkpoint.name,
            "revision": checkpoint.revision,
            "sha256": sha256,
            "format": family,
            **({"overrides": dict(overrides)} if overrides else {}),
        }
        preprocessing = _preprocessing(checkpoint)
        metadata = WeightMetadata(config=checkpoint.config.to_dict(), preprocessing=preprocessing, source=origin)
        names = progress_bar(entries, total=len(entries), label=f"converting {checkpoint.name}", enabled=progress)
        tensors = ((name, entries[name]) for name in names)
        wanted = None if checkpoint.tokenizer is None else checkpoint.tokenizer.content
        with _beside(target, wanted, isinstance(checkpoint.config, ClipConfig)) as tokenizer:
            report = write_weights(target, _read(checkpoint, tensors, dtype), metadata, compression=compression)
        return ConversionReport(
            path=report.path,
            format=family,
            num_tensors=report.num_tensors,
            num_params=report.num_params,
            bytes_in=sum(file.stat().st_size for file in checkpoint.files),
            bytes_out=report.file_bytes,
            source_sha256=sha256,
            tensors_sha256=report.tensors_sha256,
            left_out=left_out,
            tokenizer=tokenizer,
            settings=checkpoint.settings,
            notes=checkpoint.notes,
        )


def _preprocessing(checkpoint: Checkpoint) -> dict[str, Any]:
    """What turns an input into the model's input: of images, of texts, or of both by tower."""
    tokenizer = checkpoint.tokenizer
    text = {} if tokenizer is None else {"tokenizer_sha256": hashlib.sha256(tokenizer.content).hexdigest()}
    vision = {} if checkpoint.preprocessing is None else checkpoint.preprocessing.to_dict()
    if isinstance(checkpoint.config, ClipConfig):
        return {"vision": vision, "text": text}
    return {**vision, **text}


@contextmanager
def _beside(target: Path, content: bytes | None, takes_texts: bool) -> Iterator[Path | None]:
    """Put the tokenizer beside the weights once they are written; where the source has none, none is left there.

    An earlier model's tokenizer must not answer for this one. It is put aside first, so that a conversion that is
    killed leaves a model that asks for its tokenizer, and is put back when the conversion fails.

    Raises:
        ConfigError: A tokenizer lies there that the earlier weights do not record: whose it is cannot be known.
    """
    file = target.parent / TOKENIZER_FILE
    if content is None and not (takes_texts and file.is_file()):
        yield None
        return
    if content is None:
        if not _recorded_by(target, file):
            raise ConfigError(
                f"out: {file}: a tokenizer lies there, the source has none, and the weights there do not record it; "
                f"move it away, or put the model's own {TOKENIZER_FILE} into the source"
            )
        with put_aside(file):
            yield None
        return
    yield file
    # after the weights, so that a conversion that fails leaves the model that was there as it is
    with whole_file(file) as partial:
        partial.write_bytes(content)


def _recorded_by(weights: Path, tokenizer: Path) -> bool:
    """Whether a weight file says that this is its tokenizer."""
    try:
        metadata = WeightLoader(weights).metadata if weights.is_file() else None
    except WeightFormatError:
        return False
    constants = {} if metadata is None else metadata.preprocessing
    return sha256_of([tokenizer]) in (
        constants.get("tokenizer_sha256"),
        constants.get("text", {}).get("tokenizer_sha256"),
    )


def _target(out: Path) -> Path:
    target = out if out.suffix == ".parquet" else out / WEIGHTS_FILE
    for parent in target.parents:
        if parent.exists() and not parent.is_dir():
            raise ConfigError(f"out: {out}: {parent} is a file, expected a directory or a path ending in .parquet")
    if target.is_dir():
        raise ConfigError(f"out: {target} is a directory, expected a file or nothing there")
    return target


def _match(checkpoint: Checkpoint) -> tuple[dict[str, Entry], dict[str, int]]:
    """Where each tensor of the weight file comes from, and what is left out; or every reason why it cannot be made."""
    table, shapes = TABLES[checkpoint.family], checkpoint.tensors.shapes
    entries, problems, wanted = dict[str, Entry](), list[str](), set[str]()
    for name, shape in checkpoint.config.expected_shapes().items():
        entry = _entry(table, name)
        entries[name] = entry
        expected = _shape_in_source(entry, shape)
        if entry.source in wanted:
            continue
        wanted.add(entry.source)
        if entry.source not in shapes:
            problems.append(f"missing {entry.source}, expected shape {list(expected)}")
        elif shapes[entry.source] != expected:
            problems.append(f"{entry.source} has shape {list(shapes[entry.source])}, expected {list(expected)}")
        elif (found := checkpoint.tensors.dtypes[entry.source]) not in _STORED:
            problems.append(f"{entry.source} has dtype {found}, expected one of {', '.join(_STORED)}")
    left_out = Counter[str]()
    for source in shapes.keys() - wanted:
        if source in COUNTERS:
            left_out["averaging counter"] += 1
            continue
        patterns = LEFT_OUT[checkpoint.family].items()
        if what := next((label for pattern, label in patterns if fnmatchcase(source, pattern)), None):
            left_out[what] += 1
        else:
            problems.append(f"unexpected {source}")
    if problems:
        raise CheckpointError(
            f"{checkpoint.files[0].parent}: {len(problems)} tensors do not fit the configuration: "
            + "; ".join(sorted(problems))
        )
    return entries, dict(sorted(left_out.items()))


def _entry(table: Mapping[str, Entry], name: str) -> Entry:
    """The table's entry for a tensor, with its block's number in the place of ``{n}``."""
    if name in table:
        return table[name]
    match = _NUMBERED.fullmatch(name)
    assert match is not None
    before, number, after = match.groups()
    entry = table[f"{before}{{n}}{after}"]
    return entry._replace(source=entry.source.format(n=number))


def _shape_in_source(entry: Entry, shape: tuple[int, ...]) -> tuple[int, ...]:
    if entry.operation == "transpose":
        return shape[::-1]
    return (3 * shape[0], *shape[1:]) if entry.operation == "split3" else shape


def _read(
    checkpoint: Checkpoint, entries: Iterator[tuple[str, Entry]], dtype: str | None
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of the weight file, one at a time; at the end, an error that names every one that is not finite."""
    not_finite = []
    for name, entry in entries:
        tensor = checkpoint.tensors.read(entry.source)
        if entry.operation == "transpose":
            tensor = tensor.t()
        elif entry.operation == "split3":
            tensor = tensor.chunk(3)[entry.part]
        finite = bool(torch.isfinite(tensor).all())
        if dtype is not None:
            tensor = tensor.to(DTYPES[dtype])
        if not finite:
            not_finite.append(f"{name} (from {entry.source})")
        elif dtype is not None and not torch.isfinite(tensor).all():
            not_finite.append(f"{name} (from {entry.source}: finite there, but too large for {dtype})")
        yield name, tensor
    checkpoint.require_unchanged()
    if not_finite:
        raise CheckpointError(
            f"{checkpoint.files[0].parent}: {len(not_finite)} tensors hold NaN or infinite weights: "
            + "; ".join(not_finite)
        )
