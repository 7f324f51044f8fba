"""Measures one revision of a project beside another and reports.

Exits 0 for no regression, 1 for a regression, 2 for wrong usage, 3 for an inconclusive or incomparable result.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from llm_compression.errors import LlmCompressionError
from llm_compression.harness.git import git
from llm_compression.harness.paired import history
from llm_compression.harness.paired.compare import Outcome, not_comparable
from llm_compression.harness.paired.duets import Duets
from llm_compression.harness.paired.project import Floor, Metric, Project, Side, floors_of, keys_of
from llm_compression.harness.paired.report import FILES, Run, write_report
from llm_compression.harness.paired.rounds import Comparison, Taker, compare_rounds
from llm_compression.harness.paired.trend import sections
from llm_compression.harness.paired.worktrees import (
    WORKING_TREE,
    Revision,
    checked_out,
    default_base,
    find,
    is_dirty,
)


def measure_sides(
    project: Project,
    root: Path,
    base: Revision,
    head: Revision,
    models: Sequence[str],
    floors: Mapping[str, Floor],
    budget_s: float,
    seed: int,
    *,
    confirm: bool,
) -> Comparison:
    """Check the sides out, measure them, and where it is asked for measure a regression again.

    Raises:
        RevisionError: A worktree cannot be made.
        LlmCompressionError: What both sides share cannot be made.
    """
    shared = project.prepare(root, models, (base, head))
    with sides_of(root, base, head) as sides:
        taker = Duets(project, sides, shared, seed)
        found = compare_rounds(taker, keys_of(project, models), project.metrics, floors, budget_s, _say)
        return confirmed(found, taker, project.metrics, floors, budget_s) if confirm else found


@contextmanager
def sides_of(root: Path, base: Revision, head: Revision) -> Iterator[dict[str, Side]]:
    """What the sides of a duet are: each has a worktree of its own, the control too.

    Raises:
        RevisionError: A worktree cannot be made.
    """
    with checked_out(root, base, head, base) as (base_tree, head_tree, control_tree):
        yield {
            "base": Side(base, base_tree),
            "head": Side(head, head_tree),
            "control": Side(base, control_tree, control=True),
        }


def confirmed(
    first: Comparison,
    taker: Taker,
    metrics: Mapping[str, Metric],
    floors: Mapping[str, Floor],
    budget_s: float,
    compare: Callable[..., Comparison] = compare_rounds,
) -> Comparison:
    """Measure what REGRESSED once more, from nothing: it stands if it is found again, else it is INCONCLUSIVE."""
    doubted = [key for key, verdict in first.verdicts.items() if verdict.outcome is Outcome.REGRESSED]
    if not doubted:
        return first
    _say(f"a second, independent run for {', '.join(' '.join(key) for key in doubted)}")
    second = compare(taker, doubted, metrics, floors, budget_s, _say)
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
    return Comparison(verdicts, rounds, first.seconds + second.seconds, first.waiting + second.waiting)


def _say(line: str) -> None:
    print(line, flush=True)


def _parser(project: Project, prog: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Measure a revision beside its base and report. Exits 0 for no regression, 1 for a regression, 2 "
        "for wrong usage, 3 for an inconclusive or incomparable result.",
    )
    parser.epilog = f"example: {parser.prog} --base HEAD~3"
    parser.add_argument(
        "--base",
        help="default: the nearest merge base with main or master, here or of a remote; on it the commit before",
    )
    parser.add_argument("--head", default="HEAD", help=f"a revision or {WORKING_TREE} (default: %(default)s)")
    known, models = tuple(project.known_models or project.models), list(project.models)
    parser.add_argument("--models", nargs="+", choices=known, default=models, metavar="MODEL", help=", ".join(known))
    parser.add_argument(
        "--budget",
        type=float,
        default=project.budget_s,
        help="seconds of the rounds; models are made before (default: %(default)g)",
    )
    parser.add_argument(
        "--confirm",
        action="store_true",
        help="call SAME what has the same package; fail only on a regression that a second run finds again, or on what "
        "cannot be compared",
    )
    parser.add_argument("--root", type=Path, default=Path(), help="the checkout (default: .)")
    return parser


def main(project: Project, arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Measure, judge, report and remember.

    Args:
        project: What is compared.
        arguments: Of the command line; its own where none are given.
        prog: What the program is called.

    Returns:
        The exit status.
    """
    options = _parser(project, prog).parse_args(arguments)
    root = options.root.resolve()
    out = root / "reports"
    for name in FILES:
        # a report of an earlier run must not stand for this one
        (out / name).unlink(missing_ok=True)
    notes: list[str] = []
    try:
        head = find(root, options.head, project.package)
        base = find(root, options.base or default_base(root, head, notes.append), project.package)
        floors = floors_of(project, root)
    except LlmCompressionError as error:
        print(f"regression: {error}", file=sys.stderr)
        return 2
    if options.head != WORKING_TREE and is_dirty(root):
        notes.append(f"uncommitted changes are not measured; --head {WORKING_TREE} measures those of tracked files")
    untracked = ("ls-files", "--others", "--exclude-standard", project.package)
    if options.head == WORKING_TREE and (files := git(root, *untracked)):
        notes.append(f"untracked files are not measured: {', '.join(files.splitlines())}")
    for note in notes:
        _say(f"note: {note}")
    _say(f"base {base.short} {base.subject}\nhead {head.short} {head.subject}")
    identical = options.confirm and bool(head.tree) and base.tree == head.tree
    # orders and places are drawn anew in each run, and can be drawn again
    seed = random.SystemRandom().randrange(2**32)
    info, now = project.machine(), datetime.now(UTC).isoformat(timespec="seconds")
    found = Comparison()
    if not identical:
        measured = (project, root, base, head, options.models, floors, options.budget, seed)
        try:
            found = measure_sides(*measured, confirm=options.confirm)
        except LlmCompressionError as error:
            found.verdicts = dict.fromkeys(keys_of(project, options.models), not_comparable(str(error)))
        history.append(out / history.DIRECTORY, history.rows_of(project, base, head, found, info, now))
    run = Run(project, base, head, found, info, now, tuple(notes), options.confirm, identical, seed)
    text = write_report(
        out, run, sections(history.read(out / history.DIRECTORY), floors), os.environ.get("GITHUB_STEP_SUMMARY", "")
    )
    _say(f"\n{text}\nwrote {', '.join(FILES)} in {out}")
    return run.exit_status


def run(project: Project, prog: str | None = None) -> NoReturn:
    """End this program with the status of `main`; a crash is 2, as 1 would say that something regressed."""
    try:
        status = main(project, prog=prog)
    except Exception:
        traceback.print_exc()
        status = 2
    sys.exit(status)
