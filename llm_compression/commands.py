"""What each command of `llm-compression` does with its options; the libraries are imported by the command that runs."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from llm_compression.errors import CheckpointWarning, ConfigError

if TYPE_CHECKING:
    from llm_compression.embeddings import Array

# Fields of a configuration that convert takes as options.
OVERRIDES: Final = {"hidden_act": str, "num_heads": int, "layer_norm_eps": float, "pooling": str, "max_length": int}
# A wider table does not fit a terminal.
_TABLE_MAX: Final = 16
# What became of images that could not be read, by --on-error and the kind of file.
_LEFT_OUT: Final = {
    ("skip", ".parquet"): "and are not in the file",
    ("null", ".parquet"): "and have a null in the file",
    ("null", ".npy"): "and have a row of NaN in the file",
}


def convert(options: argparse.Namespace) -> None:
    """Convert a checkpoint; print what was written, with what is known of it."""
    from llm_compression.convert import convert_checkpoint

    given = {name: getattr(options, name) for name in OVERRIDES if getattr(options, name) is not None}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", CheckpointWarning)
        report = convert_checkpoint(
            options.source,
            options.out,
            options.dtype,
            options.compression,
            revision=options.revision,
            overrides=given or None,
            progress=None,
            vision_only=options.vision_only,
        )
    for warning in caught:
        print(f"llm-compression: warning: {warning.message}", file=sys.stderr)
    print(f"wrote       {report.path}")
    if report.tokenizer is not None:
        print(f"tokenizer   {report.tokenizer}")
    print(f"source      {report.format}, sha256 {report.source_sha256}")
    print(f"tensors     {report.num_tensors}, sha256 {report.tensors_sha256}")
    print(f"parameters  {report.num_params:,}")
    print(f"bytes       {report.bytes_in:,} in, {report.bytes_out:,} out")
    for name, value in report.settings.items():
        # where the tokenizer was written to stands above
        print(f"{'words from' if name == 'tokenizer' else name:11} {value}")
    for note in report.notes:
        print(f"note        {note}")
    for name, value in given.items():
        print(f"overridden  {name}: {value}, whatever the checkpoint says")
    for reason, count in report.left_out.items():
        print(f"left out    {count} tensors: {reason}")


def inspect(options: argparse.Namespace) -> None:
    """Print the metadata and the tensors of a weight file."""
    from llm_compression.inference.weight_loader import WeightLoader

    loader = WeightLoader(options.model)
    print(f"file        {loader.path} ({loader.path.stat().st_size:,} bytes)")
    if loader.metadata is None:
        print("layout      earlier: no metadata, no recorded hash")
    else:
        print(f"tensors     sha256 {loader.metadata.tensors_sha256}")
        _print_mapping("source", loader.metadata.source)
        _print_mapping("preprocess", loader.metadata.preprocessing)
    _print_mapping("config", loader.config or {"": "none in the file, and no config.json beside it"})
    width = max(map(len, loader.names), default=0)
    print(f"\n{'name':{width}}  {'dtype':8}  {'shape':16}  {'parameters':>12}  {'bytes':>12}")
    for info in loader.tensors.values():
        shape = " x ".join(map(str, info.shape)) or "scalar"
        print(f"{info.name:{width}}  {info.dtype_name:8}  {shape:16}  {info.num_params:12,}  {info.num_bytes:12,}")
    totals = [sum(getattr(info, key) for info in loader.tensors.values()) for key in ("num_params", "num_bytes")]
    print(f"{f'{len(loader.tensors)} tensors':{width}}  {'':8}  {'':16}  {totals[0]:12,}  {totals[1]:12,}")
    if options.verify:
        print(f"\nverified    sha256 {loader.verify()} over the tensors, as recorded")


def encode(options: argparse.Namespace) -> None:
    """Embed images, write the embeddings, print how similar the images are."""
    from llm_compression.embeddings import write_embeddings
    from llm_compression.multimodal.vision_encoder import VisionEncoder

    output, on_error = options.output, options.on_error
    if output.is_dir():
        raise ConfigError(f"{output}: a directory, expected the name of a file to write")
    if on_error == "skip" and output.suffix == ".npy":
        raise ConfigError(
            f"{output}: an .npy does not say which images its rows are of, expected with --on-error skip a name ending "
            "in .parquet, or --on-error null, which writes a row of NaN"
        )
    encoder = VisionEncoder(options.model, options.device, options.dtype)
    normalize, batch_size = not options.no_normalize, options.batch_size
    if on_error == "raise":
        rows = encoder.encode(options.images, normalize, batch_size, show_progress=None)
        positions, left_out = list(range(len(rows))), 0
    else:
        kept = encoder.encode(options.images, normalize, batch_size, on_error="skip", show_progress=None)
        rows, positions, left_out = kept.embeddings, kept.positions.tolist(), len(kept.errors)
        for error in kept.errors:
            print(f"llm-compression: {error}", file=sys.stderr)
    read = [options.images[position] for position in positions]
    if on_error == "null":
        write_embeddings(output, [_text_of(image) for image in options.images], rows, positions)
    else:
        write_embeddings(output, [_text_of(image) for image in read], rows, range(len(read)))
    written = len(options.images) if on_error == "null" else len(read)
    print(f"wrote {output}: {written} x {encoder.dimension}, computed in {encoder.dtype}")
    if left_out:
        print(f"{left_out} of {len(options.images)} images could not be read, {_LEFT_OUT[on_error, output.suffix]}")
    if read:
        print()
        _print_similarity(read, rows)


def embed(options: argparse.Namespace) -> int:
    """Embed all images of some sources; print what the data set holds."""
    from llm_compression.embed.reasons import PASSING
    from llm_compression.embed.run import ErrorLimit
    from llm_compression.embed.run import embed as run

    model = options.model or os.environ.get("LLM_COMPRESSION_MODEL")
    if not model:
        raise ConfigError("no model is named: expected --model, or a path in the variable LLM_COMPRESSION_MODEL")
    retry = options.retry_errors
    found = run(
        options.inputs,
        options.output,
        model,
        image_column=options.image_column,
        text_column=options.text_column,
        normalize=not options.no_normalize,
        vector_type=options.vector_type,
        vector_dtype=options.vector_dtype,
        device=options.device,
        dtype=options.dtype,
        batch_size=options.batch_size,
        shard_rows=options.shard_rows,
        workers=options.workers,
        threads=options.threads,
        timeout=options.timeout,
        engine=options.engine,
        address=options.address,
        max_errors=None if options.max_errors is None else ErrorLimit.parse(options.max_errors),
        retry_errors=() if retry is None else PASSING if not retry else tuple(retry.split(",")),
        replace_changed=options.replace_changed,
        dry_run=options.dry_run,
        stdin=sys.stdin,
        show_progress=None,
    )
    for suffix, count in sorted(found.passed_over.items()):
        print(f"passed over {count} files: {suffix}")
    made = found.settings
    print(f"model       {model}, computed in {made.dtype}, {made.dimension} wide, weights {made.weights_sha256[:16]}")
    print(f"rows        {found.rows:,} in {found.shards:,} shards, {found.done_before:,} of them done before")
    if found.replaced:
        what = "would be deleted" if options.dry_run else "deleted" if found.is_complete else "not deleted yet"
        print(f"replaced    {found.replaced:,} rows of no part of this input: {what}")
    if options.dry_run:
        print("dry run     nothing was embedded")
        return 0
    if options.text_column is None:
        print(f"embedded    {found.embedded:,} rows")
    else:
        print(f"embedded    {found.embedded:,} images and {found.embedded_texts:,} texts")
    for what, errors in (("error", found.errors), ("text error", found.text_errors)):
        for code, count in errors.items():
            print(f"{what:11} {count:,} rows: {code}")
    print(f"wrote       {options.output} in {found.seconds:.1f} s{'' if found.is_complete else ', NOT COMPLETE'}")
    if found.has_too_many_errors:
        print(
            f"llm-compression: {found.failed} rows failed, more than --max-errors {options.max_errors}", file=sys.stderr
        )
        return 1
    return 1 if not (found.embedded or found.embedded_texts) or (options.strict and found.failed) else 0


def check(options: argparse.Namespace) -> int:
    """Decode images and print what is wrong with each; the status is 1 if one is bad."""
    from llm_compression.multimodal.image_check import check_images

    count, bad, warned = 0, 0, 0
    for found in check_images(options.paths, formats=options.formats, strict=options.strict):
        count += 1
        bad += found.reason is not None
        warned += found.warning is not None
        if found.reason is not None:
            print(f"bad      {_text_of(found.path)}: {found.reason}")
        elif found.warning is not None:
            print(f"warning  {_text_of(found.path)}: {found.warning}")
    print(f"checked {count} files: {count - bad} good, {bad} bad, {warned} with a warning")
    return 1 if bad else 0


def classify(options: argparse.Namespace) -> None:
    """Print how probable each label is for each image."""
    from llm_compression.models import shapes_model
    from llm_compression.multimodal.clip_engine import CLIPEngine

    engine = CLIPEngine(options.model or shapes_model(), options.device, options.dtype)
    labels = [label.strip() for label in options.labels.split(",")]
    probabilities = engine.classify(options.images, labels, options.template)
    print(f"model       {options.model or 'shapes, the one that comes with the package'}\n")
    width = max(map(len, labels))
    for image, row in zip(options.images, probabilities, strict=True):
        print(image)
        for index in (-row).argsort(kind="stable").tolist():
            print(f"  {labels[index]:{width}}  {row[index]:7.2%}")


def demo(options: argparse.Namespace) -> None:
    """Draw pictures, classify them, write the contact sheet."""
    from llm_compression.models.demo import run_demo

    found = run_demo(options.output, options.count, options.seed)
    print(f"{'picture':16}  {'answer':16}  probability")
    for answer in found:
        marks = " ".join(("" if answer.is_right else "WRONG", "pair never seen" if answer.is_unseen else "")).strip()
        line = f"{answer.picture.label:16}  {answer.label:16}  {answer.probability:11.1%}  {marks}"
        print(line.rstrip())
    print(f"\nwrote {options.output}: {sum(answer.is_right for answer in found)} of {len(found)} right")


def _print_similarity(images: Sequence[str], embeddings: Array) -> None:
    """Cosine of each image to each other; of each to its nearest where a full table would not fit a terminal."""
    from llm_compression.embeddings import cosine

    names = [Path(image).name for image in images]
    width = min(max(map(len, names)), 32)
    short = [name if len(name) <= width else f"{name[: width - 1]}…" for name in names]
    if len(images) <= _TABLE_MAX:
        print(" " * (width + 4), *(f"{i + 1:6}" for i in range(len(names))))
        for i, row in enumerate(cosine(embeddings, embeddings).tolist()):
            print(f"{i + 1:3} {short[i]:{width}}", *(f"{value:6.3f}" for value in row))
        return
    print(f"{'image':{width}}  cosine  nearest")
    for start in range(0, len(embeddings), 1024):
        cosines = cosine(embeddings[start : start + 1024], embeddings)
        for i, row in enumerate(cosines):
            row[start + i] = -2.0
            nearest = int(row.argmax())
            print(f"{short[start + i]:{width}}  {row[nearest]:6.3f}  {names[nearest]}")


def _print_mapping(title: str, values: Any) -> None:
    for index, (key, value) in enumerate(values.items()):
        print(f"{title if index == 0 else '':10}  {key + ': ' if key else ''}{value}")


def _text_of(path: str) -> str:
    """A file's name as text; bytes that are none are shown as escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
