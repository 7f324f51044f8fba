"""A foreign project: its own spec, tests, gates and probe, where nothing but the room of the spec can be imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

import llm_compression
from llm_compression.harness.spec import confirm, matrix
from llm_compression.harness.spec.evidence import EVIDENCE_DIRECTORY, read_part

PACKAGE: Final = Path(llm_compression.__file__).parent
# the package itself, which is above every module of it, loads its table of old names
ALLOWED: Final = ("errors", "moved", "harness", "harness.git", "harness.spec")
LIBRARIES: Final = ("torch", "numpy", "pyarrow", "PIL", "transformers", "psutil")
# writes down what was asked for, as an import that fails may be caught
BLOCKER: Final = f"""
import os, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        top, _, rest = name.partition(".")
        allowed = not rest or rest in {ALLOWED!r} or rest.startswith("harness.spec.")
        if top in {LIBRARIES!r} or (top == "llm_compression" and not allowed):
            with open(os.environ["BLOCKED"], "a") as file:
                file.write(name + "\\n")
            raise ImportError(f"blocked: {{name}}")
sys.meta_path.insert(0, Blocker())
"""
FILES: Final = {
    ".kiro/specs/lamp/requirements.md": """\
# Requirements: lamp

### Requirement 1: Light

**User Story:** As a reader, I want light, so that I can read.

#### Acceptance Criteria

1. THE Lamp SHALL weigh less than the limit of gate `weight-desk`.
2. WHEN it is switched twice, THE Lamp SHALL be as it was.
3. WHERE it is dark, THE Lamp SHALL shine within the limit of gate `light-night`.
4. THE Lamp SHALL be off at first.

## Gates

| id | metric | limit | unit | model | session | criterion |
|---|---|---|---|---|---|---|
| weight-desk | weight | < 900 | g | desk | workshop | 1.1 |
| light-night | light | >= 400 | lm | desk | night | 1.3 |
""",
    ".kiro/specs/lamp/design.md": """\
# Design: lamp

### Property 1: Twice is never

*For any* number of switches, two more change nothing.

**Validates: Requirements 1.2**
""",
    ".kiro/specs/lamp/tasks.md": """\
# Tasks: lamp

- [x] 1.1 Build it
  - _Requirements: 1.1, 1.2, 1.3, 1.4_
""",
    "lamp.py": "def lit(switches):\n    return switches % 2 == 1\n",
    "probe.py": 'import json, sys\nprint("weighing")\nprint(json.dumps({"weight": 850.5, "model": sys.argv[1]}))\n',
    "conftest.py": """\
def pytest_gate_absent(session):
    return {"night": "it is day"}.get(session)
""",
    "test_lamp.py": """\
import sys
import pytest
from hypothesis import given, settings, strategies as st
from lamp import lit

@pytest.mark.requirement("1.4")
def test_off():
    assert not lit(0)

@pytest.mark.property(1)
@settings(max_examples=100, database=None, deadline=None)
@given(st.integers(min_value=0))
def test_twice(switches):
    assert lit(switches) == lit(switches + 2)

@pytest.mark.metric("weight")
def test_weight(gate, measure_gate):
    assert measure_gate([sys.executable, "probe.py", gate.model], samples=2) == 850.5

@pytest.mark.metric("light")
def test_light(gate, measure_gate):
    measure_gate([sys.executable, "probe.py", gate.model])
""",
    # no plugin of the environment helps or hinders
    "pytest.ini": "[pytest]\naddopts = -p llm_compression.harness.spec.plugin -p llm_compression.harness.spec.gating\n",
}
MODULES: Final = ("confirm", "matrix", "parser")


class Lamp:
    """The project in a directory, and a place beside it from which Python takes the package and the blocker."""

    def __init__(self, root: Path) -> None:
        self.root, self.site, self.blocked = root / "lamp", root / "site", root / "blocked.txt"
        self.site.mkdir()
        (self.site / PACKAGE.name).symlink_to(PACKAGE)
        (self.site / "sitecustomize.py").write_text(BLOCKER, encoding="utf-8")
        for name, text in FILES.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")

    def python(self, *arguments: str) -> tuple[int, str]:
        """Run Python in the project: its exit status, and what it printed."""
        kept = {name: text for name, text in os.environ.items() if not name.startswith(("PYTEST", "PYTHON", "COV"))}
        variables = {"PYTHONPATH": str(self.site), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "BLOCKED": str(self.blocked)}
        command = [sys.executable, "-B", *arguments]
        done = subprocess.run(
            command, cwd=self.root, capture_output=True, text=True, check=False, env={**kept, **variables}
        )
        return done.returncode, done.stdout + done.stderr

    def spec(self, module: str, *arguments: str) -> tuple[int, str]:
        """Run a command of the spec."""
        return self.python("-m", f"llm_compression.harness.spec.{module}", *arguments)

    def test(self, session: str, *arguments: str) -> tuple[int, str]:
        """Run pytest with evidence."""
        path = EVIDENCE_DIRECTORY / f"{session}.json"
        return self.python("-m", "pytest", "-q", "-p", "no:cacheprovider", "--evidence", str(path), *arguments)

    def change(self, name: str, old: str, new: str) -> None:
        """Replace the one passage of a file."""
        text = (self.root / name).read_text(encoding="utf-8")
        assert text.count(old) == 1
        (self.root / name).write_text(text.replace(old, new), encoding="utf-8")


@pytest.fixture
def lamp(tmp_path: Path) -> Lamp:
    return Lamp(tmp_path)


@pytest.mark.requirement("34.1", "34.2", "34.3", "34.4", "34.9")
def test_a_foreign_project_is_proven(lamp: Lamp) -> None:
    """34.1, 34.2: a project without an encoder is read, confirmed, run and judged; its gates are measured by its own
    probe, in sessions of its own, where nothing else of the package and none of its libraries can be imported."""
    assert lamp.spec("confirm")[1].splitlines()[-1] == "lamp: confirmed"
    status, output = lamp.spec("parser")
    assert (status, output.splitlines()[-1]) == (0, "problems: 0")
    lamp.test("collected", "--collect-only")
    status, output = lamp.test("tests")
    assert (status, output.splitlines()[-1].split(" in ")[0]) == (0, "3 passed, 1 skipped"), output
    status, output = lamp.spec("matrix", "--strict", "--write")
    assert status == 0, output
    rows = {line.split()[0]: " ".join(line.split()) for line in output.splitlines() if line[:2] in ("1.", "pr")}
    assert rows["1.1"].startswith("1.1 PROVEN test_lamp.py::test_weight 1 passed weight-desk 850.5 g (< 900)"), output
    assert rows["1.2"].startswith("1.2 PROVEN test_lamp.py::test_twice 1 passed 10")
    assert rows["1.3"].startswith("1.3 NOT MEASURABLE HERE test_lamp.py::test_light 1 skipped")
    assert rows["1.4"].startswith("1.4 PROVEN test_lamp.py::test_off")
    assert {"spec.md", "spec.html", "evidence.json"} <= {path.name for path in (lamp.root / "reports").iterdir()}
    asked = lamp.blocked.read_text(encoding="utf-8").split() if lamp.blocked.exists() else []
    assert [name for name in asked if name.startswith(("llm_compression", "torch"))] == []


@pytest.mark.requirement("34.1")
def test_the_blocker_blocks(lamp: Lamp) -> None:
    """34.1: what the other tests rest on: nothing else can be imported, and it is written down."""
    for name in (
        "torch",
        "numpy",
        "llm_compression.cli",
        "llm_compression.harness.paired",
        "llm_compression.inference",
    ):
        status, output = lamp.python("-c", f"import {name}")
        assert (status, f"blocked: {name}" in output) == (1, True), output
    assert lamp.blocked.read_text(encoding="utf-8").split()[:2] == ["torch", "numpy"]


@pytest.mark.requirement("34.1")
def test_every_module_of_the_room_imports_alone(lamp: Lamp) -> None:
    """34.1: each file of `harness.spec`, as a process that imports nothing else."""
    names = sorted(path.stem for path in (PACKAGE / "harness" / "spec").glob("*.py"))
    assert set(MODULES) < set(names)
    code = "\n".join(f"import llm_compression.harness.spec.{name}" for name in names if name != "__init__")
    assert lamp.python("-W", "error", "-c", code) == (0, "")
    assert not lamp.blocked.exists()


@pytest.mark.requirement("34.2", "34.4", "34.5", "34.9")
@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        (
            "probe.py",
            "850.5",
            "900",
            "test_weight[weight-desk]: failed: AssertionError: weight-desk: weight 900, expected",
        ),
        ("probe.py", '"weight"', '"mass"', "expected a JSON object with 'weight'"),
        ("probe.py", "850.5", 'float("nan")', "weight is nan, expected a finite number"),
        ("probe.py", "850.5", '"850.5"', "weight is '850.5', expected a finite number"),
        ("probe.py", "850.5", "True", "weight is True, expected a finite number"),
        ("probe.py", 'print("weighing")', 'sys.exit("no scales")', "exit status 1: no scales"),
        ("probe.py", "print(json.dumps(", "str((", "printed 'weighing', expected a JSON object with 'weight'"),
        ("test_lamp.py", '[sys.executable, "probe.py", gate.model], samples=2', '["/no/such"]', "cannot be run"),
        ("conftest.py", '"night": "it is day"', "", "test_light[light-night]: failed"),
        ("lamp.py", "== 1", "== 0", "test_off: failed: assert not True"),
        ("test_lamp.py", '"1.4"', '"1.9"', "test_off cites criterion 1.9 of lamp, which does not exist"),
        (
            ".kiro/specs/lamp/requirements.md",
            "< 900",
            "< 901",
            "gate weight-desk changed since its proof was confirmed",
        ),
    ],
)
def test_what_a_foreign_project_does_not_prove_fails(
    lamp: Lamp, capsys: pytest.CaptureFixture[str], name: str, old: str, new: str, said: str
) -> None:
    """34.5: IF such a command fails or prints no finite number of this name, THEN THE Harness SHALL raise ProbeError
    with the command and what it printed: and whatever else is not proven is seen."""
    assert confirm.main([str(lamp.root)]) == 0
    lamp.change(name, old, new)
    lamp.test("collected")
    assert matrix.main([str(lamp.root)]) == 1
    assert said in capsys.readouterr().out


@pytest.mark.requirement("34.4")
def test_every_sample_is_a_process_of_its_own(lamp: Lamp) -> None:
    """34.4: the command runs once for each sample, in the root; the value is made of all of them."""
    counting = (
        'import json, os\nopen("pids.txt", "a").write(f"{os.getpid()}\\n")\nprint(json.dumps({"weight": 850.5}))\n'
    )
    (lamp.root / "probe.py").write_text(counting, encoding="utf-8")
    assert lamp.python("-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "weight")[0] == 0
    assert len(set((lamp.root / "pids.txt").read_text(encoding="utf-8").split())) == 2


@pytest.mark.requirement("34.2")
def test_the_evidence_of_a_gate(lamp: Lamp) -> None:
    """34.2: a record holds the gate, its limit and its value, or why its session is absent."""
    lamp.test("tests")
    part = read_part(lamp.root / EVIDENCE_DIRECTORY / "tests.json")
    records = {record.gate: record for record in part.records if record.gate}
    weight, light = records["lamp:weight-desk"], records["lamp:light-night"]
    assert (weight.requirements, weight.limit, weight.unit, weight.value) == (("lamp:1.1",), "< 900", "g", 850.5)
    assert (light.outcome, light.lacks, light.absent, light.reason) == ("skipped", "night", "it is day", "it is day")
    assert json.loads((lamp.root / EVIDENCE_DIRECTORY / "tests.json").read_text(encoding="utf-8"))["machine"]
