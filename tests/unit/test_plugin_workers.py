"""The pytest plugin where pytest-xdist distributes the tests: one process writes what all of them saw."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Final

import pytest

from llm_compression.harness.spec.evidence import EVIDENCE_DIRECTORY, Record, read_part
from tests.small_project import Project

TESTS: Final = """\
import os, pytest
from hypothesis import given, settings, strategies as st

BAD = os.environ.get("BAD", "").split(",")

@pytest.mark.requirement("1.3")
@pytest.mark.parametrize("number", range(20))
def test_many(number):
    if str(number) == os.environ.get("DIES"):
        os._exit(3)
    assert str(number) not in BAD

@pytest.mark.property(1)
@settings(max_examples=120, database=None)
@given(st.integers())
def test_dry(position):
    pass

@pytest.mark.requirement("1.3")
@pytest.mark.xfail(reason="known")
def test_expected():
    assert False

@pytest.mark.requirement("1.3")
@pytest.mark.xdist_group("kettles")
def test_grouped():
    pass

@pytest.mark.requirement("1.2")
def test_parts(subtests):
    for number in range(3):
        with subtests.test(number=number):
            assert f"part {number}" not in BAD

def test_unmarked():
    pass
"""
ALL: Final = 24
REFUSED: Final = "gates: one is measured at a time, as each would slow the others down; run them without -n"
# each hands the tests out in a way of its own; the second renames tests, and in the third every worker runs all of them
DISTRIBUTIONS: Final = ("load", "loadgroup", "each")


@pytest.fixture
def project(pytester: pytest.Pytester) -> Project:
    made = Project(pytester)
    made.files["tests"].write_text(TESTS, encoding="utf-8")
    made.files["ini"].write_text("[pytest]\nmarkers = xdist_group\n", encoding="utf-8")
    return made


def run(project: Project, *arguments: str) -> pytest.RunResult:
    """Run the tests in two workers, unless a later option says another number."""
    return project.run("tests", "tests", "-n", "2", *arguments)


def records(project: Project) -> dict[str, Record]:
    """What was recorded, without durations, which no two runs share."""
    part = read_part(project.root / EVIDENCE_DIRECTORY / "tests.json")
    return {record.node: replace(record, duration_s=0.0) for record in part.records}


def outcomes(project: Project) -> dict[str, str]:
    """The outcomes other than passed, by the name of the test."""
    found = {node.rpartition("::")[2]: record.outcome for node, record in records(project).items()}
    assert found.pop("test_expected", "xfailed") in ("xfailed", "not run")
    return {node: outcome for node, outcome in found.items() if outcome != "passed"}


@pytest.mark.requirement("25.5")
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_workers_leave_what_one_process_leaves(project: Project, distribution: str) -> None:
    """25.5: WHERE pytest-xdist distributes the tests, THE Harness SHALL write from one process what all of its workers
    saw: citations, outcomes and examples are those of a run without it."""
    project.run("tests", "tests", "-p", "no:xdist")
    alone = records(project)
    path = project.root / EVIDENCE_DIRECTORY / "tests.json"
    path.unlink()
    run(project, "--dist", distribution)
    assert records(project) == alone
    assert len(alone) == ALL
    part = json.loads(path.read_text(encoding="utf-8"))
    assert min(each["duration_s"] for each in part["records"]) > 0
    assert {each.name for each in path.parent.iterdir()} == {"tests.json", ".tests.json.lock"}


@pytest.mark.requirement("25.5", "25.4")
def test_what_fails_in_a_worker_is_no_longer_passed(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """25.5: ... over the evidence of an earlier run, every failing test fails, its subtests included."""
    project.run("tests", "tests", "-p", "no:xdist")
    monkeypatch.setenv("BAD", "0,7,13,19,part 1")
    assert run(project).ret == pytest.ExitCode.TESTS_FAILED
    failed = {f"test_many[{number}]" for number in (0, 7, 13, 19)} | {"test_parts"}
    assert outcomes(project) == dict.fromkeys(failed, "failed")
    assert len(records(project)) == ALL
    monkeypatch.delenv("BAD")
    run(project, "-k", "7 or parts")
    assert outcomes(project) == dict.fromkeys(failed - {"test_many[7]", "test_parts"}, "failed")


@pytest.mark.requirement("25.6")
@pytest.mark.parametrize("options", [(), ("-n", "1", "--max-worker-restart=0")])
@pytest.mark.parametrize("earlier", [True, False])
def test_a_test_in_which_a_worker_dies_is_an_error(
    project: Project, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], earlier: bool
) -> None:
    """25.6: IF a worker of pytest-xdist dies in a test, THEN THE Harness SHALL record that test as an error: also where
    an earlier run passed, and where no worker is left that could say what the test cites."""
    if earlier:
        project.run("tests", "tests", "-p", "no:xdist")
    monkeypatch.setenv("DIES", "5")
    assert run(project, *options).ret != pytest.ExitCode.OK
    (died,) = [record for node, record in records(project).items() if node.endswith("[5]")]
    assert (died.outcome, "crashed while running" in died.reason) == ("error", True)
    if earlier or options[:1] != ("-n",):
        assert died.requirements == ("1.3",)
    assert "error" not in {record.outcome for node, record in records(project).items() if node != died.node}


@pytest.mark.requirement("25.5")
def test_what_no_worker_reached_is_not_run(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """25.5: ... and a run that ends at the first failure takes nothing away from an earlier one."""
    monkeypatch.setenv("BAD", "0")
    run(project, "-n", "1", "-x")
    found = outcomes(project)
    assert found["test_many[0]"] == "failed"
    assert set(found.values()) == {"failed", "not run"}
    assert len(records(project)) == ALL
    monkeypatch.delenv("BAD")
    run(project)
    monkeypatch.setenv("BAD", "0")
    run(project, "-n", "1", "-x")
    assert outcomes(project) == {"test_many[0]": "failed"}


@pytest.mark.requirement("25.5")
def test_a_citation_that_is_no_text_is_refused_by_the_workers(project: Project) -> None:
    """25.5: ... a run whose citations cannot be read succeeds in no process."""
    project.change("tests", 'requirement("1.2")', "requirement(1.2)")
    assert run(project).ret not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)


@pytest.mark.requirement("25.5")
def test_files_that_change_leave_no_evidence_of_any_worker(project: Project) -> None:
    """25.5: ... as in one process."""
    project.change("tests", "def test_unmarked():\n    pass", "def test_unmarked(): open('new.py', 'w').close()")
    result = run(project)
    result.stdout.fnmatch_lines(["evidence: none is kept, as files changed while the tests ran: new.py"])
    assert not (project.root / EVIDENCE_DIRECTORY / "tests.json").exists()


@pytest.mark.requirement("25.8")
@pytest.mark.parametrize("options", [("-n", "2"), ("-n", "1"), ("--dist=each", "--tx=2*popen")])
def test_gates_refuse_to_be_distributed(project: Project, options: tuple[str, ...]) -> None:
    """25.8: IF the gates are distributed over processes, THEN THE Harness SHALL refuse the run with the reason."""
    result = project.run("gates", "gates", *options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*{REFUSED}*"])
    assert not (project.root / EVIDENCE_DIRECTORY / "gates.json").exists()


@pytest.mark.requirement("25.8")
def test_gates_that_only_the_workers_find_are_refused_there(project: Project) -> None:
    """25.8: ... where the files of the gates are not named, none of them is run."""
    result = project.run("gates", ".", "--ignore=tests", "-n", "2")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines([f"*{REFUSED}*"])
    result.assert_outcomes(errors=2)
    assert read_part(project.root / EVIDENCE_DIRECTORY / "gates.json").records == ()


@pytest.mark.requirement("25.8")
@pytest.mark.parametrize("options", [("-n", "0"), ("-n", "2", "--collect-only", "-q"), ("-p", "no:xdist"), ()])
def test_gates_are_measured_or_collected_in_one_process(project: Project, options: tuple[str, ...]) -> None:
    """25.8: ... and no other run."""
    project.run("gates", "gates", *options).assert_outcomes(**({} if "-q" in options else {"passed": 1, "skipped": 1}))
    part = read_part(project.root / EVIDENCE_DIRECTORY / "gates.json")
    assert [record.gate for record in part.records] == ["kettle:heat", "kettle:heat-cuda"]
