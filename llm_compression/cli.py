"""The parser of the `llm-compression` command; `commands` has what each of its commands does."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm_compression import __version__, commands
from llm_compression.errors import LlmCompressionError


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
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    convert = subparsers.add_parser(
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
    for name, kind in commands.OVERRIDES.items():
        flag = f"--{name.replace('_', '-')}"
        convert.add_argument(
            flag, type=kind, help=f"{name}, in place of what the checkpoint says; recorded in the file"
        )
    convert.set_defaults(run=commands.convert)

    inspect = subparsers.add_parser(
        "inspect",
        help="show what is in a weight file",
        description="Show the metadata, the tensors and the sizes of a weight file.",
        epilog="example: llm-compression inspect models/clip --verify",
    )
    inspect.add_argument("model", help="directory that holds weights.parquet, or the file")
    inspect.add_argument("--verify", action="store_true", help="recompute the sha256 over the tensors")
    inspect.set_defaults(run=commands.inspect)

    encode = subparsers.add_parser(
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
    _add_where(encode)
    encode.add_argument("--batch-size", type=_positive, default=32, help="images per pass (default: %(default)s)")
    encode.add_argument("--no-normalize", action="store_true", help="keep the length of the embeddings")
    encode.add_argument(
        "--on-error",
        choices=("raise", "skip", "null"),
        default="raise",
        help="images that cannot be read: raise names them all and writes nothing, skip leaves them out of a .parquet, "
        "null gives them a null there and a row of NaN in an .npy (default: %(default)s)",
    )
    encode.set_defaults(run=commands.encode)

    _add_embed(subparsers)

    check = subparsers.add_parser(
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
    check.set_defaults(run=commands.check)

    classify = subparsers.add_parser(
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
    _add_where(classify)
    classify.set_defaults(run=commands.classify)

    demo = subparsers.add_parser(
        "demo",
        help="see the shipped model at work",
        description="Draw pictures, let the small model that comes with the package say what they show, and write a "
        "contact sheet of pictures and answers.",
        epilog="example: llm-compression demo -o demo.png --seed 7",
    )
    demo.add_argument("-o", "--output", type=Path, default=Path("demo.png"), help="image file (default: %(default)s)")
    demo.add_argument("--count", type=_positive, default=24, help="pictures (default: %(default)s)")
    demo.add_argument("--seed", type=int, default=0, help="what is drawn (default: %(default)s)")
    demo.set_defaults(run=commands.demo)
    return parser


def _add_embed(subparsers: Any) -> None:
    embed = subparsers.add_parser(
        "embed",
        help="embed folders and tables of images into a data set",
        description="Embed all images of folders, lists, tables and tar shards into a directory of Parquet files: one "
        "row for each image, in order; one that cannot be read has a null and says why. The same command again does "
        "what is missing. Exit status: 0, or 1 where the run ended early, --strict found an error, or no row has an "
        "embedding.",
        epilog="example: llm-compression embed photos/ -o vectors --model models/clip",
    )
    embed.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="folder (with all below it), image, pattern, .txt of paths, - for paths on standard input, .parquet, "
        ".arrow, .feather, or .tar of samples",
    )
    embed.add_argument("-o", "--output", required=True, metavar="OUT", help="directory of the data set")
    embed.add_argument(
        "--model",
        help="directory that holds weights.parquet, or the file (default: the variable LLM_COMPRESSION_MODEL)",
    )
    embed.add_argument("--image-column", metavar="NAME", help="column of a table that holds the images")
    embed.add_argument(
        "--text-column",
        metavar="NAME",
        help="column of a table, or txt of tar shards, whose texts are embedded too, by a model with a text tower",
    )
    _add_where(embed)
    embed.add_argument("--batch-size", type=_positive, default=32, help="images per pass (default: %(default)s)")
    embed.add_argument("--no-normalize", action="store_true", help="keep the length of the embeddings")
    embed.add_argument("--vector-type", choices=("fixed_size_list", "list"), default="fixed_size_list")
    embed.add_argument("--vector-dtype", choices=("float32", "float16"), default="float32")
    embed.add_argument("--shard-rows", type=_positive, default=1024, help="rows of a file (default: %(default)s)")
    embed.add_argument("--workers", type=_positive, help="processes (default: as the processors have room for)")
    embed.add_argument("--threads", type=_positive, help="threads of each (default: the processors, 4 at most)")
    embed.add_argument(
        "--timeout",
        type=_positive,
        default=600,
        help="seconds without progress that end a worker (default: %(default)s)",
    )
    embed.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="processes of this machine, or of a Ray cluster (default: %(default)s)",
    )
    embed.add_argument("--address", help="of the Ray cluster (default: RAY_ADDRESS, or a new one on this machine)")
    embed.add_argument("--max-errors", metavar="N|P%", help="end the run when more rows than this have failed")
    embed.add_argument("--strict", action="store_true", help="exit with 1 if one row has failed")
    embed.add_argument(
        "--retry-errors",
        nargs="?",
        const="",
        metavar="CODES",
        help="make shards again that have rows with these errors, separated by commas (default: those that may pass)",
    )
    embed.add_argument(
        "--replace-changed",
        action="store_true",
        help="make shards of changed sources again, and delete those of no part of this input",
    )
    embed.add_argument("--dry-run", action="store_true", help="say what there is to do, and do nothing")
    embed.set_defaults(run=commands.embed)


def _add_where(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: %(default)s)")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto")


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
