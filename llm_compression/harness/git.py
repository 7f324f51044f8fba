"""The only file that runs git: on the checkout that is named, whatever the environment of a hook says.

It uses what git 2.25 understands, and of the package nothing but its errors.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Final

from llm_compression.errors import LlmCompressionError

# Of GIT_* only the files of settings, which may say that an owner is safe, and what git's own tests force. The rest, as
# git gives it to its hooks, names a repository, an index, a work tree or somebody to commit as.
_KEPT: Final = (
    *("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM", "GIT_CONFIG_NOSYSTEM"),
    *("GIT_CONFIG_COUNT", "GIT_CONFIG_KEY_", "GIT_CONFIG_VALUE_", "GIT_TEST_"),
)
# a repository of the harness's own does nothing of what a user may have set for every repository
_OWN: Final = (
    *(("user.name", "harness"), ("user.email", "harness@localhost"), ("commit.gpgsign", "false")),
    *(("core.autocrlf", "false"), ("core.excludesFile", os.devnull)),
)


class GitError(LlmCompressionError):
    """Git failed, or there is none.

    Attributes:
        reason: What git said, in one line; empty where it said nothing.
        command: Its arguments.
    """

    def __init__(self, reason: str, command: str) -> None:
        self.reason, self.command = reason, command
        super().__init__(f"git {command}: {reason or 'failed without a word'}")


def environment() -> dict[str, str]:
    """The environment of this process, without what would have git look at another repository."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("GIT_") or name.startswith(_KEPT)}
    # reasons in English, and no file of a checkout written in passing
    return {**kept, "LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0"}


def git(root: Path, *arguments: str) -> str:
    """Run git in a checkout, without its hooks, and return what it prints, but for the last line's end.

    Bytes that are no UTF-8 are kept as Python keeps those of file names.

    Raises:
        GitError: It failed, or there is no git.
    """
    command = ["git", "-C", str(root), "-c", f"core.hooksPath={os.devnull}", *arguments]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            env=environment(),
            encoding="utf-8",
            errors="surrogateescape",
        )
    except FileNotFoundError as error:
        raise GitError("not installed", " ".join(arguments)) from error
    except OSError as error:
        raise GitError(f"cannot be run: {error}", " ".join(arguments)) from error
    if done.returncode:
        raise GitError(" ".join(done.stderr.split()), " ".join(arguments))
    return done.stdout.rstrip("\n")


def head(root: Path) -> str:
    """The hash of the commit that is checked out.

    Raises:
        GitError: There is none, with the reason that git gives.
    """
    return git(root, "rev-parse", "--verify", "HEAD")


def changed(root: Path) -> list[str]:
    """Files that differ from the commit, untracked ones included, relative to the top of the work tree.

    Raises:
        GitError: It cannot be told.
    """
    listed = git(root, "status", "--porcelain", "-z", "--no-renames", "--untracked-files=all")
    # two letters and a space stand before each name
    return [entry[3:] for entry in listed.split("\0") if entry]


def files(root: Path) -> list[str]:
    """Files that git does not ignore, relative to `root`.

    Raises:
        GitError: It cannot be told.
    """
    return list(filter(None, git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")))


def init(root: Path) -> None:
    """Make a repository whose branch is ``main``; no setting of the user acts on what is committed there.

    Raises:
        GitError: It cannot be made.
    """
    root.mkdir(parents=True, exist_ok=True)
    git(root, "init", "-q", "--template=")
    # git learnt to name the branch in 2.28
    git(root, "symbolic-ref", "HEAD", "refs/heads/main")
    for name, value in _OWN:
        git(root, "config", name, value)


def commit_all(root: Path, message: str) -> str:
    """Commit every file that git does not ignore, also where none differs, and return the commit's hash.

    Raises:
        GitError: It cannot be committed.
    """
    git(root, "add", "-A")
    git(root, "commit", "-q", "--allow-empty", "--allow-empty-message", "-m", message)
    return head(root)
