"""Rounds of a project whose calls are taken by turns: who takes part, in which order, and what a failure becomes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from llm_compression.harness.paired.compare import Outcome
from llm_compression.harness.paired.duets import SIDES, Duets, Level, SideError, _of_turns
from llm_compression.harness.paired.project import END, Key, Metric, Project, Side, WrongAnswersError, keys_of
from llm_compression.harness.paired.rounds import compare_rounds
from llm_compression.harness.paired.worktrees import Revision
from llm_compression.harness.spec.parser import Floor

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "compare-revisions.md").read_text(encoding="utf-8")
# what each process does is a line of a log: its side, its process, what it was asked
LOGGED = """\
import json, os, pathlib, sys
import kettle
kind, request = sys.argv[1], json.loads(sys.argv[2])
log = pathlib.Path(request["log"])
def note(what):
    padding = len(os.environ.get("PAIRED_PADDING", ""))
    with log.open("a") as file:
        file.write(json.dumps([request["worktree"], os.getpid(), what, padding]) + "\\n")
note(kind)
if kind == "turns":
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        note(line.strip())
        print(json.dumps({"ms": kettle.MS}), flush=True)
print(json.dumps({"steps": kettle.MS, "good": kettle.GOOD}))
"""
METRICS = {
    "steps": Metric("1", lambda sample: sample["steps"]),
    "boil": Metric("ms", lambda turn: turn["ms"], taken="boil"),
    "pour": Metric("1/s", lambda turn: 1000 / turn["ms"], taken="pour", higher_is_better=True),
    "good": Metric("1", lambda end: end["good"], taken=END, higher_is_better=True),
}
FLOORS = {name: Floor(name, 2, "%") for name in METRICS}


def check(sample: Mapping[str, Any], _shared: Any) -> None:
    """Refuse tea that is not good."""
    if sample["good"] < 0.5:
        raise WrongAnswersError("tea is cold")


@pytest.fixture
def kettles(tmp_path: Path) -> Callable[..., tuple[Duets, Path]]:
    """``kettles(head_ms, good=1)``: duets of a kettle that takes 100 ms and one that takes so many, and their log."""

    def make(head_ms: float, good: float = 1, probe: str = LOGGED) -> tuple[Duets, Path]:
        log, sides = tmp_path / "log", dict[str, Side]()
        for name in SIDES:
            package = tmp_path / name / "kettle"
            package.mkdir(parents=True)
            head = name == "head"
            text = f"MS = {head_ms if head else 100}\nGOOD = {good if head else 1}\n"
            (package / "__init__.py").write_text(text, encoding="utf-8")
            sides[name] = Side(Revision(name, name, "", name, "tree"), tmp_path / name, control=name == "control")
        (tmp_path / "probe.py").write_text(probe, encoding="utf-8")
        project = Project(
            package="kettle",
            probe=tmp_path / "probe.py",
            metrics=METRICS,
            models=("small",),
            floors=lambda _: FLOORS,
            command="python gate.py",
            request=lambda _side, _shared: {"log": str(log)},
            check=check,
            sample_s=0,
            turn_s=0.4,
        )
        return Duets(project, sides, {"small": None}, seed=1), log

    return make


def entries(log: Path) -> list[tuple[str, int, str, int]]:
    """Side, process, what it was asked and the size of its variable, in order."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return [(Path(worktree).name, process, asked, padding) for worktree, process, asked, padding in lines]


@pytest.mark.requirement("21.4", "21.21")
def test_three_processes_of_three_checkouts_take_turns(kettles: Callable[..., tuple[Duets, Path]]) -> None:
    """21.4, 21.21: base, head and a control, a second checkout of the base, in fresh processes whose order is drawn;
    live processes of the three sides answer by turns, in an order that is drawn in each turn."""
    duets, log = kettles(104)
    rounds = [duets.take("small", list(METRICS)) for _ in range(4)]
    found = entries(log)
    # none answers for another, in its checkout or in its process
    live = [(side, process) for side, process, asked, _ in found if asked == "turns"]
    assert len({process for _, process in live}) == len(live) == 4 * 3
    assert [side for side, _ in live].count("control") == 4
    by_process = {process: side for side, process in live}
    turns = [by_process[process] for _, process, asked, _ in found if asked in ("boil", "pour")]
    orders = [tuple(turns[start : start + 3]) for start in range(0, len(turns), 3)]
    assert all(sorted(order) == sorted(SIDES) for order in orders)
    assert len(set(orders)) > 3
    assert len({tuple(side for side, _ in live[start : start + 3]) for start in range(0, 12, 3)}) > 1
    samples = [side for side, _, asked, _ in found if asked == "sample"]
    assert len({tuple(samples[start : start + 3]) for start in range(0, 12, 3)}) > 1
    assert len({padding for *_, padding in found}) > 10
    for taken in rounds:
        assert taken.levels["boil"][:3] == pytest.approx((100, 104, 100))
        assert taken.levels["pour"][:3] == pytest.approx((10, 1000 / 104, 10))
        assert len(taken.levels["boil"].turns) > 1
        assert taken.levels["steps"] == Level(100, 104, 100)


@pytest.mark.requirement("21.7", "21.21")
@pytest.mark.parametrize(
    ("head_ms", "expected"), [(104, Outcome.REGRESSED), (96, Outcome.IMPROVED), (101, Outcome.SAME)]
)
def test_the_head_is_the_head(head_ms: float, expected: Outcome, kettles: Callable[..., tuple[Duets, Path]]) -> None:
    """21.7: ... SHALL call it REGRESSED or IMPROVED, by its direction: a side never stands for another."""
    duets, _ = kettles(head_ms)
    project = {"boil": METRICS["boil"], "pour": METRICS["pour"]}
    keys = [Key(name, "small") for name in project]
    found = compare_rounds(duets, keys, METRICS, FLOORS, 60, lambda _line: None)
    assert {verdict.outcome for verdict in found.verdicts.values()} == {expected}


@pytest.mark.requirement("21.9", "21.10")
@pytest.mark.parametrize(
    ("probe", "message"),
    [
        (LOGGED.replace('{"ms": kettle.MS}', '{"ms": kettle.MS - 104}'), r"head: head: no milliseconds in its answer"),
        (LOGGED.replace('"ms": kettle.MS', '"s": kettle.MS'), r"no milliseconds in its answer to 'boil'"),
        (LOGGED.replace("note(line.strip())", "sys.exit(kettle.MS == 104)"), r"exit status \d, printed"),
        (LOGGED.replace('print(json.dumps({"ready": True}), flush=True)', "raise SystemExit('no tea')"), "no tea"),
        (LOGGED.replace('"steps": kettle.MS, ', ""), r"base: steps: not in what the probe printed"),
    ],
)
def test_a_side_that_fails_in_its_turn_is_named(
    probe: str, message: str, kettles: Callable[..., tuple[Duets, Path]]
) -> None:
    """21.9: IF a metric was not measured on one side, THEN THE Comparison SHALL call it NOT COMPARABLE with the
    reason; never a hang, and no process is left."""
    duets, _ = kettles(104, probe=probe)
    with pytest.raises(SideError, match=message) as caught:
        duets.take("small", list(METRICS))
    assert caught.value.side in SIDES


@pytest.mark.requirement("21.10")
def test_answers_of_a_live_process_are_checked(kettles: Callable[..., tuple[Duets, Path]]) -> None:
    """21.10: IF the answers of the head are out of bounds and those of the base are not ...: also by turns alone."""
    duets, _ = kettles(100, good=0.1)
    with pytest.raises(SideError, match="head: tea is cold") as caught:
        duets.take("small", ["boil"])
    assert isinstance(caught.value.__cause__, WrongAnswersError)


@pytest.mark.requirement("21.21")
def test_the_ratios_are_medians_over_turns() -> None:
    """21.21: ... and take the median over the turns of their ratios: one slow turn moves nothing."""
    turns = [(100.0, 110.0, 100.0)] * 4 + [(100.0, 500.0, 100.0)]
    assert _of_turns("boil", METRICS["boil"], turns)[:3] == pytest.approx((100, 110, 100))
    drifting = [(speed, 1.1 * speed, speed) for speed in (100.0, 150.0, 220.0)]
    assert _of_turns("boil", METRICS["boil"], drifting)[:3] == pytest.approx((150, 165, 150))


@pytest.mark.requirement("32.2")
def test_the_guides_turns(tmp_path: Path) -> None:
    """32.2: ... every figure from what the probe of that project prints, as the guide has it."""
    (probe,) = (text for text in re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL) if text.startswith("# turns.py"))
    for name in SIDES:
        (tmp_path / name / "kettle").mkdir(parents=True)
    tea = "import types\n\ndef boil(cups):\n    return types.SimpleNamespace(steps=cups, yield_=1.0, temperature=98)\n"
    for name in SIDES:
        (tmp_path / name / "kettle" / "__init__.py").write_text(tea, encoding="utf-8")
    (tmp_path / "turns.py").write_text(probe, encoding="utf-8")
    project = Project(
        package="kettle",
        probe=tmp_path / "turns.py",
        metrics={"steps": METRICS["steps"], "boil": METRICS["boil"]},
        models=("small",),
        floors=lambda _: FLOORS,
        command="python gate.py",
        request=lambda _side, _shared: {"cups": 2},
        sample_s=0,
        turn_s=0,
    )
    sides = {name: Side(Revision(name, name, "", name, "tree"), tmp_path / name) for name in SIDES}
    taken = Duets(project, sides, {"small": None}, seed=0).take(
        "small", [key.metric for key in keys_of(project, ["small"])]
    )
    assert taken.levels["steps"] == Level(2, 2, 2)
    assert len(taken.levels["boil"].turns) == 1
    assert min(taken.levels["boil"][:3]) > 0
