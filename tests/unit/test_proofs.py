"""Spec and evidence joined, on a small project that was really run: nothing that proves less than it claims passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llm_compression.harness.spec.evidence import COLLECTED, INVALID, NO_CUDA, Part, Record, Source
from llm_compression.harness.spec.parser import read_specs
from llm_compression.harness.spec.proofs import Row, State, build_matrix
from tests.small_project import Project

PASS = "def test_quiet(kettle):\n    pass"
HEAT = "def test_heat(gate, request):\n"
VALUE = '    request.node.user_properties.append(("measured", {"value": 412.5}))\n'


@pytest.fixture
def project(pytester: pytest.Pytester) -> Project:
    return Project(pytester)


@pytest.fixture
def no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without the device, whatever this one has."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("llm_compression.harness.spec.evidence.NVIDIA_DRIVER", Path("/nonexistent"))


def lines_of(capsys: pytest.CaptureFixture[str], start: str) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith(start)]


@pytest.mark.requirement("14.8", "20.6", "20.12")
@pytest.mark.usefixtures("no_cuda")
def test_a_proven_spec(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """20.6: WHEN `nox -s spec` is run, THE Harness SHALL print each criterion with its proofs, their outcomes and
    values, and its state: PROVEN, FAILED, NOT RUN, NOT MEASURABLE HERE or UNCITED."""
    # a session of its own collects, as the session spec does
    project.run("collected", "--collect-only", "-q")
    project.run("tests")
    capsys.readouterr()
    assert project.judge("--strict") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "kettle: 1 requirements, 4 criteria, 1 properties, 1 tasks (1 done), 2 gates"
    rows = {line.split()[0]: " ".join(line.split()) for line in lines if line.startswith(("1.", "property"))}
    assert rows["1.1"].startswith("1.1 PROVEN gates/test_heat.py::test_heat 1 passed heat 412.5 ms (< 500) WHEN the")
    assert rows["1.2"].startswith("1.2 PROVEN tests/test_kettle.py::test_dry 1 passed 120 examples IF there is")
    assert rows["1.4"].startswith("1.4 NOT MEASURABLE HERE gates/test_heat.py::test_heat 1 skipped WHERE a CUDA")
    assert rows["property"].startswith("property 1 PROVEN tests/test_kettle.py::test_dry 1 passed 120 examples Dry:")
    assert lines[-1] == "5 criteria and properties: 1 NOT MEASURABLE HERE, 4 PROVEN (no commit); problems: 0"


@pytest.mark.requirement("20.7", "20.8", "20.9", "20.10", "20.11")
@pytest.mark.usefixtures("no_cuda")
@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("tests", PASS, PASS.replace("pass", "assert 0"), "test_quiet: failed: assert 0"),
        ("tests", PASS, PASS.replace("pass", "assert 0"), "task 1.1 is ticked, but not proven: 1.3 FAILED"),
        ("tests", PASS, PASS.replace("pass", "pytest.skip('later')"), "test_quiet: was skipped: later"),
        ("tests", PASS, PASS.replace("pass", "pytest.xfail('known')"), "test_quiet: xfailed: known"),
        ("tests", PASS, "@pytest.mark.xfail\n" + PASS, "test_quiet: xpassed"),
        ("tests", "yield 1", "raise ValueError('cracked')", "test_quiet: error: ValueError: cracked"),
        ("tests", "yield 1", "yield 1\n    assert 0", "test_quiet: error: assert 0"),
        ("tests", "max_examples=120", "max_examples=99", "test_dry: ran 99 examples, expected 100"),
        ("tests", "property(1)", "property(1)\n@pytest.mark.skip", "test_dry: was skipped: unconditional skip"),
        ("tests", '"1.3")', '"1.3")\n@pytest.mark.property(1)', "test_quiet: cites a property and ran no examples"),
        ("tests", '"1.3"', '"1.3", "9.9"', "test_quiet cites criterion 9.9 of kettle, which does not exist"),
        ("tests", '"1.3"', '"1.3", "pan:1.1"', "test_quiet cites criterion 1.1 of the spec 'pan', which does not"),
        ("tests", "property(1)", "property(1, 7)", "test_dry cites property 7 of kettle, which does not exist"),
        ("tests", '@pytest.mark.requirement("1.3")', "", "criterion 1.3 has no proof"),
        ("tests", '@pytest.mark.requirement("1.3")', "", "task 1.1 is ticked, but not proven: 1.3 UNCITED"),
        ("tests", "property(1)", 'requirement("1.2")', "property 1 has no proof"),
        ("gates", "test_heat", "heat", "gate 'heat' has no test"),
        ("gates", VALUE, "    pass\n", "test_heat[heat]: passed with the value None, which is not within the limit"),
        ("gates", "412.5", "500.0", "test_heat[heat]: passed with the value 500.0, which is not within the limit"),
        ("gates", HEAT, f"{HEAT}    pytest.skip('slow')\n", "test_heat[heat]: was skipped: slow"),
        ("gates", HEAT, f"{HEAT}    pytest.skip('{NO_CUDA}')\n", f"test_heat[heat]: was skipped: {NO_CUDA}"),
        ("requirements", "SHALL be quiet", "SHALL be loud", "criterion 1.3 changed since its proof was confirmed"),
        ("requirements", "| heat | heat | < 500", "| heat | heat | < 900", "gate heat changed since its proof was"),
        (
            "requirements",
            "| heat-cuda | heat | < 500 | ms | small | cuda | 1.4 |\n",
            "",
            "gate heat-cuda was confirmed",
        ),
        ("requirements", "SHALL stay off.\n", "SHALL stay off!\n", "criterion 1.2 is not one sentence"),
        ("design", "a dry kettle", "an old kettle", "property 1 changed since its proof was confirmed"),
        ("tasks", "1.3, 1.4", "1.3, 1.4, 1.5", "task 1.1 cites criterion 1.5, which does not exist"),
    ],
)
def test_what_is_not_proven_fails(
    project: Project, capsys: pytest.CaptureFixture[str], file: str, old: str, new: str, message: str
) -> None:
    """20.7 to 20.11: each way to claim more than was proven is a problem, also without `--strict`."""
    project.change(file, old, new)
    project.run("collected")
    capsys.readouterr()
    assert project.judge() == 1
    assert message in capsys.readouterr().out


@pytest.mark.requirement("20.5", "20.11", "20.12")
def test_what_was_not_run(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """20.12: a tree on which nothing was run is no failure until `--strict` asks; evidence of another is none."""
    assert project.judge() == 0
    assert lines_of(capsys, "nothing was run on this tree; 5 criteria and properties: 5 NOT RUN")
    assert project.judge("--strict") == 1
    assert "the tests of this tree were not collected" in capsys.readouterr().out
    project.run("collected", "--collect-only")
    project.run("tests")
    assert project.judge("--strict") == 0
    project.change("tests", "yield 1", "yield 2")
    assert project.judge() == 0
    assert lines_of(capsys, "nothing was run on this tree; 5 criteria and properties: 5 NOT RUN")
    project.run("collected", "--collect-only")
    capsys.readouterr()
    assert project.judge() == 0
    assert project.judge("--strict") == 1
    output = capsys.readouterr().out
    assert "kettle: criterion 1.3 is NOT RUN: tests/test_kettle.py::test_quiet" in output
    assert "task 1.1 is ticked, but not proven: 1.1 NOT RUN, 1.2 NOT RUN, 1.3 NOT RUN, 1.4 NOT RUN" in output


@pytest.mark.requirement("20.1", "20.7")
def test_two_specs(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """20.1: any number of specs is proven side by side; a bare citation then needs the project's own by name."""
    project.add_teapot()
    project.change("tests", '"1.3"', '"1.3", "teapot:1.1"')
    project.run("collected")
    capsys.readouterr()
    assert project.judge() == 1
    output = capsys.readouterr().out
    assert "test_quiet cites criterion 1.3, expected the name of one of 2 specs before it" in output
    assert "kettle: criterion 1.3 has no proof" in output
    project.change("ini", "[pytest]\n", "[pytest]\nrequirement_spec = kettle\n")
    project.run("collected")
    capsys.readouterr()
    assert project.judge("--strict") == 0
    assert [line.split()[1] for line in lines_of(capsys, "1.1  ")] == ["PROVEN", "PROVEN"]


@pytest.mark.requirement("20.7")
def test_a_gate_without_a_test_leaves_its_criterion_open(project: Project) -> None:
    """20.7: another test that passes does not stand for the gate that the criterion names."""
    records = (Record("test_it", ("1.1",), outcome="passed"),)
    specs = read_specs(project.root)
    matrix = build_matrix(project.root, specs, {COLLECTED: Part(Source("", False, ""), records=records)}, strict=False)
    row = matrix.rows[0]
    assert (row.id, row.state) == ("1.1", State.NOT_RUN)
    assert [proof.name for proof in row.proofs] == ["test_it", "gate heat"]
    assert "kettle: gate 'heat' has no test" in matrix.problems


@pytest.mark.requirement("20.8")
@pytest.mark.parametrize(
    ("values", "state"),
    [
        ({"outcome": "skipped", "reason": NO_CUDA, "lacks": "cuda"}, State.NOT_MEASURABLE),
        ({"outcome": "skipped", "reason": NO_CUDA}, State.NOT_RUN),  # the machine has the device
        ({"outcome": "skipped", "reason": "slow", "lacks": "cuda"}, State.NOT_RUN),
        ({"outcome": "skipped", "reason": NO_CUDA, "lacks": "cuda", "gate": "kettle:heat"}, State.NOT_RUN),
        ({"outcome": "skipped", "reason": NO_CUDA, "lacks": "cuda", "gate": ""}, State.NOT_RUN),
        ({"outcome": "passed", "value": 1.0}, State.PROVEN),
        ({"outcome": "failed", "value": 1.0}, State.FAILED),
    ],
)
def test_only_a_missing_device_excuses(project: Project, values: dict[str, str], state: State) -> None:
    """20.8: NOT MEASURABLE HERE is a gate of the device's session, skipped for its want, where it is wanting."""
    record = Record(**{"node": "test_heat", "requirements": ("kettle:1.4",), "gate": "kettle:heat-cuda", **values})  # type: ignore[arg-type]  # of several types
    parts = {"gates": Part(Source("", False, ""), records=(record,))}
    matrix = build_matrix(project.root, read_specs(project.root), parts, strict=False)
    rows: dict[str, Row] = {row.id: row for row in matrix.rows}
    assert rows["1.4"].proofs[0].state is state


REFERENCE = """\
| evenness | evenness | < 2 | 1 | small | cpu | 1.3 |

## Reference machine

| metric | model | rate | unit | rests on |
|---|---|---|---|---|
| heat | small | 450 | W | evenness |
"""
SLOWER = {"outcome": "skipped", "reason": "slower than the reference machine", "value": 600.0, "rate": 300.0}
DISTURBED = {"outcome": "skipped", "reason": f"{INVALID}: others ran", "disturbed": 3}
PASSED = {"outcome": "passed", "value": 1.0}


@pytest.mark.requirement("8.15", "30.6", "34.10")
@pytest.mark.parametrize(
    ("heat", "evenness", "state"),
    [
        (SLOWER, [PASSED], State.NOT_MEASURABLE),
        (SLOWER, [PASSED, PASSED], State.NOT_MEASURABLE),
        (SLOWER, [PASSED, DISTURBED], State.INVALID),
        (SLOWER, [DISTURBED], State.INVALID),
        (SLOWER, [PASSED, {"outcome": "failed", "value": 3.0}], State.FAILED),
        (SLOWER, [{"outcome": "passed", "value": 3.0}], State.FAILED),
        (SLOWER, [{"outcome": "not run"}], State.FAILED),
        (SLOWER, [{"outcome": "skipped", "reason": "later"}], State.FAILED),
        (SLOWER, [SLOWER], State.FAILED),
        (SLOWER, [], State.FAILED),
        # a machine that is as fast as the reference has no excuse, and one whose rate nobody knows none either
        ({**SLOWER, "rate": 450.0}, [PASSED], State.NOT_RUN),
        ({**SLOWER, "rate": None}, [PASSED], State.NOT_RUN),
        ({**SLOWER, "value": None}, [PASSED], State.NOT_RUN),
        ({**SLOWER, "outcome": "failed"}, [PASSED], State.FAILED),
        (DISTURBED, [PASSED], State.INVALID),
        ({**DISTURBED, "disturbed": 0}, [PASSED], State.NOT_RUN),
        ({**DISTURBED, "reason": "others ran"}, [PASSED], State.NOT_RUN),
        ({**DISTURBED, "outcome": "failed"}, [PASSED], State.FAILED),
    ],
)
def test_a_slow_or_disturbed_machine(
    project: Project, heat: dict[str, Any], evenness: list[dict[str, Any]], state: State
) -> None:
    """34.10: IF a gate misses a limit on a machine slower than the reference machine and a gate that it rests on is
    neither PROVEN nor INVALID, THEN THE Harness SHALL show its state as FAILED: NOT MEASURABLE HERE where all are
    PROVEN, INVALID beside one that is; and a gate is INVALID only with samples that were disturbed."""
    project.change("requirements", "cuda | 1.4 |\n", f"cuda | 1.4 |\n{REFERENCE}")
    records = [Record("test_heat", ("kettle:1.1",), gate="kettle:heat", **heat)]
    records += [Record(f"test_{n}", ("1.3",), gate="kettle:evenness", **each) for n, each in enumerate(evenness)]
    parts = {"gates": Part(Source("", False, ""), records=tuple(records))}
    matrix = build_matrix(project.root, read_specs(project.root), parts, strict=False)
    row = next(row for row in matrix.rows if row.id == "1.1")
    assert (row.proofs[0].state, row.state) == (state, state)
    named = any(each.startswith("test_heat: ") for each in matrix.problems)
    assert named is (state in (State.FAILED, State.NOT_RUN))


@pytest.mark.requirement("30.6")
def test_what_the_plugin_keeps_of_a_disturbed_gate(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """30.6: ... the samples that were disturbed travel from the gate's test into the evidence, and to the matrix."""
    left = '{"detail": {"disturbed": (12.0, 30.0)}}'
    skipped = (
        f'    request.node.user_properties.append(("measured", {left}))\n    pytest.skip("{INVALID}: others ran")\n'
    )
    project.change("gates", VALUE, skipped)
    project.run("tests")
    capsys.readouterr()
    assert project.judge() == 0
    assert [" ".join(line.split()[:2]) for line in lines_of(capsys, "1.1  ")] == ["1.1 INVALID"]
