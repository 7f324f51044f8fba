"""How often the comparison is wrong: a revision beside itself, and beside itself with an injected slowdown.

A run takes minutes, so the study goes on where it was: each run's outcome is a line of ``false_alarms.jsonl``, and only
lines of the same package, machine, rules, budget, models and injection are counted.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.regression import rounds as rounds_module
from benchmarks.regression.history import fingerprint
from benchmarks.regression.page import markdown_table
from benchmarks.regression.rounds import Side, Take, compare_rounds, keys_of, taker
from benchmarks.regression.run import BUDGET_S, MODELS, WEIGHTS, bounds_of
from benchmarks.regression.trend import floors_of
from benchmarks.regression.worktrees import Revision, checked_out, find
from llm_compression.harness.clip.checkpoints import VARIANTS
from llm_compression.harness.clip.models import CACHE_DIRECTORY, prepare_model
from llm_compression.harness.paired import compare as compare_module
from llm_compression.harness.paired.compare import Outcome
from llm_compression.harness.paired.machine import machine

RECORD: Final = "false_alarms.jsonl"
INJECTIONS: Final = ("latency", "load", "memory_mb")
_PATCHED: Final = Path("llm_compression", "multimodal", "vision_encoder.py")
_PATCH: Final = """

def _slowed(function, factor):
    import functools
    import time

    @functools.wraps(function)
    def slowed(*args, **kwargs):
        start = time.perf_counter()
        result = function(*args, **kwargs)
        time.sleep((time.perf_counter() - start) * (factor - 1))
        return result

    return slowed


VisionEncoder.encode_pixels = _slowed(VisionEncoder.encode_pixels, {latency})
VisionEncoder.__init__ = _slowed(VisionEncoder.__init__, {load})
_KEPT = bytearray(b"1") * int({memory_mb} * 1_000_000)
"""


def parse_injection(text: str) -> dict[str, float]:
    """``latency=1.08,load=1.15,memory_mb=40`` as a dictionary; the empty text injects nothing.

    Raises:
        argparse.ArgumentTypeError: It names something else, or a value is no number.
    """
    try:
        found = {name: float(value) for name, _, value in (each.partition("=") for each in text.split(",") if each)}
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from error
    if unknown := sorted(found.keys() - set(INJECTIONS)):
        raise argparse.ArgumentTypeError(f"{unknown} of {text!r}, expected {', '.join(INJECTIONS)}")
    return found


def inject(worktree: Path, injection: Mapping[str, float]) -> None:
    """Slow the encoder of a worktree down: sleep in proportion to each call and load, keep memory that was written."""
    values = {"latency": 1.0, "load": 1.0, "memory_mb": 0.0, **injection}
    with (worktree / _PATCHED).open("a", encoding="utf-8") as file:
        file.write(_PATCH.format(**values))


def rules(root: Path) -> str:
    """A hash of what decides beside the package: how a process is measured, the comparison, and the floors."""
    floors = sorted((floor.metric, floor.floor, floor.unit) for floor in floors_of(root).values())
    files = (Path(str(module.__file__)).read_bytes() for module in (rounds_module, compare_module))
    return hashlib.sha256(b"".join(files) + json.dumps(floors).encode()).hexdigest()[:12]


def read_record(path: Path, about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The runs of this study that are done; a line that an interruption cut off is none."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            run = json.loads(line)
        except ValueError:
            continue
        if run["about"] == dict(about):
            found.append(run)
    return found


def study(
    take: Take, models: Sequence[str], root: Path, record: Path, about: Mapping[str, Any], runs: int, seconds: float
) -> int:
    """Run until there are `runs` in the record or the time slice is spent; how many there are."""
    started, floors = time.monotonic(), floors_of(root)
    while (done := len(read_record(record, about))) < runs and time.monotonic() - started < seconds:
        print(f"run {done + 1} of {runs}", flush=True)
        found = compare_rounds(take, keys_of(models), floors, about["budget_s"], lambda line: print(line, flush=True))
        outcomes = {" ".join(key): verdict.outcome.value for key, verdict in found.verdicts.items()}
        changes = {
            " ".join(key): None if verdict.change is None else verdict.change.ratio
            for key, verdict in found.verdicts.items()
        }
        rounds = {" ".join(key): len(verdict.rounds) for key, verdict in found.verdicts.items()}
        line = {"about": dict(about), "outcomes": outcomes, "changes": changes, "rounds": rounds}
        record.parent.mkdir(parents=True, exist_ok=True)
        with record.open("a", encoding="utf-8") as file:
            # first on a line of its own, whatever was cut off above
            file.write(f"\n{json.dumps(line)}\n")
    return done


def summary(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Per metric and model, how often each verdict was given."""
    counted: dict[str, Counter[str]] = {}
    for run in runs:
        for key, outcome in run["outcomes"].items():
            counted.setdefault(key, Counter())[outcome] += 1
    return [
        {"metric": key, **{outcome.value: counts[outcome.value] for outcome in Outcome}}
        for key, counts in counted.items()
    ]


def write_summary(out: Path, record: Path) -> str:
    """Write ``false_alarms.json`` from the whole record and return its tables."""
    lines = record.read_text(encoding="utf-8").splitlines() if record.is_file() else []
    studies: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        try:
            run = json.loads(line)
        except ValueError:
            continue
        studies.setdefault(json.dumps(run["about"], sort_keys=True), []).append(run)
    content, parts = [], []
    for about, runs in studies.items():
        rows = summary(runs)
        content.append({"about": json.loads(about), "runs": len(runs), "metrics": rows})
        table = markdown_table(list(rows[0]), [[str(value) for value in row.values()] for row in rows])
        decisions = len(runs) * len(rows)
        parts.append(f"{len(runs)} runs, {decisions} decisions: `{about}`\n\n{table}\n")
    (out / "false_alarms.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return "\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Go on with the study and print what it found so far; 3 while runs are missing."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.regression.false_alarms",
        description="Compare a revision with itself, or with itself slowed down, many times, and count the verdicts.",
        epilog="example: python -m benchmarks.regression.false_alarms --inject latency=1.08,load=1.15,memory_mb=40 "
        "--runs 10 --seconds 1500",
    )
    parser.add_argument("--runs", type=int, default=20, help="in all, with those of the record (default: %(default)s)")
    parser.add_argument(
        "--inject", type=parse_injection, default={}, metavar="NAME=VALUE,...", help="slow the head down"
    )
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no run after them (default: never)")
    parser.add_argument("--budget", type=float, default=BUDGET_S, help="seconds of a run (default: %(default)g)")
    parser.add_argument("--models", nargs="+", choices=tuple(VARIANTS), default=list(MODELS), metavar="MODEL")
    parser.add_argument("--revision", default="HEAD", help="what is compared with itself (default: %(default)s)")
    parser.add_argument("--root", type=Path, default=Path(), help="the checkout (default: .)")
    parser.add_argument("--out", type=Path, default=Path("reports"), help="directory (default: %(default)s)")
    options = parser.parse_args(arguments)
    root, record = options.root.resolve(), options.out / RECORD
    revision: Revision = find(root, options.revision)
    about = {
        "tree": revision.tree,
        "machine": fingerprint(machine()),
        "budget_s": options.budget,
        "models": options.models,
        "inject": options.inject,
        "rules": rules(root),
    }
    made = {model: prepare_model(model, root / CACHE_DIRECTORY) for model in options.models}
    with checked_out(root, revision, revision) as (base_tree, head_tree):
        if options.inject:
            inject(head_tree, options.inject)
        sides = (Side(revision, base_tree), Side(revision, head_tree))
        take = taker(*sides, made, root / WEIGHTS, bounds_of(root, options.models))
        done = study(take, options.models, root, record, about, options.runs, options.seconds)
    print(f"\n{write_summary(options.out, record)}\n{done} of {options.runs} runs; wrote {options.out / RECORD}")
    return 0 if done >= options.runs else 3


if __name__ == "__main__":
    sys.exit(main())
