"""A progress bar on long work, where there is someone to see it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar, cast

Item = TypeVar("Item")


def progress(iterable: Iterable[Item], *, total: int | None, label: str, enabled: bool | None = None) -> Iterable[Item]:
    """The items of ``iterable``, with a tqdm bar on stderr.

    Args:
        iterable: What is worked through.
        total: How many items it has, if that is known.
        label: What stands before the bar.
        enabled: True shows the bar, False does not, None shows it where stderr is a terminal. Without tqdm installed
            there is none.

    Returns:
        The iterable itself where no bar is shown.
    """
    if enabled is False or (enabled is None and not sys.stderr.isatty()):
        return iterable
    try:
        from tqdm import tqdm  # type: ignore[import-untyped]  # tqdm ships no types
    except ImportError:
        return iterable
    return cast("Iterable[Item]", tqdm(iterable, total=total, desc=label, file=sys.stderr))


@contextmanager
def progress_bar(*, total: int, label: str, unit: str, enabled: bool | None) -> Iterator[Callable[[int], None]]:
    """A bar as that of `progress`, for work that is reported: what is yielded takes how much more is done."""
    if enabled is not False and (enabled or sys.stderr.isatty()):
        try:
            from tqdm import tqdm
        except ImportError:
            pass
        else:
            with tqdm(total=total, desc=label, unit=unit, file=sys.stderr) as bar:
                yield bar.update
                return
    yield lambda _: None
