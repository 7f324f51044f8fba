"""Writes that are whole or not there: a name stands for what was there before, or for all that was written."""

from __future__ import annotations

import os
import platform
import re
import secrets
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

# A file system's names have up to 255 bytes; a partial file's own part takes 50 at most.
_NAME_BYTES: Final = 200
_PARTIAL: Final = re.compile(r"\..*\.(\d+)\.([0-9a-f]{8})[0-9a-f]{8}\.partial")


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """An empty file beside ``path`` to write to, which takes its name once the block has ended.

    What was written is on the disk before it has the name. If the block fails, or is interrupted, ``path`` is as it was
    and nothing lies beside it; a killed process leaves a hidden ``.partial`` there and ``path`` as it was. A new file
    has the permissions of any new file, one that replaces another has that one's; a link is replaced, not what it
    points to. The directory is made if there is none.

    Raises:
        OSError: The directory takes no file; said before the block, by the name of ``path``.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = _beside(target)
    try:
        partial.touch(exist_ok=False)
    except OSError as error:
        error.filename = os.fspath(path)
        raise
    try:
        yield partial
        with partial.open("rb+") as written:
            os.fsync(written.fileno())
        if target.exists():
            shutil.copymode(target, partial)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_directory(path: str | os.PathLike[str]) -> Iterator[Path]:
    """An empty directory beside ``path`` to fill, which takes its name once the block has ended.

    As `whole_file`, for what can be made again: it is not waited for until the disk has it. Where another process made
    ``path`` in the meantime, that one stays.
    """
    target = Path(path)
    partial = _beside(target)
    try:
        partial.mkdir(parents=True)
        yield partial
        try:
            partial.replace(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def put_aside(path: Path) -> Iterator[None]:
    """Take a file away: it comes back if the block fails, and is gone once the block has ended."""
    aside = _beside(path)
    path.replace(aside)
    try:
        yield
    except BaseException:
        aside.replace(path)
        raise
    aside.unlink()


def _beside(target: Path) -> Path:
    name = target.name
    while len(os.fsencode(name)) > _NAME_BYTES:
        name = name[:-1]
    return target.with_name(f".{name}.{os.getpid()}.{machine()}{secrets.token_hex(4)}.partial")


def machine() -> str:
    """Eight digits by which a process of this machine is told from one of another with the same number."""
    return f"{zlib.crc32(platform.node().encode()):08x}"


def sweep(directory: Path) -> None:
    """Delete what killed processes of this machine have left of files that were to be whole."""
    for path in directory.glob(".*.partial"):
        found = _PARTIAL.fullmatch(path.name)
        if found is not None and found[2] == machine() and not _lives(int(found[1])):
            path.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
