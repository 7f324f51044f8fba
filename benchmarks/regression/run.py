"""Measures one revision beside another and reports; `nox -s regression` calls it.

Exits 0 for no regression, 1 for a regression, 2 for wrong usage, 3 for an inconclusive or incomparable result.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from benchmarks.regression import history
from benchmarks.regression.report import FILES, Run, write_report
from benchmarks.regression.rounds import Comparison, Side, Take, compare_rounds, keys_of, taker
from benchmarks.regression.trend import floors_of, sections
from benchmarks.regression.worktrees import (
    PACKAGE,
    WORKING_TREE,
    Revision,
    RevisionError,
    checked_out,
    default_base,
    find,
    is_dirty,
)
from llm_compression.errors import LlmCompressionError
from llm_compression.harness.clip.checkpoints import VARIANTS
from llm_compression.harness.clip.measure import Bounds
from llm_compression.harness.clip.models import CACHE_DIRECTORY, prepare_model
from llm_compression.harness.git import GitError, git
from llm_compression.harness.paired.compare import Outcome, not_comparable
from llm_compression.harness.paired.machine import machine
from llm_compression.harness.spec.parser import Floor, read_specs

MODELS: Final = ("b16", "b32")
BUDGET_S: Final = 300.0
WEIGHTS: Final = Path(".cache", "regression")
# of a variant for which the spec has no gate: rounding costs a narrow tower more
_LOOSE: Final = Bounds(min_cosine=0.99)


def bounds_of(root: Path, models: Sequence[str]) -> dict[str, Bounds]:
    """What the answers for each model must meet: the limit of its gate in bfloat16."""
    limits = {gate.id: gate.limit for spec in read_specs(root) for gate in spec.gates}
    gates = {model: limits.get(f"precision-bfloat16-{model}") for model in models}
    return {model: _LOOSE if limit is None else Bounds(min_cosine=limit) for model, limit in gates.items()}


def measure_sides(
    root: Path, base: Revision, head: Revision, models: Sequence[str], budget_s: float, *, confirm: bool
) -> Comparison:
    """Check both revisions out, measure them, and where it is asked for measure a regression again.

    Raises:
        RevisionError: A worktree cannot be made.
        LlmCompressionError: The seeded models cannot be made.
    """
    started, floors = time.monotonic(), floors_of(root)
    made = {model: prepare_model(model, root / CACHE_DIRECTORY) for model in models}
    with checked_out(root, base, head) as (base_tree, head_tree):
        sides = (Side(base, base_tree), Side(head, head_tree))
        take = taker(*sides, made, root / WEIGHTS, bounds_of(root, models))
        left = budget_s - (time.monotonic() - started)
        found = compare_rounds(take, keys_of(models), floors, left, _say)
        return confirmed(found, take, floors, budget_s) if confirm else found


def confirmed(
    first: Comparison,
    take: Take,
    floors: Mapping[str, Floor],
    budget_s: float,
    compare: Callable[..., Comparison] = compare_rounds,
) -> Comparison:
    """Measure what REGRESSED once more, from nothing: it stands if it is found again, else it is INCONCLUSIVE."""
    doubted = [key for key, verdict in first.verdicts.items() if verdict.outcome is Outcome.REGRESSED]
    if not doubted:
        return first
    _say(f"a second, independent run for {', '.join(' '.join(key) for key in doubted)}")
    second = compare(take, doubted, floors, budget_s, _say)
    verdicts = dict(first.verdicts)
    for key in doubted:
        again = second.verdicts[key]
        if again.outcome is Outcome.REGRESSED:
            verdicts[key] = replace(again, reason=f"{again.reason} found twice".strip())
        elif again.outcome is Outcome.NOT_COMPARABLE:
            verdicts[key] = again
        else:
            reason = f"REGRESSED in the first run, {again.outcome} in the second"
            verdicts[key] = replace(first.verdicts[key], outcome=Outcome.INCONCLUSIVE, reason=reason)
    # what is shown of a metric is what its verdict was taken from
    rounds = {**first.rounds, **{key: verdicts[key].rounds for key in doubted}}
    return Comparison(verdicts, rounds, first.seconds + second.seconds)


def _say(line: str) -> None:
    print(line, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.regression.run",
        description="Measure a revision beside its base and report. Exits 0 for no regression, 1 for a regression, 2 "
        "for wrong usage, 3 for an inconclusive or incomparable result.",
        epilog="example: python -m benchmarks.regression.run --base HEAD~3",
    )
    parser.add_argument(
        "--base",
        help="default: the nearest merge base with main or master, here or of a remote; on it the commit before",
    )
    parser.add_argument("--head", default="HEAD", help=f"a revision or {WORKING_TREE} (default: %(default)s)")
    parser.add_argument("--models", nargs="+", choices=tuple(VARIANTS), default=list(MODELS), metavar="MODEL")
    parser.add_argument("--budget", type=float, default=BUDGET_S, help="seconds (default: %(default)g)")
    parser.add_argument(
        "--confirm",
        action="store_true",
        help="call SAME what has the same package; fail only on a regression that a second run finds again, or on what "
        "cannot be compared",
    )
    parser.add_argument("--root", type=Path, default=Path(), help="the checkout (default: .)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, judge, report and remember."""
    options = _parser().parse_args(arguments)
    root = options.root.resolve()
    out = root / "reports"
    for name in FILES:
        # a report of an earlier run must not stand for this one
        (out / name).unlink(missing_ok=True)
    notes: list[str] = []
    try:
        head = find(root, options.head)
        base = find(root, options.base or default_base(root, head, notes.append))
    except (RevisionError, GitError) as error:
        print(f"regression: {error}", file=sys.stderr)
        return 2
    if options.head != WORKING_TREE and is_dirty(root):
        notes.append(f"uncommitted changes are not measured; --head {WORKING_TREE} measures those of tracked files")
    if options.head == WORKING_TREE and (untracked := git(root, "ls-files", "--others", "--exclude-standard", PACKAGE)):
        notes.append(f"untracked files are not measured: {', '.join(untracked.splitlines())}")
    for note in notes:
        _say(f"note: {note}")
    _say(f"base {base.short} {base.subject}\nhead {head.short} {head.subject}")
    identical = options.confirm and bool(head.tree) and base.tree == head.tree
    info, now = machine(), datetime.now(UTC).isoformat(timespec="seconds")
    found = Comparison()
    if not identical:
        try:
            found = measure_sides(root, base, head, options.models, options.budget, confirm=options.confirm)
        except LlmCompressionError as error:
            found.verdicts = dict.fromkeys(keys_of(options.models), not_comparable(str(error)))
        history.append(out / history.DIRECTORY, history.rows_of(base, head, found, info, now))
    run = Run(base, head, found, info, now, tuple(notes), options.confirm, identical)
    own = [row for row in history.read(out / history.DIRECTORY) if row.fingerprint == history.fingerprint(info)]
    text = write_report(out, run, sections(own, floors_of(root)), os.environ.get("GITHUB_STEP_SUMMARY", ""))
    _say(f"\n{text}\nwrote {', '.join(FILES)} in {out}")
    return run.exit_status


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Exception:
        # a status of 1 would say that something regressed
        traceback.print_exc()
        sys.exit(2)
