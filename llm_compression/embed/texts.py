"""The texts of rows: their embeddings, and why a row has none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from llm_compression.columns import arrow_values
from llm_compression.embed.reasons import Reason
from llm_compression.errors import TextError
from llm_compression.text.arrow_engine import ArrowEngine

EXPECTED: Final = "texts (string, large_string, string_view, or a dictionary of these)"
# Texts between two signs of life; of like length they share a pass.
_TEXTS: Final = 256


class TextVectors(NamedTuple):
    """The embeddings of texts.

    Attributes:
        embeddings: float32 (n, dimension), zero in rows that have a reason.
        reasons: Why a text has no embedding, by its row.
    """

    embeddings: npt.NDArray[np.float32]
    reasons: Mapping[int, Reason]


def texts_of(column: pa.Array | pa.ChunkedArray) -> list[str | None] | None:
    """The texts of a column, None for a null; None where the column holds no texts."""
    values = arrow_values(column, ("string", "null"))
    return None if values is None else list(values)


def embed_texts(
    texts: Sequence[str | None],
    engine: ArrowEngine,
    normalize: bool,
    batch_size: int,
    crashed: Mapping[int, str],
    on_texts: Callable[[int], None],
) -> TextVectors:
    """Embed the texts of rows; one that cannot be embedded costs its own row.

    Args:
        texts: One for each row, or None.
        engine: What embeds them.
        normalize: Whether each embedding gets unit length.
        batch_size: Texts of one pass.
        crashed: Rows whose texts are not looked at, and why.
        on_texts: Told of texts as they are embedded.
    """
    embeddings = np.zeros((len(texts), engine.dimension), np.float32)
    reasons = {row: Reason("crashed", how) for row, how in crashed.items()}
    for start in range(0, len(texts), _TEXTS):
        stop = min(start + _TEXTS, len(texts))
        ids = dict[int, list[int]]()
        wanted = [row for row in range(start, stop) if row not in crashed]
        for row, found in zip(wanted, _tokens([texts[row] for row in wanted], engine), strict=True):
            if isinstance(found, Reason):
                reasons[row] = found
            else:
                ids[row] = found
        _encode(ids, engine, normalize, batch_size, embeddings, reasons)
        on_texts(stop - start)
    return TextVectors(embeddings, reasons)


def _tokens(texts: Sequence[str | None], engine: ArrowEngine) -> list[list[int] | Reason]:
    """The token ids of each text, or why it has none."""
    try:
        return list[Any](engine.tokenize(texts))
    except TextError:  # of one of them: each by itself
        return [_tokens_of(text, engine) for text in texts]


def _tokens_of(text: str | None, engine: ArrowEngine) -> list[int] | Reason:
    if text is None:
        return Reason("no_text", "a null")
    try:
        return engine.tokenize(text)[0]
    except TextError as error:
        return Reason(_code(text), error.reason)


def _code(text: str) -> str:
    if not text.strip():
        return "empty"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "not_unicode"
    return "not_tokenized"


def _encode(
    ids: Mapping[int, list[int]],
    engine: ArrowEngine,
    normalize: bool,
    batch_size: int,
    embeddings: npt.NDArray[np.float32],
    reasons: dict[int, Reason],
) -> None:
    """Put the embeddings of token ids into their rows."""
    try:
        embeddings[list(ids)] = engine.encoder.encode_ids(ids.values(), normalize, batch_size)
    except TextError:  # of one of them: each by itself, so that the time stays in proportion to the rows
        for row, tokens in ids.items():
            try:
                embeddings[row] = engine.encoder.encode_ids([tokens], normalize, 1)[0]
            except TextError as error:
                reasons[row] = Reason("not_finite", error.reason)
