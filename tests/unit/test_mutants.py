"""The runner of the sabotages, on commands that take no time; the sabotages themselves run in `nox -s mutants`."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_compression.harness import git
from tests.mutants import check
from tests.mutants.check import SabotageError, apply, copy_of, missed
from tests.mutants.sabotages import SABOTAGES, Edit, Sabotage

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A checkout of one file and an ignored one."""
    root = tmp_path / "project"
    root.mkdir()
    (root / "answer.py").write_text("ANSWER = 42\n")
    (root / ".gitignore").write_text(".cache/\n__pycache__/\nsecret\n")
    (root / "secret").write_text("ignored")
    git.init(root)
    return root


def sabotage(new: str, says: str = "wrong answer") -> Sabotage:
    """Another answer, and a check of it."""
    command = ("-c", "import answer, sys; sys.exit(0 if answer.ANSWER == 42 else 'a wrong answer')")
    return Sabotage("another answer", (Edit("answer.py", "42", new),), (command,), says)


@pytest.mark.requirement("22.1")
@pytest.mark.parametrize("each", SABOTAGES, ids=[each.name for each in SABOTAGES])
def test_every_sabotage_can_still_be_applied(each: Sabotage) -> None:
    """22.1: the text that a sabotage changes stands once in its file; what was renamed must be renamed there too."""
    for edit in each.edits:
        text = (ROOT / edit.file).read_text(encoding="utf-8")
        assert not edit.old or text.count(edit.old) == 1, f"{edit.file}: {edit.old!r}"


@pytest.mark.requirement("22.1")
def test_what_the_copy_holds(project: Path) -> None:
    """22.1: what git does not ignore, in a repository of its own; the checkout is left as it was."""
    with copy_of(project) as copy:
        assert (copy / "answer.py").read_text() == "ANSWER = 42\n"
        assert not (copy / "secret").exists()
        apply((Edit("answer.py", "42", "43"),), copy)
        assert (copy / "answer.py").read_text() == "ANSWER = 43\n"
        assert git.git(copy, "log", "--format=%s").split() == ["sabotaged", "untouched"]
    assert (project / "answer.py").read_text() == "ANSWER = 42\n"
    assert not copy.exists()


@pytest.mark.requirement("22.2")
@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (sabotage("41"), ""),
        (sabotage("21 + 21"), "unseen: its check succeeded"),
        (sabotage("41", says="test_of_the_question"), "seen by something else than 'test_of_the_question'"),
        (Sabotage("gone", (Edit("question.py", "a", "b"),), (), ""), "cannot be applied"),
        (Sabotage("twice", (Edit("answer.py", "ANSWER = 4", "x"), Edit("answer.py", "?", "x")), (), ""), "cannot be"),
        (Sabotage("deleted", (Edit("answer.py"),), (("-c", "import answer"),), "No module named 'answer'"), ""),
    ],
)
def test_who_saw_it(project: Path, given: Sabotage, reason: str) -> None:
    """22.2: seen where its check fails and says what it names; anything else is a problem with its reason."""
    found = missed(given, project)
    assert found.startswith(reason)
    assert bool(found) is bool(reason)


@pytest.mark.requirement("22.1")
def test_a_text_that_stands_twice_is_refused(project: Path) -> None:
    """22.1: a sabotage that could be applied in two places is not one."""
    (project / "answer.py").write_text("ANSWER = 42 or 42\n")
    with copy_of(project) as copy, pytest.raises(SabotageError, match=r"answer\.py: found 2 times, expected once"):
        apply((Edit("answer.py", "42", "43"),), copy)


@pytest.mark.requirement("22.2", "22.3")
def test_the_command(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """22.3: the session names who saw each sabotage, and fails on one that went unseen or whose check fails anyway."""
    monkeypatch.setattr(check, "ROOT", project)
    monkeypatch.setattr(check, "SABOTAGES", (sabotage("41"),))
    assert check.main([]) == 0
    assert capsys.readouterr().out == "1/1 another answer: seen, wrong answer\n1 of 1 sabotages seen\n"
    monkeypatch.setattr(check, "SABOTAGES", (sabotage("41"), sabotage("42.0")))
    assert check.main(["--only", "answer"]) == 1
    assert "unseen" in capsys.readouterr().out
    (project / "answer.py").write_text("ANSWER = 42 + 1\n")
    assert check.main([]) == 1
    assert "its check fails without it" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        check.main(["--only", "question"])
