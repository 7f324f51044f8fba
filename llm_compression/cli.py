"""The `llm-compression` command: convert, inspect, encode, check, classify, demo."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from llm_compression import __version__
from llm_compression.errors import CheckpointWarning, ConfigError, LlmCompressionError

if TYPE_CHECKING:
    from llm_compression.embeddings import Array

# A wider table does not fit a terminal.
_TABLE_MAX: Final = 16
# What became of images that could not be read, by --on-error and the kind of file.
_LEFT_OUT: Final = {
    ("skip", ".parquet"): "and are not in the file",
    ("null", ".parquet"): "and have a null in the file",
    ("null", ".npy"): "and have a row of NaN in the file",
}
_OVERRIDES: Final = {"hidden_act": str, "num_heads": int, "layer_norm_eps": float, "pooling": str, "max_length": int}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: What follows the command's name; taken from the process unless given.

    Returns:
        The exit status: 0, 1 when an input was refused, 2 (raised by argparse) on a usage error.
    """
    options = _parser().parse_args(arguments)
    try:
        status: int | None = options.run(options)
    except (LlmCompressionError, OSError, ImportError) as error:
        print(f"llm-compression: {error}", file=sys.stderr)
        return 1
    return status or 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llm-compression",
        description="CLIP and sentence embeddings from weights in Parquet.",
        epilog="example: llm-compression encode models/clip photo.jpg other.png -o photos.npy",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    convert = commands.add_parser(
        "convert",
        help="turn a checkpoint into a weight file",
        description="Turn a CLIP checkpoint, or a BERT sentence encoder, into a weight file with its tokenizer beside "
        "it. Lossless unless --dtype is given.",
        epilog="example: llm-compression convert clip-vit-base-patch16/ models/clip --dtype bfloat16",
    )
    convert.add_argument("source", help="Hugging Face or open_clip directory, state dict, OpenAI archive, or hub id")
    convert.add_argument("out", help="directory that will hold weights.parquet, or a path ending in .parquet")
    convert.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="cast (default: as in the source)")
    convert.add_argument(
        "--compression", choices=("none", "zstd", "lz4", "snappy", "gzip"), default="none", help="Parquet codec"
    )
    convert.add_argument("--revision", help="branch, tag or commit of a hub id")
    convert.add_argument("--vision-only", action="store_true", help="leave out the text tower of a CLIPModel")
    for name, kind in _OVERRIDES.items():
        flag = f"--{name.replace('_', '-')}"
        convert.add_argument(
            flag, type=kind, help=f"{name}, in place of what the checkpoint says; recorded in the file"
        )
    convert.set_defaults(run=_convert)

    inspect = commands.add_parser(
        "inspect",
        help="show what is in a weight file",
        description="Show the metadata, the tensors and the sizes of a weight file.",
        epilog="example: llm-compression inspect models/clip --verify",
    )
    inspect.add_argument("model", help="directory that holds weights.parquet, or the file")
    inspect.add_argument("--verify", action="store_true", help="recompute the sha256 over the tensors")
    inspect.set_defaults(run=_inspect)

    encode = commands.add_parser(
        "encode",
        help="embed images",
        description="Embed images; write the embeddings and print how similar the images are.",
        epilog="example: llm-compression encode models/clip photo.jpg other.png -o photos.parquet",
    )
    encode.add_argument("model", help="directory that holds weights.parquet, or the file")
    encode.add_argument("images", nargs="+", metavar="IMAGE", help="image file")
    encode.add_argument(
        "-o", "--output", type=_output, default=Path("embeddings.npy"), help=".npy or .parquet (default: %(default)s)"
    )
    encode.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: %(default)s)")
    encode.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto")
    encode.add_argument("--batch-size", type=_positive, default=32, help="images per pass (default: %(default)s)")
    encode.add_argument("--no-normalize", action="store_true", help="keep the length of the embeddings")
    encode.add_argument(
        "--on-error",
        choices=("raise", "skip", "null"),
        default="raise",
        help="images that cannot be read: raise names them all and writes nothing, skip leaves them out of a .parquet, "
        "null gives them a null there and a row of NaN in an .npy (default: %(default)s)",
    )
    encode.set_defaults(run=_encode)

    check = commands.add_parser(
        "check",
        help="find the files that are no pictures",
        description="Decode image files as encode would; print each bad one with its reason, and exit with 1 if there "
        "is one. Of a folder, at any depth, the files are taken whose names end as those of pictures do.",
        epilog="example: llm-compression check photos/ cat.jpg --strict",
    )
    check.add_argument("paths", nargs="+", metavar="PATH", help="image file or folder")
    check.add_argument(
        "--formats",
        type=_names,
        metavar="NAMES",
        help="formats to accept, separated by commas (default: see docs/images.md)",
    )
    check.add_argument(
        "--strict",
        action="store_true",
        help="decode JPEGs once more for each scan, to see that none goes on after its end",
    )
    check.set_defaults(run=_check)

    classify = commands.add_parser(
        "classify",
        help="say which label fits an image",
        description="Say how probable each label is for each image, among these labels. Without --model the "
        "small model that comes with the package answers: it knows coloured shapes and nothing else.",
        epilog='example: llm-compression classify photo.png --labels "red circle,blue square"',
    )
    classify.add_argument("images", nargs="+", metavar="IMAGE", help="image file")
    classify.add_argument("--labels", required=True, help="what the images may show, separated by commas")
    classify.add_argument("--model", type=Path, help="directory of a converted CLIPModel (default: the shipped model)")
    classify.add_argument("--template", default="a photo of a {}", help="sentence for a label (default: %(default)s)")
    classify.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: %(default)s)")
    classify.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto")
    classify.set_defaults(run=_classify)

    demo = commands.add_parser(
        "demo",
        help="see the shipped model at work",
        description="Draw pictures, let the small model that comes with the package say what they show, and write a "
        "contact sheet of pictures and answers.",
        epilog="example: llm-compression demo -o demo.png --seed 7",
    )
    demo.add_argument("-o", "--output", type=Path, default=Path("demo.png"), help="image file (default: %(default)s)")
    demo.add_argument("--count", type=_positive, default=24, help="pictures (default: %(default)s)")
    demo.add_argument("--seed", type=int, default=0, help="what is drawn (default: %(default)s)")
    demo.set_defaults(run=_demo)
    return parser


def _convert(options: argparse.Namespace) -> None:
    from llm_compression.convert import convert_checkpoint

    given = {name: getattr(options, name) for name in _OVERRIDES if getattr(options, name) is not None}
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


def _inspect(options: argparse.Namespace) -> None:
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


def _encode(options: argparse.Namespace) -> None:
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


def _check(options: argparse.Namespace) -> int:
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


def _classify(options: argparse.Namespace) -> None:
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


def _demo(options: argparse.Namespace) -> None:
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


def _output(text: str) -> Path:
    path = Path(text)
    if path.suffix not in (".npy", ".parquet"):
        raise argparse.ArgumentTypeError(f"{text}: expected a name ending in .npy or .parquet")
    return path


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a positive whole number")
    return int(text)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]
