"""How often the comparison is wrong: a revision beside itself, and beside itself with an injected slowdown.

A run takes minutes, so the study goes on where it was: each run's outcome is a line of ``false_alarms.jsonl``, and only
lines of the same package, machine, rules, budget, models and injection are counted.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from llm_compression.errors import LlmCompressionError
from llm_compression.harness.paired import compare
from llm_compression.harness.paired.compare import Outcome
from llm_compression.harness.paired.duets import Duets, measured_by
from llm_compression.harness.paired.history import fingerprint
from llm_compression.harness.paired.page import markdown_table
from llm_compression.harness.paired.project import Project, floors_of, keys_of
from llm_compression.harness.paired.rounds import Taker, compare_rounds
from llm_compression.harness.paired.run import sides_of
from llm_compression.harness.paired.worktrees import find

RECORD: Final = "false_alarms.jsonl"


def parse_injection(text: str, known: Collection[str]) -> dict[str, float]:
    """``latency=1.08,load=1.15`` as a dictionary; the empty text injects nothing.

    Raises:
        argparse.ArgumentTypeError: It names something else, or a value is no number.
    """
    try:
        found = {name: float(value) for name, _, value in (each.partition("=") for each in text.split(",") if each)}
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from error
    if unknown := sorted(found.keys() - set(known)):
        raise argparse.ArgumentTypeError(f"{unknown} of {text!r}, expected {', '.join(known) or 'none'}")
    return found


def rules(project: Project, root: Path) -> str:
    """A hash of what decides beside the package: how a process is measured, the comparison, and the floors."""
    floors = sorted((name, floor.floor, floor.unit) for name, floor in floors_of(project, root).items())
    files = (path.read_bytes() for path in (*measured_by(project), Path(compare.__file__)))
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
    project: Project,
    taker: Taker,
    models: Sequence[str],
    root: Path,
    record: Path,
    about: Mapping[str, Any],
    runs: int,
    seconds: float,
) -> int:
    """Run until there are `runs` in the record or the time slice is spent; how many there are."""
    started, floors = time.monotonic(), floors_of(project, root)
    keys = keys_of(project, models)
    while (done := len(read_record(record, about))) < runs and time.monotonic() - started < seconds:
        print(f"run {done + 1} of {runs}", flush=True)
        found = compare_rounds(taker, keys, project.metrics, floors, about["budget_s"], partial(print, flush=True))
        outcomes = {" ".join(key): verdict.outcome.value for key, verdict in found.verdicts.items()}
        changes = {
            " ".join(key): None if verdict.change is None else verdict.change.ratio
            for key, verdict in found.verdicts.items()
        }
        rounds = {" ".join(key): len(verdict.rounds) for key, verdict in found.verdicts.items()}
        line = {
            "about": dict(about),
            "outcomes": outcomes,
            "changes": changes,
            "rounds": rounds,
            "seconds": round(found.seconds, 1),
        }
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


def main(project: Project, arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Go on with the study and print what it found so far; 3 while runs are missing, 2 where none can be made.

    Args:
        project: What is compared with itself.
        arguments: Of the command line; its own where none are given.
        prog: What the program is called.
    """
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Compare a revision with itself, or with itself slowed down, many times, and count the verdicts.",
    )
    given = ",".join(f"{name}={value:g}" for name, value in project.injections.items())
    parser.epilog = f"example: {parser.prog} {f'--inject {given} ' if given else ''}--runs 10 --seconds 1500"
    known, models = tuple(project.known_models or project.models), list(project.models)
    read = partial(parse_injection, known=project.injections)
    parser.add_argument("--runs", type=int, default=20, help="in all, with those of the record (default: %(default)s)")
    parser.add_argument("--inject", type=read, default={}, metavar="NAME=VALUE,...", help="slow the head down")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no run after them (default: never)")
    parser.add_argument(
        "--budget", type=float, default=project.budget_s, help="seconds of a run (default: %(default)g)"
    )
    parser.add_argument("--models", nargs="+", choices=known, default=models, metavar="MODEL", help=", ".join(known))
    parser.add_argument("--revision", default="HEAD", help="what is compared with itself (default: %(default)s)")
    parser.add_argument("--root", type=Path, default=Path(), help="the checkout (default: .)")
    parser.add_argument("--out", type=Path, default=Path("reports"), help="directory (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        done = _go_on(project, options)
    except LlmCompressionError as error:
        print(f"study: {error}", file=sys.stderr)
        return 2
    record = options.out / RECORD
    print(f"\n{write_summary(options.out, record)}\n{done} of {options.runs} runs; wrote {record}")
    return 0 if done >= options.runs else 3


def _go_on(project: Project, options: argparse.Namespace) -> int:
    root, record = options.root.resolve(), options.out / RECORD
    revision = find(root, options.revision, project.package)
    about = {
        "tree": revision.tree,
        "machine": fingerprint(project, project.machine()),
        "budget_s": options.budget,
        "models": options.models,
        "inject": options.inject,
        "rules": rules(project, root),
    }
    shared = project.prepare(root, options.models, (revision, revision))
    with sides_of(root, revision, revision) as sides:
        if options.inject and project.inject is not None:
            project.inject(sides["head"].worktree, options.inject)
        # as each run of the report draws its own
        taker = Duets(project, sides, shared, random.SystemRandom().randrange(2**32))
        return study(project, taker, options.models, root, record, about, options.runs, options.seconds)
