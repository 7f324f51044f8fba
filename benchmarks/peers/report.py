"""`reports/peers.md`, `.json` and `.png` from a run of the peers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any, Final

from llm_compression.harness.paired.machine import MachineInfo

# figure -> (heading, digits)
COLUMNS: Final[Mapping[str, tuple[str, int]]] = {
    "load_ms": ("load ms", 0),
    "first_call_ms": ("first call ms", 0),
    "import_torch_ms": ("import torch ms", 0),
    "start_to_first_ms": ("process start to first embedding ms", 0),
    "latency_p50_ms": ("latency ms, median", 1),
    "latency_p90_ms": ("90th", 1),
    "throughput_img_s": ("img/s, batch 16", 1),
    "first_peak_mb": ("peak MB, first embedding", 0),
    "peak_mb": ("peak MB, all", 0),
    "cosine_min": ("lowest cosine", 6),
}


def write_report(
    out: Path, models: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]], info: MachineInfo, rounds: int
) -> None:
    """Write the three files and print the tables."""
    out.mkdir(parents=True, exist_ok=True)
    content = {"rounds": rounds, "machine": asdict(info), "models": models, "files": files}
    (out / "peers.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    _plot(out / "peers.png", models)
    text = to_markdown(models, files, info, rounds)
    (out / "peers.md").write_text(text, encoding="utf-8")
    print(f"\n{text}\nwrote {out / 'peers.md'}, {out / 'peers.json'} and {out / 'peers.png'}")


def to_markdown(
    models: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]], info: MachineInfo, rounds: int
) -> str:
    """Per model a table of the systems, then this encoder's ratios; then from files; the machine last."""
    parts = ["# Peers"]
    parts.append(
        f"Medians of {rounds} rounds of fresh processes, interleaved, the order reversed every other round; the same "
        f"weights and pixels for all, every embedding compared with transformers in float32. {info.processor}, "
        f"{info.cores} processors, {' '.join(info.flags)}. Peak memory is that of the whole process, batches of 16 "
        "included."
    )
    for variant, found in models.items():
        parts.append(f"## {variant}")
        heads = ["system", *(title for title, _ in COLUMNS.values())]
        rows = [
            [title, *(f"{row[key]:,.{digits}f}" if key in row else "" for key, (_, digits) in COLUMNS.items())]
            for title, row in found["systems"].items()
        ]
        parts.append(_table(heads, rows))
        if ratios := _ratios(found):
            parts.append(ratios)
    if files:
        parts += ["## From JPEG files, b32", _files_table(files)]
    facts = [("memory", f"{info.memory_mb:,} MB"), ("system", info.system), ("Python", info.python)]
    facts += list(info.versions.items())
    details = _table(["", ""], [[name, value] for name, value in facts])
    parts.append(f"<details>\n<summary>Machine and versions</summary>\n\n{details}\n\n</details>")
    return "\n\n".join(parts) + "\n"


def _ratios(found: Mapping[str, Any]) -> str:
    """This encoder's latency and load as a part of each peer's, and of the measured limit."""
    lines = []
    for dtype, limit in found["limits"].items():
        own = found["systems"].get(f"llm_compression {dtype}")
        if own is None:
            continue
        against = [
            f"{own['latency_p50_ms'] / row['latency_p50_ms']:.2f} of {title}"
            for title, row in found["systems"].items()
            if row is not own and (title.endswith(dtype) or title == "transformers float32")
        ]
        lines.append(
            f"- {dtype}: latency is {', '.join(against)}, and {own['latency_p50_ms'] / limit['limit_ms']:.2f} of the "
            f"measured limit ({limit['limit_ms']:.1f} ms for {limit['gflop']:.1f} GFLOP at {limit['gflops']:,.0f}/s)."
        )
        others = {t: r["load_and_first_ms"] for t, r in found["systems"].items() if not t.startswith("llm_compression")}
        if others:
            best = min(others, key=lambda title: others[title])
            lines.append(
                f"- {dtype}: load and first call take {own['load_and_first_ms']:.0f} ms, "
                f"{own['load_and_first_ms'] / others[best]:.2f} of the best peer's ({best})."
            )
    return "\n".join(lines)


def _files_table(files: Mapping[str, Mapping[str, Any]]) -> str:
    """Images a second from files, each system with its own image processor, and the ratio to transformers."""
    rows = []
    for size, systems in files.items():
        base = median(systems["transformers float32"])
        for title, rates in systems.items():
            rows.append([size, title, f"{median(rates):.1f}", f"{median(rates) / base:.2f}"])
    return _table(["files", "system", "img/s", "times transformers float32"], rows)


def _table(heads: list[str], rows: list[list[str]]) -> str:
    rule = ["---", *("---:" for _ in heads[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rule, *rows))


def _plot(path: Path, models: Mapping[str, Any]) -> None:
    """A dot for each process's median latency, a panel for each model, the measured limits as lines."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(models), figsize=(6.5 * len(models), 3.6), squeeze=False, layout="constrained")
    for panel, (variant, found) in zip(panels[0], models.items(), strict=True):
        titles = list(found["systems"])[::-1]
        for place, title in enumerate(titles):
            each = found["systems"][title]["latency_p50_each"]
            color = "#c2410c" if title.startswith("llm_compression") else "#475569"
            panel.barh(place, found["systems"][title]["latency_p50_ms"], color=color, alpha=0.35)
            panel.plot(each, [place] * len(each), "o", color=color, markersize=4)
        for dtype, style in (("float32", ":"), ("bfloat16", "--")):
            limit = found["limits"][dtype]["limit_ms"]
            panel.axvline(limit, color="black", linestyle=style, linewidth=1, label=f"measured limit, {dtype}")
        panel.set_yticks(range(len(titles)), titles)
        panel.set_xlabel("latency of one image, ms (a dot is the median of a process)")
        panel.set_title(variant)
        panel.legend(fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)
