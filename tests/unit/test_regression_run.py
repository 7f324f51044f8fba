"""The command of the regression report, its confirmation, its session, and the study of false alarms."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from benchmarks.regression import project
from benchmarks.regression.project import METRICS, PROJECT, bounds_of, inject
from llm_compression.harness.clip.measure import Bounds
from llm_compression.harness.git import commit_all, git, init
from llm_compression.harness.paired import run, study
from llm_compression.harness.paired.child import MeasurementError
from llm_compression.harness.paired.compare import Outcome, Verdict
from llm_compression.harness.paired.duets import Level, Round, SideError
from llm_compression.harness.paired.project import Key
from llm_compression.harness.paired.rounds import Comparison, Taker
from llm_compression.harness.spec.parser import Floor

ROOT = Path(__file__).parents[2]
FLOORS = {name: Floor(name, 4, "%") for name in METRICS}


class Given:
    """Rounds whose values are given: ``changes(number)`` is the factor of each metric of the head in that round."""

    def __init__(self, changes: Callable[[int], Mapping[str, float]]) -> None:
        self.changes, self.taken, self.asked = changes, 0, list[list[str]]()

    def warm(self, model: str) -> None:
        assert model

    def take(self, model: str, metrics: Collection[str]) -> Round:
        assert model
        self.taken += 1
        self.asked.append(list(metrics))
        changes = self.changes(self.taken)
        return Round({name: Level(100, 100 * changes.get(name, 1), 100) for name in metrics})


def slower(_number: int) -> Mapping[str, float]:
    """Every metric of the head by a fifth."""
    return dict.fromkeys(METRICS, 1.2)


def same(_number: int) -> Mapping[str, float]:
    """Nothing changed."""
    return {}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with the spec of this one and two commits that differ in the package."""
    root = tmp_path / "checkout"
    shutil.copytree(ROOT / ".kiro", root / ".kiro")
    init(root)
    (root / ".gitignore").write_text("reports/\n.cache/\n", encoding="utf-8")
    (root / "llm_compression").mkdir()
    for text in ("one", "two"):
        (root / "llm_compression" / "__init__.py").write_text(text, encoding="utf-8")
        commit_all(root, text)
    return root


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[[Taker], None]:
    """``measured(taker)``: no process is started, `taker` gives the values."""

    def use(taker: Taker) -> None:
        monkeypatch.setattr(project, "prepare_model", lambda *_: None)
        monkeypatch.setattr(run, "Duets", lambda *_: taker)
        monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)

    return use


def verdict_of(checkout: Path) -> dict[str, Any]:
    """What the report says."""
    content: dict[str, Any] = json.loads((checkout / "reports" / "regression.json").read_text(encoding="utf-8"))
    return content


@pytest.mark.requirement("21.12", "21.16")
def test_main_reports_a_regression(checkout: Path, measured: Callable[[Taker], None]) -> None:
    """21.12, 21.16: 1 for a regression, the verdict at the top of `reports/regression.json`, rows in the history."""
    measured(Given(slower))
    assert run.main(PROJECT, ["--root", str(checkout), "--models", "tiny"]) == 1
    found = verdict_of(checkout)
    assert found["verdict"] == "REGRESSED"
    assert (found["base"]["subject"], found["head"]["subject"]) == ("one", "two")
    assert found["notes"] == []
    assert len(list((checkout / "reports" / "history").glob("*.parquet"))) == 1
    assert "Trend" in (checkout / "reports" / "regression.md").read_text(encoding="utf-8")
    assert len(git(checkout, "worktree", "list").splitlines()) == 1


@pytest.mark.requirement("21.12")
def test_main_exits_with_0_where_nothing_changed(
    checkout: Path, measured: Callable[[Taker], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """21.12: 0 for no regression; 21.3: says that uncommitted changes are not measured; 21.14: the job summary."""
    measured(Given(same))
    (checkout / "new.txt").write_text("uncommitted", encoding="utf-8")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    assert run.main(PROJECT, ["--root", str(checkout), "--models", "tiny"]) == 0
    assert verdict_of(checkout)["verdict"] == "SAME"
    text = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert "uncommitted changes are not measured" in text
    assert text.startswith("# Regression report")


@pytest.mark.requirement("21.12")
def test_main_exits_with_3_where_nothing_can_be_compared(
    checkout: Path, measured: Callable[[Taker], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """21.12: 3 for an inconclusive or incomparable result, also where the models cannot be made."""
    measured(Given(same))

    def fail(*_: object) -> None:
        raise MeasurementError("no reference")

    monkeypatch.setattr(project, "prepare_model", fail)
    assert run.main(PROJECT, ["--root", str(checkout), "--models", "tiny", "--confirm"]) == 3
    assert verdict_of(checkout)["metrics"][0]["reason"] == "no reference"


@pytest.mark.requirement("21.12")
@pytest.mark.parametrize("arguments", [["--base", "nothing"], ["--head", "nothing"], ["--head", "HEAD~1"]])
def test_main_exits_with_2_for_wrong_usage(
    arguments: list[str], checkout: Path, measured: Callable[[Taker], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """21.12: 2 for wrong usage; the report of an earlier run does not stay."""
    measured(Given(same))
    (checkout / "reports").mkdir()
    (checkout / "reports" / "regression.json").write_text('{"exit_status": 0}', encoding="utf-8")
    assert run.main(PROJECT, ["--root", str(checkout), *arguments]) == 2
    assert re.search(r"is no revision|there is no commit before", capsys.readouterr().err)
    assert not (checkout / "reports" / "regression.json").exists()
    with pytest.raises(SystemExit) as caught:
        run.main(PROJECT, ["--models", "none"])
    assert caught.value.code == 2


@pytest.mark.requirement("21.15")
def test_the_same_package_is_the_same_where_a_regression_is_confirmed(
    checkout: Path, measured: Callable[[Taker], None]
) -> None:
    """21.15: WHERE `--confirm` is given, THE Regression Session SHALL call SAME what has the same package."""
    given = Given(same)
    measured(given)
    (checkout / "README.md").write_text("no package", encoding="utf-8")
    commit_all(checkout, "three")
    assert run.main(PROJECT, ["--root", str(checkout), "--models", "tiny", "--confirm"]) == 0
    assert not given.taken
    assert verdict_of(checkout)["verdict"] == "SAME"
    assert verdict_of(checkout)["identical"] is True
    # without it they are measured: a comparison of nothing
    assert run.main(PROJECT, ["--root", str(checkout), "--models", "tiny"]) == 0
    assert given.taken


@pytest.mark.requirement("21.15")
@pytest.mark.parametrize(
    ("second", "outcome", "status"),
    [(1.2, Outcome.REGRESSED, 1), (1.0, Outcome.INCONCLUSIVE, 0), (None, Outcome.NOT_COMPARABLE, 3)],
)
def test_a_regression_is_confirmed_by_a_second_run(
    second: float | None, outcome: Outcome, status: int, checkout: Path, measured: Callable[[Taker], None]
) -> None:
    """21.15: ... exit with 1 only for a regression that a second, independent run finds again."""

    def changes(number: int) -> Mapping[str, float]:
        # the first run has five rounds
        change = 1.2 if number <= 5 else second
        if change is None:
            error = MeasurementError("it broke")
            raise SideError("head", error) from error
        return {"latency": change}

    measured(Given(changes))
    assert run.main(PROJECT, ["--root", str(checkout), "--models", "tiny", "--confirm"]) == status
    found = verdict_of(checkout)
    assert found["verdict"] == outcome.value
    outcomes = {each["metric"]: each["verdict"] for each in found["metrics"]}
    assert outcomes.pop("latency") == outcome.value
    assert set(outcomes.values()) == {"SAME"}


@pytest.mark.requirement("21.15")
def test_only_what_regressed_is_measured_again() -> None:
    """21.15: ... a second, independent run."""
    good, bad = Key("load", "b16"), Key("latency", "b32")
    first = Comparison({good: Verdict(Outcome.SAME), bad: Verdict(Outcome.REGRESSED)})
    asked = []

    def compare(_taker: Taker, keys: list[Key], *_: object) -> Comparison:
        asked.append(keys)
        return Comparison({bad: Verdict(Outcome.SAME)})

    found = run.confirmed(first, Given(same), METRICS, FLOORS, 1, compare)
    assert asked == [[bad]]
    assert found.verdicts[good].outcome is Outcome.SAME
    assert found.verdicts[bad].outcome is Outcome.INCONCLUSIVE
    assert "REGRESSED in the first run, SAME in the second" in found.verdicts[bad].reason


@pytest.mark.requirement("21.10")
def test_the_bounds_are_those_of_the_gates() -> None:
    """21.10: out of bounds is what misses the gate of the precision in bfloat16."""
    bounds = bounds_of(ROOT, ["b16", "tiny"])
    assert bounds == {"b16": Bounds(min_cosine=0.999), "tiny": Bounds(min_cosine=0.99)}


@pytest.mark.requirement("21.12")
@pytest.mark.parametrize(("report", "status"), [({"exit_status": 3}, 3), ({"exit_status": 1}, 1), ({}, 2), (None, 2)])
def test_the_session_exits_with_the_status_of_the_report(
    report: dict[str, int] | None,
    status: int,
    sessions: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """21.12: THE Regression Session SHALL exit with status 0 ..., 1 ..., 2 ... and 3."""
    monkeypatch.setattr(sessions, "ROOT", tmp_path)

    class Session:
        posargs = ("--base", "HEAD~1")
        env_dir = tmp_path

        def run(self, *arguments: str, success_codes: tuple[int, ...]) -> None:
            assert arguments[1:] == ("-m", "benchmarks.regression.run", *self.posargs)
            assert success_codes == (0, 1, 2, 3)
            if report:
                (tmp_path / "reports").mkdir()
                (tmp_path / "reports" / "regression.json").write_text(json.dumps(report), encoding="utf-8")

    with pytest.raises(SystemExit) as caught:
        sessions.regression.func(Session())
    assert caught.value.code == status


@pytest.mark.requirement("21.15")
def test_ci_compares_with_the_commit_before() -> None:
    """21.15, as `.ci/run` uses it."""
    text = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "nox -s regression -- --base HEAD~1 --confirm" in text


@pytest.mark.requirement("21.14")
def test_the_workflow_publishes_from_a_job_that_runs_no_code() -> None:
    """21.14, and what may write to a pull request neither checks out nor runs anything of it."""
    text = (ROOT / ".github" / "workflows" / "regression.yml").read_text(encoding="utf-8")
    measure, publish = text.split("\n  publish:\n")
    assert "write" not in measure.replace("may not write", "")
    assert "pull-requests: write" in publish
    assert not [word for word in ("checkout@", "nox", "pip", "python", "contents: write") if word in publish]


@pytest.mark.requirement("21.19")
def test_an_injection_is_read() -> None:
    """21.19: ... and with an injected slowdown."""
    assert study.parse_injection("", PROJECT.injections) == {}
    assert study.parse_injection("latency=1.08,memory_mb=40", PROJECT.injections) == {"latency": 1.08, "memory_mb": 40}
    for wrong in ("speed=2", "latency", "latency=fast"):
        with pytest.raises(argparse.ArgumentTypeError):
            study.parse_injection(wrong, PROJECT.injections)


@pytest.mark.requirement("21.19")
def test_an_injection_slows_the_encoder_down(tiny_model: Path, tmp_path: Path) -> None:
    """21.19: ... sleeps in proportion to each call and load, and keeps memory; the answers stay the same."""
    shutil.copytree(ROOT / "llm_compression", tmp_path / "llm_compression")
    inject(tmp_path, {"latency": 1.5, "load": 3.0, "memory_mb": 2})
    program = (
        "import sys, time, torch\n"
        "slept = []\n"
        "time.sleep = slept.append\n"
        "from llm_compression.multimodal import vision_encoder\n"
        "encoder = vision_encoder.VisionEncoder(sys.argv[1], dtype='float32')\n"
        "encoder.encode_pixels(torch.zeros(1, 3, 32, 32))\n"
        "assert len(vision_encoder._KEPT) == 2_000_000 and set(vision_encoder._KEPT[:10]) == {49}\n"
        "assert len(slept) == 2 and all(each > 0 for each in slept), slept\n"
        "print(vision_encoder.__file__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, str(tiny_model)],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path))


@pytest.mark.requirement("21.19")
def test_the_study_goes_on_where_it_was(tmp_path: Path) -> None:
    """21.19: ... continue after an interruption and write how often each verdict was given."""
    record, about = tmp_path / "out" / "false_alarms.jsonl", {"tree": "x", "budget_s": 1.0, "inject": {}}
    given = Given(slower)
    assert study.study(PROJECT, given, ["tiny"], ROOT, record, about, runs=2, seconds=0) == 0
    assert not given.taken
    assert study.study(PROJECT, given, ["tiny"], ROOT, record, about, runs=2, seconds=60) == 2
    first = given.taken
    with record.open("a", encoding="utf-8") as file:
        file.write('{"about": {"tree": "x"')  # cut off in the middle
    assert study.study(PROJECT, given, ["tiny"], ROOT, record, about, runs=3, seconds=60) == 3
    assert given.taken == first * 1.5
    assert study.read_record(record, {**about, "tree": "y"}) == []
    table = study.write_summary(tmp_path / "out", record)
    assert f"3 runs, {3 * len(METRICS)} decisions" in table
    (found,) = json.loads((tmp_path / "out" / "false_alarms.json").read_text(encoding="utf-8"))
    latency = next(each for each in found["metrics"] if each["metric"] == "latency tiny")
    assert latency["REGRESSED"] == 3
    throughput = next(each for each in found["metrics"] if each["metric"] == "throughput tiny")
    assert throughput["IMPROVED"] == 3


@pytest.mark.requirement("25.13")
def test_an_old_main_branch_is_a_note_of_the_report(checkout: Path, measured: Callable[[Taker], None]) -> None:
    """25.13: WHEN another main branch has an older merge base with the head, THE Regression Session SHALL say so in its
    report."""
    measured(Given(same))
    git(checkout, "checkout", "-q", "-b", "topic")
    commit_all(checkout, "three")
    git(checkout, "update-ref", "refs/heads/master", "main~1")
    old, right = git(checkout, "rev-parse", "main~1"), git(checkout, "rev-parse", "main")
    assert run.main(PROJECT, ["--root", str(checkout), "--models", "tiny", "--confirm"]) == 0
    found = verdict_of(checkout)
    assert found["base"]["commit"] == right
    assert found["notes"] == [
        f"the base is the nearest merge base, {right[:10]}; an older one is {old[:10]} with master"
    ]
    assert "an older one is" in (checkout / "reports" / "regression.md").read_text(encoding="utf-8")


@pytest.mark.requirement("25.14")
def test_a_base_that_is_not_there_is_wrong_usage(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """25.14: ... with the git command that fetches what is missing, and the status of wrong usage."""
    git(checkout, "branch", "-q", "-m", "work")
    git(checkout, "remote", "add", "origin", str(checkout))
    assert run.main(PROJECT, ["--root", str(checkout)]) == 2
    assert "`git fetch origin '+refs/heads/*:refs/remotes/origin/*'`" in capsys.readouterr().err
