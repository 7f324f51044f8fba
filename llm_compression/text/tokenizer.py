"""Texts to token ids, by the ``tokenizer.json`` that travels with a model.

A tokenizer of whole words is read here, without any library; every other kind needs `tokenizers`, the extra ``text``.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from llm_compression.errors import ConfigError, MissingDependencyError, MissingFileError, TextError
from llm_compression.files import whole_file
from llm_compression.json_text import parsed

TOKENIZER_FILE: Final = "tokenizer.json"
INSTALL: Final = "pip install 'llm-compression[text]'"
INSTALL_FTFY: Final = "pip install 'llm-compression[openai-text]'"


class Tokenizer(Protocol):
    """What turns texts into the ids of their tokens, special ones included, truncated, not padded."""

    num_special: int

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text.

        Raises:
            TextError: A text has something that the tokenizer cannot read; carries its position.
        """
        ...


class WordTokenizer:
    """Words between white space, lower-cased, each a token; a word that is not in the vocabulary is an error.

    Args:
        vocabulary: Id by word.
        before: Ids in front of every text.
        after: Ids at its end.
        max_length: Tokens of a text, special ones included.
    """

    def __init__(
        self, vocabulary: Mapping[str, int], before: Sequence[int], after: Sequence[int], max_length: int
    ) -> None:
        self.vocabulary, self.before, self.after = dict(vocabulary), list(before), list(after)
        self.num_special = len(self.before) + len(self.after)
        self.max_words = max_length - self.num_special

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """As `Tokenizer`."""
        rows = []
        for position, text in enumerate(texts):
            words = text.lower().split()
            if unknown := sorted({word for word in words if word not in self.vocabulary}):
                known = ", ".join(sorted(word for word in self.vocabulary if word.isalpha()))
                raise TextError(f"words that this model does not know: {unknown}; it knows {known}", position=position)
            rows.append([*self.before, *(self.vocabulary[word] for word in words[: self.max_words]), *self.after])
        return rows


class LibraryTokenizer:
    """A tokenizer of the library `tokenizers`, with the model's own length in place of the file's.

    Args:
        path: The ``tokenizer.json``, for messages.
        content: Its bytes.
        max_length: Tokens of a text, special ones included.
        vocab_size: Rows of the model's token embedding.

    Raises:
        MissingDependencyError: The library is not installed.
        ConfigError: It cannot read the file, or the file has more tokens than the model.
    """

    def __init__(self, path: Path, content: bytes, max_length: int, vocab_size: int) -> None:
        try:
            from tokenizers import Tokenizer as FastTokenizer
        except ImportError as error:
            raise MissingDependencyError(f"{path}: reading it needs the tokenizers library: {INSTALL}") from error
        try:
            self._tokenizer = FastTokenizer.from_buffer(content)
        except Exception as error:  # the library raises nothing narrower
            raise ConfigError(f"{path}: not a tokenizer that the tokenizers library can read: {error}") from error
        found = self._tokenizer.get_vocab_size(with_added_tokens=True)
        if found > vocab_size:
            raise ConfigError(f"{path}: {found} tokens, the model has {vocab_size}")
        self._tokenizer.no_padding()
        side = (self._tokenizer.truncation or {}).get("direction", "right")
        self._tokenizer.enable_truncation(max_length, direction=side)
        self.num_special = int(self._tokenizer.num_special_tokens_to_add(False))

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """As `Tokenizer`."""
        try:
            return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts))]
        except Exception:  # the library raises nothing narrower, and does not say for which text
            for position, text in enumerate(texts):
                try:
                    self._tokenizer.encode(text)
                except Exception as error:
                    raise TextError(f"the tokenizer cannot read it: {error}", position=position) from error
            raise


def load_tokenizer(path: Path, max_length: int, vocab_size: int, sha256: str | None = None) -> Tokenizer:
    """Read a ``tokenizer.json``.

    Args:
        path: The file.
        max_length: Tokens of a text, special ones included.
        vocab_size: Rows of the model's token embedding.
        sha256: What the model's weight file recorded of the file; None where it recorded nothing.

    Raises:
        MissingFileError: There is no such file.
        ConfigError: It is not the recorded one, not a tokenizer, or one of another model.
        MissingDependencyError: It needs the library `tokenizers`, which is not installed.
    """
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file, expected the model's tokenizer beside its weights")
    content = path.read_bytes()
    if sha256 is not None and (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise ConfigError(f"{path}: sha256 is {found}, expected {sha256}, the tokenizer that the weights came with")
    if b'"WordLevel"' in content and (words := _word_tokenizer(path, content, max_length, vocab_size)) is not None:
        return words
    return LibraryTokenizer(path, content, max_length, vocab_size)


def _word_tokenizer(path: Path, content: bytes, max_length: int, vocab_size: int) -> WordTokenizer | None:
    """The file as a WordTokenizer, or None where it says something that one does not do."""
    try:
        values = parsed(content)
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON: {error}") from error
    special = {token["content"] for token in values.get("added_tokens") or ()}
    model, template = values.get("model") or {}, values.get("post_processor") or {}
    kinds = [(values.get(key) or {}).get("type") for key in ("normalizer", "pre_tokenizer", "post_processor")]
    vocabulary: dict[str, int] = model.get("vocab", {})
    # a known unk_token, or a special token that may stand inside a text, is for the library
    if model.get("type") != "WordLevel" or kinds != ["Lowercase", "WhitespaceSplit", "TemplateProcessing"]:
        return None
    if model.get("unk_token") in vocabulary or not special <= set(vocabulary):
        return None
    if str((values.get("truncation") or {}).get("direction", "Right")).lower() != "right":
        return None
    if max(vocabulary.values(), default=0) >= vocab_size:
        raise ConfigError(f"{path}: token {max(vocabulary.values())}, the model has {vocab_size}")
    before, after = _around(template)
    words = {word: number for word, number in vocabulary.items() if word not in special}
    return WordTokenizer(words, before, after, max_length)


def _around(template: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    """Ids before and after the text in a template for a single sequence."""
    parts: tuple[list[int], list[int]] = ([], [])
    seen = 0
    for piece in template["single"]:
        if "Sequence" in piece:
            seen = 1
        else:
            parts[seen].extend(template["special_tokens"][piece["SpecialToken"]["id"]]["ids"])
    return parts


def openai_clean(text: str) -> str:
    """What OpenAI's CLIP does to a text before it tokenizes: ftfy, HTML unescaped twice, white space, lower case.

    Raises:
        MissingDependencyError: ftfy is not installed.
    """
    try:
        import ftfy
    except ImportError as error:
        raise MissingDependencyError(f"clean='openai' needs ftfy: {INSTALL_FTFY}") from error
    unescaped = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    return re.sub(r"\s+", " ", unescaped).strip().lower()


CLEANERS: Final[Mapping[str, Callable[[str], str] | None]] = {"none": None, "openai": openai_clean}


def write_word_tokenizer(path: Path, words: Sequence[str], before: str, after: str) -> None:
    """Write the ``tokenizer.json`` of a `WordTokenizer`, which the library `tokenizers` reads as well.

    Args:
        path: The file.
        words: The vocabulary, in the order of its ids, lower case; without the special tokens, which follow it.
        before: Special token in front of every text.
        after: Special token at its end, with the largest id.
    """
    ids = {word: number for number, word in enumerate([*words, before, after])}
    special = [before, after]
    values = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": ids[token],
                "content": token,
                "special": True,
                **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
            }
            for token in special
        ],
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": before, "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": after, "type_id": 0}},
            ],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {token: {"id": token, "ids": [ids[token]], "tokens": [token]} for token in special},
        },
        "decoder": None,
        # an unk_token that is not in the vocabulary: an unknown word is an error, for the library too
        "model": {"type": "WordLevel", "vocab": ids, "unk_token": "[UNK]"},
    }
    with whole_file(path) as partial:
        partial.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
