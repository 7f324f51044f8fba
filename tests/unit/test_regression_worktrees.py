"""Which revisions are compared, and worktrees that leave nothing behind."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_compression.harness.git import commit_all, git, init
from llm_compression.harness.paired import worktrees
from llm_compression.harness.paired.worktrees import (
    WORKING_TREE,
    Revision,
    RevisionError,
    checked_out,
    default_base,
    is_dirty,
)


def find(root: Path, name: str) -> Revision:
    """A revision with the tree of the package."""
    return worktrees.find(root, name, "llm_compression")


def commit(root: Path, text: str) -> str:
    """Write the package's one file and commit it."""
    (root / "llm_compression").mkdir(exist_ok=True)
    (root / "llm_compression" / "__init__.py").write_text(text, encoding="utf-8")
    return commit_all(root, f"write {text}")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with two commits on main."""
    path = tmp_path / "checkout"
    init(path)
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
    with pytest.raises(RevisionError, match="there is no commit before"):
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


@pytest.mark.requirement("21.1")
@pytest.mark.parametrize("message", ["", "one line", "a line\n\nand a body", " spaces "])
def test_a_message_of_any_form_is_read(root: Path, message: str) -> None:
    """21.1: ... measure a head revision, HEAD unless `--head` names another: also one whose message is empty."""
    commit_all(root, message)
    found = find(root, "HEAD")
    assert found.subject == message.strip().partition("\n")[0]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:+-]+Z?", found.committed_at)


@pytest.mark.requirement("21.15")
def test_a_revision_without_the_package_has_no_tree(root: Path) -> None:
    """21.15: ... what has the same package: two that have none have nothing in common."""
    shutil.rmtree(root / "llm_compression")
    commit_all(root, "gone")
    assert find(root, "HEAD").tree == ""


class History:
    """A repository with commits 1 to 4 on main and a topic of three on commit 3, and clones of it."""

    def __init__(self, place: Path) -> None:
        self.place, self.upstream = place, place / "upstream"
        init(self.upstream)
        self.main = [commit(self.upstream, f"main {number}") for number in (1, 2, 3)]
        git(self.upstream, "checkout", "-q", "-b", "topic")
        self.topic = [commit(self.upstream, f"topic {number}") for number in (1, 2, 3)]
        git(self.upstream, "checkout", "-q", "main")
        self.main.append(commit(self.upstream, "main 4"))

    def clone(self, *options: str, branch: str = "topic") -> Path:
        """A clone in which a branch is checked out."""
        path = self.place / "clone"
        git(self.place, "clone", "-q", "--branch", branch, *options, f"file://{self.upstream}", str(path))
        return path


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(tmp_path)


def rename_main(clone: Path) -> None:
    """The remote's main branch is called master, and nothing else is known here."""
    git(clone, "update-ref", "refs/remotes/origin/master", "refs/remotes/origin/main")
    git(clone, "symbolic-ref", "refs/remotes/origin/HEAD", "refs/remotes/origin/master")
    git(clone, "update-ref", "-d", "refs/remotes/origin/main")


def call_it_trunk(clone: Path) -> None:
    """The remote says itself that its main branch has another name."""
    git(clone, "update-ref", "refs/remotes/origin/trunk", "refs/remotes/origin/main")
    git(clone, "symbolic-ref", "refs/remotes/origin/HEAD", "refs/remotes/origin/trunk")
    git(clone, "update-ref", "-d", "refs/remotes/origin/main")


CLONES: dict[str, tuple[tuple[str, ...], Callable[[Path], object]]] = {
    "a full clone": ((), lambda _: None),
    "a main branch called master": ((), rename_main),
    "a main branch called trunk": ((), call_it_trunk),
    "a remote that does not say its main branch": ((), lambda clone: git(clone, "remote", "set-head", "origin", "-d")),
    "a remote called upstream": (("-o", "upstream"), lambda _: None),
    "a remote called somehow": (("-o", "somehow"), lambda _: None),
    "a fork that is behind": (
        ("-o", "upstream"),
        lambda clone: (
            git(clone, "remote", "add", "origin", "x"),
            git(clone, "update-ref", "refs/remotes/origin/main", "HEAD~5"),
        ),
    ),
    "only a local master": (
        (),
        lambda clone: (git(clone, "branch", "-q", "master", "origin/main"), git(clone, "remote", "remove", "origin")),
    ),
    "a detached head": ((), lambda clone: git(clone, "checkout", "-q", "--detach")),
    "a depth that reaches the base": (("--depth", "5", "--no-single-branch"), lambda _: None),
}


@pytest.mark.requirement("25.12")
@pytest.mark.parametrize("what", CLONES)
def test_the_base_of_a_topic_in_any_clone(history: History, what: str) -> None:
    """25.12: WHEN no base is named, THE Regression Session SHALL take the nearest merge base of the head with the main
    branches: those called main or master here, and the default branches of the remotes."""
    options, change = CLONES[what]
    clone = history.clone(*options)
    change(clone)
    assert default_base(clone, find(clone, "HEAD")) == history.main[2]


@pytest.mark.requirement("25.12")
@pytest.mark.parametrize("behind", [1, 2, 3])
@pytest.mark.parametrize("stale", ["refs/heads/main", "refs/heads/master", "refs/remotes/origin/main"])
def test_an_old_main_branch_never_gives_the_base_unseen(history: History, stale: str, behind: int) -> None:
    """25.12, 25.13: ... and say which older merge base another main branch has."""
    clone = history.clone()
    git(clone, "update-ref", "refs/heads/main", "origin/main")
    git(clone, "update-ref", stale, f"origin/main~{behind}")
    said: list[str] = []
    assert default_base(clone, find(clone, "HEAD"), said.append) == history.main[2]
    if behind == 1:  # where the topic began
        assert not said
    else:
        (note,) = said
        assert history.main[2][:10] in note
        assert history.main[3 - behind][:10] in note
        assert stale.split("/", 2)[2] in note


@pytest.mark.requirement("25.12")
def test_on_a_merge_of_the_topic_it_is_the_main_branch(history: History) -> None:
    """25.12: a merge commit, as a pull request is tested by, stands beside the main branch that it was made on."""
    clone = history.clone(branch="main")
    git(clone, "checkout", "-q", "--detach")
    git(clone, "-c", "user.name=a", "-c", "user.email=a@b", "merge", "-q", "-s", "ours", "-m", "merge", "origin/topic")
    assert default_base(clone, find(clone, "HEAD")) == history.main[3]


@pytest.mark.requirement("25.14")
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("options", [(), ("--no-single-branch",)])
def test_a_shallow_clone_gets_the_command_that_gets_the_base(
    history: History, depth: int, options: tuple[str, ...]
) -> None:
    """25.14: IF no main branch is known or the history of a clone ends before the merge base, THEN THE Regression
    Session SHALL raise RevisionError with the git command that fetches what is missing: it does."""
    clone = history.clone("--depth", str(depth), *options)
    with pytest.raises(RevisionError, match="--base names another") as caught:
        default_base(clone, find(clone, "HEAD"))
    (command,) = re.findall("`git (.*)`", str(caught.value))
    assert ("--unshallow" in command) is True
    git(clone, *shlex.split(command))
    assert default_base(clone, find(clone, "HEAD")) == history.main[2]


@pytest.mark.requirement("25.14")
def test_a_local_main_does_not_stand_in_for_one_that_was_cut_off(history: History) -> None:
    """25.14: an old main branch whose history is whole gives a base, and still it may be the wrong one."""
    clone = history.clone("--depth", "5")
    git(clone, "fetch", "-q", "--depth", "1", "origin", "main:refs/remotes/origin/main")
    git(clone, "branch", "-q", "main", "HEAD~4")
    with pytest.raises(RevisionError, match="the clone is shallow"):
        default_base(clone, find(clone, "HEAD"))


@pytest.mark.requirement("25.14")
def test_behind_a_cut_there_may_be_a_nearer_base(history: History) -> None:
    """25.14: ... where a merge leads around the cut to an older common commit, that one is not taken."""
    git(history.upstream, "checkout", "-q", "-b", "side", history.main[0])
    commit(history.upstream, "side")
    git(history.upstream, "checkout", "-q", "main")
    git(history.upstream, "merge", "-q", "-s", "ours", "-m", "merge", "side")
    clone = history.clone()
    assert default_base(clone, find(clone, "HEAD")) == history.main[2]
    # as a fetch of little depth would leave it: main 4 is here, its parents are not, and the side branch is whole
    (clone / ".git" / "shallow").write_text(history.main[3] + "\n", encoding="utf-8")
    assert git(clone, "merge-base", "origin/main", "HEAD") == history.main[0]
    with pytest.raises(RevisionError, match="the clone is shallow"):
        default_base(clone, find(clone, "HEAD"))


@pytest.mark.requirement("25.14")
def test_a_depth_of_one_has_no_commit_before(history: History) -> None:
    """25.14: on the main branch the commit before is missing, and the message says how to get it."""
    clone = history.clone("--depth", "1", branch="main")
    with pytest.raises(RevisionError, match=r"no commit before .*git fetch --unshallow origin"):
        default_base(clone, find(clone, "HEAD"))
    with pytest.raises(RevisionError, match=r"'HEAD~1' is no revision .*git fetch --unshallow origin"):
        find(clone, "HEAD~1")


@pytest.mark.requirement("25.14")
def test_without_a_main_branch_there_is_no_base(root: Path) -> None:
    """25.14: ... also where there is no remote to fetch it from: the base is to be named."""
    git(root, "branch", "-q", "-m", "work")
    with pytest.raises(RevisionError, match="no main branch is known here, expected main or master"):
        default_base(root, find(root, "HEAD"))


@pytest.mark.requirement("25.12")
def test_main_branches_that_parted_give_no_base(root: Path) -> None:
    """25.12: of two merge bases neither of which descends from the other, none is taken for the nearest."""
    git(root, "checkout", "-q", "-b", "master", "HEAD~1")
    commit(root, "another two")
    git(root, "checkout", "-q", "-b", "topic")
    git(root, "merge", "-q", "-s", "ours", "-m", "merge", "main")
    commit(root, "three")
    with pytest.raises(RevisionError, match=r"several merge bases: .* with main, .* with master; --base names"):
        default_base(root, find(root, "HEAD"))
