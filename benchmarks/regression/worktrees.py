"""Revisions of this repository: which to compare, and temporary worktrees of them, always removed."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llm_compression.errors import LlmCompressionError

WORKING_TREE: Final = "working-tree"
PACKAGE: Final = "llm_compression"
_MAIN: Final = ("main", "origin/main")


class RevisionError(LlmCompressionError):
    """A revision does not exist, or there is none to compare with."""


@dataclass(frozen=True)
class Revision:
    """A commit to measure.

    Attributes:
        name: How it was asked for.
        commit: Its full hash.
        committed_at: Its date, ISO 8601.
        subject: First line of its message.
        tree: Hash of the package's directory in it; empty where it has none.
    """

    name: str
    commit: str
    committed_at: str
    subject: str
    tree: str

    @property
    def short(self) -> str:
        """Its hash as it is shown."""
        return WORKING_TREE if self.name == WORKING_TREE else self.commit[:10]


def git(root: Path, *arguments: str) -> str:
    """Run git in a checkout and return what it prints.

    Raises:
        RevisionError: It failed, or there is no git.
    """
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    except subprocess.CalledProcessError as error:
        raise RevisionError(f"git {' '.join(arguments)}: {error.stderr.strip()}") from error
    except FileNotFoundError as error:
        raise RevisionError("git is not installed, and revisions come from it") from error
    return done.stdout.strip()


def find(root: Path, name: str) -> Revision:
    """The commit of this name; `WORKING_TREE` is HEAD with the uncommitted changes of tracked files.

    Raises:
        RevisionError: There is no such commit.
    """
    # a commit that belongs to no branch: nothing in the checkout changes
    wanted = (git(root, "stash", "create") or "HEAD") if name == WORKING_TREE else name
    try:
        commit = git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{wanted}^{{commit}}")
    except RevisionError as error:
        raise RevisionError(f"{name!r} is no revision of {root}") from error
    committed_at, subject = git(root, "show", "--no-patch", "--format=%cI%n%s", commit).split("\n", 1)
    tree = git(root, "ls-tree", "--format=%(objectname)", commit, PACKAGE)
    return Revision(name, commit, committed_at, subject, tree)


def default_base(root: Path, head: Revision) -> str:
    """The merge base with main; the commit before where that is the head itself.

    Raises:
        RevisionError: There is no commit before.
    """
    for main in _MAIN:
        try:
            merge_base = git(root, "merge-base", main, head.commit)
        except RevisionError:
            continue
        if merge_base != head.commit:
            return merge_base
        break
    return find(root, f"{head.commit}~1").commit


def is_dirty(root: Path) -> bool:
    """Whether files differ from HEAD, untracked ones included."""
    return bool(git(root, "status", "--porcelain"))


@contextmanager
def checked_out(root: Path, *revisions: Revision) -> Iterator[list[Path]]:
    """Temporary worktrees, one for each revision, in a directory outside the checkout; removed also after an error.

    Raises:
        RevisionError: A worktree cannot be made.
    """
    home = Path(tempfile.mkdtemp(prefix="regression-"))
    try:
        places = [home / str(number) for number in range(len(revisions))]
        for place, revision in zip(places, revisions, strict=True):
            git(root, "worktree", "add", "--detach", "--force", str(place), revision.commit)
        yield places
    finally:
        for place in home.iterdir():
            # what git no longer knows is removed below
            with suppress(RevisionError):
                git(root, "worktree", "remove", "--force", "--force", str(place))
        shutil.rmtree(home, ignore_errors=True)
