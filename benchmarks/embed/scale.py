"""What a million to ten thousand million images would take, computed from what was measured.

    python -m benchmarks.embed.scale benchmarks/embed/measured.json > docs/scale.md

The file is what `benchmarks.embed.study` writes. What is not measured is an option, and the page names it.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

COUNTS: Final = tuple(10**power for power in range(6, 11))
_UNITS: Final = ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


@dataclass(frozen=True)
class Assumed:
    """What is stated and not measured.

    Attributes:
        price: Dollars of a processor hour.
        processors: That work at a time.
        shard_rows: Rows of an output file.
        get_per_second: GET requests a second of a prefix of an object store.
        keys_per_list: Keys that one LIST request gives.
        list_seconds: Seconds of such a request.
        get_price: Dollars of 1,000 GET requests.
        put_price: Dollars of 1,000 PUT or LIST requests.
        memory_gb: Main memory of the machine that plans.
    """

    price: float = 0.04
    processors: int = 1000
    shard_rows: int = 1024
    get_per_second: int = 5500
    keys_per_list: int = 1000
    list_seconds: float = 0.1
    get_price: float = 0.0004
    put_price: float = 0.005
    memory_gb: int = 64


@dataclass(frozen=True)
class Need:
    """What some images take: amounts, seconds, dollars and bytes."""

    images: int
    shards: int
    processor_hours: float
    compute_dollars: float
    days: float
    input_bytes: float
    output_bytes: float
    plan_bytes: float
    plan_seconds: float
    resume_seconds: float
    list_requests: int
    list_seconds: float
    request_dollars: float


def main() -> None:
    """Print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measured", type=Path)
    for each in fields(Assumed):
        parser.add_argument(f"--{each.name.replace('_', '-')}", type=type(each.default), default=each.default)
    options = vars(parser.parse_args())
    measured = json.loads(options.pop("measured").read_text(encoding="utf-8"))
    print(page(measured, Assumed(**options)), end="")


def need(images: int, measured: Mapping[str, Any], assumed: Assumed) -> Need:
    """What some images take.

    Args:
        images: How many, each a file or an object.
        measured: As the study writes it.
        assumed: The rest.
    """
    parts = measured["parts"]
    shards = -(-images // assumed.shard_rows)
    seconds = images * (parts["decode_seconds"] + parts["encode_seconds"]) + shards * parts["shard_seconds"]
    lists = -(-images // assumed.keys_per_list)
    return Need(
        images=images,
        shards=shards,
        processor_hours=seconds / 3600,
        compute_dollars=seconds / 3600 * assumed.price,
        days=seconds / assumed.processors / 86400,
        input_bytes=images * parts["image_bytes"],
        output_bytes=images * parts["output_bytes_a_row"],
        plan_bytes=images * parts["plan_bytes_a_path"],
        plan_seconds=images * parts["plan_seconds_a_path"],
        resume_seconds=shards * parts["resume_seconds_a_shard"],
        list_requests=lists,
        list_seconds=lists * assumed.list_seconds,
        request_dollars=(images * assumed.get_price + (lists + shards) * assumed.put_price) / 1000,
    )


def page(measured: Mapping[str, Any], assumed: Assumed = Assumed()) -> str:
    """The page, in Markdown."""
    needs = [need(count, measured, assumed) for count in COUNTS]
    blocks = ["# From a million images on", _where(measured), "## Measured", *_measured(measured)]
    blocks += ["## What it takes", *_taken(needs, assumed)]
    blocks += ["## Where the next bottleneck sits", *_limits(needs, assumed), _bottlenecks(measured, assumed)]
    return "\n\n".join(blocks) + "\n"


def _where(measured: Mapping[str, Any]) -> str:
    machine = measured["machine"]
    return _wrapped(
        "On paper: `python -m benchmarks.embed.scale benchmarks/embed/measured.json` computes this page from a study "
        f"of {measured['runs'][-1]['images']:,} images. Nothing here was run at these sizes. The machine of the study "
        f"has {machine['cores']} processors, {machine['processor']}, {_sets(machine['flags'])}, "
        f"{machine['memory_mb'] / 1e3:.0f} GB, Python {machine['python']}, PyTorch {machine['versions']['torch']}; it "
        "was shared with other work, which makes every time longer, most of all those on the clock."
    )


def _measured(measured: Mapping[str, Any]) -> list[str]:
    parts, runs = measured["parts"], measured["runs"]
    decode, encode = parts["decode_seconds"], parts["encode_seconds"]
    a_path = f"{1e6 * parts['plan_seconds_a_path']:.2f} µs, {parts['plan_bytes_a_path']:.0f} bytes"
    figures = [
        ("decode a 0.5-megapixel JPEG", f"{1e3 * decode:.1f} ms, {1 / decode:.1f} a second"),
        ("encode it", f"{1e3 * encode:.1f} ms, {1 / encode:.1f} a second"),
        ("both", f"{1e3 * (decode + encode):.1f} ms, {1 / (decode + encode):.1f} a second"),
        ("a shard beside its rows", f"{1e3 * parts['shard_seconds']:.1f} ms"),
        ("a finished shard, when a run is resumed", f"{1e3 * parts['resume_seconds_a_shard']:.1f} ms"),
        ("a path in the plan", a_path),
    ]
    rows = [
        (
            f"{run['images']:,} images",
            f"{1e3 * run['processor_seconds']:.1f}",
            f"{1e3 * run['steady_seconds']:.1f}",
            f"{run['peak_bytes'] / 1e6:.0f}",
        )
        for run in runs
    ]
    return [
        _table(("one processor, one thread", "figure"), figures),
        f"By `{parts['command']}`.",
        _wrapped(
            f"A row of output takes {parts['output_bytes_a_row']:,.0f} bytes, an image "
            f"{parts['image_bytes']:,.0f}. Whole runs, by `{measured['command']}`:"
        ),
        _table(("run", "processor ms an image", "ms an image on the clock", "peak MB of all processes"), rows),
    ]


def _taken(needs: Sequence[Need], assumed: Assumed) -> list[str]:
    rows = [
        (
            _power(each.images),
            f"{each.shards:,}",
            _number(each.processor_hours),
            f"${_number(each.compute_dollars)}",
            _number(each.days),
            _bytes(each.input_bytes),
            _bytes(each.output_bytes),
            _bytes(each.plan_bytes),
        )
        for each in needs
    ]
    return [
        _wrapped(
            f"At {assumed.shard_rows:,} rows a file, ${assumed.price:g} a processor hour and {assumed.processors:,} "
            "processors of this kind at a time; `--price`, `--processors` and the others of the script change them."
        ),
        _table(("images", "files of output", "processor hours", "cost", "days", "input", "output", "plan"), rows),
    ]


def _limits(needs: Sequence[Need], assumed: Assumed) -> list[str]:
    rows = [
        (
            _power(each.images),
            _time(each.list_seconds),
            _time(each.plan_seconds),
            _time(each.resume_seconds),
            _time(each.images / assumed.get_per_second),
            f"${_number(each.request_dollars)}",
        )
        for each in needs
    ]
    return [
        _table(("images", "listing", "plan", "look at finished files", "GET requests", "price of all requests"), rows),
        _wrapped(
            f"Assumed of an object store: {assumed.get_per_second:,} GET requests a second for a prefix, "
            f"{assumed.keys_per_list:,} keys and {assumed.list_seconds:g} s a LIST request, one after another, "
            f"${assumed.get_price:g} for 1,000 GET and ${assumed.put_price:g} for 1,000 PUT or LIST requests. `embed` "
            "reads local files: the store is mounted, or its objects are copied."
        ),
    ]


def _bottlenecks(measured: Mapping[str, Any], assumed: Assumed) -> str:
    parts = measured["parts"]
    decode, encode = parts["decode_seconds"], parts["encode_seconds"]
    both = decode + encode
    rate = assumed.processors / both
    larger = "encoding" if encode > decode else "decoding"
    # parts of the time in which the processors do all images
    listed = assumed.list_seconds / assumed.keys_per_list * rate
    resumed = parts["resume_seconds_a_shard"] / assumed.shard_rows * rate
    planned = assumed.memory_gb * 1e9 / parts["plan_bytes_a_path"]
    requests = assumed.get_price / 1000 / (both / 3600 * assumed.price)
    files = -(-COUNTS[-1] // assumed.shard_rows)
    file_bytes = assumed.shard_rows * parts["output_bytes_a_row"]
    found = [
        f"**Processors**: {larger} is {max(encode, decode) / both:.0%} of an image. Whatever encodes faster leaves "
        f"decoding, {1e3 * decode:.1f} ms of a processor.",
        f"**GET requests**: {assumed.processors:,} processors ask for {_number(rate)} images a second, and a prefix is "
        f"enough for {_number(assumed.get_per_second * both)} processors. The requests cost {requests:.0%} of what the "
        "processors do. Tar shards of 10,000 images make one request of 10,000.",
        f"**Listing**: one after another, {listed:.0%} of the time that {assumed.processors:,} processors take, and "
        "before they begin. A list of paths, a table or tar shards need none.",
        f"**Plan**: {assumed.memory_gb} GB hold {_number(planned / 1e6)} million paths. Above, the input is cut into "
        "runs with a directory each, or into tables or tar shards, of which the plan has the files and not the rows.",
        f"**Resume**: the look at finished files takes up to {resumed:.1%} of the time that {assumed.processors:,} "
        "processors take, by one of them. More rows a file make it less: `--shard-rows`, of paths 4,096 at most.",
        f"**Output**: {_number(rate / assumed.shard_rows)} files of {_bytes(file_bytes)} a second. The "
        f"{_number(files / 1e6)} million of {_power(COUNTS[-1])} images are more than one directory should hold, or a "
        "reader open as one data set: a directory for each part of the input.",
    ]
    return "\n".join(_wrapped(f"- {each}", "  ") for each in found)


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    marks = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, marks, *rows))


def _sets(flags: Sequence[str]) -> str:
    best = next((name for name in ("avx512_f", "avx2", "neon") if name in flags), "no vectors")
    return best.upper().replace("_F", "")


def _power(count: int) -> str:
    return f"10^{len(str(count)) - 1}"


def _number(value: float) -> str:
    """Two digits that count, or all before the point."""
    if value >= 10:
        return f"{value:,.0f}"
    return f"{value:.2g}"


def _bytes(value: float) -> str:
    for size, name in _UNITS:
        if value >= size:
            return f"{value / size:.3g} {name}"
    return f"{value:.0f} bytes"


def _time(seconds: float) -> str:
    for size, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.2g} {name}" if seconds < 100 * size else f"{seconds / size:,.0f} {name}"
    return f"{seconds:.2g} s"


if __name__ == "__main__":
    main()
