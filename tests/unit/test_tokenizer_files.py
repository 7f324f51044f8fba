"""The tokenizer of a checkpoint: one file that gives the ids of transformers, made of several, or a refusal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from llm_compression.convert import convert_checkpoint
from llm_compression.convert.tokenizer_files import read_tokenizer
from llm_compression.errors import CheckpointError, ConfigError
from llm_compression.text.arrow_engine import ArrowEngine
from llm_compression.text.tokenizer import load_tokenizer
from tests.published import BERT_WORDS, TEXTS, bert_tokenizer, change_json, write_clip, write_json, write_sentence_bert


def bert_files(directory: Path, config: dict[str, Any]) -> Path:
    """The tokenizer files of a BERT."""
    write_json(directory / "config.json", {"model_type": "bert"})
    bert_tokenizer().save(str(directory / "tokenizer.json"))
    write_json(directory / "tokenizer_config.json", config)
    return directory


@pytest.mark.property(30)
@given(
    config=st.fixed_dictionaries(
        {},
        optional={
            "do_lower_case": st.booleans(),
            "strip_accents": st.sampled_from((True, False, None)),
            "tokenize_chinese_chars": st.booleans(),
            "truncation_side": st.sampled_from(("left", "right")),
            "mask_token": st.sampled_from(("[MASK]", "tok", "red")),
            "additional_special_tokens": st.lists(st.sampled_from(("tok", "dog")), unique=True),
            "tokenizer_class": st.sampled_from(("BertTokenizer", "BertTokenizerFast", "PreTrainedTokenizerFast")),
        },
    ),
    written=st.fixed_dictionaries(
        {}, optional={"lowercase": st.booleans(), "strip_accents": st.booleans(), "handle_chinese_chars": st.booleans()}
    ),
    texts=st.lists(
        st.lists(st.sampled_from((*BERT_WORDS, "CATS", "x猫y", "Café")), max_size=9).map(" ".join), max_size=4
    ),
    limit=st.integers(3, 12),
)
def test_any_options_give_the_ids_of_transformers(
    tmp_path_factory: pytest.TempPathFactory,
    config: dict[str, Any],
    written: dict[str, bool],
    texts: list[str],
    limit: int,
) -> None:
    """Property 30: for any options of both files, the tokenizer written gives the ids that transformers gives."""
    directory = bert_files(tmp_path_factory.mktemp("files"), config)
    values = json.loads((directory / "tokenizer.json").read_text())
    values["normalizer"] |= written
    write_json(directory / "tokenizer.json", values)
    source = read_tokenizer(directory, "bert", None)
    assert source is not None
    # transformers reads the directory, before the file in it is replaced by the one that is written
    reference = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    texts = [*texts, *TEXTS]
    wanted = [reference(text, truncation=True, max_length=limit)["input_ids"] for text in texts]
    (directory / "tokenizer.json").write_bytes(source.content)
    assert load_tokenizer(directory / "tokenizer.json", limit, len(BERT_WORDS))(texts) == wanted


@pytest.mark.requirement("24.3")
def test_a_file_that_says_all_is_copied(tmp_path: Path) -> None:
    """24.3: where nothing differs the bytes are those of the source, and nothing is said."""
    source = read_tokenizer(bert_files(tmp_path, {"do_lower_case": True}), "bert", None)
    assert source is not None
    assert source.content == (tmp_path / "tokenizer.json").read_bytes()
    assert (source.origin, source.warnings, source.around) == ("tokenizer.json", (), ([2], [3]))


@pytest.mark.requirement("24.3", "24.16")
def test_what_takes_the_place_of_another_setting_is_said(tmp_path: Path) -> None:
    """24.3: the option of the configuration is applied, and the report names it."""
    source = write_sentence_bert(tmp_path / "source")
    change_json(source / "tokenizer_config.json", {"do_lower_case": False})
    report = convert_checkpoint(source, tmp_path / "out")
    assert len(report.notes) == 1
    assert "lowercase is True; do_lower_case False of tokenizer_config.json was taken" in report.notes[0]
    assert ArrowEngine(tmp_path / "out").tokenize("A Cat") == [[2, 10, 11, 3]]


@pytest.mark.requirement("24.3")
@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("pre_tokenizer", {"type": "Whitespace"}),
        ("normalizer", {"type": "NFC"}),
        ("normalizer", None),
        ("post_processor", None),
        ("model", {"max_input_chars_per_word": 3}),
        ("model", {"unk_token": "a"}),
    ],
)
def test_a_part_that_transformers_4_and_5_read_differently_is_refused(tmp_path: Path, part: str, value: Any) -> None:
    """24.3: CheckpointError with the part that differs and the way to have the file as it stands, which then counts."""
    bert_files(tmp_path, {})
    values = json.loads((tmp_path / "tokenizer.json").read_text())
    values[part] = {**values[part], **value} if part == "model" else value
    write_json(tmp_path / "tokenizer.json", values)
    with pytest.raises(CheckpointError, match=rf"tokenizer\.json: {part}: .*BertTokenizer.*PreTrainedTokenizerFast"):
        read_tokenizer(tmp_path, "bert", None)
    change_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    source = read_tokenizer(tmp_path, "bert", None)
    assert source is not None
    assert source.content == (tmp_path / "tokenizer.json").read_bytes()


@pytest.mark.requirement("24.4")
@pytest.mark.parametrize("config", [{}, {"do_lower_case": False}, {"unk_token": "a"}])
def test_a_bert_with_a_vocabulary_alone(tmp_path: Path, config: dict[str, Any]) -> None:
    """24.4: a BERT that has ``vocab.txt`` alone gets the tokenizer that transformers builds from it."""
    bert_files(tmp_path, config)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.txt").write_text("\n".join(BERT_WORDS) + "\n", encoding="utf-8")
    reference = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    source = read_tokenizer(tmp_path, "bert", None)
    assert source is not None
    (tmp_path / "tokenizer.json").write_bytes(source.content)
    found = load_tokenizer(tmp_path / "tokenizer.json", 30, len(BERT_WORDS))(list(TEXTS))
    assert (source.origin, found) == ("vocab.txt", [reference(text)["input_ids"] for text in TEXTS])


@pytest.mark.requirement("24.4")
def test_a_clip_with_vocabulary_and_merges_alone(tmp_path: Path) -> None:
    """24.4: a CLIPModel with vocab.json and merges.txt gives the ids that it gives with tokenizer.json."""
    source = write_clip(tmp_path / "source")
    convert_checkpoint(source, tmp_path / "whole")
    model = json.loads((source / "tokenizer.json").read_text())["model"]
    (source / "tokenizer.json").unlink()
    write_json(source / "vocab.json", model["vocab"])
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    (source / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    report = convert_checkpoint(source, tmp_path / "built")
    assert report.settings["tokenizer"] == "vocab.json and merges.txt"
    whole, built = (ArrowEngine(tmp_path / name).tokenize(list(TEXTS)) for name in ("whole", "built"))
    reference = AutoTokenizer.from_pretrained(source, local_files_only=True)
    assert built == whole == [reference(text, truncation=True)["input_ids"] for text in TEXTS]
    (source / "merges.txt").unlink()
    with pytest.raises(CheckpointError, match=r"one of vocab\.json and merges\.txt alone"):
        convert_checkpoint(source, tmp_path / "third")


@pytest.mark.requirement("24.6")
@pytest.mark.parametrize("write", [write_clip, write_sentence_bert])
@pytest.mark.parametrize("content", ["", "{", "{}", "[]", '{"model": {"type": "BPE", "vocab": {}}}', '{"model": 3}'])
def test_a_tokenizer_that_is_none_is_refused(tmp_path: Path, write: Any, content: str) -> None:
    """24.6: an empty or damaged tokenizer.json is refused at conversion, and nothing is written."""
    source = write(tmp_path / "source")
    (source / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: "):
        convert_checkpoint(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.requirement("24.6")
def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    """24.6: more tokens than the model has rows, or another end token."""
    source = write_clip(tmp_path / "source")
    values = json.loads((source / "tokenizer.json").read_text())
    size = len(values["model"]["vocab"])
    more = values | {
        "added_tokens": [*values["added_tokens"], {**values["added_tokens"][0], "id": size, "content": "z"}]
    }
    write_json(source / "tokenizer.json", more)
    with pytest.raises(CheckpointError, match=rf"token {size}, the model has {size}: one of another model"):
        convert_checkpoint(source, tmp_path / "out")
    write_json(source / "tokenizer.json", values)
    change_json(
        source / "config.json",
        {"text_config": json.loads((source / "config.json").read_text())["text_config"] | {"eos_token_id": 7}},
    )
    with pytest.raises(CheckpointError, match=r"expected the model's end token 7 among them"):
        convert_checkpoint(source, tmp_path / "out")


@pytest.mark.requirement("24.5")
def test_an_earlier_tokenizer_does_not_answer_for_a_model_without_one(tmp_path: Path) -> None:
    """24.5: converted over an earlier model, no tokenizer is left; what nobody recorded is not touched."""
    convert_checkpoint(write_clip(tmp_path / "source"), tmp_path / "out")
    (tmp_path / "source" / "tokenizer.json").unlink()
    before = (tmp_path / "out" / "tokenizer.json").read_bytes()
    (tmp_path / "out" / "tokenizer.json").write_bytes(before + b"\n")
    with pytest.raises(ConfigError, match=r"tokenizer\.json: a tokenizer lies there.*move it away"):
        convert_checkpoint(tmp_path / "source", tmp_path / "out")
    (tmp_path / "out" / "tokenizer.json").write_bytes(before)
    report = convert_checkpoint(tmp_path / "source", tmp_path / "out")
    assert (report.tokenizer, report.settings["tokenizer"]) == (None, "none: no text can be encoded")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["weights.parquet"]
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json: no such file"):
        ArrowEngine(tmp_path / "out")
