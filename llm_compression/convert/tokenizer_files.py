"""The tokenizer of a checkpoint, as one ``tokenizer.json`` that gives the ids its own library gives.

transformers reads several files: it takes the vocabulary from ``tokenizer.json`` and builds the rest from the class and
from ``tokenizer_config.json``. What these say is applied here, or refused by its name where transformers 4 and 5 would
read it differently.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from llm_compression.convert import config_keys, tokenizer_parts
from llm_compression.convert.tensor_files import read_json, read_text
from llm_compression.convert.tokenizer_parts import Kind
from llm_compression.errors import CheckpointError, ConfigError, TextError
from llm_compression.text.text_config import TextConfig
from llm_compression.text.tokenizer import TOKENIZER_FILE, load_tokenizer

_CONFIG_FILE: Final = "tokenizer_config.json"
_MAP_FILE: Final = "special_tokens_map.json"
_ADDED_FILE: Final = "added_tokens.json"
# Classes that take a tokenizer.json as it stands.
_GENERIC: Final = ("PreTrainedTokenizer", "TokenizersBackend")
# In the order in which transformers adds those that a vocabulary lacks.
_NAMED: Final = tuple(f"{one}_token" for one in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
_LISTS: Final = ("extra_special_tokens", "additional_special_tokens")
_BERT_OPTIONS: Final[Mapping[str, str]] = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}
_FLAGS: Final = ("single_word", "lstrip", "rstrip", "normalized")
_WAY_OUT: Final = (
    f'; to take {TOKENIZER_FILE} as it stands, set "tokenizer_class": "PreTrainedTokenizerFast" in {_CONFIG_FILE}'
)


@dataclass(frozen=True)
class TokenizerSource:
    """The tokenizer of a checkpoint.

    Attributes:
        content: The ``tokenizer.json`` that gives its ids: the source's own bytes where nothing else changes them.
        origin: The files that it comes from.
        around: Ids in front of a text and behind it; None where that is not known.
        largest: The largest id of its vocabulary.
        warnings: What a user should know of it.
    """

    content: bytes
    origin: str
    around: tuple[list[int], list[int]] | None
    largest: int
    warnings: tuple[str, ...] = ()


def read_tokenizer(directory: Path, kind: Kind, model_class: str | None) -> TokenizerSource | None:
    """Read the tokenizer beside a checkpoint; None where there is none.

    Args:
        directory: Where the transformer is.
        kind: Of which family it is.
        model_class: The ``tokenizer_class`` of its ``config.json``.

    Raises:
        CheckpointError: A file is damaged, or says what cannot be applied.
    """
    config = _optional(directory / _CONFIG_FILE)
    file = directory / TOKENIZER_FILE
    if file.is_file():
        values, origin = read_json(file), TOKENIZER_FILE
    elif (found := _from_vocabulary(directory, kind)) is not None:
        values, origin = found
    else:
        return None
    return _Reader(directory, kind, config, values, origin).read(model_class)


def check_tokenizer(source: TokenizerSource, config: TextConfig, where: Path) -> tuple[str, ...]:
    """Load the tokenizer as the engine will, and hold its tokens against the model's; warnings where it cannot be.

    Raises:
        CheckpointError: The library cannot read it, it has more tokens than the model, or its end token is another.
    """
    if source.largest >= config.vocab_size:
        raise CheckpointError(
            f"{where}: token {source.largest}, the model has {config.vocab_size}: one of another model"
        )
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, TOKENIZER_FILE)
        file.write_bytes(source.content)
        try:
            special = load_tokenizer(file, config.max_length, config.vocab_size)([""])[0]
        except ImportError as error:
            return (f"{where}: not tried, since the tokenizers library is not installed: {error}",)
        except (ConfigError, TextError) as error:
            raise CheckpointError(f"{where}: {str(error).removeprefix(f'{file}: ')}") from error
    if config.eos_token_id is not None and config.eos_token_id not in special:
        raise CheckpointError(
            f"{where}: puts {special} around a text, expected the model's end token {config.eos_token_id} among them"
        )
    return ()


class _Reader:
    """One reading of the files in a directory."""

    def __init__(
        self, directory: Path, kind: Kind, config: dict[str, Any], values: dict[str, Any], origin: str
    ) -> None:
        self.directory, self.kind, self.config, self.values, self.origin = directory, kind, config, values, origin
        self.file = directory / origin.split(" ")[0]
        self.changed = origin != TOKENIZER_FILE
        self.warnings: list[str] = []
        model = values.get("model")
        vocabulary = model.get("vocab") if isinstance(model, dict) else None
        if not isinstance(model, dict) or not isinstance(vocabulary, dict | list) or not vocabulary:
            raise CheckpointError(f"{self.file}: no model with a vocabulary, expected a {TOKENIZER_FILE} of tokenizers")
        self.model = model
        # older files leave the type out
        self.type = model.get("type") or ("BPE" if "merges" in model else "WordPiece")
        if isinstance(vocabulary, list):
            vocabulary = {str(entry[0]): number for number, entry in enumerate(vocabulary)}
        if not all(isinstance(number, int) and number >= 0 for number in vocabulary.values()):
            raise CheckpointError(f"{self.file}: a vocabulary of other things than ids")
        self.vocabulary: dict[str, int] = vocabulary
        added = values.get("added_tokens") or []
        if not isinstance(added, list) or not all(
            isinstance(one, dict) and {"id", "content"} <= set(one) for one in added
        ):
            raise CheckpointError(f"{self.file}: added_tokens: expected a list of tokens with id and content")
        self.added: dict[str, dict[str, Any]] = {str(token["content"]): dict(token) for token in added}

    def read(self, model_class: str | None) -> TokenizerSource:
        where, own = self.directory / _CONFIG_FILE, tokenizer_parts.CLASSES[self.kind]
        read = {*_NAMED, *_LISTS, *_BERT_OPTIONS, "truncation_side", "added_tokens_decoder"}
        read |= {key for key, value in self.config.items() if key.endswith("_token") and isinstance(value, str | dict)}
        config_keys.refuse_unknown(where, self.config, read, config_keys.TOKENIZER, config_keys.TOKENIZER_SUPPORTED)
        stated = self.config.get("tokenizer_class") or model_class
        name = str(stated or own).removesuffix("Fast")
        if name not in (own, *_GENERIC):
            raise CheckpointError(f"{where}: tokenizer_class: {stated!r}, expected {own} or {', '.join(_GENERIC)}")
        if self.origin != TOKENIZER_FILE and name != own:
            raise CheckpointError(f"{where}: tokenizer_class: {stated!r}, which needs a {TOKENIZER_FILE}")
        is_own = name == own
        if is_own and stated is None and self.type == "WordLevel":
            # whole words, which no class of transformers writes: the file is all that there is
            self._check_words()
            is_own = False
        tokens = self._named_tokens(is_own)
        self._take_decoder(is_own)
        self._take_tokens(tokens)
        if is_own:
            self._take_pipeline(tokens)
        self._take_truncation()
        around = self._around()
        largest = max([*self.vocabulary.values(), *(int(token["id"]) for token in self.added.values())])
        content = self._content()
        return TokenizerSource(content, self.origin, around, largest, tuple(self.warnings))

    def _content(self) -> bytes:
        if not self.changed:
            return self.file.read_bytes()
        self.values["added_tokens"] = sorted(self.added.values(), key=lambda token: int(token["id"]))
        return (json.dumps(self.values, ensure_ascii=False) + "\n").encode()

    def _around(self) -> tuple[list[int], list[int]] | None:
        try:
            return tokenizer_parts.tokens_around(self.values.get("post_processor"))
        except (KeyError, TypeError, IndexError) as error:
            raise CheckpointError(f"{self.file}: post_processor: not one of tokenizers: {error!r}") from error

    def _named_tokens(self, is_own: bool) -> dict[str, Any]:
        """Each named special token, as a text or with its flags; the map of an older save wins, as in transformers."""
        file = self.directory / _MAP_FILE
        mapped = _optional(file)
        config_keys.refuse_unknown(file, mapped, {key for key in mapped if key.endswith("_token")} | {*_LISTS}, ())
        tokens: dict[str, Any] = dict(tokenizer_parts.DEFAULT_TOKENS[self.kind]) if is_own else {}
        for key in (*self.config, *mapped):
            if not key.endswith("_token") or key in ("add_bos_token", "add_eos_token"):
                continue
            one, other = self.config.get(key), mapped.get(key)
            if one is not None and other is not None and _text(one) != _text(other):
                raise CheckpointError(
                    f"{file}: {key}: {_text(other)!r}, {_CONFIG_FILE} says {_text(one)!r}: expected one of them"
                )
            if one is not None or other is not None:
                tokens[key] = other if one is None else one
            else:
                tokens.pop(key, None)
        for key in _LISTS:
            for where, values in ((_CONFIG_FILE, self.config.get(key)), (_MAP_FILE, mapped.get(key))):
                listed = list(values.values()) if isinstance(values, dict) else values or []
                if not isinstance(listed, list):
                    raise CheckpointError(f"{self.directory / where}: {key}: {values!r}, expected a list of tokens")
                tokens |= {f"{key} {_text(token)}": token for token in listed}
        return tokens

    def _take_decoder(self, is_own: bool) -> None:
        """Hold ``added_tokens_decoder`` and ``added_tokens.json`` against the tokens of the file."""
        decoder = self.config.get("added_tokens_decoder")
        for token, number in _optional(self.directory / _ADDED_FILE).items():
            found = self.added[token]["id"] if token in self.added else self.vocabulary.get(token)
            if found is None and self.origin != TOKENIZER_FILE:
                self._add(token, {}, number=number, special=False)
            elif found != number:
                raise CheckpointError(f"{self.directory / _ADDED_FILE}: {token!r}: {number}, {self.origin} has {found}")
        if decoder is None:
            return
        where = self.directory / _CONFIG_FILE
        if not isinstance(decoder, dict) or not all(
            isinstance(one, dict) and "content" in one for one in decoder.values()
        ):
            raise CheckpointError(f"{where}: added_tokens_decoder: expected tokens by id")
        for number, token in decoder.items():
            content = str(token["content"])
            known = self.added.get(content)
            if known is None and (self.vocabulary.get(content) == int(number) or self.origin != TOKENIZER_FILE):
                self._add(content, token, number=int(number), special=bool(token.get("special")))
                continue
            wanted = {"id": int(number), **{flag: bool(token.get(flag)) for flag in (*_FLAGS, "special")}}
            have = known and {key: known.get(key, False) for key in wanted}
            if have != wanted:
                raise CheckpointError(
                    f"{where}: added_tokens_decoder: {content!r}: {wanted}, {self.origin} has {have or 'no such token'}"
                )
        lost = sorted(set(self.added) - {str(token["content"]) for token in decoder.values()})
        if is_own and lost:
            raise CheckpointError(
                f"{where}: added_tokens_decoder lacks {lost}, which {self.origin} has: transformers 5 drops them, "
                f"transformers 4 keeps them{_WAY_OUT}"
            )

    def _take_tokens(self, tokens: Mapping[str, Any]) -> None:
        """Make each special token one that is found inside a text, as transformers does."""
        order = [key for key in _NAMED if key in tokens] + [key for key in tokens if key not in _NAMED]
        for key in order:
            content = _text(tokens[key])
            if content in self.added:
                continue
            stated = key not in tokenizer_parts.DEFAULT_TOKENS[self.kind] or key in self.config
            if content in self.vocabulary:
                self._add(content, tokens[key])
            elif stated:
                raise CheckpointError(
                    f"{self.directory / _CONFIG_FILE}: {key.split(' ')[0]}: {content!r}, which {self.origin} does not "
                    "have: the model has no row for it"
                )

    def _add(self, content: str, flags: Any, *, number: int | None = None, special: bool = True) -> None:
        given = flags if isinstance(flags, dict) else {}
        entry = {"id": self.vocabulary[content] if number is None else number, "content": content}
        self.added[content] = {**entry, **{flag: bool(given.get(flag)) for flag in _FLAGS}, "special": special}
        self.changed = True

    def _check_words(self) -> None:
        """A tokenizer of whole words does what it does, whatever its configuration says."""
        does = {
            "do_lower_case": tokenizer_parts.lowers(self.values.get("normalizer")),
            "strip_accents": False,
            "tokenize_chinese_chars": False,
        }
        for key, done in does.items():
            if (value := self.config.get(key)) is not None and value != done:
                raise CheckpointError(
                    f"{self.directory / _CONFIG_FILE}: {key}: {value!r}, {self.origin} of whole words does "
                    f"{done}{_WAY_OUT}"
                )

    def _take_pipeline(self, tokens: Mapping[str, Any]) -> None:
        """Hold the parts of the file against those that the class builds, and apply the options of BERT's."""
        kind = self.kind
        unknown = _text(tokens.get("unk_token"))
        expected = tokenizer_parts.model(kind, unknown)
        if not tokenizer_parts.same({**self.model, "type": self.type}, expected):
            stated = {key: value for key, value in self.model.items() if key not in ("vocab", "merges")}
            self._refuse("model", stated, expected)
        if unknown not in self.vocabulary:
            raise CheckpointError(f"{self.file}: no {unknown!r} in the vocabulary, expected the unknown token")
        splits = tokenizer_parts.pre_tokenizers(kind)
        if not any(tokenizer_parts.same(self.values.get("pre_tokenizer"), one) for one in splits):
            self._refuse("pre_tokenizer", self.values.get("pre_tokenizer"), splits[-1])
        wanted = tokenizer_parts.normalizer(kind, self.config)
        found: Any = self.values.get("normalizer")
        options = set(_BERT_OPTIONS.values()) if kind == "bert" else set()
        given = found if isinstance(found, dict) else {}
        rest = [{key: value for key, value in part.items() if key not in options} for part in (given, wanted)]
        if not tokenizer_parts.same(*rest):
            self._refuse("normalizer", found, wanted)
        for key, option in _BERT_OPTIONS.items() if kind == "bert" else ():
            value = wanted[option]
            if not isinstance(value, bool) and not (option == "strip_accents" and value is None):
                raise CheckpointError(f"{self.directory / _CONFIG_FILE}: {key}: {value!r}, expected true or false")
            if given.get(option) != value:
                source = _CONFIG_FILE if key in self.config else "transformers' default"
                self.warnings.append(
                    f"{self.file}: {option} is {given.get(option)}; {key} {value} of {source} was taken, as "
                    "transformers does"
                )
                self.changed = True
        self.values["normalizer"] = wanted
        before, after = (_text(tokens.get(name)) for name in tokenizer_parts.AROUND[kind])
        ids = {**self.vocabulary, **{content: int(token["id"]) for content, token in self.added.items()}}
        if absent := [token for token in (before, after) if token not in ids]:
            raise CheckpointError(f"{self.file}: no {absent} in the vocabulary, expected what stands around a text")
        if self.origin != TOKENIZER_FILE:
            self.values["post_processor"] = tokenizer_parts.around(kind, before, after, ids)
        if self._around() != ([ids[before]], [ids[after]]):
            self._refuse("post_processor", self.values.get("post_processor"), f"{before} text {after}")

    def _take_truncation(self) -> None:
        """On which side a long text is cut: what the configuration says, else what the file says."""
        truncation, padding = self.values.get("truncation") or {}, self.values.get("padding") or {}
        if str(padding.get("direction", "Right")).lower() != "right" and "padding_side" not in self.config:
            raise CheckpointError(f"{self.file}: padding: {padding['direction']!r}, expected 'Right'")
        found = str(truncation.get("direction", "Right")).lower()
        side = self.config.get("truncation_side", found)
        if side not in ("left", "right"):
            raise CheckpointError(
                f"{self.directory / _CONFIG_FILE}: truncation_side: {side!r}, expected 'right' or 'left'"
            )
        if side != found:
            # the model's own length takes the place of this one
            whole = {"max_length": 512, "strategy": "LongestFirst", "stride": 0, **truncation}
            self.values["truncation"] = {**whole, "direction": side.capitalize()}
            self.changed = True

    def _refuse(self, part: str, found: Any, expected: Any) -> None:
        raise CheckpointError(
            f"{self.file}: {part}: {str(found)[:300]}, expected that of {tokenizer_parts.CLASSES[self.kind]}, "
            f"{str(expected)[:300]}: transformers 4 and 5 read this differently{_WAY_OUT}"
        )


def _from_vocabulary(directory: Path, kind: Kind) -> tuple[dict[str, Any], str] | None:
    """What transformers builds where there is no ``tokenizer.json``: from the files of its older tokenizers."""
    if kind == "bert":
        if not (directory / "vocab.txt").is_file():
            return None
        lines = read_text(directory / "vocab.txt").split("\n")
        words = {word.rstrip(): number for number, word in enumerate(lines[:-1] if not lines[-1] else lines)}
        parts: dict[str, Any] = {"vocab": words}
        origin = "vocab.txt"
    else:
        vocabulary, merges = directory / "vocab.json", directory / "merges.txt"
        if not vocabulary.is_file() and not merges.is_file():
            return None
        if not (vocabulary.is_file() and merges.is_file()):
            raise CheckpointError(
                f"{directory}: one of vocab.json and merges.txt alone, expected both or {TOKENIZER_FILE}"
            )
        pairs = [line for line in read_text(merges).split("\n") if line and not line.startswith("#version")]
        parts, origin = {"vocab": read_json(vocabulary), "merges": pairs}, "vocab.json and merges.txt"
    config = _optional(directory / _CONFIG_FILE)
    mapped = _optional(directory / _MAP_FILE)
    unknown = mapped.get("unk_token") or config.get("unk_token") or tokenizer_parts.DEFAULT_TOKENS[kind]["unk_token"]
    values: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": tokenizer_parts.normalizer(kind, config),
        "pre_tokenizer": tokenizer_parts.pre_tokenizers(kind)[-1],
        "post_processor": None,
        "decoder": None,
        "model": {**tokenizer_parts.model(kind, _text(unknown)), **parts},
    }
    return values, origin


def _optional(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}


def _text(token: Any) -> str:
    """The text of a special token, written as such or with its flags."""
    return str(token["content"] if isinstance(token, dict) and "content" in token else token)
