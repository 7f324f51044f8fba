"""200 sentences of mixed length, language and script, for the parity of sentence encoders.

``sentences.txt`` holds short ones, an empty line, and long ones; most of the 200 are several of them in a row.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Final

_SHORT, _LONG = (
    part.splitlines() for part in Path(__file__).with_suffix(".txt").read_text(encoding="utf-8").split("\n\n")
)


def _sentences() -> tuple[str, ...]:
    rng = random.Random(0)
    sentences = list(_SHORT)
    while len(sentences) < 200:
        # some go past 128 and 256 tokens
        count = rng.choice((1, 1, 1, 1, 1, 2, 2, 2, 3, 3, 4, 9, 14))
        sentences.append(" ".join(rng.choice(_SHORT if rng.random() < 0.4 else _LONG) for _ in range(count)))
    return tuple(sentences)


SENTENCES: Final = _sentences()
