"""Draws the history and marks where a series changed."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
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
    """What may be joined by a line: one metric of one model on one machine."""

    metric: str
    model: str
    fingerprint: str


def series_of(rows: Sequence[Row]) -> dict[Series, list[Row]]:
    """The rows of each series, oldest commit first; rows of different fingerprints never share one."""
    found: dict[Series, list[Row]] = {}
    for row in rows:
        found.setdefault(Series(row.metric, row.model, row.fingerprint), []).append(row)
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
        values = [row.value for row in shown]
        labels = [row.commit[:10] for row in shown]
        changes = change_points(values, floors[series.metric]) if series.metric in floors else []
        title = f"{series.metric} {series.model}, {shown[-1].unit}"
        line = f"{sparkline(values)} {values[-1]:.4g}"
        if changes:
            line += f", changed at {', '.join(labels[index] for index in changes)}"
        found.append((f"{title} (machine {series.fingerprint})", line, trend_plot(labels, values, changes)))
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
