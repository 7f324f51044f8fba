"""The report of a comparison: what comes first, what it asks of other hosts, what becomes of its figures later."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import pytest

from benchmarks.regression.project import METRICS, PROJECT
from llm_compression.harness.paired import history
from llm_compression.harness.paired.compare import Outcome, Rounds, decide, not_comparable
from llm_compression.harness.paired.machine import MachineInfo
from llm_compression.harness.paired.plots import forest_plot, rounds_plot, sparkline, trend_plot
from llm_compression.harness.paired.project import Key
from llm_compression.harness.paired.report import FILES, Run, to_html, to_json, to_markdown, write_report
from llm_compression.harness.paired.rounds import Comparison
from llm_compression.harness.paired.trend import change_points, main, sections, series_of
from llm_compression.harness.paired.worktrees import WORKING_TREE, Revision
from llm_compression.harness.spec.parser import Floor

INFO = MachineInfo("Processor X", 2, ("avx2",), 16000, 0.5, (), "Linux", "3.11.7", {"torch": "2.13.0"})
BASE = Revision("main", "a" * 40, "2026-01-01T00:00:00+00:00", "Load <b>faster</b> @someone", "1" * 40)
HEAD = Revision("HEAD", "b" * 40, "2026-01-02T00:00:00+00:00", "Change | a thing", "2" * 40)
FLOOR = Floor("latency", 4, "%")


def rounds(change: float, noise: float = 0.002) -> Rounds:
    """Eight seeded rounds."""
    values = 80 * np.exp(np.random.default_rng(0).normal(0, noise, (3, 8)))
    return Rounds(tuple(values[0]), tuple(values[1] * change), tuple(values[2]))


def run_of(**outcomes: Rounds | str) -> Run:
    """A run of these metrics of b16; a text is the reason why one is NOT COMPARABLE."""
    found = Comparison(seconds=123)
    for name, given in outcomes.items():
        key = Key(name, "b16")
        higher = METRICS[name].higher_is_better
        verdict = not_comparable(given) if isinstance(given, str) else decide(given, 4, higher_is_better=higher)
        found.verdicts[key], found.rounds[key] = verdict, verdict.rounds
    return Run(PROJECT, BASE, HEAD, found, INFO, "2026-01-03T00:00:00+00:00")


REGRESSED = run_of(load=rounds(1), latency=rounds(1.1))


@pytest.mark.requirement("21.12")
@pytest.mark.parametrize(
    ("run", "verdict", "status", "confirming"),
    [
        (run_of(load=rounds(1), latency=rounds(1)), Outcome.SAME, 0, 0),
        (run_of(load=rounds(1), latency=rounds(0.9)), Outcome.IMPROVED, 0, 0),
        (REGRESSED, Outcome.REGRESSED, 1, 1),
        (run_of(load=rounds(1), latency=rounds(1, noise=0.3)), Outcome.INCONCLUSIVE, 3, 0),
        (run_of(load=rounds(1), latency="head: it broke"), Outcome.NOT_COMPARABLE, 3, 3),
        (run_of(load=rounds(1.3), latency="head: it broke"), Outcome.REGRESSED, 1, 1),
        (run_of(), Outcome.NOT_COMPARABLE, 3, 3),
    ],
)
def test_the_exit_status_and_the_verdict_on_top(run: Run, verdict: Outcome, status: int, confirming: int) -> None:
    """21.12: THE Regression Session SHALL exit with status 0 for no regression, 1 for a regression ... and 3 for an
    inconclusive or incomparable result, and write the verdict at the top; 21.15: with 3 only for NOT COMPARABLE."""
    content = to_json(run)
    assert next(iter(content.items())) == ("verdict", verdict.value)
    assert content["exit_status"] == run.exit_status == status
    assert replace(run, confirm=True).exit_status == confirming
    for text in (to_markdown(run), re.sub(r"<[^>]*>", "", to_html(run).split("<h1>")[1])):
        assert verdict.value in "\n".join(text.splitlines()[:4])
        assert "Next: " in "\n".join(text.splitlines()[:6])


@pytest.mark.requirement("21.13")
def test_the_order_of_the_report() -> None:
    """21.13: ... verdict and next step, a table, all metrics in one plot, the turns of each round of what is not SAME,
    the trend, and the machine folded away."""
    trend = [("latency b16, ms (machine x)", "▁▂ 80", trend_plot(["a", "b"], [1, 2], [1]))]
    page, text = to_html(REGRESSED, trend), to_markdown(REGRESSED, trend)
    for content, marks in (
        (page, ("REGRESSED", "Next:", "<table>", "All metrics", "Round by round", "<h3>latency", "Trend", "<details>")),
        (text, ("REGRESSED", "Next:", "| metric |", "| latency | b16 |", "Trend", "Machine and versions", "torch")),
    ):
        places = [content.index(mark) for mark in marks]
        assert places == sorted(places)
    assert len(text) < 60_000
    # a dot for each metric; of the one that is not SAME one for head and control in each round, and all; the trend
    assert page.count("<circle") == 2 + (2 * 8 + 1) + 2
    assert "<h3>load" not in page
    # the gravest first
    assert page.index(">latency b16</text>") < page.index(">load b16</text>")


@pytest.mark.requirement("21.13")
def test_the_markdown_is_short_enough_for_a_comment() -> None:
    """21.13, of which a pull request shows the Markdown: an error of any length does not make it longer."""
    text = to_markdown(run_of(latency=f"head: {'x' * 500_000} ModuleNotFoundError"))
    assert len(text) < 65_536
    assert "head: x" in text
    assert "x ModuleNotFoundError" in text


class Requests(HTMLParser):
    """Collects what a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "link", "img", "iframe", "object", "embed", "image", "use", "base", "b"):
            self.found.append(tag)
        self.found += [name for name, _ in attrs if name in ("src", "href", "xlink:href", "srcset", "action", "data")]


@pytest.mark.requirement("21.13")
def test_the_page_requests_nothing_and_escapes_what_it_shows() -> None:
    """21.13: ... a `reports/regression.html` that requests nothing from another host."""
    run = run_of(load=rounds(1), latency='head: <script src="http://example.com"></script>')
    page = to_html(run, [("<img src=x>", "<b>", forest_plot([("<img src=x>", decide(rounds(1), 4))]))])
    parser = Requests()
    parser.feed(page)
    assert parser.found == []
    assert "default-src 'none'" in page
    assert "url(" not in page
    assert "@import" not in page
    assert "&lt;script" in page


@pytest.mark.requirement("21.13")
def test_what_others_wrote_is_no_markup_in_a_comment() -> None:
    """21.13: a commit's subject and a process's error are text: no tag, no mention, no cell of the table."""
    text = to_markdown(run_of(load=rounds(1), latency="head: <img src=x> @team `code`"))
    assert "<b>" not in text
    assert "<img" not in text
    assert "@someone" not in text
    assert "@team" not in text


@pytest.mark.requirement("21.14")
def test_the_files_and_the_job_summary(tmp_path: Path) -> None:
    """21.14: WHERE `GITHUB_STEP_SUMMARY` is set, THE Regression Session SHALL append the Markdown report to it."""
    summary = tmp_path / "summary.md"
    summary.write_text("before\n", encoding="utf-8")
    text = write_report(tmp_path / "out", REGRESSED, [], str(summary))
    assert summary.read_text(encoding="utf-8") == f"before\n{text}"
    assert (tmp_path / "out" / "regression.md").read_text(encoding="utf-8") == text
    content = json.loads((tmp_path / "out" / "regression.json").read_text(encoding="utf-8"))
    assert content["metrics"][1]["verdict"] == "REGRESSED"
    assert len(content["metrics"][1]["samples"]["control"]) == 8
    assert all((tmp_path / "out" / name).is_file() for name in FILES)


@pytest.mark.requirement("21.12")
def test_figures_that_json_cannot_hold_are_null() -> None:
    """21.12: the JSON is read by other programs, whatever was measured."""
    run = run_of(latency=Rounds((1.0, math.nan), (1.0, 1.0), (1.0, 1.0)))
    content = json.loads(json.dumps(to_json(run), allow_nan=False))
    assert content["metrics"][0]["samples"]["base"] == [1.0, None]


@pytest.mark.requirement("21.16")
def test_the_history_has_a_row_for_each_commit_and_metric(tmp_path: Path) -> None:
    """21.16: ... SHALL append one row for each commit, metric and fingerprint of the machine to the Parquet dataset."""
    run = REGRESSED
    rows = history.rows_of(PROJECT, run.base, run.head, run.found, INFO, run.measured_at)
    assert {(row.commit[0], row.metric) for row in rows} == {
        (side, each) for side in "ab" for each in ("load", "latency")
    }
    history.append(tmp_path, rows)
    history.append(tmp_path, [])
    later = [replace(row, measured_at="2026-02-01T00:00:00+00:00", value=1.0) for row in rows[:1]]
    history.append(tmp_path, later)
    assert ds.dataset(tmp_path).count_rows() == len(rows) + 1
    read = history.read(tmp_path)
    assert len(read) == len(rows)
    assert [row.commit for row in read] == sorted(row.commit for row in rows)
    # measured again on one machine: the latest counts
    assert next(row for row in read if (row.commit, row.metric) == (rows[0].commit, rows[0].metric)).value == 1.0
    # measured on another machine: both count
    history.append(tmp_path, [replace(row, fingerprint="other", measured_at="2026-03-01") for row in rows])
    assert len(history.read(tmp_path)) == 2 * len(rows)
    assert history.read(tmp_path / "nothing") == []
    base = next(row for row in rows if row.commit == BASE.commit and row.metric == "latency")
    assert len(base.samples) == 16


@pytest.mark.requirement("21.16")
def test_the_history_forgets_what_is_no_commit() -> None:
    """21.16: ... one row for each commit: a working tree is none, and a commit beside itself is one."""
    working = replace(HEAD, name=WORKING_TREE)
    found = REGRESSED.found
    assert {row.commit for row in history.rows_of(PROJECT, BASE, working, found, INFO, "now")} == {BASE.commit}
    assert len(history.rows_of(PROJECT, BASE, BASE, found, INFO, "now")) == 2


@pytest.mark.requirement("21.16")
def test_the_fingerprint_is_that_of_the_machine() -> None:
    """21.16: what makes a figure another one is part of the fingerprint; the load of the moment is not."""
    same = replace(INFO, load_average=9.0, memory_mb=INFO.memory_mb + 20)
    assert history.fingerprint(PROJECT, same) == history.fingerprint(PROJECT, INFO)
    others = (
        replace(INFO, processor="Y"),
        replace(INFO, cores=4),
        replace(INFO, flags=()),
        replace(INFO, memory_mb=32000),
        replace(INFO, versions={"torch": "2.14.0"}),
    )
    assert len({history.fingerprint(PROJECT, each) for each in (INFO, *others)}) == 6


def series(values: list[float], fingerprint: str = "x") -> list[history.Row]:
    """A row for each value, of latency."""
    about = ("s", "latency", "b16", fingerprint, "ms")
    return [
        history.Row(f"{number:040x}", f"2026-01-{number + 1:02}", *about, value, (value,), "t", "p")
        for number, value in enumerate(values)
    ]


@pytest.mark.requirement("21.17")
def test_change_points_are_marked() -> None:
    """21.17: ... SHALL draw each series of the history, mark its change points."""
    noise = np.random.default_rng(0).normal(0, 0.01, 20)
    values = [float(value) for value in np.where(np.arange(20) < 12, 80, 90) * np.exp(noise)]
    assert change_points(values, FLOOR) == [12]
    assert change_points([float(value) for value in 80 * np.exp(noise)], FLOOR) == []
    assert change_points([80.0] * 10 + [81.0] * 10, FLOOR) == []
    assert change_points([80.0] * 10 + [90.0] * 10, FLOOR) == [10]
    assert change_points([80.0, 90.0], FLOOR) == []
    assert change_points([600.0] * 5 + [640.0] * 5, Floor("peak_memory", 15, "MB")) == [5]
    (_, line, plot), *rest = sections(series(values), {"latency": FLOOR})
    assert line.endswith("changed at 0000000000")
    assert plot.count("stroke-dasharray") == 1
    assert plot.count("<circle") == 20
    assert not rest


@pytest.mark.requirement("21.17")
def test_machines_are_never_joined() -> None:
    """21.17: ... and never join values of different fingerprints."""
    rows = series([80, 81, 80], "x") + [replace(row, commit=f"y{row.commit}") for row in series([160, 161], "y")]
    assert [[point.level for point in each] for each in series_of(rows).values()] == [[80, 81, 80], [160, 161]]
    found = sections(rows, {"latency": FLOOR})
    assert [plot.count("<circle") for _, _, plot in found] == [3, 2]


@pytest.mark.requirement("21.17")
def test_ratios_are_chained_across_machines() -> None:
    """21.17: ... from the ratios of its commits to their bases."""
    first = series([80, 100], "x")
    first[1] = replace(first[1], base_commit=first[0].commit, ratio=1.25)
    # the second commit is the base on a machine of twice the speed
    fast = [replace(first[1], fingerprint="y", value=50.0, base_commit=None, ratio=None)]
    third = series([0, 0, 45], "y")[2]
    fast.append(replace(third, base_commit=first[1].commit, ratio=0.9))
    (points,) = series_of([*first, *fast]).values()
    assert [point.row.commit for point in points] == [first[0].commit, first[1].commit, third.commit]
    assert [point.level for point in points] == pytest.approx([40, 50, 45])
    ((title, line, plot),) = sections([*first, *fast], {"latency": FLOOR})
    assert title.startswith("latency b16, ms")
    assert line.split()[1].rstrip(",") == "45"
    assert plot.count("<circle") == 3


@pytest.mark.requirement("21.16")
def test_a_ratio_survives_a_later_run_with_its_commit_as_the_base(tmp_path: Path) -> None:
    """21.16: ... a commit that is the base of a later run keeps the ratio to its own."""
    rows = history.rows_of(PROJECT, BASE, HEAD, REGRESSED.found, INFO, "2026-01-03")
    ratios = {(row.commit[0], row.metric): (row.base_commit, row.ratio) for row in rows}
    change = REGRESSED.found.verdicts[Key("latency", "b16")].change
    assert change is not None
    assert ratios["a", "latency"] == (None, None)
    assert ratios["b", "latency"] == (BASE.commit, change.ratio)
    history.append(tmp_path, rows)
    later = replace(HEAD, commit="c" * 40, committed_at="2026-01-05T00:00:00+00:00")
    history.append(tmp_path, history.rows_of(PROJECT, HEAD, later, REGRESSED.found, INFO, "2026-01-06"))
    kept = {row.commit[0]: row.ratio for row in history.read(tmp_path) if row.metric == "latency"}
    assert kept == {"a": None, "b": change.ratio, "c": change.ratio}


@pytest.mark.requirement("21.17")
def test_the_trend_session(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """21.17: WHEN `nox -s trend` is run, THE Trend Session SHALL draw each series of the history."""
    assert main(PROJECT, ["--out", str(tmp_path)]) == 1
    assert "no history" in capsys.readouterr().err
    history.append(tmp_path / "history", series([80, 81, 80]))
    assert main(PROJECT, ["--out", str(tmp_path)]) == 0
    assert "latency b16, ms" in capsys.readouterr().out
    assert "<circle" in (tmp_path / "trend.html").read_text(encoding="utf-8")


@pytest.mark.requirement("21.13")
def test_plots_of_nothing_and_of_one_value() -> None:
    """21.13: a plot, however few values there are, and none of nothing."""
    assert rounds_plot(not_comparable("it broke")) == ""
    assert forest_plot([("latency b16", not_comparable("it broke"))]) == ""
    assert trend_plot([], [], []) == ""
    one = decide(Rounds((1.0,), (1.0,), (1.0,)), 4)
    assert rounds_plot(one).count("<circle") == 3
    assert forest_plot([("latency b16", one)]).count("<circle") == 1
    turns = (((1.0, 1.1, 1.0),) * 3, ((1.0, 1.2, 1.0),) * 4)
    by_turns = decide(Rounds((1.0, 1.0), (1.1, 1.2), (1.0, 1.0), turns), 4)
    assert rounds_plot(by_turns).count("<circle") == 2 * 7 + 1
    assert trend_plot(["a"], [1.0], []).count("<circle") == 1
    assert "<img" not in trend_plot(["<img src=x>"] * 2, [1.0, 2.0], [1])
    assert sparkline([1.0, 1.0]) == "▁▁"
    assert sparkline([1.0, 2.0]) == "▁█"
