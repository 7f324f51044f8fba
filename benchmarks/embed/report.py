"""A study as a page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def report(found: Mapping[str, Any]) -> str:
    """The Markdown of a study: what the data sets are, then memory and cost of the large run beside the small."""
    small, large = found["runs"]
    machine = found["machine"]
    lines = [
        "# A study of embed",
        "",
        f"`{found['command']}`, {machine['cores']} processors of {machine['processor']}, shards of "
        f"{found['shard_rows']} rows.",
        "",
        f"| | {small['images']:,} images | {large['images']:,} images | growth |",
        "|---|---:|---:|---:|",
        f"| without an embedding, as expected | {small['broken']} | {large['broken']} | |",
        f"| wrong rows | {len(small['problems'])} | {len(large['problems'])} | |",
        _row("peak memory of all processes, MB", small["peak_bytes"] / 1e6, large["peak_bytes"] / 1e6, "difference"),
        _row("processor ms an image", small["processor_seconds"] * 1e3, large["processor_seconds"] * 1e3, "per cent"),
        _row("ms an image on the clock", small["steady_seconds"] * 1e3, large["steady_seconds"] * 1e3, "per cent"),
        _row("bytes of output a row", small["output_bytes"], large["output_bytes"], "per cent"),
        f"| processor s of the start | {small['start_processor_seconds']:.2f} | "
        f"{large['start_processor_seconds']:.2f} | |",
        f"| images a second, start included | {small['images'] / small['seconds']:.1f} | "
        f"{large['images'] / large['seconds']:.1f} | |",
        "",
    ]
    alone = found["parts"]
    both = alone["decode_seconds"] + alone["encode_seconds"]
    share = both / machine["cores"] / large["steady_seconds"] if large["steady_seconds"] else 0.0
    lines += [
        f"Alone, by `{alone['command']}`: {alone['decode_seconds'] * 1e3:.2f} ms to decode an image and "
        f"{alone['encode_seconds'] * 1e3:.2f} ms to encode it, of one processor. On {machine['cores']} that allows "
        f"{machine['cores'] / both:.1f} images a second; the run reaches {share:.0%} of it.",
        "",
    ]
    if "kills" in found:
        kills = found["kills"]
        lines += [
            f"Killed {len(kills['deaths'])} times at random moments and resumed, {kills['data_sets']} data sets: "
            f"{len(kills['problems'])} files differ from the unbroken run, {kills['made_again']} finished shards were "
            "made again.",
            "",
        ]
    wrong = [*small["problems"], *large["problems"], *found.get("kills", {}).get("problems", [])]
    return "\n".join([*lines, *(f"- {each}" for each in wrong)]).rstrip() + "\n"


def _row(title: str, small: float, large: float, growth: str) -> str:
    grown = f"{large - small:+.1f}" if growth == "difference" else f"{100 * (large / small - 1) if small else 0:+.1f} %"
    return f"| {title} | {small:,.2f} | {large:,.2f} | {grown} |"
