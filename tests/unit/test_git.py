"""The one file that runs git: on the right repository in any environment, with what git 2.25 understands."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from llm_compression.harness.clip.report import commit_of
from llm_compression.harness.git import GitError, changed, commit_all, environment, files, git, head, init
from llm_compression.harness.paired.worktrees import RevisionError, checked_out, default_base, find
from llm_compression.harness.spec.evidence import source_of
from tests.mutants.check import copy_of

ROOT: Final = Path(__file__).parents[2]
RUNS_GIT: Final = "llm_compression/harness/git.py"
# Every subcommand and option that the project uses, and since when git has it, by its release notes and history; empty
# for what is older than 2.0.
SINCE: Final = {
    "add": {"-A": ""},
    "branch": {"-q": "", "-m": ""},
    "checkout": {"-q": "", "-b": "", "--detach": ""},
    "clone": {"-q": "", "--branch": ""},
    "commit": {"-q": "", "-m": "", "--allow-empty": "", "--allow-empty-message": "", "--amend": ""},
    "config": {},
    "fetch": {"-q": "", "--depth": ""},
    "for-each-ref": {"--format": ""},
    "init": {"-q": "", "--template": ""},
    "log": {"-1": "", "--no-show-signature": "2.10", "--encoding": "", "--format": ""},
    "ls-files": {"-z": "", "--cached": "", "--others": "", "--exclude-standard": ""},
    "merge": {"-q": "", "-s": "", "-m": ""},
    "merge-base": {},
    "remote": {"-d": ""},
    "rev-list": {},
    "rev-parse": {
        "--verify": "",
        "--quiet": "",
        "--git-path": "2.5",
        "--is-shallow-repository": "2.15",
        "--local-env-vars": "",
    },
    "stash": {},
    "status": {"--porcelain": "", "-z": "", "--no-renames": "2.18", "--untracked-files": ""},
    "switch": {"-q": "2.23", "-c": "2.23"},
    "symbolic-ref": {},
    "update-ref": {"-d": ""},
    "worktree": {"--detach": "2.5", "--force": "2.5", "-b": "2.5"},
}


def sources() -> Iterator[tuple[str, ast.Module]]:
    """The project's own Python files, parsed."""
    for name in files(ROOT):
        if name.endswith(".py") and (ROOT / name).is_file():
            yield name, ast.parse((ROOT / name).read_text(encoding="utf-8"))


def calls() -> Iterator[tuple[str, list[str]]]:
    """Every call of `git`: where, and the texts among its arguments, without ``-c NAME=VALUE``."""
    for name, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {"git", "git.git"}:
                found = [each for given in node.args[1:] for each in ast.walk(given) if isinstance(each, ast.Constant)]
                texts = [str(each.value) for each in found]
                while texts[:1] == ["-c"]:
                    texts = texts[2:]
                if texts:
                    yield f"{name}:{node.lineno}", texts


@pytest.mark.requirement("25.11")
def test_git_is_run_in_one_file() -> None:
    """25.11: THE Harness SHALL run git in one file."""
    for name, tree in sources():
        commands = [node for node in ast.walk(tree) if isinstance(node, ast.List | ast.Tuple) and node.elts]
        first = [command.elts[0] for command in commands]
        runs = any(isinstance(each, ast.Constant) and each.value == "git" for each in first)
        assert runs is (name == RUNS_GIT), name


@pytest.mark.requirement("25.11")
def test_only_what_git_2_25_has_is_used() -> None:
    """25.11: ... with subcommands and options that git 2.25 has: each one used is in the table, with its version."""
    used = set()
    for where, (command, *arguments) in calls():
        assert command in SINCE, f"{where}: git {command}"
        used.add(command)
        for option in (each.partition("=")[0] for each in arguments if each.startswith("-")):
            assert option in SINCE[command], f"{where}: git {command} {option}"
            version = tuple(map(int, filter(None, SINCE[command][option].split("."))))
            assert version <= (2, 25), f"{where}: git {command} {option} is of {SINCE[command][option]}"
    assert used == set(SINCE)


def repository(place: Path) -> Path:
    """A repository with two commits on main."""
    path = place / "checkout"
    init(path)
    for text in ("one", "two"):
        (path / "llm_compression").mkdir(exist_ok=True)
        (path / "llm_compression" / "__init__.py").write_text(text, encoding="utf-8")
        commit_all(path, text)
    return path


def developers(place: Path) -> Path:
    """A developer's repository: what a hook's environment names."""
    path = place / "other"
    init(path)
    (path / "work.py").write_text("work = 1\n", encoding="utf-8")
    commit_all(path, "work")
    (path / "work.py").write_text("work = 2\n", encoding="utf-8")
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return repository(tmp_path)


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return developers(tmp_path)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, tuple[object, ...]]:
    """A checkout, a developer's repository, and what is said of the first in an environment of no hook."""
    place = tmp_path_factory.mktemp("undisturbed")
    root, other = repository(place), developers(place)
    return root, other, answers(root, place / "own")


# {} is the other repository
REDIRECTIONS: Final = {
    "GIT_DIR": "{}/.git",
    "GIT_WORK_TREE": "{}",
    "GIT_INDEX_FILE": "{}/.git/index",
    "GIT_COMMON_DIR": "{}/.git",
    "GIT_OBJECT_DIRECTORY": "{}/.git/objects",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES": "{}/.git/objects",
    "GIT_NAMESPACE": "work",
    "GIT_PREFIX": "llm_compression/",
    "GIT_SHALLOW_FILE": "{}/.git/HEAD",
    "GIT_GRAFT_FILE": "{}/.git/HEAD",
    "GIT_CONFIG": "{}/.git/config",
    "GIT_CONFIG_PARAMETERS": "'user.name=nobody' 'core.logAllRefUpdates=x'",
    "GIT_CEILING_DIRECTORIES": "{}/..",
    "GIT_TEMPLATE_DIR": "{}",
    "GIT_EXEC_PATH": "{}",
    "GIT_LITERAL_PATHSPECS": "x",
    "GIT_DEFAULT_HASH": "sha256",
    "GIT_AUTHOR_DATE": "no date",
    "GIT_COMMITTER_NAME": "",
    "GIT_TRACE": "1",
    "GIT_EXTERNAL_DIFF": "false",
    "GIT_QUARANTINE_PATH": "{}/.git/objects",
}
COMBINED: Final = (
    *((name,) for name in REDIRECTIONS),
    ("GIT_DIR", "GIT_WORK_TREE"),
    ("GIT_DIR", "GIT_INDEX_FILE"),
    ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX"),
    tuple(REDIRECTIONS),
)


def answers(root: Path, scratch: Path) -> tuple[object, ...]:
    """What the harness says of a checkout, and does in repositories of its own."""
    source, here = source_of(root), find(root, "HEAD")
    with checked_out(root, here) as (place,):
        text = (place / "llm_compression" / "__init__.py").read_text(encoding="utf-8")
    with copy_of(root) as copy:
        log = git(copy, "log", "--format=%an %s")
    init(scratch)
    (scratch / "new.py").write_text("", encoding="utf-8")
    commit_all(scratch, "new")
    named = git(scratch, "log", "--format=%an %s")
    said = (source, source.commit, source.dirty, source.reason, here, default_base(root, here), commit_of(root))
    return (*said, text, log, named, files(scratch), changed(root))


def contents(root: Path) -> dict[str, bytes]:
    """Every file below a directory, git's own among them."""
    return {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.requirement("25.10")
@pytest.mark.parametrize("names", COMBINED, ids="+".join)
def test_a_hooks_environment_redirects_nothing(
    undisturbed: tuple[Path, Path, tuple[object, ...]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    names: tuple[str, ...],
) -> None:
    """25.10: THE Harness SHALL run git without the variables that a hook is given, so that no other repository than
    the one that is named is read or written."""
    root, other, expected = undisturbed
    before = contents(other)
    for name in names:
        monkeypatch.setenv(name, REDIRECTIONS[name].format(other))
    assert answers(root, tmp_path / "own") == expected
    assert contents(other) == before


@pytest.mark.requirement("25.10")
def test_whatever_git_calls_local_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """25.10: ... also a variable of a later git, which lists those that belong to one repository."""
    local = set(git(ROOT, "rev-parse", "--local-env-vars").split())
    assert {"GIT_DIR", "GIT_INDEX_FILE"} < local
    for name in local | set(REDIRECTIONS):
        monkeypatch.setenv(name, "x")
    # settings that a user gives name no repository, and may be what makes git work here
    assert {name for name in environment() if name in local | set(REDIRECTIONS)} <= {"GIT_CONFIG_COUNT"}


HOOK = """\
import os, sys
from pathlib import Path
from llm_compression.harness.spec.evidence import source_of
from llm_compression.harness.git import commit_all, init

scratch = Path(sys.argv[1])
init(scratch / "own")
(scratch / "own" / "new.py").write_text("")
(scratch / "said").write_text(f"{commit_all(scratch / 'own', 'new')} {source_of(Path(sys.argv[2])).commit}")
(scratch / "given").write_text(" ".join(name for name in os.environ if name.startswith("GIT_")))
"""


@pytest.mark.requirement("25.10")
def test_a_hook_in_a_linked_worktree_commits_nothing_of_its_own(root: Path, other: Path, tmp_path: Path) -> None:
    """25.10: where git itself gives its hook a repository and an index, the branch gets its own commit alone."""
    linked, hooks, scratch = tmp_path / "linked", tmp_path / "hooks", tmp_path / "scratch"
    git(other, "worktree", "add", "-b", "topic", str(linked))
    hooks.mkdir()
    scratch.mkdir()
    (scratch / "hook.py").write_text(HOOK, encoding="utf-8")
    command = f'PYTHONPATH="{ROOT}" exec "{sys.executable}" "{scratch}/hook.py" "{scratch}" "{root}"'
    (hooks / "pre-commit").write_text(f"#!/bin/sh\n{command}\n", encoding="utf-8")
    (hooks / "pre-commit").chmod(0o755)
    (linked / "note.txt").write_text("a note", encoding="utf-8")
    git(linked, "add", "-A")
    git(linked, "-c", f"core.hooksPath={hooks}", "commit", "-q", "-m", "a note")
    assert {"GIT_DIR", "GIT_INDEX_FILE"} <= set((scratch / "given").read_text(encoding="utf-8").split())
    assert git(linked, "log", "--format=%s").split("\n") == ["a note", "work"]
    own, seen = (scratch / "said").read_text(encoding="utf-8").split()
    assert (own, seen) == (head(scratch / "own"), head(root))


SETTINGS = """\
[core]
    hooksPath = {0}
    excludesFile = {0}/ignored
    quotePath = true
[commit]
    gpgsign = true
[gpg]
    program = false
[init]
    templateDir = {0}
    defaultBranch = trunk
[status]
    showUntrackedFiles = no
    relativePaths = true
[color]
    ui = always
[log]
    showSignature = true
    decorate = full
[user]
    useConfigOnly = true
"""


@pytest.mark.requirement("25.10")
def test_a_users_settings_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """25.10: ... of a repository of the harness's own, no hook, signature, template or list of ignored files acts."""
    place = tmp_path / "settings"
    (place / "hooks").mkdir(parents=True)
    for hook in (place / "pre-commit", place / "post-checkout", place / "hooks" / "pre-commit"):
        hook.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
        hook.chmod(0o755)
    (place / "ignored").write_text("*.py\n", encoding="utf-8")
    (place / ".gitconfig").write_text(SETTINGS.format(place), encoding="utf-8")
    # a git before 2.32 knows the first alone
    monkeypatch.setenv("HOME", str(place))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(place / ".gitconfig"))
    root, names = tmp_path / "own", ["a name.py", "\u00e4.py", 'a"quote\n.py']
    init(root)
    for name in names:
        (root / name).write_text("", encoding="utf-8")
    assert sorted(changed(root)) == sorted(files(root)) == sorted(names)
    commit_all(root, "first")
    commit_all(root, "second")
    assert changed(root) == []
    assert (find(root, "HEAD").subject, find(root, "main").subject) == ("second", "second")
    assert default_base(root, find(root, "HEAD")) == find(root, "HEAD~1").commit
    with checked_out(root, find(root, "HEAD")) as (place,):
        assert (place / names[0]).is_file()


def without_git(_root: Path, patch: pytest.MonkeyPatch) -> str:
    """No git is installed."""
    patch.setenv("PATH", "")
    return "not installed"


def with_another_owner(root: Path, patch: pytest.MonkeyPatch) -> str:
    """The checkout belongs to somebody else; where git knows no owners yet, it refuses the settings."""
    patch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    patch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    try:
        head(root)
    except GitError:
        return r"dubious ownership.*safe\.directory"
    return with_broken_settings(root, patch)


def with_broken_settings(root: Path, _patch: pytest.MonkeyPatch) -> str:
    """A file of settings that git cannot read."""
    with (root / ".git" / "config").open("a", encoding="utf-8") as file:
        file.write("[\n")
    return "bad config line"


@pytest.mark.requirement("25.9")
@pytest.mark.parametrize("how", [without_git, with_another_owner, with_broken_settings])
def test_the_reason_why_git_knows_nothing_is_kept(
    root: Path, monkeypatch: pytest.MonkeyPatch, how: Callable[[Path, pytest.MonkeyPatch], str]
) -> None:
    """25.9: IF git gives no commit of a checkout, THEN THE Harness SHALL show the reason that git gives, and hold the
    tree for the same."""
    before = source_of(root)
    reason = how(root, monkeypatch)
    after = source_of(root)
    assert (after.tree, after.commit, after.dirty) == (before.tree, "", False)
    assert before == after
    for text in (after.reason, commit_of(root)):
        assert len(text.splitlines()) == 1
    with pytest.raises(GitError, match=reason):
        head(root)
    with pytest.raises(RevisionError, match=reason):
        find(root, "HEAD")
    assert head_reason(root) in commit_of(root)


def head_reason(root: Path) -> str:
    """What git says."""
    with pytest.raises(GitError) as caught:
        head(root)
    return caught.value.reason


@pytest.mark.requirement("25.10")
def test_the_commands_of_ci_are_not_redirected(root: Path, other: Path) -> None:
    """25.10: ... `.ci/run`, as a hook before a push would run it, asks the checkout that it belongs to."""
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    (line,) = [line for line in script.splitlines() if "--local-env-vars" in line]
    assert script.index(line) < script.index("python3.11")
    given = {**os.environ, "GIT_DIR": str(other / ".git"), "GIT_WORK_TREE": str(other)}
    told = subprocess.run(
        ["/bin/bash", "-euo", "pipefail", "-c", f"{line}\ngit rev-parse HEAD"],
        cwd=root,
        env=given,
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.strip() == head(root)
