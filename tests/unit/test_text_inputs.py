"""What texts can be given as: marked or not, in whatever holds them."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pyarrow as pa
import pytest

import llm_compression
from llm_compression.errors import TextError
from llm_compression.text.text_inputs import Text, list_texts
from tests.series import PandasSeries, PolarsSeries

WORDS: Final = ["a", "b", "a"]
HOLDERS: Final[dict[str, Any]] = {
    "marked": [Text("a"), "b", Text("a")],
    "generator": (word for word in WORDS),
    "dictionary": pa.array(WORDS).dictionary_encode(),
    "view": pa.array(WORDS, pa.string_view()),
    "chunked": pa.chunked_array([pa.array([], pa.string_view()), pa.array(["x", *WORDS], pa.string_view())[1:]]),
    "array": np.array(WORDS),
    "objects": np.array([*WORDS, None], object)[:3],
    "pandas": PandasSeries(WORDS),
    "pandas over Arrow": PandasSeries(pa.array(WORDS)),
    "polars": PolarsSeries(pa.array(WORDS, pa.string_view())),
    "polars of objects": PolarsSeries(WORDS),
}


@pytest.mark.requirement("28.6", "28.9")
@pytest.mark.parametrize("holder", HOLDERS)
def test_a_holder_gives_its_texts(holder: str) -> None:
    """28.6, 28.9: an iterator, an array, a column of any layout and a Series are the list of their texts."""
    assert list_texts(HOLDERS[holder]) == WORDS


@pytest.mark.requirement("28.3")
def test_words_are_marked() -> None:
    """28.3: `Text` is a name of the package, compares by its words, and is no string."""
    assert llm_compression.Text is Text
    assert Text("a cat") == Text("a cat") != Text("a dog")
    assert not isinstance(Text("a cat"), str)
    assert list_texts(Text("a cat")) == ["a cat"]


@pytest.mark.requirement("15.5", "28.9")
@pytest.mark.parametrize(
    ("given", "position", "message"),
    [
        (PandasSeries(["a", None]), 1, "got NoneType"),
        (PolarsSeries(pa.array(["a", None])), 1, "got NoneType"),
        (pa.array(["a", None]).dictionary_encode(), 1, "got NoneType"),
        (pa.array([None]), 0, "got NoneType"),
        ([Text("a"), Text(7)], 1, "got int, expected str"),  # type: ignore[arg-type]  # on purpose
        ({"a", "b"}, None, "no order"),
        (pa.array([b"a"]), None, "of binary, expected"),
        (pa.table({"text": ["a"]}), None, "of a table, one column"),
        (np.zeros(3), None, "an array of float64"),
    ],
)
def test_what_is_no_text(given: Any, position: int | None, message: str) -> None:
    """15.5: what is no text is an error with its position, whatever holds it."""
    with pytest.raises(TextError, match=message) as caught:
        list_texts(given)
    assert caught.value.position == position
