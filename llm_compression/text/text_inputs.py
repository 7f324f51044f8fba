"""What a text can be given as: one, several in any order that Python, Arrow, pandas or polars keeps, marked or not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import pyarrow as pa

from llm_compression.columns import arrow_values, series_values
from llm_compression.errors import TextError


@dataclass(frozen=True, slots=True)
class Text:
    """Words, where a ``str`` would be the path of an image: ``CLIPEngine.encode(["cat.jpg", Text("a cat")])``.

    Attributes:
        text: The words.
    """

    text: str


Texts: TypeAlias = str | Text | Iterable[str | Text] | pa.Array | pa.ChunkedArray

_EXPECTED: Final = "a str, a list of str or an Arrow array of strings"


def list_texts(texts: object) -> list[str]:
    """One text, an iterable of texts or an Arrow array of strings, as a list of texts that a tokenizer can take.

    Raises:
        TextError: This is none of these, or one of them is not a text; carries its position.
    """
    listed: list[str] = []
    for position, given in enumerate(_texts_of(texts)):
        text = given.text if isinstance(given, Text) else given
        if not isinstance(text, str):
            raise TextError(f"got {type(text).__name__}, expected str", position=position)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            reason = f"a lone surrogate at character {error.start}, expected valid Unicode"
            raise TextError(reason, position=position) from error
        listed.append(text)
    return listed


def _texts_of(texts: object) -> Iterable[Any]:
    if isinstance(texts, str | Text):
        return [texts]
    if isinstance(texts, pa.Array | pa.ChunkedArray):
        return _strings(texts)
    if isinstance(texts, np.ndarray):
        if texts.ndim == 1 and texts.dtype.kind in "OUT":
            return list(texts.tolist())
        raise TextError(f"an array of {texts.dtype} with shape {texts.shape}, expected {_EXPECTED}")
    if (series := series_values(texts)) is not None:
        return _strings(series) if isinstance(series, pa.Array | pa.ChunkedArray) else series
    if isinstance(texts, AbstractSet):
        raise TextError(f"got {type(texts).__name__}, which has no order, expected {_EXPECTED}")
    if hasattr(type(texts), "columns") or hasattr(type(texts), "column_names"):
        raise TextError(f"got {type(texts).__name__}, expected {_EXPECTED}; of a table, one column")
    no_texts = isinstance(texts, bytes | bytearray | memoryview | Mapping) or hasattr(texts, "read")
    if no_texts or not isinstance(texts, Iterable):
        raise TextError(f"got {type(texts).__name__}, expected {_EXPECTED}")
    return texts


def _strings(array: pa.Array | pa.ChunkedArray) -> Iterable[Any]:
    values = arrow_values(array, ("string", "null"))
    if values is None:
        raise TextError(f"got {type(array).__name__} of {array.type}, expected {_EXPECTED}")
    return values
