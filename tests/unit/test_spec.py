"""The spec parser: the spec of this repository is sound, and nothing that is wrong with one goes unnoticed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from llm_compression.errors import LlmCompressionError
from llm_compression.harness.spec import parser as spec_module
from llm_compression.harness.spec.parser import (
    Criterion,
    Gate,
    Property,
    SpecError,
    Task,
    problems,
    read_spec,
    read_specs,
)

ROOT = Path(__file__).parents[2]

REQUIREMENTS = """\
# Requirements: kettle

### Requirement 1: Heat

**User Story:** As a cook, I want
hot water, so that I can make tea.

#### Acceptance Criteria

1. WHEN the switch is pressed, THE Kettle SHALL heat within the limit of
   gate `heat-small`.
2. IF there is no water, THEN THE Kettle SHALL stay off.

### Requirement 2: Noise

**User Story:** As the sleeper, I want silence, so that I sleep.

#### Acceptance Criteria

1. WHILE heating, WHERE `quiet` is set, THE Kettle SHALL whistle no tune.

## Gates

Units: seconds.

| id | metric | limit | unit | model | session | criterion |
|---|---|---|---|---|---|---|
| heat-small | heat | < 500 | s | small | cpu | 1.1 |
| `heat-even` | evenness | >= 0.999 | 1 | large | cuda | 2.1 |
"""

DESIGN = """\
# Design: kettle

```python
### Property 9: code is not read
```

### Property 1: Dry

*For any* position of the switch,
a dry kettle stays off.

**Validates: Requirements 1.2, 2.1**
"""

TASKS = """\
# Tasks: kettle

## 1. Build

- [ ] 1.1 Build the heater
  - of copper
  - _Requirements: 1.1_
- [x] 1.2 Build the switch
  - _Requirements: 1.1, 1.2_

## 2. Sell

- [ ] 2.1 Sell it
  - to cooks _Requirements: 1.1_
"""

FILES = {"requirements": REQUIREMENTS, "design": DESIGN, "tasks": TASKS}
CRITERION = "IF there is no water, THEN THE Kettle SHALL stay off."


def write_spec(root: Path, file: str = "", old: str = "", new: str = "", name: str = "kettle") -> Path:
    """Write the kettle's spec with one passage of one file replaced; returns its directory."""
    directory = root / ".kiro" / "specs" / name
    directory.mkdir(parents=True)
    for stem, text in FILES.items():
        assert stem != file or text.count(old) == 1, f"{old!r} occurs {text.count(old)} times in {file}"
        (directory / f"{stem}.md").write_text(text.replace(old, new) if stem == file else text, encoding="utf-8")
    return directory


@pytest.mark.requirement("14.1", "14.7")
def test_the_spec_of_this_repository_is_sound() -> None:
    """No spec of this repository has a problem, and the first one holds every limit that it was given."""
    specs = {spec.name: spec for spec in read_specs(ROOT)}
    assert [problem for spec in specs.values() for problem in problems(spec)] == []
    spec = specs["multimodal-encoder-system"]
    limits = {gate.id: (gate.metric, gate.comparison, gate.limit, gate.unit, gate.session) for gate in spec.gates}
    for session, suffix in (("cpu", ""), ("cuda", "-cuda")):
        for model in ("b16", "b32"):
            assert limits[f"load-{model}{suffix}"] == ("load", "<", 500, "ms", session)
            assert limits[f"latency-{model}{suffix}"] == ("latency_p90", "<", 100, "ms", session)
            assert limits[f"memory-{model}{suffix}"] == ("peak_memory", "<", 1000, "MB", session)
            assert limits[f"precision-float32-{model}{suffix}"] == ("relative_error", "<=", 2e-5, "1", session)
            assert limits[f"precision-bfloat16-{model}{suffix}"] == ("cosine", ">=", 0.999, "1", session)
        assert limits[f"photo-float32-b16{suffix}"] == ("photo_cosine", ">=", 0.99999, "1", session)
    titles = {task.id: task.title for task in spec.tasks}
    assert titles["2.1"] == "Implement VisionConfig and PatchEmbedding"
    assert titles["2.2"] == "Implement VisionEncoder"
    assert titles["2.3"] == "Implement weight loading"


@pytest.mark.requirement("14.1")
def test_reads_every_part(tmp_path: Path) -> None:
    """Wrapped lines are joined, code blocks are left out, and every part is where it was written."""
    spec = read_spec(write_spec(tmp_path))
    assert problems(spec) == []
    assert spec.name == "kettle"
    assert [(each.number, each.title) for each in spec.requirements] == [(1, "Heat"), (2, "Noise")]
    assert spec.requirements[0].user_story == "As a cook, I want hot water, so that I can make tea."
    assert [each.id for each in spec.criteria] == ["1.1", "1.2", "2.1"]
    first = "WHEN the switch is pressed, THE Kettle SHALL heat within the limit of gate `heat-small`."
    assert spec.criterion("1.1") == Criterion(1, 1, first)
    sentence = "*For any* position of the switch, a dry kettle stays off."
    assert spec.properties == (Property(1, "Dry", sentence, ("1.2", "2.1")),)
    assert spec.tasks == (
        Task("1.1", "Build the heater", False, ("1.1",)),
        Task("1.2", "Build the switch", True, ("1.1", "1.2")),
        Task("2.1", "Sell it", False, ("1.1",)),
    )
    assert spec.gate("heat-small") == Gate("heat-small", "heat", 500.0, "<", "s", "small", "cpu", "1.1")
    assert spec.gate("heat-even") == Gate("heat-even", "evenness", 0.999, ">=", "1", "large", "cuda", "2.1")


def test_text_does_not_depend_on_line_breaks(tmp_path: Path) -> None:
    """The text of a criterion stays the same when its lines are wrapped elsewhere."""
    wrapped = read_spec(write_spec(tmp_path / "a"))
    unwrapped = read_spec(write_spec(tmp_path / "b", "requirements", "limit of\n   gate", "limit of  gate"))
    assert wrapped == unwrapped


def test_lookups_of_what_is_not_there(tmp_path: Path) -> None:
    """An id that the spec does not have is a KeyError that names it."""
    spec = read_spec(write_spec(tmp_path))
    with pytest.raises(KeyError, match="heat-large"):
        spec.gate("heat-large")
    with pytest.raises(KeyError, match=re.escape("1.3")):
        spec.criterion("1.3")


@pytest.mark.requirement("14.1")
def test_reads_any_number_of_specs(tmp_path: Path) -> None:
    """Each directory under `.kiro/specs` is a spec; they come in the order of their names."""
    for name in ("teapot", "kettle", "urn", "cup", "samovar"):
        write_spec(tmp_path, name=name)
    (tmp_path / ".kiro" / "specs" / "README.md").write_text("not a spec", encoding="utf-8")
    assert [spec.name for spec in read_specs(tmp_path)] == ["cup", "kettle", "samovar", "teapot", "urn"]


def test_a_spec_may_have_no_gates(tmp_path: Path) -> None:
    """A spec without limits needs no table."""
    directory = write_spec(tmp_path)
    text = REQUIREMENTS[: REQUIREMENTS.index("## Gates")].replace(" within the limit of\n   gate `heat-small`", "")
    (directory / "requirements.md").write_text(text, encoding="utf-8")
    spec = read_spec(directory)
    assert spec.gates == ()
    assert problems(spec) == []


@pytest.mark.parametrize(
    ("comparison", "below", "at", "above"),
    [("<", True, False, False), ("<=", True, True, False), (">=", False, True, True), (">", False, False, True)],
)
def test_gate_passes_at_its_boundary(comparison: str, below: bool, at: bool, above: bool) -> None:
    """A value is compared with the limit as the table says; NaN never passes."""
    gate = Gate("g", "heat", 500.0, comparison, "s", "small", "cpu", "1.1")
    assert [gate.passes(value) for value in (499.999, 500.0, 500.001)] == [below, at, above]
    assert gate.passes(float("nan")) is False


@pytest.mark.requirement("14.3", "14.4", "14.5")
@pytest.mark.parametrize(
    ("file", "old", "new", "problem"),
    [
        ("requirements", "Requirement 2:", "Requirement 3:", "requirement: number 3 after 1, expected 2"),
        ("requirements", "Requirement 2:", "Requirement 1:", "requirement: number 1 after 1, expected 2"),
        ("requirements", "2. IF", "3. IF", "criterion of requirement 1: number 3 after 1, expected 2"),
        ("requirements", "2. IF", "1. IF", "criterion of requirement 1: number 1 after 1, expected 2"),
        ("requirements", "`heat-even`", "heat-small", "gate 'heat-small' is listed 2 times"),
        ("requirements", "| 2.1 |", "| 2.2 |", "gate 'heat-even' cites criterion 2.2, which does not exist"),
        ("requirements", "| 2.1 |", "| 2 |", "gate 'heat-even' cites criterion 2, which does not exist"),
        ("requirements", "gate `", "gates `x` and `", "criterion 1.1 names the gate 'x', which does not exist"),
        ("design", "Property 1:", "Property 2:", "property: number 2 after 0, expected 1"),
        ("design", "1.2, 2.1", "1.2, 2.1, 4.1", "property 1 cites criterion 4.1, which does not exist"),
        ("design", "1.2, 2.1", "1.2", "criterion 2.1 is cited by no property and no task"),
        ("design", "*For any* position", "One position", "property 1 does not begin with '*For any*'"),
        ("tasks", "1.2 Build", "1.3 Build", "task 1.3 after 1.1, expected the next number"),
        ("tasks", "1.2 Build", "1.1 Build", "task 1.1 after 1.1, expected the next number"),
        ("tasks", "2.1 Sell", "3.1 Sell", "task 3.1 after 1.2, expected the next number"),
        ("tasks", "1.1, 1.2", "1.1, 2.11", "task 1.2 cites criterion 2.11, which does not exist"),
        ("tasks", "to cooks _Requirements: 1.1_", "to cooks", "task 2.1 cites no criterion"),
    ],
)
def test_numbers_and_citations(tmp_path: Path, file: str, old: str, new: str, problem: str) -> None:
    """A number repeated or skipped, or a citation of nothing or by nothing, is a problem."""
    assert problems(read_spec(write_spec(tmp_path, file, old, new)))[0].startswith(problem)


@pytest.mark.requirement("14.3")
@pytest.mark.parametrize(
    "text",
    [
        "The kettle stays off.",
        "WHEN pressed, the Kettle SHALL heat.",
        "WHEN pressed THE Kettle SHALL heat.",
        "IF dry, THE Kettle SHALL stay off.",
        "When pressed, THE Kettle SHALL heat.",
        "THE Kettle SHALL heat and SHALL whistle.",
        "THE Kettle SHALL heat. It whistles.",
        "THE Kettle SHALL heat",
        "THE Kettle should heat.",
        "THE `Kettle SHALL` heat.",
    ],
)
def test_criterion_that_is_not_ears(tmp_path: Path, text: str) -> None:
    """A criterion is one sentence in EARS form with one SHALL, outside code."""
    found = problems(read_spec(write_spec(tmp_path, "requirements", CRITERION, text)))
    assert found == [f"criterion 1.2 is not one sentence 'WHEN ..., THE ... SHALL ...': {text}"]


@pytest.mark.requirement("14.3")
@pytest.mark.parametrize(
    "text",
    [
        "THE Kettle SHALL stay off.",
        "WHEN pressed, WHILE cold, THE Kettle SHALL heat.",
        "WHILE cold, and WHEN pressed, THE Kettle SHALL heat.",
        "WHERE it has a lamp, IF dry, THEN THE Kettle SHALL blink.",
        "IF it is dry, cold or open THEN THE Water Kettle SHALL stay off.",
        "WHEN `fast. SHALL` is set, THE Kettle SHALL heat.",
        "THE Kettle SHALL hold 196 cups, an 8-bit clock and at least 64 leaves of shape (n, 3, S).",
    ],
)
def test_criterion_that_is_ears(tmp_path: Path, text: str) -> None:
    """Every EARS form, alone or combined, is accepted, and so are counts that are no limits and words in code."""
    assert problems(read_spec(write_spec(tmp_path, "requirements", CRITERION, text))) == []


@pytest.mark.requirement("14.3")
@pytest.mark.parametrize(
    "word", ["fast", "Quickly", "appropriate", "reasonably", "robust", "properly", "simple", "easily", "if possible"]
)
def test_vague_word(tmp_path: Path, word: str) -> None:
    """A word that no test can decide is a problem of its criterion."""
    found = problems(read_spec(write_spec(tmp_path, "requirements", "SHALL stay off.", f"SHALL {word} stay off.")))
    assert found == [f"criterion 1.2 uses words that no test can decide: {word}"]


@pytest.mark.requirement("14.6")
@pytest.mark.parametrize(
    "limit", ["500 ms", "1.5s", "2 seconds", "1 GB", "8 percent", "8%", "4 times", "2e-5", "0.99", "< 100", "`>= 7`"]
)
@pytest.mark.parametrize(
    ("file", "old", "where"),
    [
        ("requirements", "stay off.", "criterion 1.2"),
        ("design", "stays off.", "property 1"),
        ("tasks", "Build the switch", "task 1.2"),
    ],
)
def test_limit_outside_the_table(tmp_path: Path, file: str, old: str, where: str, limit: str) -> None:
    """A limit written in a criterion, a property or a task is a problem: the table *Gates* is its only place."""
    found = problems(read_spec(write_spec(tmp_path, file, old, f"{limit} {old}")))
    assert len(found) == 1
    assert found[0].startswith(f"{where} writes the limit '")


@pytest.mark.requirement("14.3")
def test_lists_every_problem_at_once(tmp_path: Path) -> None:
    """One problem does not hide another."""
    found = problems(read_spec(write_spec(tmp_path, "requirements", CRITERION, "It is quickly off in 5 ms.")))
    assert [re.sub(r" \w+.*", "", each[len("criterion 1.2 ") :]) for each in found] == ["is", "uses", "writes"]


@pytest.mark.requirement("14.2")
@pytest.mark.parametrize(
    ("file", "old", "new", "line", "message"),
    [
        ("requirements", "1: Heat", "1 Heat", 3, "### Requirement N: Title"),
        ("requirements", "### Requirement 2", "## Requirement 2", 14, "### Requirement N: Title"),
        ("requirements", ", so that I sleep", "", 14, "User Story"),
        (
            "requirements",
            "1. WHILE heating, WHERE `quiet` is set, THE Kettle SHALL whistle no tune.",
            "",
            14,
            "Acceptance",
        ),
        ("requirements", "#### Acceptance Criteria\n\n1. WHILE", "Criteria:\n\n1. WHILE", 14, "Acceptance"),
        ("requirements", "2. IF", "- IF", 12, "expected a criterion"),
        ("requirements", "2. IF", "2) IF", 12, "expected a criterion"),
        ("requirements", "## Gates", "### Gates", 22, "expected one section '## Gates'"),
        ("requirements", "Units: seconds.", "## Gates", 24, "expected one section '## Gates'"),
        ("requirements", "| heat-small", "\n### Rows\n\n| heat-small", 22, "a row for each gate"),
        ("requirements", "|---|---|---|---|---|---|---|\n", "", 22, "a line of dashes"),
        ("requirements", "| session |", "| place |", 26, "'session'"),
        ("requirements", "| s | small | cpu |", "| s | small |", 28, "cells"),
        ("requirements", "| s | small | cpu |", "| s | small | |", 28, "cells"),
        ("requirements", "< 500", "500", 28, "limit '500'"),
        ("requirements", "< 500", "< 500 s", 28, "limit '< 500 s'"),
        ("requirements", "< 500", "< nan", 28, "limit '< nan'"),
        ("requirements", "< 500", "< 1e999", 28, "limit '< 1e999'"),
        ("design", "Property 1: Dry", "Property 1", 7, "### Property N: Title"),
        ("design", "### Property 1: Dry", "#### Property 1: Dry", 7, "### Property N: Title"),
        ("design", "**Validates: Requirements 1.2, 2.1**", "", 7, "**Validates:"),
        ("design", "*For any* position of the switch,\na dry kettle stays off.\n", "", 7, "expected a sentence"),
        ("design", "1.2, 2.1", "1.2, 2", 7, "**Validates:"),
        ("design", "is not read\n```", "is not read", 3, "never closed"),
        ("tasks", "1.2 Build", "Build", 8, "- [ ] 2.1 Title"),
        ("tasks", "2.1 Sell", "2 Sell", 13, "- [ ] 2.1 Title"),
        ("tasks", "[x]", "[-]", 8, "- [ ] 2.1 Title"),
        ("tasks", "[x]", "[]", 8, "- [ ] 2.1 Title"),
        ("tasks", "1.1, 1.2", "1.1-1.2", 9, "_Requirements: 1.2, 3.4_"),
        ("tasks", "## 1. Build", "_Requirements: 1.1_", 3, "below a task"),
    ],
)
def test_malformed(tmp_path: Path, file: str, old: str, new: str, line: int, message: str) -> None:
    """What cannot be read is a SpecError that begins with the file and the line."""
    directory = write_spec(tmp_path, file, old, new)
    with pytest.raises(SpecError, match=re.escape(message)) as caught:
        read_spec(directory)
    assert str(caught.value).startswith(f"{directory / file}.md:{line}: ")
    assert isinstance(caught.value, LlmCompressionError)


@pytest.mark.requirement("14.2")
@pytest.mark.parametrize("file", FILES)
def test_file_that_cannot_be_read(tmp_path: Path, file: str) -> None:
    """A spec needs its three files as UTF-8 text; the error names the one that is not."""
    path = write_spec(tmp_path) / f"{file}.md"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(SpecError, match=rf"{file}\.md: cannot be read"):
        read_spec(path.parent)
    path.unlink()
    with pytest.raises(SpecError, match=rf"{file}\.md: cannot be read: .*No such file"):
        read_spec(path.parent)


@pytest.mark.requirement("14.2")
def test_nothing_to_read(tmp_path: Path) -> None:
    """A checkout without a spec and a spec without a requirement are refused: they would look sound."""
    with pytest.raises(SpecError, match="no spec here"):
        read_specs(tmp_path)
    directory = write_spec(tmp_path)
    (directory / "requirements.md").write_text("# Requirements\n", encoding="utf-8")
    with pytest.raises(SpecError, match="no requirement"):
        read_specs(tmp_path)


def test_command_on_a_sound_spec(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command prints the counts, the gates and no problem, and exits with 0."""
    write_spec(tmp_path)
    assert spec_module.main([str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "kettle: 2 requirements, 3 criteria, 1 properties, 3 tasks (1 done), 2 gates"
    assert [line.split() for line in lines[1:4]] == [
        ["id", "metric", "limit", "unit", "model", "session", "criterion"],
        ["heat-small", "heat", "<", "500", "s", "small", "cpu", "1.1"],
        ["heat-even", "evenness", ">=", "0.999", "1", "large", "cuda", "2.1"],
    ]
    assert lines[1].index("limit") == lines[2].index("< 500") == lines[3].index(">= 0.999")
    assert lines[4:] == ["problems: 0"]


def test_command_on_a_spec_with_a_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command names the spec and the problem and exits with 1."""
    write_spec(tmp_path, name="teapot")
    write_spec(tmp_path, "tasks", "1.1, 1.2", "1.1, 9.9")
    assert spec_module.main([str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == ["kettle: task 1.2 cites criterion 9.9, which does not exist", "problems: 1"]


def test_command_on_what_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command says which file and line cannot be read and exits with 1."""
    write_spec(tmp_path, "tasks", "1.2 Build", "Build")
    assert spec_module.main([str(tmp_path)]) == 1
    assert "tasks.md:8: " in capsys.readouterr().err


def test_command_runs_as_a_module() -> None:
    """The module runs as a command: `--help` has an example, and a usage error exits with 2."""
    command = [sys.executable, "-W", "error", "-m", "llm_compression.harness.spec.parser"]
    shown = subprocess.run([*command, "--help"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "example: python -m llm_compression.harness.spec.parser" in shown.stdout
    assert subprocess.run([*command, "a", "b"], cwd=ROOT, capture_output=True, check=False).returncode == 2


FLOORS = """
## Regression floors

| metric | floor | unit |
|---|---|---|
| latency | 4 | % |
| `memory` | 0.5 | MB |
"""


def with_floors(root: Path, old: str = "", new: str = "") -> Path:
    """The kettle's spec with a table of floors, one passage of it replaced."""
    directory = write_spec(root)
    assert not old or FLOORS.count(old) == 1
    (directory / "requirements.md").write_text(REQUIREMENTS + FLOORS.replace(old, new), encoding="utf-8")
    return directory


@pytest.mark.requirement("21.18")
def test_floors_are_read(tmp_path: Path) -> None:
    """21.18: THE Harness SHALL read the floor of every metric from the table *Regression floors*."""
    spec = read_spec(with_floors(tmp_path))
    assert [(each.metric, each.floor, each.unit) for each in spec.floors] == [
        ("latency", 4, "%"),
        ("memory", 0.5, "MB"),
    ]
    assert problems(spec) == []
    assert read_spec(write_spec(tmp_path / "none")).floors == ()


@pytest.mark.requirement("21.18")
@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("`memory`", "latency", "floor of 'latency' is listed more than once"),
        ("| 4 |", "| 0 |", "floor of 'latency': 0 %, expected more than 0"),
    ],
)
def test_a_wrong_floor_is_a_problem(old: str, new: str, problem: str, tmp_path: Path) -> None:
    """21.18: ... and report a repeated or unreadable one."""
    found = problems(read_spec(with_floors(tmp_path, old, new)))
    assert len(found) == 1
    assert found[0].startswith(problem)


@pytest.mark.requirement("21.18")
@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("| 4 |", "| < 4 |", "expected a metric, a number such as '4' and a unit"),
        ("| latency | 4 | % |", "| latency | 4 |", "expected a metric, a number such as '4' and a unit"),
        ("| metric |", "| name |", "columns ['name', 'floor', 'unit'], expected"),
        ("## Regression floors", "## Floors", "expected one section '## Regression floors'"),
        ("|---|---|---|\n", "", "a row for each metric"),
    ],
)
def test_an_unreadable_floor_is_an_error(old: str, new: str, reason: str, tmp_path: Path) -> None:
    """21.18: ... and report a repeated or unreadable one."""
    with pytest.raises(SpecError, match=re.escape(reason)):
        read_spec(with_floors(tmp_path, old, new))
