"""Draws the history and marks where a series changed."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise, permutations
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import ruptures

from llm_compression.errors import LlmCompressionError
from llm_compression.harness.paired.history import DIRECTORY, Row, read
from llm_compression.harness.paired.page import html_page, markdown_table
from llm_compression.harness.paired.plots import sparkline, trend_plot
from llm_compression.harness.paired.project import Floor, Project, floors_of

# a change point needs that many commits on both sides
MIN_SIZE: Final = 2
# of a change point, in variances of the noise: that of the Bayesian criterion for a level and a place, and a half more
_PENALTY: Final = 3.0
SHOWN: Final = 60


class Series(NamedTuple):
    """What may be joined by a line: one metric of one model, and commits that lead to one another."""

    metric: str
    model: str
    first: str


class Point(NamedTuple):
    """A commit of a series, and its level in the unit of the last measured value."""

    row: Row
    level: float


def series_of(rows: Sequence[Row]) -> dict[Series, list[Point]]:
    """The commits of each series, oldest first.

    A series is chained from ratios: a commit's level is that of its base times its ratio, which survives a change of
    machine. Where no ratio leads on, values of one fingerprint do; those of different ones are never joined. The last
    commit has its measured value, so that the others are in its unit and as if of its machine.
    """
    found: dict[Series, list[Point]] = {}
    for metric, model in dict.fromkeys((row.metric, row.model) for row in rows):
        own = [row for row in rows if (row.metric, row.model) == (metric, model) and row.value > 0]
        for chain in _joined(_chains(own)):
            by_commit = {point.row.commit: point for point in chain}
            points = sorted(by_commit.values(), key=lambda point: (point.row.committed_at, point.row.commit))
            scale = points[-1].row.value / points[-1].level
            levels = [Point(point.row, point.level * scale) for point in points]
            found[Series(metric, model, points[0].row.commit)] = levels
    return found


def _chains(rows: Sequence[Row]) -> list[list[Point]]:
    """Rows that ratios lead to from one another; the same commit on two machines has one level."""
    neighbours: dict[int, list[tuple[int, float]]] = {number: [] for number in range(len(rows))}
    for (one, row), (other, before) in permutations(enumerate(rows), 2):
        ratio = None
        if row.ratio and row.base_commit == before.commit and row.fingerprint == before.fingerprint:
            ratio = row.ratio
        elif row.commit == before.commit:
            ratio = 1.0
        if ratio is not None:
            neighbours[other].append((one, ratio))
            neighbours[one].append((other, 1 / ratio))
    chains, seen = [], set[int]()
    for start in range(len(rows)):
        if start in seen:
            continue
        levels, left = {start: 1.0}, [start]
        while left:
            at = left.pop()
            for number, ratio in neighbours[at]:
                if number not in levels:
                    levels[number] = levels[at] * ratio
                    left.append(number)
        seen |= levels.keys()
        chains.append([Point(rows[number], levels[number]) for number in sorted(levels)])
    return chains


def _joined(chains: Sequence[list[Point]]) -> list[list[Point]]:
    """Chains that share a fingerprint as one, by the last value before and the first after."""
    found: list[list[Point]] = []
    for chain in chains:
        links = (
            (before, last, first)
            for before in found
            for last in reversed(before)
            for first in chain
            if last.row.fingerprint == first.row.fingerprint
        )
        link = next(links, None)
        if link is None:
            found.append(list(chain))
            continue
        before, last, first = link
        scale = last.level * first.row.value / last.row.value / first.level
        before += [Point(point.row, point.level * scale) for point in chain]
    return found


def change_points(values: Sequence[float], floor: Floor) -> list[int]:
    """Positions of the first value of each new level, by PELT; a step within the floor is none."""
    if len(values) < 2 * MIN_SIZE:
        return []
    logs = np.log(np.asarray(values, np.float64))
    # steps are few: the median step from one commit to the next is noise
    noise = float(np.median(np.abs(np.diff(logs)))) * 1.4826 / math.sqrt(2)
    least = math.log1p(floor.floor / 100 if floor.unit == "%" else floor.floor / min(values))
    scaled = logs / max(noise, least / 10)
    ends = ruptures.Pelt(model="l2", min_size=MIN_SIZE, jump=1).fit(scaled).predict(pen=_PENALTY * math.log(len(logs)))
    places = [0, *ends]
    levels = [float(logs[start:end].mean()) for start, end in pairwise(places)]
    return [
        place for place, (before, after) in zip(ends, pairwise(levels), strict=False) if abs(after - before) > least
    ]


def sections(rows: Sequence[Row], floors: Mapping[str, Floor]) -> list[tuple[str, str, str]]:
    """Per series its title, a line of text and a plot; the last commits only."""
    found = []
    for series, measured in series_of(rows).items():
        shown = measured[-SHOWN:]
        values = [point.level for point in shown]
        labels = [point.row.commit[:10] for point in shown]
        changes = change_points(values, floors[series.metric]) if series.metric in floors else []
        last = shown[-1].row
        line = f"{sparkline(values)} {values[-1]:.4g}"
        if changes:
            line += f", changed at {', '.join(labels[index] for index in changes)}"
        title = f"{series.metric} {series.model}, {last.unit} (by ratios to {values[-1]:.4g} on {last.processor})"
        found.append((title, line, trend_plot(labels, values, changes)))
    return found


def write_trend(out: Path, floors: Mapping[str, Floor]) -> int:
    """Write ``trend.md`` and ``trend.html`` from the history below `out`; how many series there are."""
    found = sections(read(out / DIRECTORY), floors)
    out.mkdir(parents=True, exist_ok=True)
    table = markdown_table(("series", "oldest to newest"), [(title, line) for title, line, _ in found])
    (out / "trend.md").write_text(f"# Trend\n\n{table}\n", encoding="utf-8")
    body = "".join(f"<h3>{escape(title)}</h3><p>{escape(line)}</p>{plot}" for title, line, plot in found)
    (out / "trend.html").write_text(html_page("Trend", f"<h1>Trend</h1>{body}"), encoding="utf-8")
    return len(found)


def main(project: Project, arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Draw the history; 1 where there is none, 2 where the floors cannot be read.

    Args:
        project: Whose history it is.
        arguments: Of the command line; its own where none are given.
        prog: What the program is called.
    """
    parser = argparse.ArgumentParser(
        prog=prog, description="Draw every series of the history and mark its change points."
    )
    parser.epilog = f"example: {parser.prog} --out reports"
    parser.add_argument("--out", type=Path, default=Path("reports"), help="where the history lies and the report goes")
    out = parser.parse_args(arguments).out
    try:
        count = write_trend(out, floors_of(project, Path()))
    except LlmCompressionError as error:
        print(f"trend: {error}", file=sys.stderr)
        return 2
    if not count:
        print(f"no history in {out / DIRECTORY}: {project.command.removesuffix(' --')} adds to it", file=sys.stderr)
        return 1
    print(f"{(out / 'trend.md').read_text(encoding='utf-8')}\nwrote {out / 'trend.md'} and {out / 'trend.html'}")
    return 0
