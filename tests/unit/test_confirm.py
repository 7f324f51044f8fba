"""Texts confirmed beside their proofs: a change is seen until it is confirmed."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_compression.harness.spec import confirm
from llm_compression.harness.spec.parser import SpecError, problems, read_spec, read_specs
from tests.small_project import Project

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(pytester: pytest.Pytester) -> Project:
    return Project(pytester)


@pytest.mark.requirement("20.10")
def test_every_text_of_this_repository_is_the_confirmed_one() -> None:
    """20.10: whoever changes a criterion, a property or a limit looks at its proof and confirms it."""
    assert [change for spec in read_specs(ROOT) for change in confirm.changes(spec, ROOT)] == []


@pytest.mark.requirement("20.10")
@pytest.mark.parametrize(
    ("file", "old", "new", "change"),
    [
        ("requirements", "SHALL be quiet", "SHALL be loud", "criterion 1.3 changed since its proof was confirmed"),
        ("requirements", "3. THE Kettle SHALL be quiet.\n4.", "3.", "criterion 1.4 was confirmed and is gone"),
        ("requirements", "quiet.\n", "quiet.\n5. THE Kettle SHALL be.\n", "criterion 1.5 was never confirmed"),
        ("requirements", "| heat | heat | < 500", "| heat | heat | < 501", "gate heat changed"),
        ("requirements", "| heat | heat | < 500", "| heat | heat | <= 500", "gate heat changed"),
        ("requirements", "| small | cpu |", "| small | cuda |", "gate heat changed"),
        ("requirements", "| heat-cuda |", "| warm-cuda |", "gate heat-cuda was confirmed and is gone"),
        (
            "requirements",
            "## Gates",
            "## Regression floors\n\n| metric | floor | unit |\n|---|---|---|\n| heat | 4 | % |\n\n## Gates",
            "floor heat was never confirmed",
        ),
        ("design", "stays off", "stays on", "property 1 changed"),
        ("design", "Requirements 1.2", "Requirements 1.2, 1.3", "property 1 changed"),
    ],
)
def test_a_change_is_seen_until_it_is_confirmed(
    project: Project, capsys: pytest.CaptureFixture[str], file: str, old: str, new: str, change: str
) -> None:
    """20.10: IF a criterion, a property or a row of a table is not the one that was confirmed, THEN THE Harness SHALL
    report it as a problem until a command of its own confirms it."""
    assert confirm.changes(read_spec(project.spec), project.root) == []
    project.change(file, old, new)
    found = confirm.changes(read_spec(project.spec), project.root)
    assert any(each.startswith(change) for each in found)
    capsys.readouterr()
    assert confirm.main([str(project.root)]) == 0
    assert capsys.readouterr().out.splitlines() == [*(f"kettle: {each}" for each in found), "kettle: confirmed"]
    assert confirm.changes(read_spec(project.spec), project.root) == []


TABLES = """\
## Reference machine

| metric | model | rate | unit | rests on |
|---|---|---|---|---|
| heat | small | 450 | W | evenness |

## Undisturbed samples

| quantity | value | unit |
|---|---|---|
| wait | 10 | % |

## Regression floors

| metric | floor | unit |
|---|---|---|
| heat | 4 | % |

## Gates
"""


@pytest.mark.requirement("20.10")
@pytest.mark.parametrize(
    ("old", "new", "change"),
    [
        ("| 450 |", "| 900 |", "reference heat small changed since its proof was confirmed"),
        ("| 450 | W |", "| 450 | kW |", "reference heat small changed since its proof was confirmed"),
        ("| evenness |", "| noise |", "reference heat small changed since its proof was confirmed"),
        (
            "| heat | small | 450 | W | evenness |",
            "| heat | large | 450 | W | evenness |",
            "reference heat small was confi",
        ),
        ("| 10 | % |", "| 50 | % |", "condition wait changed since its proof was confirmed"),
        ("| wait |", "| pause |", "condition wait was confirmed and is gone"),
        ("| heat | 4 |", "| heat | 40 |", "floor heat changed since its proof was confirmed"),
    ],
)
def test_every_table_is_confirmed(project: Project, old: str, new: str, change: str) -> None:
    """20.10: IF a criterion, a property or a row of a table is not the one that was confirmed, THEN THE Harness SHALL
    report it as a problem until a command of its own confirms it: a limit is also loosened by whom it is stated for."""
    project.change("requirements", "## Gates\n", TABLES)
    assert confirm.main([str(project.root)]) == 0
    project.change("requirements", old, new)
    assert any(each.startswith(change) for each in confirm.changes(read_spec(project.spec), project.root))
    assert confirm.main([str(project.root)]) == 0
    assert confirm.changes(read_spec(project.spec), project.root) == []


@pytest.mark.requirement("20.10")
def test_line_breaks_and_ticks_are_no_change(project: Project) -> None:
    """20.10: a text is what it says, however it is wrapped."""
    project.change("requirements", "THE Kettle SHALL stay off", "THE Kettle\n   SHALL stay off")
    project.change("tasks", "[x]", "[ ]")
    spec = read_spec(project.spec)
    assert problems(spec) == []
    assert confirm.changes(spec, project.root) == []


@pytest.mark.requirement("20.10", "14.2")
@pytest.mark.parametrize("text", ["{", "[]", "\udcff"])
def test_a_broken_file_of_hashes_is_named(project: Project, capsys: pytest.CaptureFixture[str], text: str) -> None:
    """14.2: IF a part of a spec is malformed, THEN THE Harness SHALL raise SpecError with the file and the line."""
    path = project.spec / confirm.CONFIRMED_FILE
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(SpecError, match=r"confirmed\.json: "):
        confirm.changes(read_spec(project.spec), project.root)
    assert confirm.main([str(project.root)]) == 1
    assert project.judge() == 1
    assert capsys.readouterr().err.count("confirmed.json: ") == 2
    assert path.read_text(encoding="utf-8", errors="surrogateescape") == text
