"""Converting text encoders: BERT and sentence-transformers directories, and both towers of a CLIPModel."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llm_compression.convert import convert_checkpoint
from llm_compression.errors import CheckpointError
from llm_compression.harness.clip.checkpoints import VARIANTS, make_checkpoint
from llm_compression.inference.weight_loader import WeightLoader
from llm_compression.multimodal.clip_config import ClipConfig
from llm_compression.multimodal.vision_encoder import VisionEncoder
from llm_compression.text.arrow_engine import ArrowEngine
from llm_compression.text.tokenizer import write_word_tokenizer
from tests.text_models import TINY_BERT, WORDS, text_weights

BERT_CONFIG: dict[str, Any] = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "vocab_size": TINY_BERT.vocab_size,
    "max_position_embeddings": TINY_BERT.num_positions,
    "hidden_size": TINY_BERT.hidden_size,
    "num_hidden_layers": TINY_BERT.num_layers,
    "num_attention_heads": TINY_BERT.num_heads,
    "intermediate_size": TINY_BERT.intermediate_size,
    "layer_norm_eps": TINY_BERT.layer_norm_eps,
    "hidden_act": "gelu",
    "type_vocab_size": 2,
    "position_embedding_type": "absolute",
}
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]


def _write(path: Path, values: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


def _change(path: Path, **changes: Any) -> None:
    values = json.loads(path.read_text()) | changes
    _write(path, {key: value for key, value in values.items() if value != "absent"})


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """A sentence-transformers directory of `TINY_BERT`."""
    source = tmp_path / "source"
    _write(source / "config.json", BERT_CONFIG)
    _write(source / "modules.json", MODULES)
    _write(source / "1_Pooling" / "config.json", {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False})
    _write(source / "sentence_bert_config.json", {"max_seq_length": TINY_BERT.max_length, "do_lower_case": False})
    write_word_tokenizer(source / "tokenizer.json", WORDS, "<start>", "<end>")
    extra = {"pooler.dense.weight": torch.zeros(16, 16), "embeddings.position_ids": torch.arange(12)[None]}
    save_file({**text_weights(TINY_BERT), **extra}, source / "model.safetensors")
    return source


@pytest.mark.requirement("16.1")
def test_a_sentence_transformers_directory(bert: Path, tmp_path: Path) -> None:
    """16.1: a Weight File with the bits of the source, and its tokenizer beside it, recorded in the file."""
    report = convert_checkpoint(bert, tmp_path / "out")
    loader, weights = WeightLoader(tmp_path / "out"), text_weights(TINY_BERT)
    assert loader.config == TINY_BERT.to_dict()
    assert loader.names == list(TINY_BERT.expected_shapes())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loader.stream())
    assert (report.format, report.left_out) == ("bert", {"pooler": 1, "position ids": 1})
    assert report.tokenizer == tmp_path / "out" / "tokenizer.json"
    content = (bert / "tokenizer.json").read_bytes()
    assert report.tokenizer.read_bytes() == content
    assert loader.metadata is not None
    assert loader.metadata.preprocessing == {"tokenizer_sha256": hashlib.sha256(content).hexdigest()}
    assert ArrowEngine(tmp_path / "out").encode("a red cat", convert_to_tensor=True).shape == (1, 16)


@pytest.mark.requirement("16.2")
def test_a_plain_bert_directory_needs_its_pooling(bert: Path, tmp_path: Path) -> None:
    """16.2: nothing says how a plain BERT is pooled: an error that says what to give, and a file once it is given."""
    (bert / "modules.json").unlink()
    with pytest.raises(CheckpointError, match=r"nothing says how tokens are pooled.*overrides"):
        convert_checkpoint(bert, tmp_path / "out")
    convert_checkpoint(bert, tmp_path / "out", overrides={"pooling": "cls"})
    assert WeightLoader(tmp_path / "out").config == replace(TINY_BERT, pooling="cls").to_dict()


@pytest.mark.requirement("16.1")
def test_a_bert_inside_another_model(bert: Path, tmp_path: Path) -> None:
    """16.1: the names of a model that holds a BERT under a prefix are accepted, its heads left out."""
    tensors = {f"bert.{name}": tensor for name, tensor in load_file(bert / "model.safetensors").items()}
    save_file({**tensors, "cls.predictions.bias": torch.zeros(3)}, bert / "model.safetensors")
    report = convert_checkpoint(bert, tmp_path / "out")
    assert report.left_out == {"pooler": 1, "position ids": 1, "pre-training heads": 1}
    assert WeightLoader(tmp_path / "out").names == list(TINY_BERT.expected_shapes())


@pytest.mark.requirement("16.1")
def test_a_transformer_in_a_directory_of_its_own(bert: Path, tmp_path: Path) -> None:
    """16.1: where modules.json says that the transformer has a directory of its own, it is read from there."""
    for name in ("config.json", "model.safetensors", "tokenizer.json", "sentence_bert_config.json"):
        (bert / "0_Transformer").mkdir(exist_ok=True)
        shutil.move(bert / name, bert / "0_Transformer" / name)
    _write(bert / "modules.json", [{**MODULES[0], "path": "0_Transformer"}, *MODULES[1:]])
    convert_checkpoint(bert, tmp_path / "out")
    assert WeightLoader(tmp_path / "out").config == TINY_BERT.to_dict()


@pytest.mark.requirement("15.4")
@pytest.mark.parametrize(
    ("sentence", "tokenizer", "expected"),
    [(7, None, 7), (None, 9, 9), (None, 10**30, 12), (None, None, 12), (200, None, 12)],
)
def test_where_a_text_is_cut(
    bert: Path, tmp_path: Path, sentence: int | None, tokenizer: int | None, expected: int
) -> None:
    """15.4: as sentence-transformers: max_seq_length, else the tokenizer's limit, never past the positions."""
    _write(bert / "sentence_bert_config.json", {"max_seq_length": sentence})
    if tokenizer is not None:
        _write(bert / "tokenizer_config.json", {"model_max_length": tokenizer})
    convert_checkpoint(bert, tmp_path / "out")
    config = WeightLoader(tmp_path / "out").config
    assert config is not None
    assert config["max_length"] == expected


@pytest.mark.requirement("16.2")
@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("config.json", {"model_type": "roberta"}, "model_type: 'roberta', expected 'bert'"),
        ("config.json", {"position_embedding_type": "relative_key"}, "position_embedding_type: 'relative_key'"),
        ("config.json", {"is_decoder": True}, "is_decoder: True"),
        ("config.json", {"hidden_act": "gelu_new"}, "hidden_act: 'gelu_new'"),
        ("config.json", {"hidden_act": "absent"}, "no hidden_act"),
        ("config.json", {"quantization_config": {"bits": 4}}, "unknown settings quantization_config"),
        ("config.json", {"num_attention_heads": 5}, "not a multiple of num_heads 5"),
        ("1_Pooling/config.json", {"pooling_mode_cls_token": True}, "pooling .*mean_tokens.*cls_token"),
        ("1_Pooling/config.json", {"pooling_mode_mean_tokens": False}, r"pooling \[\]"),
        ("1_Pooling/config.json", {"pooling_mode": "max"}, "pooling 'max', expected one of mean, cls"),
        ("sentence_bert_config.json", {"do_lower_case": True}, "do_lower_case: true"),
        ("config_sentence_transformers.json", {"default_prompt_name": "query"}, "default_prompt_name: 'query'"),
    ],
)
def test_what_would_give_other_embeddings_is_refused(
    bert: Path, tmp_path: Path, file: str, changes: dict[str, Any], message: str
) -> None:
    """16.2: IF a source has an unknown or missing setting, THEN CheckpointError with what was found."""
    if not (bert / file).exists():
        _write(bert / file, {})
    _change(bert / file, **changes)
    with pytest.raises(CheckpointError, match=message):
        convert_checkpoint(bert, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.requirement("16.2")
@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ([*MODULES, {"type": "sentence_transformers.models.Dense", "path": "3_Dense"}], "Dense"),
        ([MODULES[0]], "expected a Transformer and a Pooling"),
        ([{**MODULES[0], "path": "../other"}, MODULES[1]], "expected one inside the directory"),
        ({}, "expected a JSON array"),
    ],
)
def test_modules_that_are_not_supported(bert: Path, tmp_path: Path, modules: object, message: str) -> None:
    """16.2: a module that changes the embedding is refused by name."""
    _write(bert / "modules.json", modules)
    with pytest.raises(CheckpointError, match=message):
        convert_checkpoint(bert, tmp_path / "out")


@pytest.mark.requirement("9.8")
def test_every_tensor_that_does_not_fit_is_listed(bert: Path, tmp_path: Path) -> None:
    """9.8: missing, unexpected and mis-shaped tensors of a text encoder, all in one CheckpointError."""
    tensors = load_file(bert / "model.safetensors")
    del tensors["encoder.layer.0.attention.self.key.bias"]
    save_file(
        {**tensors, "classifier.weight": torch.zeros(2), "embeddings.LayerNorm.bias": torch.zeros(3)},
        bert / "model.safetensors",
    )
    with pytest.raises(CheckpointError) as caught:
        convert_checkpoint(bert, tmp_path / "out")
    for part in ("missing encoder.layer.0.attention.self.key.bias", "unexpected classifier.weight", "shape [3]"):
        assert part in str(caught.value)


@pytest.mark.requirement("16.2")
def test_a_bert_needs_its_tokenizer(bert: Path, tmp_path: Path) -> None:
    """16.2: a text encoder without its tokenizer is refused."""
    (bert / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        convert_checkpoint(bert, tmp_path / "out")


@pytest.mark.requirement("16.2")
def test_overrides_of_the_other_family_are_refused(bert: Path, tmp_path: Path) -> None:
    """16.2: a setting that this family does not have is an error that lists those it has."""
    with pytest.raises(CheckpointError, match=r"unknown \['patch_size'\], expected some of vocab_size"):
        convert_checkpoint(bert, tmp_path / "out", overrides={"patch_size": 8})
    make_checkpoint(tmp_path / "vision", "tiny")
    with pytest.raises(CheckpointError, match=r"unknown \['pooling'\], expected some of image_size"):
        convert_checkpoint(tmp_path / "vision", tmp_path / "out", overrides={"pooling": "cls"})


@pytest.mark.requirement("16.3")
def test_a_clip_model_keeps_both_towers(tmp_path: Path) -> None:
    """16.3: WHEN given a CLIPModel, both towers and the logit scale are written, with their bits."""
    source = make_checkpoint(tmp_path / "source", "tiny", layout="hf_clip_model")
    report = convert_checkpoint(source, tmp_path / "out")
    loader, weights = WeightLoader(tmp_path / "out"), load_file(source / "model.safetensors")
    assert (report.format, report.left_out, report.tokenizer) == ("huggingface", {}, None)
    assert set(loader.names) == set(weights)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loader.stream())
    config = ClipConfig.from_dict(loader.config or {})
    assert config.vision == VARIANTS["tiny"]
    assert (config.text.pooling, config.text.eos_token_id) == ("eos", 63)


@pytest.mark.requirement("16.4")
def test_a_clip_model_without_its_text_tower(tmp_path: Path) -> None:
    """16.4: WHERE ``vision_only`` is asked for, the file is that of the image tower alone."""
    source = make_checkpoint(tmp_path / "source", "tiny", layout="hf_clip_model")
    report = convert_checkpoint(source, tmp_path / "out", vision_only=True)
    assert WeightLoader(tmp_path / "out").config == VARIANTS["tiny"].to_dict()
    assert report.left_out["logit scale"] == 1
    # and what a standalone image tower is converted to stays what it is
    convert_checkpoint(make_checkpoint(tmp_path / "hf", "tiny", layout="hf"), tmp_path / "alone")
    one, other = (VisionEncoder(tmp_path / name, dtype="float32") for name in ("out", "alone"))
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(
        one.encode_pixels(pixels, convert_to_tensor=True), other.encode_pixels(pixels, convert_to_tensor=True)
    )


@pytest.mark.requirement("16.2")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "absent"}, "no hidden_act in text_config"),
        ({"hidden_act": "relu"}, "hidden_act: 'relu'"),
        ({"eos_token_id": "absent"}, "no eos_token_id in text_config"),
        ({"num_attention_heads": 3}, "not a multiple of num_heads 3"),
    ],
)
def test_a_text_tower_that_is_not_understood_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """16.2: a missing or unknown setting of the text tower is a CheckpointError, never a guess."""
    source = make_checkpoint(tmp_path / "source", "tiny", layout="hf_clip_model")
    values = json.loads((source / "config.json").read_text())
    text = {key: value for key, value in (values["text_config"] | changes).items() if value != "absent"}
    _write(source / "config.json", values | {"text_config": text})
    with pytest.raises(CheckpointError, match=message):
        convert_checkpoint(source, tmp_path / "out")


@pytest.mark.requirement("17.2")
def test_the_old_export_is_pooled_at_the_largest_id(tmp_path: Path) -> None:
    """17.2: ``eos_token_id`` 2 is the sign of OpenAI's export, whose end token is the largest id."""
    source = make_checkpoint(tmp_path / "source", "tiny", layout="hf_clip_model")
    values = json.loads((source / "config.json").read_text())
    values["text_config"]["eos_token_id"] = 2
    _write(source / "config.json", values)
    convert_checkpoint(source, tmp_path / "out")
    text = ClipConfig.from_dict(WeightLoader(tmp_path / "out").config or {}).text
    assert (text.pooling, text.eos_token_id) == ("argmax", None)


@pytest.mark.requirement("9.6")
def test_a_failed_conversion_leaves_the_model_that_was_there(bert: Path, tmp_path: Path) -> None:
    """9.6: also the tokenizer beside the file stays what it was."""
    convert_checkpoint(bert, tmp_path / "out")
    before = (tmp_path / "out" / "tokenizer.json").read_bytes()
    write_word_tokenizer(bert / "tokenizer.json", WORDS[::-1], "<start>", "<end>")
    tensors = load_file(bert / "model.safetensors")
    tensors["embeddings.LayerNorm.bias"][0] = float("nan")
    save_file(tensors, bert / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"NaN.*embeddings\.LayerNorm\.bias"):
        convert_checkpoint(bert, tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == before
    ArrowEngine(tmp_path / "out").encode("cat", convert_to_tensor=True)
