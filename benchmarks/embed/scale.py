"""What a million to ten thousand million images would take, computed from what was measured.

    python -m benchmarks.embed.scale benchmarks/embed/measured.json > docs/scale.md

The file is what `benchmarks.embed.study` writes. What is not measured is an option, and the page names it.
"""

from __future__ import annotations

import argparse
import json
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
    parts, large = measured["parts"], measured["runs"][-1]
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
        output_bytes=images * large["output_bytes"],
        plan_bytes=images * parts["plan_bytes_a_path"],
        plan_seconds=images * parts["plan_seconds_a_path"],
        resume_seconds=shards * parts["resume_seconds_a_shard"],
        list_requests=lists,
        list_seconds=lists * assumed.list_seconds,
        request_dollars=(images * assumed.get_price + (lists + shards) * assumed.put_price) / 1000,
    )


def page(measured: Mapping[str, Any], assumed: Assumed = Assumed()) -> str:  # noqa: B008  # it is frozen
    """The page, in Markdown."""
    parts, machine, runs = measured["parts"], measured["machine"], measured["runs"]
    both = parts["decode_seconds"] + parts["encode_seconds"]
    needs = [need(count, measured, assumed) for count in COUNTS]
    lines = [
        "# From a million images on",
        "",
        "On paper: `python -m benchmarks.embed.scale benchmarks/embed/measured.json` computes this page from a study of "
        f"{runs[-1]['images']:,} images. Nothing here was run at these sizes. The machine of the study has "
        f"{machine['cores']} processors, {machine['processor']}, {_sets(machine['flags'])}, {machine['memory_mb'] / 1e3:.0f} "
        f"GB, Python {machine['python']}, PyTorch {machine['versions']['torch']}; it was shared with other work.",
        "",
        "## Measured",
        "",
        *_table(
            ("one processor, one thread", "figure"),
            [
                (
                    "decode a 0.5-megapixel JPEG",
                    f"{1e3 * parts['decode_seconds']:.1f} ms, {1 / parts['decode_seconds']:.1f} a second",
                ),
                ("encode it", f"{1e3 * parts['encode_seconds']:.1f} ms, {1 / parts['encode_seconds']:.1f} a second"),
                ("both", f"{1e3 * both:.1f} ms, {1 / both:.1f} a second"),
                ("a shard beside its rows", f"{1e3 * parts['shard_seconds']:.1f} ms"),
                ("a finished shard, when a run is resumed", f"{1e3 * parts['resume_seconds_a_shard']:.1f} ms"),
                (
                    "a path in the plan",
                    f"{1e6 * parts['plan_seconds_a_path']:.2f} µs, {parts['plan_bytes_a_path']:.0f} bytes",
                ),
            ],
        ),
        "",
        f"By `{parts['command']}`. A row of output takes {runs[-1]['output_bytes']:.0f} bytes, an image "
        f"{parts['image_bytes']:,.0f}. By `{measured['command']}`:",
        "",
        *_table(
            ("run", "processor ms an image", "ms an image on the clock", "peak MB of all processes"),
            [
                (
                    f"{run['images']:,} images",
                    f"{1e3 * run['processor_seconds']:.1f}",
                    f"{1e3 * run['steady_seconds']:.1f}",
                    f"{run['peak_bytes'] / 1e6:.0f}",
                )
                for run in runs
            ],
        ),
        "",
        "## What it takes",
        "",
        f"At {assumed.shard_rows:,} rows a file, ${assumed.price:g} a processor hour and {assumed.processors:,} processors of "
        "this kind at a time.",
        "",
        *_table(
            ("images", "files of output", "processor hours", "cost", "days", "input", "output", "plan"),
            [
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
            ],
        ),
        "",
        "## Where the next bottleneck sits",
        "",
        *_table(
            (
                "images",
                "listing",
                "plan",
                "look at finished shards",
                "GET requests alone",
                "their price and that of PUT and LIST",
            ),
            [
                (
                    _power(each.images),
                    _time(each.list_seconds),
                    _time(each.plan_seconds),
                    _time(each.resume_seconds),
                    _time(each.images / assumed.get_per_second),
                    f"${_number(each.request_dollars)}",
                )
                for each in needs
            ],
        ),
        "",
        f"Assumed of an object store: {assumed.get_per_second:,} GET requests a second for a prefix, {assumed.keys_per_list:,} "
        f"keys and {assumed.list_seconds:g} s a LIST request, one after another, ${assumed.get_price:g} for 1,000 GET and "
        f"${assumed.put_price:g} for 1,000 PUT or LIST requests. `embed` reads local files: the store is mounted, or its "
        "objects are copied.",
        "",
        *_bottlenecks(measured, assumed),
        "",
    ]
    return "\n".join(lines)


def _bottlenecks(measured: Mapping[str, Any], assumed: Assumed) -> list[str]:
    parts = measured["parts"]
    both = parts["decode_seconds"] + parts["encode_seconds"]
    rate = assumed.processors / both
    larger = "encoding" if parts["encode_seconds"] > parts["decode_seconds"] else "decoding"
    share = max(parts["encode_seconds"], parts["decode_seconds"]) / both
    fit = assumed.memory_gb * 1e9 / parts["plan_bytes_a_path"]
    dearer = both / 3600 * assumed.price / (assumed.get_price / 1000)
    list_share = assumed.list_seconds / assumed.keys_per_list / (both / assumed.processors)
    resume_share = parts["resume_seconds_a_shard"] / assumed.shard_rows / (both / assumed.processors)
    return [
        f"- **Processors**: {larger} is {share:.0%} of an image. A device or instruction set that encodes faster leaves decoding, "
        f"{1e3 * parts['decode_seconds']:.1f} ms of a processor.",
        f"- **GET requests**: {assumed.processors:,} processors ask for {rate:,.0f} images a second; a prefix is enough for "
        f"{assumed.get_per_second * both:,.0f} processors. Tar shards of 10,000 images make one request of 10,000, and of the "
        f"price of requests, which is 1/{dearer:.0f} of the processors', nothing."
        if dearer >= 1
        else f"- **GET requests**: they cost {1 / dearer:.1f} times as much as the processors; tar shards make one of 10,000.",
        f"- **Listing**: one after another, {list_share:.0%} of the time that {assumed.processors:,} processors compute; before "
        "them, not beside them. A list, a table or tar shards need none.",
        f"- **Plan**: {assumed.memory_gb} GB hold {_number(fit)} paths. Above, the input is cut into runs with a directory each, or "
        "into tables or tar shards, of which the plan has the files and not the rows.",
        f"- **Resume**: the look at finished shards takes up to {resume_share:.1%} of the time that {assumed.processors:,} "
        "processors compute, by one of them; more rows a file (`--shard-rows`; of paths 4,096 at most) make it less.",
        f"- **Output**: {rate / assumed.shard_rows:,.1f} files a second of {_bytes(assumed.shard_rows * measured['runs'][-1]['output_bytes'])}; "
        f"{_number(COUNTS[-1] / assumed.shard_rows)} files at {_power(COUNTS[-1])} images, more than a directory or one dataset "
        "that is opened at once should hold: a run, and a directory, for each part.",
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    marks = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(row)} |" for row in (head, marks, *rows)]


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
