"""Which revisions are compared, and worktrees that leave nothing behind."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from benchmarks.regression.worktrees import (
    WORKING_TREE,
    RevisionError,
    checked_out,
    default_base,
    find,
    git,
    is_dirty,
)


def commit(root: Path, text: str) -> str:
    """Write the package's one file and commit it."""
    (root / "llm_compression").mkdir(exist_ok=True)
    (root / "llm_compression" / "__init__.py").write_text(text, encoding="utf-8")
    git(root, "add", "-A")
    who = ("-c", "user.name=A", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false")
    git(root, *who, "commit", "-q", "--allow-empty", "-m", f"write {text}")
    return git(root, "rev-parse", "HEAD")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with two commits on main."""
    path = tmp_path / "checkout"
    subprocess.run(["git", "init", "-q", "-b", "main", str(path)], check=True)
    git(path, "config", "user.name", "A")
    git(path, "config", "user.email", "a@example.com")
    commit(path, "one")
    commit(path, "two")
    return path


@pytest.mark.requirement("21.1")
def test_the_base_is_the_merge_base_or_the_commit_before(root: Path) -> None:
    """21.1: ... the merge base with main or on main the commit before unless `--base` names another."""
    one, two = git(root, "rev-parse", "HEAD~1"), git(root, "rev-parse", "HEAD")
    assert default_base(root, find(root, "HEAD")) == one
    git(root, "switch", "-q", "-c", "topic")
    assert default_base(root, find(root, "HEAD")) == one
    commit(root, "three")
    four = commit(root, "four")
    assert default_base(root, find(root, "HEAD")) == two
    assert find(root, "topic").commit == four
    assert find(root, "HEAD").subject == "write four"
    with pytest.raises(RevisionError, match="is no revision"):
        default_base(root, find(root, one))


@pytest.mark.requirement("21.12")
@pytest.mark.parametrize("name", ["nothing", "--help", ""])
def test_what_is_no_revision_is_an_error(root: Path, name: str) -> None:
    """21.12: ... 2 for wrong usage."""
    with pytest.raises(RevisionError, match="is no revision"):
        find(root, name)


@pytest.mark.requirement("21.2")
def test_worktrees_are_removed_also_after_an_error(root: Path) -> None:
    """21.2: ... SHALL take each from a temporary worktree in one environment and remove the worktrees, also after an
    error."""
    revisions = find(root, "HEAD~1"), find(root, "HEAD")

    def fail() -> None:
        with checked_out(root, *revisions) as places:
            fail.places = places  # type: ignore[attr-defined]  # to look at them afterwards
            texts = [(place / "llm_compression" / "__init__.py").read_text(encoding="utf-8") for place in places]
            assert texts == ["one", "two"]
            # what a process leaves there must not keep it
            (places[0] / "left.txt").write_text("left", encoding="utf-8")
            raise KeyError("an error in the middle")

    with pytest.raises(KeyError):
        fail()
    assert not fail.places[0].parent.exists()  # type: ignore[attr-defined]
    assert len(git(root, "worktree", "list").splitlines()) == 1
    # the same commit twice
    with checked_out(root, revisions[0], revisions[0]) as places:
        assert len(set(places)) == 2
    assert len(git(root, "worktree", "list").splitlines()) == 1


@pytest.mark.requirement("21.15")
def test_the_tree_is_that_of_the_package(root: Path) -> None:
    """21.15: ... the same package on both sides."""
    before = find(root, "HEAD")
    (root / "README.md").write_text("no package", encoding="utf-8")
    commit(root, "two")
    after = find(root, "HEAD")
    assert (before.tree, before.commit == after.commit) == (after.tree, False)
    commit(root, "three")
    assert find(root, "HEAD").tree != before.tree
    assert before.tree


@pytest.mark.requirement("21.3")
def test_uncommitted_changes_are_measured_where_asked(root: Path) -> None:
    """21.3: IF the checkout has uncommitted changes, ... unless `--head working-tree` asks for them."""
    assert not is_dirty(root)
    clean = find(root, WORKING_TREE)
    assert clean.commit == find(root, "HEAD").commit
    file = root / "llm_compression" / "__init__.py"
    file.write_text("uncommitted", encoding="utf-8")
    assert is_dirty(root)
    working = find(root, WORKING_TREE)
    assert working.short == WORKING_TREE
    assert working.tree != find(root, "HEAD").tree
    with checked_out(root, working) as places:
        assert (places[0] / "llm_compression" / "__init__.py").read_text(encoding="utf-8") == "uncommitted"
    # the checkout is as it was
    assert file.read_text(encoding="utf-8") == "uncommitted"
    assert git(root, "stash", "list") == ""
