"""Runs the tests that compare numbers under each cell, a process each; `nox -s processors` calls it.

Prints a table of cells, outcomes and the forms that ran, and writes it to ``reports/processors.md`` and ``.json``. A
cell that this machine cannot run is listed with the reason. Exits 1 when a test of a cell fails, when none ran, or when
a form that was forced did not run.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from llm_compression.harness.clip.gates_text import markdown_table
from llm_compression.harness.clip.this_machine import this_machine
from llm_compression.inference.processor import instruction_sets
from tests.conftest import PATHS_RAN_VARIABLE
from tests.processors.cells import CELLS, Cell

ROOT: Final = Path(__file__).parents[2]
REPORTS: Final = ROOT / "reports"
COLUMNS: Final = ("cell", "outcome", "tests", "forms that ran", "s")
_TIMEOUT_S: Final = 3000


@dataclass(frozen=True)
class Outcome:
    """What became of a cell.

    Attributes:
        cell: Its name.
        outcome: ``passed``, ``failed`` or ``not here``.
        tests: The summary of pytest, or why it did not run.
        ran: The forms that ran, ``choice=form``.
        seconds: How long it took.
    """

    cell: str
    outcome: str
    tests: str
    ran: tuple[str, ...] = ()
    seconds: float = 0.0


def lacking(cell: Cell, present: frozenset[str]) -> str:
    """What of the cell this machine does not have; empty where it can run it."""
    missing = [name for name in cell.needs if name not in present]
    return f"the processor has no {', '.join(missing)}" if missing else ""


def judge(cell: Cell, status: int, output: str, ran: Sequence[str], seconds: float) -> Outcome:
    """What became of a cell that was run: passed only where tests ran and every forced form did."""
    last = next((line for line in reversed(output.splitlines()) if re.search(r"\d+ (passed|failed|error)", line)), "")
    summary = last.strip("= ") or f"exit status {status}"
    if status == 0 and not re.search(r"\b[1-9]\d* passed", summary):
        return Outcome(cell.name, "failed", f"no test passed: {summary}", tuple(ran), seconds)
    if missed := [form for form in cell.forces if form not in ran]:
        return Outcome(cell.name, "failed", f"{summary}; did not run: {', '.join(missed)}", tuple(ran), seconds)
    return Outcome(cell.name, "passed" if status == 0 else "failed", summary, tuple(ran), seconds)


def run(cell: Cell, options: Sequence[str] = ()) -> Outcome:
    """Run a cell's tests in a process of its own."""
    if reason := lacking(cell, instruction_sets()):
        return Outcome(cell.name, "not here", reason)
    start = time.monotonic()
    with TemporaryDirectory() as directory:
        ran = Path(directory, "ran.json")
        environment = {**os.environ, **cell.environment, PATHS_RAN_VARIABLE: str(ran)}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *cell.tests, *options]
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S
            )
        except subprocess.TimeoutExpired:
            return Outcome(cell.name, "failed", f"not done after {_TIMEOUT_S} s")
        forms = json.loads(ran.read_text(encoding="utf-8")) if ran.is_file() else []
    if done.returncode:
        print(done.stdout[-6000:], done.stderr[-2000:], sep="\n", flush=True)
    return judge(cell, done.returncode, done.stdout, forms, round(time.monotonic() - start, 1))


def cells_of(outcome: Outcome) -> tuple[str, ...]:
    """A row of the table."""
    return outcome.cell, outcome.outcome, outcome.tests, " ".join(outcome.ran), f"{outcome.seconds:.0f}"


def to_markdown(outcomes: Sequence[Outcome], facts: Mapping[str, object]) -> str:
    """The content of ``processors.md``."""
    failed = [each.cell for each in outcomes if each.outcome == "failed"]
    counts = ", ".join(
        f"{sum(each.outcome == name for each in outcomes)} {name}" for name in ("passed", "failed", "not here")
    )
    verdict = f"**{'FAIL' if failed else 'PASS'}: {len(outcomes)} cells, {counts}.**"
    where = f"{facts['processor']}, {facts['cores']} processors, {' '.join(map(str, facts['flags']))}"  # type: ignore[call-overload]  # a tuple of names
    return "\n\n".join(["# Processors", verdict, markdown_table(COLUMNS, map(cells_of, outcomes)), where]) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every cell and write the table."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.processors.check",
        description="Run the tests that compare numbers under each instruction set, thread count and forced form.",
        epilog='example: python -m tests.processors.check --only "AVX2|bmm"; arguments after -- go to pytest',
    )
    parser.add_argument("--only", default="", metavar="REGEX", help="cells whose name matches (default: all)")
    parser.add_argument("--commit", action="store_true", help="only what a commit must pass")
    parser.add_argument("--list", action="store_true", help="say which cells this machine can run, and run none")
    parser.add_argument("options", nargs="*", metavar="PYTEST", help="arguments for pytest")
    options = parser.parse_args(arguments)
    chosen = [each for each in CELLS if re.search(options.only, each.name) and (each.in_commit or not options.commit)]
    if not chosen:
        parser.error(f"--only {options.only!r}: no cell of this name")
    if options.list:
        for cell in chosen:
            print(f"{cell.name}: {lacking(cell, instruction_sets()) or 'can be run'}")
        return 0
    outcomes = []
    for number, cell in enumerate(chosen, 1):
        outcomes.append(run(cell, options.options))
        name, outcome, tests, ran, seconds = cells_of(outcomes[-1])
        print(f"{number}/{len(chosen)} {name}: {outcome}, {tests}; {ran or 'nothing ran'} ({seconds} s)", flush=True)
    REPORTS.mkdir(exist_ok=True)
    facts = asdict(this_machine())
    (REPORTS / "processors.md").write_text(to_markdown(outcomes, facts), encoding="utf-8")
    content = {"cells": [asdict(each) for each in outcomes], "machine": facts}
    (REPORTS / "processors.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print("wrote processors.md and processors.json in reports")
    return 1 if any(each.outcome == "failed" for each in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
