"""The progress bar: shown where asked or where there is a terminal, and never in the way."""

from __future__ import annotations

import os
import pty
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

import pytest

from llm_compression.progress import progress


@contextmanager
def terminal_as_stderr() -> Iterator[int]:
    """stderr on a pseudo-terminal; yields the end that reads what was written."""
    reading, writing = pty.openpty()
    # a new one has no columns, and nothing fits into them
    termios.tcsetwinsize(writing, (24, 80))
    os.set_blocking(reading, False)
    with os.fdopen(writing, "w") as stream, redirect_stderr(stream):
        yield reading
    os.close(reading)


def test_without_a_terminal_the_iterable_itself_comes_back(capsys: pytest.CaptureFixture[str]) -> None:
    """Where stderr is no terminal nothing is wrapped and nothing is written."""
    items = [1, 2, 3]
    assert progress(items, total=3, label="converting") is items
    assert capsys.readouterr().err == ""


def test_enabled_shows_a_bar_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    """``enabled=True`` shows the bar, with its label and total, on stderr; the items are the same."""
    assert list(progress([1, 2, 3], total=3, label="converting tiny", enabled=True)) == [1, 2, 3]
    written = capsys.readouterr()
    assert "converting tiny" in written.err
    assert "3/3" in written.err
    assert written.out == ""


@pytest.mark.requirement("10.2")
def test_a_terminal_gets_a_bar() -> None:
    """Where stderr is a terminal the bar is shown unasked."""
    with terminal_as_stderr() as terminal:
        assert list(progress([1, 2], total=2, label="converting", enabled=None)) == [1, 2]
        sys.stderr.flush()
        assert b"converting" in os.read(terminal, 4096)


def test_disabled_shows_none_even_on_a_terminal() -> None:
    """``enabled=False`` gives the iterable itself, on a terminal too."""
    items = [1, 2]
    with terminal_as_stderr():
        assert progress(items, total=2, label="converting", enabled=False) is items


def test_without_tqdm_there_is_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """tqdm is optional: without it the iterable itself comes back, whatever is asked."""
    monkeypatch.setitem(sys.modules, "tqdm", None)
    items = [1, 2]
    assert progress(items, total=2, label="converting", enabled=True) is items
