"""Texts to token ids: whole words read without a library, everything else by `tokenizers`."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_compression.errors import ConfigError, TextError
from llm_compression.text.text_inputs import list_texts
from llm_compression.text.tokenizer import (
    LibraryTokenizer,
    WordTokenizer,
    load_tokenizer,
    openai_clean,
    write_word_tokenizer,
)
from tests.text_models import VOCABULARY, WORDS


@pytest.fixture(scope="module")
def words_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of `WORDS`."""
    file = tmp_path_factory.mktemp("words") / "tokenizer.json"
    write_word_tokenizer(file, WORDS, "<start>", "<end>")
    return file


@pytest.mark.requirement("15.1", "19.5")
@given(words=st.lists(st.sampled_from(WORDS)), space=st.sampled_from((" ", "  ", "\t", "\n ")), upper=st.booleans())
def test_words_are_read_as_the_library_reads_them(words_file: Path, words: list[str], space: str, upper: bool) -> None:
    """15.1, 19.5: a tokenizer of whole words gives without the library the ids that the library gives."""
    text = space.join(words).upper() if upper else space.join(words)
    ours, theirs = (
        load_tokenizer(words_file, 8, VOCABULARY),
        LibraryTokenizer(words_file, words_file.read_bytes(), 8, VOCABULARY),
    )
    assert isinstance(ours, WordTokenizer)
    assert ours([text, "a"]) == theirs([text, "a"])
    assert ours.num_special == theirs.num_special == 2
    assert len(ours([text])[0]) <= 8


@pytest.mark.requirement("15.5")
@pytest.mark.parametrize("word", ["purple", "<end>", "[UNK]", "猫"])
def test_an_unknown_word_is_an_error_with_its_position(words_file: Path, word: str) -> None:
    """15.5: a text that the tokenizer cannot read is a TextError with its position, never a guess."""
    with pytest.raises(TextError, match=f"text 1: .*{re.escape(word.lower())}") as caught:
        load_tokenizer(words_file, 8, VOCABULARY)(["a cat", f"a {word}"])
    assert caught.value.position == 1


@pytest.mark.requirement("15.5")
def test_the_library_says_which_text_it_cannot_read(words_file: Path) -> None:
    """15.5: the same where the library reads the words."""
    with pytest.raises(TextError, match=r"text 1: the tokenizer cannot read it: .*UNK"):
        LibraryTokenizer(words_file, words_file.read_bytes(), 8, VOCABULARY)(["a cat", "a purple cat"])


@pytest.mark.requirement("15.8")
def test_only_the_recorded_tokenizer_is_taken(words_file: Path) -> None:
    """15.8: IF the tokenizer beside the weights is not the recorded one, THEN a ConfigError says so."""
    with pytest.raises(ConfigError, match=r"sha256 is .*, expected 00"):
        load_tokenizer(words_file, 8, VOCABULARY, "00")
    with pytest.raises(FileNotFoundError, match=r"elsewhere\.json: no such file"):
        load_tokenizer(words_file.with_name("elsewhere.json"), 8, VOCABULARY)


@pytest.mark.requirement("15.8")
def test_a_tokenizer_of_another_model_is_refused(words_file: Path, tmp_path: Path) -> None:
    """15.8: a tokenizer with more tokens than the model has rows, or one that is none, is a ConfigError."""
    with pytest.raises(ConfigError, match="the model has 14"):
        load_tokenizer(words_file, 8, VOCABULARY - 1)
    with pytest.raises(ConfigError, match="15 tokens, the model has 14"):
        LibraryTokenizer(words_file, words_file.read_bytes(), 8, VOCABULARY - 1)
    for content in ("{", "{}", '{"model": "WordLevel'):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(ConfigError, match=r"tokenizer\.json: not"):
            load_tokenizer(tmp_path / "tokenizer.json", 8, VOCABULARY)


@pytest.mark.requirement("15.1")
def test_a_word_tokenizer_with_an_unknown_token_is_the_librarys(words_file: Path, tmp_path: Path) -> None:
    """15.1: whatever a tokenizer of whole words does not do is left to the library."""
    values = json.loads(words_file.read_text())
    values["model"]["unk_token"] = "the"
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json", 8, VOCABULARY)
    assert isinstance(tokenizer, LibraryTokenizer)
    assert tokenizer(["purple"])[0][1] == WORDS.index("the")


@pytest.mark.requirement("15.9")
def test_a_missing_library_is_named_with_its_extra(
    words_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """15.9: IF a library is not installed, THEN the error names the extra; whole words need none."""
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    monkeypatch.setitem(sys.modules, "ftfy", None)
    assert load_tokenizer(words_file, 8, VOCABULARY)(["a cat"])
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ImportError, match=r"llm-compression\[text\]"):
        load_tokenizer(tmp_path / "tokenizer.json", 8, VOCABULARY)
    with pytest.raises(ImportError, match=r"llm-compression\[openai-text\]"):
        openai_clean("a")


@pytest.mark.requirement("15.1")
@pytest.mark.parametrize(
    ("texts", "listed"),
    [
        ("a cat", ["a cat"]),
        (["a", "b"], ["a", "b"]),
        (("a",), ["a"]),
        ([], []),
        (pa.array(["a", "b"]), ["a", "b"]),
        (pa.chunked_array([["a"], ["b"]], pa.large_string()), ["a", "b"]),
        (pa.array([], pa.string()), []),
    ],
)
def test_what_texts_can_be_given_as(texts: object, listed: list[str]) -> None:
    """15.1: WHEN given a str, a list of str or an Arrow array of strings, the empty ones included."""
    assert list_texts(texts) == listed


@pytest.mark.requirement("15.5")
@pytest.mark.parametrize(
    ("texts", "position", "message"),
    [
        (None, None, "got NoneType, expected a str, a list of str or an Arrow array of strings"),
        (b"bytes", None, "got bytes"),
        (7, None, "got int"),
        ({"a": 1}, None, "got dict"),
        (pa.array([1]), None, "got Int64Array"),
        (["a", None], 1, "got NoneType, expected str"),
        (["a", b"b"], 1, "got bytes, expected str"),
        (pa.array(["a", None]), 1, "got NoneType"),
        (["a", "b", "c\ud800d"], 2, "a lone surrogate at character 1"),
    ],
)
def test_what_is_no_text_is_an_error_with_its_position(texts: object, position: int | None, message: str) -> None:
    """15.5: IF a text is no str or holds a lone surrogate, THEN TextError with the position of the text."""
    with pytest.raises(TextError, match=message) as caught:
        list_texts(texts)
    assert caught.value.position == position


@pytest.mark.requirement("17.8")
@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("A  Photo\n of\ta CAT ", "a photo of a cat"),
        ("fish &amp;amp; chips", "fish & chips"),
        ("cafÃ©", "café"),
        ("“quoted”", '"quoted"'),
    ],
)
def test_openai_cleaning(text: str, cleaned: str) -> None:
    """17.8: ftfy, HTML unescaped twice, white space collapsed, lower case, as OpenAI's CLIP does it."""
    assert openai_clean(text) == cleaned
