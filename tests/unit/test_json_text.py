"""JSON that says one thing."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_compression.json_text import parsed

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@given(VALUES)
def test_any_value_is_read_as_python_reads_it(value: object) -> None:
    assert parsed(json.dumps(value)) == value
    assert parsed(json.dumps(value).encode()) == value


@given(st.text(max_size=5), VALUES, VALUES, st.integers(0, 3))
def test_a_key_that_stands_twice_is_refused_at_any_depth(key: str, first: object, second: object, depth: int) -> None:
    name = json.dumps(key)
    text = f"{{{name}: {json.dumps(first)}, {name}: {json.dumps(second)}}}"
    for _ in range(depth):
        text = f'[{{"outer": {text}}}]'
    with pytest.raises(ValueError, match="stands there twice, expected once") as found:
        parsed(text)
    assert repr(key) in str(found.value)


@pytest.mark.parametrize("text", ["", "{", "nan", "[" * 100_000, b"\xff\xff"])
def test_what_is_no_json_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"Expecting|nested too deep|codec can't decode"):
        parsed(text)


def test_a_large_object_is_looked_through_once() -> None:
    """A vocabulary has hundreds of thousands of keys: for each key a look at all others would not end."""
    keys = ", ".join(f'"{number}": {number}' for number in [*range(300_000), 299_999])
    with pytest.raises(ValueError, match="key '299999' stands there twice"):
        parsed(f"{{{keys}}}")
