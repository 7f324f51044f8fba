"""Revisions of a repository: which to compare, and temporary worktrees of them, always removed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llm_compression.errors import LlmCompressionError
from llm_compression.harness.git import GitError, changed, git

WORKING_TREE: Final = "working-tree"
_MAIN: Final = ("main", "master")
# what is developed on is one of these, where there are several remotes
_REMOTES: Final = ("origin", "upstream")


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


def find(root: Path, name: str, package: str = "") -> Revision:
    """The commit of this name; `WORKING_TREE` is HEAD with the uncommitted changes of tracked files.

    Args:
        root: The checkout.
        name: What git calls it.
        package: The directory whose hash is its tree, relative to the top; all of the repository where it is empty.

    Raises:
        RevisionError: There is no such commit.
    """
    try:
        # a commit that belongs to no branch: nothing in the checkout changes
        wanted = (git(root, "stash", "create") or "HEAD") if name == WORKING_TREE else name
        if wanted.startswith("-"):
            raise RevisionError(f"{name!r} is no revision of {root}: it starts like an option")
        commit = git(root, "rev-parse", "--verify", "--quiet", f"{wanted}^{{commit}}")
    except GitError as error:
        reason = f": {error.reason}" if error.reason else ""
        raise RevisionError(f"{name!r} is no revision of {root}{reason}{_shallow_hint(root)}") from error
    about = git(root, "log", "-1", "--no-show-signature", "--encoding=UTF-8", "--format=%cI%n%s", commit)
    committed_at, _, subject = about.partition("\n")
    try:
        tree = git(root, "rev-parse", "--verify", "--quiet", f"{commit}:{package}")
    except GitError:
        tree = ""
    # a message may be of any encoding
    return Revision(name, commit, committed_at, subject.strip().encode("utf-8", "replace").decode("utf-8"), tree)


def _is_shallow(root: Path) -> bool:
    try:
        return git(root, "rev-parse", "--is-shallow-repository") == "true"
    except GitError:
        return False


def _shallow_hint(root: Path) -> str:
    return f"; the clone is shallow: {_fetch(root)} fetches the rest" if _is_shallow(root) else ""


def _remotes(root: Path) -> list[str]:
    found = git(root, "remote").split()
    return [name for name in _REMOTES if name in found] or found


def _fetch(root: Path) -> str:
    """The command that fetches the whole history of every branch."""
    remote = (_remotes(root) or ["REMOTE"])[0]
    depth = "--unshallow " if _is_shallow(root) else ""
    return f"`git fetch {depth}{remote} '+refs/heads/*:refs/remotes/{remote}/*'`"


def _mains(root: Path) -> dict[str, str]:
    """The main branches that this repository knows, its own and its remotes', as they are called: name to ref."""
    refs = dict(line.split(" ", 1) for line in git(root, "for-each-ref", "--format=%(refname) %(symref)").splitlines())
    found = {name: ref for name in _MAIN if (ref := f"refs/heads/{name}") in refs}
    for remote in _remotes(root):
        place = f"refs/remotes/{remote}"
        said = refs.get(f"{place}/HEAD")
        for ref in [said] if said in refs else [f"{place}/{name}" for name in _MAIN]:
            if ref in refs:
                found[ref.removeprefix("refs/remotes/")] = ref
    return found


def default_base(root: Path, head: Revision, say: Callable[[str], None] = lambda _: None) -> str:
    """The nearest merge base with a main branch, here or of a remote; the commit before where that is the head itself.

    Args:
        root: The checkout.
        head: The commit to be compared.
        say: Is told where the main branches differ, so that one of them may be old.

    Raises:
        RevisionError: No main branch is known, the history that is here ends before the merge base, two main branches
            give two bases, or there is no commit before. The message has the command that fetches what is missing.
    """
    mains = _mains(root)
    if not mains:
        raise RevisionError(
            f"no main branch is known here, expected {' or '.join(_MAIN)}, or the default branch of a remote: "
            f"{_fetch(root)} fetches it, --base names another base"
        )
    bases = {name: base for name, ref in mains.items() if (base := _merge_base(root, name, ref, head))}
    if not bases:
        raise RevisionError(f"{head.short} has no commit in common with {', '.join(mains)}; --base names another base")
    # an old branch has an old merge base: the nearest one descends from all others
    nearest = [base for base in bases.values() if all(_contains(root, base, other) for other in bases.values())]
    if not nearest:
        listed = ", ".join(f"{base[:10]} with {name}" for name, base in bases.items())
        raise RevisionError(f"{head.short} has several merge bases: {listed}; --base names one of them")
    if len(set(bases.values())) > 1:
        others = ", ".join(f"{base[:10]} with {name}" for name, base in bases.items() if base != nearest[0])
        say(f"the base is the nearest merge base, {nearest[0][:10]}; an older one is {others}")
    if nearest[0] != head.commit:
        return nearest[0]
    try:
        return find(root, f"{head.commit}~1").commit
    except RevisionError as error:
        raise RevisionError(f"there is no commit before {head.short} here{_shallow_hint(root)}") from error


def _merge_base(root: Path, name: str, ref: str, head: Revision) -> str:
    """The merge base with a branch; empty where nothing is in common.

    Raises:
        RevisionError: The history that is here does not tell.
    """
    try:
        base = git(root, "merge-base", ref, head.commit)
    except GitError as error:
        if error.reason:
            raise RevisionError(str(error)) from error
        base = ""
    if _is_shallow(root):
        path = Path(git(root, "rev-parse", "--git-path", "shallow"))
        cut = set((path if path.is_absolute() else root / path).read_text(encoding="utf-8").split())
        # behind a commit whose parents are missing there may be a nearer one
        between = git(root, "rev-list", ref, head.commit, *([f"^{base}"] if base else [])).split()
        if not base or cut & set(between):
            raise RevisionError(
                f"the clone is shallow: its history ends before the merge base of {head.short} and {name}; "
                f"{_fetch(root)} fetches the rest, --base names another base"
            )
    return base


def _contains(root: Path, commit: str, other: str) -> bool:
    return git(root, "merge-base", commit, other) == other


def is_dirty(root: Path) -> bool:
    """Whether files differ from HEAD, untracked ones included."""
    return bool(changed(root))


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
            try:
                git(root, "worktree", "add", "--detach", "--force", str(place), revision.commit)
            except GitError as error:
                raise RevisionError(str(error)) from error
        yield places
    finally:
        for place in home.iterdir():
            # what git no longer knows is removed below
            with suppress(GitError):
                git(root, "worktree", "remove", "--force", "--force", str(place))
        shutil.rmtree(home, ignore_errors=True)
