"""The gates' verdict for people and programs: a table on the terminal, ``gates.md`` and ``gates.json``."""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any, Final

import numpy as np

from llm_compression.errors import LlmCompressionError
from llm_compression.harness.clip.gates import Judgement, Verdict, judge, read_results, sessions_lacked
from llm_compression.harness.clip.gates_text import (
    also_measured,
    excused_line,
    headline,
    markdown_table,
    remarks,
    table_lines,
    table_markdown,
)
from llm_compression.harness.clip.measure import encode_files
from llm_compression.harness.clip.models import CACHE_DIRECTORY, prepare_model
from llm_compression.harness.clip.photos import PHOTOS, Neighbour, neighbours, photo_paths
from llm_compression.harness.clip.this_machine import this_machine
from llm_compression.harness.git import GitError, changed, head
from llm_compression.harness.paired.machine import MachineInfo
from llm_compression.harness.spec.parser import read_specs

INVALID_STATUS: Final = 4
# figure of a summary -> heading
_ALSO: Final = {
    "latency_p50_ms": "latency, median, ms",
    "first_call_ms": "first call, ms",
    "throughput_img_s": "batches of 16, img/s",
    "start_to_first_ms": "process start to first embedding, ms",
    "import_ms": "of which imports, ms",
    "import_torch_ms": "of which torch, ms",
    "import_mb": "memory after imports, MB",
    "first_peak_mb": "peak to first embedding, MB",
}


@dataclass(frozen=True)
class Report:
    """Everything that the files show.

    Attributes:
        judgement: The verdicts.
        machine: Where they were measured.
        commit: The revision, with ``+`` where files differ from it, or why git knows none.
        measured_at: Date and time, UTC.
        photos: The photos and their neighbours; empty where none were encoded.
    """

    judgement: Judgement
    machine: MachineInfo
    commit: str
    measured_at: str
    photos: tuple[Neighbour, ...] = ()


def to_text(report: Report) -> str:
    """What is printed: the verdict last, where a terminal stops."""
    judgement = report.judgement
    lines = [*table_lines(judgement), "", excused_line(judgement), *remarks(judgement), "", headline(judgement)]
    return "\n".join(lines)


def photos_to_text(photos: Sequence[Neighbour]) -> str:
    """The photos and their neighbours, to be printed."""
    table = [("photo", "nearest", "cosine"), *((each.name, each.nearest, f"{each.cosine:.3f}") for each in photos)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in table)


def to_markdown(report: Report) -> str:
    """The content of ``gates.md``: verdict first, the machine folded away last."""
    judgement, info = report.judgement, report.machine
    parts = ["# Gates", f"**{headline(judgement)}**"]
    if notes := remarks(judgement):
        parts.append("\n".join(f"- {note}" for note in notes))
    parts += table_markdown(judgement)
    if elsewhere := excused_line(judgement):
        parts.append(elsewhere)
    parts.append(
        "Load is the median and memory the highest over fresh processes; latency is the 90th percentile over all their "
        "calls; a ratio is the median over turns; precision is the worst over all images, against transformers in "
        "float32. Limits, the reference machine and what makes a sample count come from the tables of the spec."
    )
    if also := also_measured(judgement.verdicts, _ALSO):
        parts += ["## Also measured", also]
    if report.photos:
        parts += ["## Photos", *_lowest_files(judgement.verdicts)]
        parts.append("The weights are seeded and not trained, so nearness is of colour and texture only.")
        cells = [(each.name, each.nearest, f"{each.cosine:.3f}") for each in report.photos]
        parts.append(markdown_table(("photo", "nearest", "cosine"), cells, right=(2,)))
    facts = {
        "processor": info.processor,
        "processors allowed": info.cores,
        "instruction sets": " ".join(info.flags) or "not listed",
        "memory": f"{info.memory_mb:,} MB",
        "load average": "not listed" if info.load_average is None else info.load_average,
        "CUDA devices": ", ".join(info.gpus) or "none",
        "system": info.system,
        "Python": info.python,
        **info.versions,
        "commit": report.commit,
        "measured": report.measured_at,
    }
    table = markdown_table(("", ""), [(name, str(value)) for name, value in facts.items()])
    parts.append(f"<details>\n<summary>Machine and versions</summary>\n\n{table}\n\n</details>")
    return "\n\n".join(parts) + "\n"


def to_json(report: Report) -> dict[str, Any]:
    """The content of ``gates.json``."""
    gates = [
        {
            **asdict(verdict.gate),
            "status": verdict.status,
            "value": verdict.value,
            "reason": verdict.reason,
            "excused": verdict.excused,
            "samples": verdict.samples,
            "detail": verdict.detail,
        }
        for verdict in report.judgement.verdicts
    ]
    content = {
        "verdict": headline(report.judgement).partition(":")[0],
        "summary": headline(report.judgement),
        "gates": gates,
        "problems": list(report.judgement.problems),
        "photos": [asdict(each) for each in report.photos],
        "machine": asdict(report.machine),
        "commit": report.commit,
        "measured_at": report.measured_at,
    }
    return {key: _plain(value) for key, value in content.items()}


def _plain(value: Any) -> Any:
    """The value with None for NaN and infinity, which JSON cannot hold."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _lowest_files(verdicts: Iterable[Verdict]) -> list[str]:
    """For each gate that compared files, the file that is furthest from the reference."""
    lines = []
    for verdict in verdicts:
        if files := verdict.detail.get("files"):
            name = min(files, key=files.__getitem__)
            lines.append(f"{verdict.gate.id}: {len(files)} files, lowest cosine {files[name]:.7f} ({name}).")
    return lines


def commit_of(root: Path) -> str:
    """The revision of a checkout, with ``+`` where files differ from it; where git knows none, its reason."""
    try:
        return head(root) + ("+" if changed(root) else "")
    except GitError as error:
        return f"unknown: {error.reason}"


def encode_photos(variant: str, cache: Path) -> tuple[Neighbour, ...]:
    """Encode the photos with a seeded model in bfloat16, in a fresh process.

    Raises:
        LlmCompressionError: A photo is missing or cannot be encoded.
    """
    model = prepare_model(variant, cache)
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory, "photos.npy")
        encode_files("arrow", model.weights["bfloat16"], photo_paths(), out, dtype="auto")
        return neighbours(PHOTOS, np.load(out))


def write_report(report: Report, out: Path, name: str = "gates") -> None:
    """Write the report as Markdown and as JSON, ``gates.md`` and ``gates.json`` unless another name is given."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.md").write_text(to_markdown(report), encoding="utf-8")
    content = json.dumps(to_json(report), indent=2, allow_nan=False)
    (out / f"{name}.json").write_text(content + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge results, print the table and write the reports.

    Returns 0 when every gate passed, is not measurable here or is excused, 4 when all that is missing are samples that
    other processes disturbed, else 1.
    """
    parser = argparse.ArgumentParser(
        prog="python -m llm_compression.harness.clip.report",
        description="Judge what the gates' tests left against the table Gates of the specs. Exits 1 when a gate is "
        "missed, failed or was not run, unless it needs a device or a processor that is not here, and 4 when all that "
        "is missing are samples that other processes disturbed.",
        epilog="example: python -m llm_compression.harness.clip.report .cache/gate-results.json --photos b16",
    )
    parser.add_argument("results", type=Path, metavar="RESULTS", help="what pytest --gate-results wrote")
    parser.add_argument("--root", type=Path, default=Path(), help="the checkout (default: .)")
    parser.add_argument("--out", type=Path, help="directory of the reports (default: ROOT/reports)")
    parser.add_argument("--session", help="only gates of this session; the reports are named after it")
    parser.add_argument("--photos", metavar="VARIANT", help="encode the photos too, with this seeded model")
    options = parser.parse_args(arguments)
    info = this_machine()
    out = options.out or options.root / "reports"
    name = f"gates-{options.session}" if options.session else "gates"
    for suffix in (".md", ".json"):
        # a report of an earlier run must not stand for this one
        (out / f"{name}{suffix}").unlink(missing_ok=True)
    try:
        results, status = read_results(options.results)
        specs = read_specs(options.root)
        gates = list(chain.from_iterable(spec.gates for spec in specs))
        if options.session:
            gates = [gate for gate in gates if gate.session == options.session]
        photos = encode_photos(options.photos, options.root / CACHE_DIRECTORY) if options.photos else ()
    except LlmCompressionError as error:
        print(f"gates: {error}", file=sys.stderr)
        return 1
    references = [each for spec in specs for each in spec.references]
    judgement = judge(gates, results, status, lacked=sessions_lacked(), references=references)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    report = Report(judgement, info, commit_of(options.root), now, photos)
    if photos:
        print(f"photos, encoded with {options.photos}:\n{photos_to_text(photos)}\n")
    write_report(report, out, name)
    print(f"{to_text(report)}\nwrote {name}.md and {name}.json in {out}")
    return 0 if judgement.passed else INVALID_STATUS if judgement.invalid else 1


if __name__ == "__main__":
    sys.exit(main())
