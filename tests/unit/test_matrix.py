"""The matrix for people: on the terminal, as Markdown and as a page."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from llm_compression.harness.spec.evidence import EVIDENCE_DIRECTORY, Source
from llm_compression.harness.spec.matrix import headline, to_html, to_markdown, to_text
from llm_compression.harness.spec.proofs import Matrix, Proof, Row, State
from tests.small_project import Project

ROOT = Path(__file__).parents[2]
SOURCE = Source("0123456789abcdef", True, "a1")
PROOFS = (
    Proof("tests/test_a.py::test_b[1]", State.PROVEN, "passed", value="120 examples"),
    Proof("tests/test_a.py::test_b[2]", State.PROVEN, "passed", value="100 examples"),
    Proof("gates/test_c.py::test_d[heat]", State.FAILED, "failed", "a < b & c", "heat 600 ms (< 500)"),
)
ROWS = (
    Row("kettle", "1.1", "THE Kettle SHALL <heat> | boil.", State.FAILED, PROOFS),
    Row("kettle", "1.2", "THE Kettle SHALL stay off.", State.UNCITED, ()),
    Row("teapot", "1.1", "THE Teapot SHALL hold tea.", State.PROVEN, PROOFS[:1]),
)
MATRIX = Matrix(ROWS, ("kettle: criterion 1.2 has no <proof>",), ran=True)


@pytest.fixture
def project(pytester: pytest.Pytester) -> Project:
    return Project(pytester)


@pytest.mark.requirement("20.6")
def test_the_terminal_shows_each_criterion_with_proof_outcome_and_value() -> None:
    """20.6: a line for each criterion of each spec, cases of one test as one, then the problems."""
    lines = [" ".join(line.split()) for line in to_text(MATRIX).splitlines()]
    assert lines == [
        "kettle:",
        "criterion state proof outcome value text",
        "1.1 FAILED tests/test_a.py::test_b and 1 more 2 passed, 1 failed heat 600 ms (< 500); 100 examples "
        "THE Kettle SHALL <heat> | boil.",
        "1.2 UNCITED THE Kettle SHALL stay off.",
        "",
        "teapot:",
        "criterion state proof outcome value text",
        "1.1 PROVEN tests/test_a.py::test_b 1 passed 120 examples THE Teapot SHALL hold tea.",
        "",
        "kettle: criterion 1.2 has no <proof>",
    ]
    assert headline(MATRIX, SOURCE) == (
        "3 criteria and properties: 1 FAILED, 1 PROVEN, 1 UNCITED (0123456789ab, with changes); problems: 1"
    )


@pytest.mark.requirement("20.13")
def test_the_markdown_is_a_table_for_each_spec() -> None:
    """20.13: every row has the cells of the head; what is not PROVEN stands out."""
    text = to_markdown(MATRIX, SOURCE)
    assert f"**{headline(MATRIX, SOURCE)}**" in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert {len(re.split(r"(?<!\\)\|", row)) for row in rows} == {8}
    assert rows[1].startswith("| 1.1 | **FAILED** | `tests/test_a.py::test_b` x2<br>`gates/test_c.py::test_d` | ")
    assert rows[-1].startswith("| 1.1 | PROVEN | ")


class Page(HTMLParser):
    """Elements, attributes and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes |= {name for name, _ in attrs}
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + "\n"


@pytest.mark.requirement("20.13")
def test_the_page_is_sound_and_loads_nothing() -> None:
    """20.13: a page that loads nothing: no link, script or picture; texts are escaped, each proof has its reason."""
    page = to_html(MATRIX, SOURCE)
    read = Page(page)
    assert read.open == []
    assert read.attributes <= {"lang", "charset", "class"}
    assert "url(" not in page
    for text in ("THE Kettle SHALL <heat> | boil.", "kettle: criterion 1.2 has no <proof>", PROOFS[1].name):
        assert text in read.text
    assert "failed, heat 600 ms (< 500), a < b & c" in read.text


@pytest.mark.requirement("20.6", "20.13")
def test_the_command_writes_what_it_is_asked_for(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """20.13: WHERE `--write` is given, THE Harness SHALL write the matrix as `reports/spec.md` and as
    `reports/spec.html`: the joined evidence always."""
    project.run("collected")
    assert project.judge() == 0
    reports = project.root / "reports"
    assert {path.name for path in reports.iterdir()} == {EVIDENCE_DIRECTORY.name, "evidence.json"}
    assert len(json.loads((reports / "evidence.json").read_text(encoding="utf-8"))["records"]) == 4
    assert project.judge("--write") == 0
    assert {"spec.md", "spec.html"} <= {path.name for path in reports.iterdir()}
    assert "wrote spec.md and spec.html" in capsys.readouterr().out
    (project.root / EVIDENCE_DIRECTORY / "tests.json").write_text("{", encoding="utf-8")
    assert project.judge() == 1
    assert "tests.json: no evidence here" in capsys.readouterr().err


@pytest.mark.requirement("20.6")
@pytest.mark.parametrize("module", ["matrix", "confirm"])
def test_the_commands_need_no_library(module: str) -> None:
    """20.6: the module runs as a command, without PyTorch; a usage error exits with 2."""
    command = [sys.executable, "-S", "-W", "error", "-m", f"llm_compression.harness.spec.{module}"]
    shown = subprocess.run([*command, "--help"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert f"example: python -m llm_compression.harness.spec.{module}" in shown.stdout
    assert subprocess.run([*command, "a", "b"], cwd=ROOT, capture_output=True, check=False).returncode == 2
