"""Another project's revisions compared: its own spec, metrics and probe, as the guide has them, in its repository."""

from __future__ import annotations

import ast
import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest

from llm_compression.harness.git import commit_all, git, init
from llm_compression.harness.paired import run, study, trend
from llm_compression.harness.paired.machine import machine
from llm_compression.harness.paired.project import Metric, Project, ProjectError, floors_of
from llm_compression.harness.spec.parser import Floor, problems, read_specs

ROOT = Path(__file__).parents[2]
PAIRED = ROOT / "llm_compression" / "harness" / "paired"
GUIDE = (ROOT / "docs" / "compare-revisions.md").read_text(encoding="utf-8")
ALLOWED = ("llm_compression.errors", "llm_compression.harness.git", "llm_compression.harness.paired")

REQUIREMENTS = """\
# Requirements: kettle

### Requirement 1: Heat

**User Story:** As a cook, I want hot water, so that I can make tea.

#### Acceptance Criteria

1. WHEN the switch is pressed, THE Kettle SHALL heat.

"""
TASKS = """\
# Tasks: kettle

- [x] 1.1 Build it
  - _Requirements: 1.1_
"""
PACKAGE = """\
from typing import NamedTuple


class Tea(NamedTuple):
    steps: int
    yield_: float
    temperature: float


def boil(cups):
    return Tea(sum(1 for _ in range({steps} * cups)), {yield_}, {temperature})
"""


def block(start: str) -> str:
    """The code block of the guide that begins so."""
    (found,) = (text for text in re.findall(r"```\w+\n(.*?)```", GUIDE, re.DOTALL) if text.startswith(start))
    return str(found)


class Kettle:
    """The project of the guide in a repository of its own, in one commit."""

    def __init__(self, root: Path, package: str = "kettle") -> None:
        self.root, self.package = root, root / package
        spec = root / ".kiro" / "specs" / "kettle"
        spec.mkdir(parents=True)
        (spec / "requirements.md").write_text(REQUIREMENTS + block("## Regression floors"), encoding="utf-8")
        (spec / "design.md").write_text("# Design: kettle\n", encoding="utf-8")
        (spec / "tasks.md").write_text(TASKS, encoding="utf-8")
        gate = block("# gate.py").replace('package="kettle"', f'package="{package}"')
        (root / "gate.py").write_text(gate, encoding="utf-8")
        (root / "probe.py").write_text(block("# probe.py"), encoding="utf-8")
        (root / ".gitignore").write_text("reports\n__pycache__\n", encoding="utf-8")
        init(root)
        self.commit()

    def commit(self, steps: int = 100, yield_: float = 0.9, temperature: float = 98) -> str:
        """Commit a package that takes so many steps for a cup."""
        self.package.mkdir(parents=True, exist_ok=True)
        text = PACKAGE.format(steps=steps, yield_=yield_, temperature=temperature)
        (self.package / "__init__.py").write_text(text, encoding="utf-8")
        return commit_all(self.root, f"{steps} steps")

    def gate(self, *arguments: str) -> int:
        """The exit status of its entry, run as a user runs it."""
        command = [sys.executable, "gate.py", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        environment.pop("GITHUB_STEP_SUMMARY", None)
        done = subprocess.run(
            command, cwd=self.root, env=environment, capture_output=True, text=True, check=False, timeout=300
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode

    @property
    def project(self) -> Project:
        """What its entry says of it."""
        found = runpy.run_path(str(self.root / "gate.py"))["KETTLE"]
        assert isinstance(found, Project)
        return found

    @property
    def report(self) -> dict[str, Any]:
        """What was written last."""
        content: dict[str, Any] = json.loads((self.root / "reports" / "regression.json").read_text(encoding="utf-8"))
        return content

    @property
    def outcomes(self) -> dict[tuple[str, str], str]:
        """The verdict on each metric of each model."""
        return {(each["metric"], each["model"]): each["verdict"] for each in self.report["metrics"]}


@pytest.fixture
def kettle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kettle:
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    return Kettle(tmp_path / "checkout")


@pytest.mark.requirement("32.2", "32.7")
@pytest.mark.parametrize(
    ("changed", "status", "expected"),
    [
        ({"steps": 110}, 1, {"steps": "REGRESSED", "yield": "SAME"}),
        ({"steps": 90}, 0, {"steps": "IMPROVED", "yield": "SAME"}),
        # within the floor of 4 %
        ({"steps": 103}, 0, {"steps": "SAME", "yield": "SAME"}),
        ({"yield_": 0.8}, 1, {"steps": "SAME", "yield": "REGRESSED"}),
        ({"yield_": 0.95}, 0, {"steps": "SAME", "yield": "IMPROVED"}),
        # within the floor of 0.01
        ({"yield_": 0.895}, 0, {"steps": "SAME", "yield": "SAME"}),
        # answers that do not count
        ({"temperature": 60}, 1, {"steps": "NOT COMPARABLE", "yield": "REGRESSED"}),
    ],
)
def test_the_guides_project_is_gated(
    kettle: Kettle, changed: dict[str, float], status: int, expected: dict[str, str]
) -> None:
    """32.2, 32.7: WHEN two revisions of another project are compared, THE Comparison SHALL take every figure from what
    the probe of that project prints and every floor from its spec; THE Guide `docs/compare-revisions.md` SHALL hold a
    probe and an entry that compare two revisions of another project as they stand there."""
    kettle.commit(**changed)  # type: ignore[arg-type]  # a number of steps is whole
    # what its entry does, without an interpreter of its own, which the tests below start
    assert run.main(kettle.project, ["--root", str(kettle.root), "--base", "HEAD~1", "--models", "small"]) == status
    assert kettle.outcomes == {(metric, "small"): outcome for metric, outcome in expected.items()}
    assert len(git(kettle.root, "worktree", "list").splitlines()) == 1


@pytest.mark.requirement("32.2")
def test_a_commit_beside_itself_is_the_same(kettle: Kettle) -> None:
    """32.2: ... the same commit on both sides, and uncommitted changes where they are asked for."""
    assert kettle.gate("--base", "HEAD", "--head", "HEAD") == 0
    assert set(kettle.outcomes.values()) == {"SAME"}
    assert kettle.report["identical"] is False
    file = kettle.package / "__init__.py"
    file.write_text(file.read_text(encoding="utf-8").replace("100", "150"), encoding="utf-8")
    assert kettle.gate("--base", "HEAD", "--head", "working-tree", "--models", "large") == 1
    assert kettle.outcomes == {("steps", "large"): "REGRESSED", ("yield", "large"): "SAME"}


@pytest.mark.requirement("32.3", "32.7")
def test_its_report_and_history_have_its_own_names(kettle: Kettle) -> None:
    """32.3, 32.7: WHEN two revisions of another project are compared, THE Comparison SHALL write its report and history
    with the metrics, units, package and command of that project."""
    base, head = git(kettle.root, "rev-parse", "HEAD"), kettle.commit(steps=125)
    assert kettle.gate("--base", base) == 1
    report = kettle.report
    assert (report["verdict"], report["exit_status"]) == ("REGRESSED", 1)
    assert report["summary"] == "REGRESSED: steps small +25.0 %, steps large +25.0 %."
    steps = next(each for each in report["metrics"] if (each["metric"], each["model"]) == ("steps", "large"))
    assert steps["unit"] == "1"
    assert set(steps["samples"]["base"]) == {2000.0}
    assert set(steps["samples"]["head"]) == {2500.0}
    for name in ("regression.md", "regression.html"):
        text = (kettle.root / "reports" / name).read_text(encoding="utf-8")
        assert f"python gate.py --base {base[:10]} --head {head[:10]}" in text
        assert "-- kettle" in text
        assert "nox" not in text
        assert "llm_compression" not in text
    rows = ds.dataset(kettle.root / "reports" / "history").to_table().to_pylist()
    assert {(row["commit"], row["metric"], row["model"], row["value"]) for row in rows} >= {
        (base, "steps", "small", 200.0),
        (head, "steps", "large", 2500.0),
    }
    assert len(rows) == 2 * 2 * 2


@pytest.mark.requirement("32.6")
def test_a_package_below_a_directory_of_sources(tmp_path: Path) -> None:
    """32.6: WHERE a package lies below a directory of sources, THE Comparison SHALL find it there on each side."""
    kettle = Kettle(tmp_path / "checkout", "src/kettle")
    kettle.commit(steps=125)
    assert kettle.gate("--base", "HEAD~1", "--models", "small") == 1
    assert kettle.outcomes == {("steps", "small"): "REGRESSED", ("yield", "small"): "SAME"}
    # another directory is no part of it
    (kettle.root / "README.md").write_text("tea", encoding="utf-8")
    commit_all(kettle.root, "no package")
    assert kettle.gate("--base", "HEAD~1", "--confirm") == 0
    assert kettle.report["identical"] is True


@pytest.mark.requirement("32.5")
@pytest.mark.parametrize(
    ("read", "reason"),
    [
        (lambda sample: sample["calls"], "KeyError: 'calls'"),
        (lambda sample: sample["steps"]["calls"], "TypeError"),
        (lambda _: "many", "ValueError"),
        (lambda sample: sample["steps"] / 0, "ZeroDivisionError"),
    ],
)
def test_a_figure_that_the_probe_does_not_print(
    kettle: Kettle, read: Callable[[Any], Any], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """32.5: IF the probe prints no figure of a metric, THEN THE Comparison SHALL call the metrics of that model NOT
    COMPARABLE and name it."""
    project = kettle.project
    project = replace(project, metrics={**project.metrics, "steps": Metric("1", read)})
    assert run.main(project, ["--root", str(kettle.root), "--base", "HEAD", "--models", "small"]) == 3
    assert set(kettle.outcomes.values()) == {"NOT COMPARABLE"}
    found = kettle.report["metrics"][0]["reason"]
    assert found.startswith("base: steps: not in what the probe printed, {'steps': 200")
    assert reason in found
    assert "NOT COMPARABLE" in capsys.readouterr().out


@pytest.mark.requirement("32.4")
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("| steps | 4 | % |\n", "", "no floor of steps in"),
        ("| steps | 4 | % |", "| steps | 4 | MB |", "floor of steps: 4 MB, expected more than 0, in % or 1"),
        ("| steps | 4 | % |", "| steps | 0 | % |", "floor of steps: 0 %, expected more than 0"),
        ("| metric | floor", "| metric | flaw", "columns"),
    ],
)
def test_a_metric_without_a_sound_floor_is_wrong_usage(
    kettle: Kettle, old: str, new: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """32.4: IF a metric of a project has no floor above zero in percent or in its own unit, THEN THE Comparison SHALL
    name the metric and exit with the status of wrong usage before it measures."""
    (spec,) = kettle.root.glob(".kiro/specs/*/requirements.md")
    text = spec.read_text(encoding="utf-8")
    assert old in text
    spec.write_text(text.replace(old, new), encoding="utf-8")
    assert run.main(kettle.project, ["--root", str(kettle.root), "--base", "HEAD"]) == 2
    assert message in capsys.readouterr().err
    assert not (kettle.root / "reports" / "regression.json").exists()


@pytest.mark.requirement("32.4")
def test_floors_need_no_spec(kettle: Kettle) -> None:
    """32.4: ... of a project that keeps them elsewhere."""
    given = {"steps": Floor("steps", 5, "%"), "yield": Floor("yield", 0.02, "1")}
    assert floors_of(replace(kettle.project, floors=lambda _: given), kettle.root) == given
    with pytest.raises(ProjectError, match="no floor of yield in"):
        floors_of(replace(kettle.project, floors=lambda _: {"steps": given["steps"]}), kettle.root)


@pytest.mark.requirement("32.2")
def test_its_spec_is_sound(kettle: Kettle) -> None:
    """32.2: ... every floor from its spec, which the parser reads without a problem."""
    (spec,) = read_specs(kettle.root)
    assert problems(spec) == []
    assert spec.floors == (Floor("steps", 4, "%"), Floor("yield", 0.01, "1"))


@pytest.mark.requirement("32.3")
def test_its_trend_and_its_study(
    kettle: Kettle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """32.3: ... the trend of its history, and the study of false alarms with a slowdown of its own."""
    monkeypatch.chdir(kettle.root)
    project = kettle.project
    assert trend.main(project, []) == 1
    assert "no history in reports/history: python gate.py adds to it" in capsys.readouterr().err
    assert run.main(project, ["--base", "HEAD", "--models", "small"]) == 0
    assert trend.main(project, []) == 0
    assert "steps small, 1" in (kettle.root / "reports" / "trend.md").read_text(encoding="utf-8")

    def inject(worktree: Path, values: Any) -> None:
        file = worktree / "kettle" / "__init__.py"
        text = file.read_text(encoding="utf-8").replace("range(100", f"range({int(100 * values['steps'])}")
        file.write_text(text, encoding="utf-8")

    slower = replace(project, inject=inject, injections={"steps": 1.2})
    arguments = ["--models", "small", "--runs", "1"]
    assert study.main(project, arguments) == 0
    assert study.main(slower, [*arguments, "--inject", "steps=1.2"]) == 0
    nothing, injected = json.loads((kettle.root / "reports" / "false_alarms.json").read_text(encoding="utf-8"))
    assert [each["SAME"] for each in nothing["metrics"]] == [1, 1]
    assert {each["metric"]: each["REGRESSED"] for each in injected["metrics"]} == {"steps small": 1, "yield small": 0}
    with pytest.raises(SystemExit):
        study.main(project, ["--inject", "steps=1.2"])
    assert "expected none" in capsys.readouterr().err


def imports_of(file: Path) -> list[tuple[int, str]]:
    """Line and name of every module that a file imports, at whatever depth."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: a relative import"
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return found


@pytest.mark.requirement("32.1")
@pytest.mark.parametrize("file", sorted(PAIRED.glob("*.py")), ids=lambda file: file.stem)
def test_the_comparison_knows_no_encoder(file: Path) -> None:
    """32.1: THE Comparison SHALL import nothing of the Package but its errors and the file that runs git."""
    own = [each for each in imports_of(file) if each[1].partition(".")[0] in ("llm_compression", "benchmarks", "tests")]
    for line, name in own:
        assert any(f"{name}.".startswith(f"{allowed}.") for allowed in ALLOWED), f"{file}:{line}: {name}"
    assert not [name for _, name in imports_of(file) if name.partition(".")[0] in ("torch", "transformers")]


@pytest.mark.requirement("32.1")
def test_the_comparison_loads_no_encoder() -> None:
    """32.1: ... nor does anything that it imports load one."""
    modules = [f"llm_compression.harness.paired.{file.stem}" for file in PAIRED.glob("[!_]*.py")]
    assert len(modules) > 10
    code = f"import sys, {', '.join(modules)}\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = done.stdout.split()
    assert not {"torch", "transformers", "pytest"} & set(loaded)
    # the package itself, which is above every module of it, loads its table of old names
    above = ("llm_compression.harness", "llm_compression.moved")
    own = [name for name in loaded if name.startswith("llm_compression.") and name not in above]
    assert [name for name in own if not f"{name}.".startswith(tuple(f"{each}." for each in ALLOWED))] == []


@pytest.mark.requirement("32.8")
def test_a_machine_that_nothing_is_said_of() -> None:
    """32.8: WHERE a project says nothing of its machine, THE Comparison SHALL report the processors and instruction
    sets that the system lists."""
    info = machine()
    assert info.processor
    assert info.cores == (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    assert (info.gpus, info.versions) == ((), {})
    cpuinfo = Path("/proc/cpuinfo")
    listed = set(cpuinfo.read_text(encoding="utf-8").split()) if cpuinfo.is_file() else set()
    assert set(info.flags) <= listed
    assert {"avx2", "asimd"} & listed <= set(info.flags)
    said = machine(["pytest", "no-such-package"], cores=3, flags=("x",), gpus=("y",))
    assert (said.cores, said.flags, said.gpus) == (3, ("x",), ("y",))
    assert list(said.versions) == ["pytest"]
