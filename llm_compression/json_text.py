"""JSON that says one thing: what other readers would take differently is refused."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any


def parsed(text: str | bytes) -> Any:
    """The value that a JSON text holds.

    Args:
        text: The text; bytes in UTF-8.

    Raises:
        ValueError: It is no JSON, is nested deeper than Python reads, or an object has a key twice, of which one reader
            takes the first and another the last.
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError as error:
        raise ValueError(f"nested too deep: {error}") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"key {twice!r} stands there twice, expected once")
    return found
