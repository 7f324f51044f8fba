"""The pytest plugin, run on a small project: what it records of a test, and that it leaves other runs alone."""

from __future__ import annotations

import subprocess
import sys

import pytest

from llm_compression.harness.git import commit_all, init
from llm_compression.harness.spec.evidence import EVIDENCE_DIRECTORY, Record, machine_facts, read_part, source_of
from tests.small_project import PLUGIN, Project

CASES = """\
import pytest

@pytest.fixture
def broken():
    raise ValueError("cracked")

@pytest.fixture
def leaking():
    yield
    raise ValueError("dripped")

cites = pytest.mark.requirement("1.3")

@cites
def test_passed(): pass

@cites
def test_failed(): assert 1 == 2

@cites
def test_skipped(): pytest.skip("no water")

@cites
@pytest.mark.xfail(reason="known")
def test_xfailed(): assert False

@cites
@pytest.mark.xfail(reason="known", strict=False)
def test_xpassed(): pass

@cites
@pytest.mark.xfail(reason="known", strict=True)
def test_xpassed_strictly(): pass

@cites
def test_setup(broken): pass

@cites
def test_teardown(leaking): pass

@cites
def test_skipped_teardown(leaking): pytest.skip("no water")

@cites
def test_interrupted(): pytest.exit("enough")
"""


@pytest.fixture
def project(pytester: pytest.Pytester) -> Project:
    return Project(pytester)


def records(project: Project, session: str = "tests") -> dict[str, Record]:
    part = read_part(project.root / EVIDENCE_DIRECTORY / f"{session}.json")
    return {record.node.rpartition("::")[2]: record for record in part.records}


@pytest.mark.requirement("20.1", "20.3")
def test_a_run_leaves_what_became_of_each_citing_test(project: Project) -> None:
    """20.3: citations, outcome, duration, examples and measured value, with commit, tree, machine and versions."""
    result = project.run("tests")
    result.assert_outcomes(passed=3, failed=1, skipped=1)
    part = read_part(project.root / EVIDENCE_DIRECTORY / "tests.json")
    assert part.source == source_of(project.root)
    assert part.machine == machine_facts(project.root)
    assert {"processor", "python", "versions", "lacks"} <= part.machine.keys()
    assert {"pytest", "hypothesis"} <= part.machine["versions"].keys()
    found = records(project)
    assert set(found) == {"test_dry", "test_quiet", "test_heat[heat]", "test_heat[heat-cuda]"}
    dry, quiet, heat = found["test_dry"], found["test_quiet"], found["test_heat[heat]"]
    assert (dry.properties, dry.requirements, dry.outcome, dry.examples) == (("1",), (), "passed", 120)
    assert (quiet.requirements, quiet.outcome, quiet.examples, quiet.value) == (("1.3",), "passed", None, None)
    assert quiet.duration_s > 0
    assert heat.requirements == ("kettle:1.1",)
    assert (heat.gate, heat.value, heat.limit, heat.unit) == ("kettle:heat", 412.5, "< 500", "ms")


@pytest.mark.requirement("20.3")
def test_every_outcome(project: Project) -> None:
    """20.3: a failing set-up or tear-down is an error, whatever the test itself did; reasons are kept."""
    project.files["tests"].write_text(CASES, encoding="utf-8")
    project.run("tests", "tests")
    assert {name: (record.outcome, record.reason) for name, record in records(project).items()} == {
        "test_passed": ("passed", ""),
        "test_failed": ("failed", "assert 1 == 2"),
        "test_skipped": ("skipped", "no water"),
        "test_xfailed": ("xfailed", "known"),
        "test_xpassed": ("xpassed", "known"),
        "test_xpassed_strictly": ("failed", "[XPASS(strict)] known"),
        "test_setup": ("error", "ValueError: cracked"),
        "test_teardown": ("error", "ValueError: dripped"),
        "test_skipped_teardown": ("error", "ValueError: dripped"),
        "test_interrupted": ("not run", ""),
    }


SUBTESTS = {
    "the first fails": ("failed", "with subtests.test(): assert False, 'wet'", "with subtests.test(): assert True"),
    "the last fails": ("failed", "with subtests.test(): assert True", "with subtests.test(): assert False, 'wet'"),
    "the only one fails": ("failed", "with subtests.test(): assert False, 'wet'"),
    "all fail": ("failed", "for i in range(3):", "  with subtests.test(i=i): assert False, 'wet'"),
    "one is skipped": ("skipped", "with subtests.test(): pytest.skip('no water')", "with subtests.test(): pass"),
    "one is expected to fail": ("xfailed", "with subtests.test(): pytest.xfail('known')", "with subtests.test(): pass"),
    "skipped, then failing": (
        "failed",
        "with subtests.test(): pytest.skip('no water')",
        "with subtests.test(): assert False, 'wet'",
    ),
    "inner ones fail": (
        "failed",
        "with subtests.test():",
        "  with subtests.test(): assert False, 'wet'",
        "  assert True",
    ),
    "an error beside them": ("failed", "with subtests.test(): pass", "raise ValueError('dropped')"),
    "all pass": ("passed", "with subtests.test(): pass", "with subtests.test(): pass"),
    "interrupted behind one that passed": ("not run", "with subtests.test(): pass", "pytest.exit('enough')"),
    "interrupted behind one that failed": (
        "failed",
        "with subtests.test(): assert False, 'wet'",
        "pytest.exit('enough')",
    ),
}
UNITTEST = """\
import unittest, pytest
class TestDry(unittest.TestCase):
    @pytest.mark.requirement("1.3")
    def test_dry(self):
        for position in range(4):
            with self.subTest(position=position):
                self.assertEqual({}, 1)
"""


@pytest.mark.requirement("25.4")
@pytest.mark.parametrize("what", SUBTESTS)
def test_the_worst_of_a_tests_subtests_counts(project: Project, what: str) -> None:
    """25.4: WHEN a test has more than one report, of its phases, its subtests or the workers that ran it, THE Harness
    SHALL record the outcome of the worst."""
    outcome, *lines = SUBTESTS[what]
    body = "".join(f"    {line}\n" for line in lines)
    text = f'import pytest\n\n@pytest.mark.requirement("1.3")\ndef test_it(subtests):\n{body}'
    project.files["tests"].write_text(text, encoding="utf-8")
    project.run("tests", "tests")
    assert records(project)["test_it"].outcome == outcome
    assert records(project)["test_it"].requirements == ("1.3",)


@pytest.mark.requirement("25.4")
@pytest.mark.parametrize(("value", "outcome"), [("position % 2", "failed"), ("1", "passed"), ("position", "failed")])
def test_the_worst_of_a_unittests_subtests_counts(project: Project, value: str, outcome: str) -> None:
    """25.4: ... also of `unittest.TestCase.subTest`."""
    project.files["tests"].write_text(UNITTEST.format(value), encoding="utf-8")
    project.run("tests", "tests")
    assert records(project)["test_dry"].outcome == outcome


@pytest.mark.requirement("25.4")
def test_a_test_that_passes_when_run_again_has_failed(project: Project) -> None:
    """25.4: ... a plugin that runs a failing test again leaves a report of a kind of its own."""
    again = (
        "import pytest\n"
        "from _pytest.runner import runtestprotocol\n"
        "def pytest_runtest_protocol(item, nextitem):\n"
        "    for attempt in (1, 2):\n"
        "        for report in runtestprotocol(item, nextitem=nextitem, log=False):\n"
        "            if attempt == 1 and report.failed:\n"
        "                report.outcome = 'rerun'\n"
        "            item.ihook.pytest_runtest_logreport(report=report)\n"
        "    return True\n"
    )
    (project.root / "conftest.py").write_text(again, encoding="utf-8")
    project.change(
        "tests", "def test_quiet(kettle):\n    pass", "def test_quiet(ran=[]):\n    ran.append(1); assert ran[1:]"
    )
    project.run("tests", "tests", "-k", "quiet")
    assert records(project)["test_quiet"].outcome == "failed"


@pytest.mark.requirement("25.3")
def test_a_run_under_another_load_keeps_the_first(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """25.3: the full run of a busy machine is not lost when one test of it is run again on a quiet one."""
    for load, arguments in ((7.0, ()), (0.1, ("-k", "quiet"))):
        monkeypatch.setattr("os.getloadavg", lambda load=load: (load, load, load))
        project.run("tests", "tests", *arguments)
    assert {name: record.outcome for name, record in records(project).items()} == {
        "test_dry": "passed",
        "test_quiet": "passed",
    }


@pytest.mark.requirement("25.9")
def test_the_reason_of_git_is_shown(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """25.9: IF git gives no commit of a checkout, THEN THE Harness SHALL show the reason that git gives: in the run
    that records and in the one that judges, where the evidence counts as before."""
    init(project.root)
    commit_all(project.root, "first")
    project.run("tests", "tests")
    assert "git knows no commit" not in capsys.readouterr().out
    with (project.root / ".git" / "config").open("a", encoding="utf-8") as file:
        file.write("[\n")
    result = project.run("tests", "tests", "-k", "quiet")
    result.stdout.fnmatch_lines(["evidence: git knows no commit: *bad config line*"])
    assert len(records(project)) == 2
    capsys.readouterr()
    project.judge()
    out = capsys.readouterr().out
    assert "git knows no commit: fatal: bad config line" in out
    assert "not counted" not in out


@pytest.mark.requirement("20.5")
def test_evidence_that_does_not_count_is_named(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """20.5: IF evidence belongs to another source tree, THEN THE Harness SHALL count none of its outcomes."""
    project.run("tests", "tests")
    project.change("tests", "yield 1", "yield 2")
    capsys.readouterr()
    project.judge()
    assert "of another source tree, and not counted: the evidence of tests" in capsys.readouterr().out


@pytest.mark.requirement("25.1")
def test_a_list_of_sources_that_is_wrong_is_a_usage_error(project: Project) -> None:
    """25.1: ... it is told before the first test runs."""
    (project.root / "pyproject.toml").write_text("[tool.evidence]\nsources = 1\n", encoding="utf-8")
    result = project.run("tests", "tests")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--evidence: *pyproject.toml: tool.evidence.sources is 1, expected a list*"])


@pytest.mark.requirement("20.3")
def test_only_examples_that_end_count(project: Project) -> None:
    """20.3: an example that an assumption rejects did not run; the test is left as it was."""
    project.change("tests", "import given,", "import assume, given,")
    project.change(
        "tests", "    pass\n\n@pytest.mark.requirement", "    assume(position % 2)\n\n@pytest.mark.requirement"
    )
    project.run("tests", "tests")
    assert records(project)["test_dry"].examples == 120
    project.change("tests", "assert False", "assert not hasattr(test_dry.hypothesis.inner_test, '__wrapped__')")
    project.run("tests", "tests").assert_outcomes(passed=3)
    project.change("tests", "st.integers()", "st.booleans()")
    project.run("tests", "tests")
    assert records(project)["test_dry"].examples == 1


@pytest.mark.requirement("20.3")
def test_a_collection_names_the_tests_and_runs_none(project: Project) -> None:
    """20.3: with `--collect-only` each citing test is there, with the outcome `not run`."""
    project.run("collected", "--collect-only", "-q")
    found = records(project, "collected")
    assert len(found) == 4
    assert {record.outcome for record in found.values()} == {"not run"}
    assert found["test_heat[heat-cuda]"].gate == "kettle:heat-cuda"


@pytest.mark.requirement("20.4")
def test_a_second_run_of_a_tree_adds_and_a_run_of_another_replaces(project: Project) -> None:
    """20.4: WHEN evidence is written where evidence of the same source tree lies, THE Harness SHALL keep the outcomes
    of the tests that were not run again."""
    project.run("tests", "tests", "-k", "dry")
    project.run("tests", "tests", "-k", "quiet")
    assert {name: record.outcome for name, record in records(project).items()} == {
        "test_dry": "passed",
        "test_quiet": "passed",
    }
    project.change("tests", "yield 1", "yield 2")
    project.run("tests", "tests", "-k", "quiet")
    assert set(records(project)) == {"test_quiet"}


@pytest.mark.requirement("20.5")
def test_a_tree_that_changes_while_its_tests_run_leaves_no_evidence(project: Project) -> None:
    """20.5: what was run may belong to the files before or after: it counts for neither."""
    project.run("tests", "tests", "-k", "dry")
    before = (project.root / EVIDENCE_DIRECTORY / "tests.json").read_bytes()
    project.change("tests", "assert False", "import pathlib; pathlib.Path(__file__).with_name('new.py').touch()")
    result = project.run("tests", "tests")
    result.stdout.fnmatch_lines(["evidence: none is kept, as files changed while the tests ran: tests/new.py"])
    # what lies there is of another tree, to which the files may go back
    assert (project.root / EVIDENCE_DIRECTORY / "tests.json").read_bytes() == before


@pytest.mark.requirement("20.2")
def test_without_the_option_nothing_is_written(project: Project) -> None:
    """20.2: WHERE `--evidence` is not given, THE Harness SHALL leave the outcomes of a pytest run as they are and write
    no file: citations are marks, even impossible ones."""
    project.change("tests", '"1.3"', "1.30")
    result = project.pytester.runpytest_inprocess("-p", PLUGIN, "tests", "--strict-markers", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=2, failed=1)
    assert not (project.root / "reports").exists()


@pytest.mark.requirement("20.2")
def test_loading_it_imports_nothing_but_pytest() -> None:
    """20.2: where the package is installed, every pytest run loads the plugin: it must cost nothing."""
    code = f"import sys, {PLUGIN}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {"torch", "numpy", "hypothesis", "psutil", "llm_compression.harness.spec.evidence"}
    assert PLUGIN in loaded


@pytest.mark.requirement("20.1")
@pytest.mark.parametrize("mark", ["requirement(1.3)", "requirement()", "property(1.0)", "requirement(True)"])
def test_a_citation_that_is_no_text_is_refused(project: Project, mark: str) -> None:
    """20.1: 1.10 and 1.1 are one number and two criteria, so that a number is no citation."""
    project.change("tests", 'requirement("1.3")', mark)
    result = project.run("tests", "tests")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*test_kettle.py::test_quiet: *expected *"])


@pytest.mark.requirement("20.1")
def test_the_projects_own_spec_is_named_once(project: Project) -> None:
    """20.1: the ini option `requirement_spec` stands before each citation that names no spec."""
    project.change("ini", "[pytest]\n", "[pytest]\nrequirement_spec = kettle\n")
    project.change("tests", '"1.3"', '"1.3", "teapot:1.1"')
    project.run("tests", "tests")
    found = records(project)
    assert found["test_quiet"].requirements == ("kettle:1.3", "teapot:1.1")
    assert found["test_dry"].properties == ("kettle:1",)
