"""Files of evidence: what a tree is, how runs are merged and sessions joined, and what is no evidence."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from llm_compression.harness.evidence import (
    COLLECTED,
    NOT_RUN,
    EvidenceError,
    Part,
    Record,
    Source,
    join,
    merge,
    read_part,
    read_parts,
    source_of,
    write_joined,
    write_part,
)

TREE = Source("c0ffee", False, "a1")
PASSED = Record("test_a", ("1.1",), (), "passed", duration_s=0.5, examples=100, gate="kettle:heat", value=1.5)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with one committed file."""
    (tmp_path / "code.py").write_text("a = 1\n", encoding="utf-8")
    (tmp_path / ".gitignore").write_text("reports/\n", encoding="utf-8")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "First"]):
        subprocess.run([*git, *arguments], check=True)
    return tmp_path


@pytest.mark.requirement("20.3", "20.5")
def test_the_tree_is_every_file_that_git_does_not_ignore(checkout: Path) -> None:
    """20.5: a changed, new or deleted file makes another tree, with or without a commit; an ignored one does not."""
    clean = source_of(checkout)
    assert (len(clean.commit), clean.dirty) == (40, False)
    (checkout / "reports").mkdir()
    (checkout / "reports" / "tests.json").write_text("{}", encoding="utf-8")
    assert source_of(checkout) == clean
    trees = {clean.tree}
    for name, text in (("code.py", "a = 2\n"), ("new.py", ""), ("new.py", "b = 1\n"), ("new name.py", "b = 1\n")):
        (checkout / name).write_text(text, encoding="utf-8")
        assert source_of(checkout).dirty
        trees.add(source_of(checkout).tree)
    (checkout / "code.py").rename(checkout / "coder.py")
    trees.add(source_of(checkout).tree)
    (checkout / "coder.py").unlink()
    trees.add(source_of(checkout).tree)
    assert len(trees) == 7


@pytest.mark.requirement("20.5")
def test_a_tree_outside_git(tmp_path: Path) -> None:
    """20.5: without git it is the files there, but for hidden ones and what sessions make."""
    (tmp_path / ".kiro").mkdir()
    (tmp_path / ".kiro" / "tasks.md").write_text("a", encoding="utf-8")
    before = source_of(tmp_path)
    assert (before.commit, before.dirty) == ("", False)
    for made in (".nox", "reports", "__pycache__"):
        (tmp_path / made).mkdir()
        (tmp_path / made / "file").write_text("a", encoding="utf-8")
    assert source_of(tmp_path) == before
    (tmp_path / ".kiro" / "tasks.md").write_text("b", encoding="utf-8")
    assert source_of(tmp_path) != before


@pytest.mark.requirement("20.5")
def test_a_tree_that_another_repository_ignores(checkout: Path) -> None:
    """20.5: git lists nothing there, and still a change is one."""
    inner = checkout / "reports" / "unpacked"
    inner.mkdir(parents=True)
    (inner / "code.py").write_text("a = 1\n", encoding="utf-8")
    before = source_of(inner)
    (inner / "code.py").write_text("a = 2\n", encoding="utf-8")
    assert source_of(inner) != before


@pytest.mark.requirement("20.4")
def test_merging_keeps_what_was_not_run_again() -> None:
    """20.4: an outcome is replaced by another outcome, and never by `not run`."""
    failed, other = replace(PASSED, outcome="failed"), replace(PASSED, node="test_b")
    assert merge([PASSED, other], [failed]) == (failed, other)
    assert merge([PASSED], [replace(PASSED, outcome=NOT_RUN)]) == (PASSED,)
    assert merge([replace(PASSED, outcome=NOT_RUN)], [PASSED]) == (PASSED,)


@pytest.mark.requirement("20.4", "20.5")
def test_a_part_reads_back_and_is_replaced_by_one_of_another_tree(tmp_path: Path) -> None:
    """20.4, 20.5: what lies there of the same tree and machine stays, of another goes; a broken one is written anew."""
    path = tmp_path / "deep" / "tests.json"
    write_part(path, Part(TREE, {"python": "3.11"}, (PASSED,)))
    assert read_part(path) == Part(TREE, {"python": "3.11"}, (PASSED,))
    other = replace(PASSED, node="test_b")
    write_part(path, Part(TREE, {"python": "3.11"}, (other,)))
    assert read_part(path).records == (PASSED, other)
    write_part(path, Part(TREE, {"python": "3.12"}, (other,)))
    assert read_part(path) == Part(TREE, {"python": "3.12"}, (other,))
    for another in (replace(TREE, tree="b2"), replace(TREE, commit="beef")):
        write_part(path, Part(another, {}, (other,)))
        assert read_part(path) == Part(another, {}, (other,))
    path.write_text("{", encoding="utf-8")
    write_part(path, Part(TREE, {}, (PASSED,)))
    assert read_part(path).records == (PASSED,)


@pytest.mark.requirement("20.4")
def test_sessions_are_joined_by_the_worst_outcome(tmp_path: Path) -> None:
    """20.4: no session hides a failure of another; a skip where a device is missing gives way to a run elsewhere."""
    outcomes = ["skipped", NOT_RUN, "passed", "failed", "passed"]
    parts = {str(n): Part(TREE, {}, (replace(PASSED, outcome=each),)) for n, each in enumerate(outcomes)}
    for upto, expected in ((1, "skipped"), (2, "skipped"), (3, "passed"), (5, "failed")):
        assert [record.outcome for record in join(list(parts.values())[:upto])] == [expected]
    write_joined(tmp_path / "evidence.json", TREE, parts)
    content = json.loads((tmp_path / "evidence.json").read_text(encoding="utf-8"))
    assert content["source"] == {"commit": "c0ffee", "dirty": False, "tree": "a1"}
    assert content["machines"].keys() == parts.keys()
    assert [record["outcome"] for record in content["records"]] == ["failed"]


@pytest.mark.requirement("20.3", "12.6")
@pytest.mark.parametrize("text", ["", "[]", '{"source": {}}', '{"source": {"tree": 1}, "machine": {}, "records": []}'])
def test_what_is_no_evidence_is_named(tmp_path: Path, text: str) -> None:
    """12.6: a file that is something else, or cut short, is an error with its path, and no evidence."""
    path = tmp_path / f"{COLLECTED}.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(EvidenceError, match=r"collected\.json: no evidence here"):
        read_parts(tmp_path)
