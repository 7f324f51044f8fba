"""Applies each sabotage to a copy of the project and sees that a test or gate turns red; `nox -s mutants` calls it.

Every check is run on an untouched copy first: a check that fails anyway proves nothing. Exits 1 when a sabotage goes
unseen, cannot be applied any more, or is seen by something else than it names.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from llm_compression.errors import LlmCompressionError
from llm_compression.harness import git
from tests.mutants.sabotages import SABOTAGES, Command, Edit, Sabotage

ROOT: Final = Path(__file__).parents[2]
_TIMEOUT_S: Final = 900


class SabotageError(LlmCompressionError):
    """A sabotage cannot be applied: the text that it changes is not there, or not only once."""


@contextmanager
def copy_of(root: Path) -> Iterator[Path]:
    """A copy of what git does not ignore, committed in a repository of its own, with the seeded models at hand."""
    with TemporaryDirectory() as scratch:
        copy = Path(scratch, "copy")
        for name in git.files(root):
            if (root / name).is_file():
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(root / name, copy / name)
        git.init(copy)
        git.commit_all(copy, "untouched")
        (copy / ".cache" / "models").mkdir(parents=True)
        for model in (root / ".cache" / "models").glob("*"):
            # one by one, so that a sabotage that makes another model removes a link and not the model
            (copy / ".cache" / "models" / model.name).symlink_to(model)
        yield copy


def apply(edits: Sequence[Edit], copy: Path) -> None:
    """Change the copy, and commit that.

    Raises:
        SabotageError: A text is not there exactly once.
    """
    for edit in edits:
        path = copy / edit.file
        if not edit.old:
            path.unlink()
            continue
        text = path.read_text(encoding="utf-8")
        if text.count(edit.old) != 1:
            raise SabotageError(f"{edit.file}: found {text.count(edit.old)} times, expected once: {edit.old!r}")
        path.write_text(text.replace(edit.old, edit.new), encoding="utf-8")
    git.commit_all(copy, "sabotaged")


def run(commands: Sequence[Command], copy: Path) -> tuple[bool, str]:
    """Whether all commands succeed, in the copy, and what they print."""
    output, succeeded = "", True
    for command in commands:
        # bytecode must not be shared: an edit within the clock's resolution would not be seen
        arguments = [sys.executable, "-B", *command]
        try:
            done = subprocess.run(
                arguments, cwd=copy, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S, env=_environment()
            )
        except subprocess.TimeoutExpired:
            return False, f"{output}\nnot done after {_TIMEOUT_S} s: {' '.join(command)}"
        output += done.stdout + done.stderr
        succeeded = succeeded and done.returncode == 0
    return succeeded, output


def missed(sabotage: Sabotage, root: Path) -> str:
    """Why a sabotage counts as unseen; empty where it was seen."""
    with copy_of(root) as copy:
        try:
            apply(sabotage.edits, copy)
        except (SabotageError, FileNotFoundError) as error:
            return f"cannot be applied: {error}"
        succeeded, output = run(sabotage.check, copy)
    if succeeded:
        return "unseen: its check succeeded"
    if not re.search(sabotage.says, output):
        return f"seen by something else than {sabotage.says!r}:\n{output[-3000:]}"
    return ""


def failing(commands: Sequence[Command], root: Path) -> str:
    """What a check prints that fails without any sabotage; empty where it succeeds."""
    with copy_of(root) as copy:
        git.commit_all(copy, "nothing")
        succeeded, output = run(commands, copy)
    return "" if succeeded else output[-3000:]


def _environment() -> dict[str, str]:
    """Nothing that names another repository, as git's hooks do, or a report of the real run."""
    return {name: value for name, value in git.environment().items() if name != "GITHUB_STEP_SUMMARY"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Try every sabotage and list who saw it."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutants.check",
        description="Apply each sabotage to a copy of the project; exits 1 when one goes unseen.",
        epilog='example: python -m tests.mutants.check --only "crop|normalisation"',
    )
    parser.add_argument("--only", default="", metavar="REGEX", help="those whose name matches (default: all)")
    options = parser.parse_args(arguments)
    chosen = [each for each in SABOTAGES if re.search(options.only, each.name)]
    if not chosen:
        parser.error(f"--only {options.only!r}: no sabotage of this name")
    sound: dict[tuple[Command, ...], str] = {}
    problems = []
    for number, sabotage in enumerate(chosen, 1):
        if sabotage.check not in sound:
            sound[sabotage.check] = failing(sabotage.check, ROOT)
        reason = sound[sabotage.check] and f"its check fails without it:\n{sound[sabotage.check]}"
        reason = reason or missed(sabotage, ROOT)
        print(f"{number}/{len(chosen)} {sabotage.name}: {reason or f'seen, {sabotage.says}'}", flush=True)
        problems += [sabotage.name] if reason else []
    print(f"{len(chosen) - len(problems)} of {len(chosen)} sabotages seen")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
