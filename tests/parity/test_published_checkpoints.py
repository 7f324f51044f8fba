"""Every setting of every configuration file: the rows of the library that made it, or a refusal that names it."""

from __future__ import annotations

import functools
import json
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from llm_compression.convert import convert_checkpoint
from llm_compression.errors import CheckpointError
from llm_compression.multimodal.clip_engine import CLIPEngine
from llm_compression.text.arrow_engine import ArrowEngine
from tests.conftest import AssertWithin
from tests.published import TEXTS, change_json, write_clip, write_sentence_bert

pytestmark = [
    # of sentence-transformers and of transformers, about how they are called
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
TOKEN = {"content": "tok", "lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
OPTIONS = (True, False, None, "absent")
# File, and values of each of its keys: what it may say, what it may leave out, and what nothing reads.
BERT_SETTINGS: dict[str, dict[str, tuple[Any, ...]]] = {
    "tokenizer_config.json": {
        "do_lower_case": (True, False, "absent"),
        "strip_accents": OPTIONS,
        "tokenize_chinese_chars": (True, False, "absent"),
        "truncation_side": ("left", "right", "absent"),
        "padding_side": ("left", "right"),
        "model_max_length": (5, 10**30, None),
        "tokenizer_class": (
            *("BertTokenizer", "BertTokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend", "absent"),
            *("DistilBertTokenizer", "MPNetTokenizer", "RobertaTokenizer"),
        ),
        **{f"{name}_token": ("a", "tok", "nowhere", None) for name in ("unk", "cls", "sep", "pad", "mask", "bos")},
        "additional_special_tokens": (["tok"], ["nowhere"], []),
        "extra_special_tokens": (["tok"], {"thing_token": "tok"}, [TOKEN | {"__type": "AddedToken"}]),
        "thing_token": ("tok",),
        "added_tokens_decoder": ({"23": TOKEN}, {"24": TOKEN}, {"99": TOKEN | {"content": "new"}}),
        "split_special_tokens": (True, False),
        "add_bos_token": (True, False),
        "add_eos_token": (True, False),
        "never_split": (["Cat"], None),
        "do_basic_tokenize": (False, True),
        "clean_up_tokenization_spaces": (False, True),
        "model_input_names": (["input_ids", "attention_mask"], ["input_ids"]),
        "some_new_setting": (1, "x"),
        "auto_map": ({"AutoTokenizer": ["x.Y", None]},),
    },
    "special_tokens_map.json": {
        **{f"{name}_token": ("a", "tok") for name in ("unk", "cls", "sep", "pad", "mask")},
        "additional_special_tokens": (["tok"],),
        "mask_token": (
            {"content": "[MASK]", "lstrip": True, "rstrip": False, "normalized": False, "single_word": False},
        ),
    },
    "added_tokens.json": {"tok": (23, 24), "new": (26, 40)},
    "config.json": {
        **dict.fromkeys(("layer_norm_eps", "type_vocab_size", "hidden_act", "intermediate_size"), ("absent",)),
        "layer_norm_eps": (1e-3, "absent"),
        "hidden_act": ("gelu", "gelu_new", "relu", "absent"),
        "num_attention_heads": (2, 4, "absent"),
        "position_embedding_type": ("absolute", "relative_key", None),
        "is_decoder": (True, False),
        "pad_token_id": (3, None),
        "eos_token_id": (2, None),
        "hidden_dropout_prob": (0.0, 0.9),
        "attention_probs_dropout_prob": (0.7,),
        "tokenizer_class": ("BertTokenizer", "PreTrainedTokenizerFast", "MPNetTokenizer"),
        "quantization_config": ({"quant_method": "gptq", "bits": 4},),
        "some_new_setting": (1,),
        "chunk_size_feed_forward": (2,),
        "pruned_heads": ({"0": [1]}, {}),
        "architectures": (["BertForMaskedLM"],),
    },
    "1_Pooling/config.json": {
        "pooling_mode": ("cls", "mean", "max", ["mean"], ["mean", "cls"]),
        "pooling_mode_cls_token": (True, False),
        "pooling_mode_mean_tokens": (False, "absent"),
        "pooling_mode_max_tokens": (True,),
        "pooling_mode_lasttoken": (True,),
        "pooling_mode_weightedmean_tokens": (True,),
        "include_prompt": (False, True),
        "some_new_setting": (1,),
    },
    "sentence_bert_config.json": {
        "max_seq_length": (5, 20, None, "absent"),
        "do_lower_case": (True,),
        "transformer_task": ("feature-extraction", "fill-mask"),
        "processing_kwargs": ({"text": {"max_length": 4}}, {}),
        "tokenizer_args": ({"do_lower_case": False}, {}),
        "config_args": ({"hidden_act": "relu"}, {}),
        "query_expansion": (8,),
        "some_new_setting": (1,),
    },
    "config_sentence_transformers.json": {
        "default_prompt_name": ("query", "none", None),
        "prompts": ({"query": "the red ", "none": ""},),
        "similarity_fn_name": ("dot",),
        "some_new_setting": (1,),
    },
    "2_Normalize/config.json": {"module_input_name": ("sentence_embedding", "token_embeddings")},
}
CLIP_SETTINGS: dict[str, dict[str, tuple[Any, ...]]] = {
    "preprocessor_config.json": {
        **{
            f"do_{step}": (*OPTIONS, 0)
            for step in ("resize", "center_crop", "rescale", "normalize", "convert_rgb", "pad")
        },
        "size": (
            16,
            20,
            {"shortest_edge": 20},
            {"height": 16, "width": 16},
            {"height": 20, "width": 24},
            [16, 16],
            None,
        ),
        "crop_size": (16, {"height": 16, "width": 16}, {"height": 16, "width": 12}, 12, [16, 16], None, "absent"),
        "resample": (0, 1, 2, 3, None, "bicubic", "absent"),
        "rescale_factor": (1 / 255, 0.00392156862745098, 1 / 127.5, 1, None),
        "image_mean": ([0.5, 0.5, 0.5], 0.5, None, "absent", [0.5]),
        "image_std": ([0.5, 0.25, 0.5], 0.5, None, "absent"),
        "default_to_square": (True, False, None),
        "use_square_size": (True, False),
        "data_format": ("channels_first", "channels_last"),
        "input_data_format": ("channels_first",),
        "image_processor_type": ("CLIPImageProcessor", "CLIPFeatureExtractor", "ViTImageProcessor"),
        "size_divisor": (8,),
        "pad_size": ({"height": 32, "width": 32},),
        "some_new_setting": (1,),
    },
    "tokenizer_config.json": {
        "do_lower_case": (True, False),
        "strip_accents": (True, False),
        "truncation_side": ("left", "right"),
        "padding_side": ("left", "right"),
        "model_max_length": (7, 24, 77, 10**30),
        "tokenizer_class": ("CLIPTokenizer", "CLIPTokenizerFast", "PreTrainedTokenizerFast", "BertTokenizer", "absent"),
        **{f"{name}_token": ("!", "cat</w>", "nowhere", None) for name in ("unk", "bos", "eos", "pad")},
        "additional_special_tokens": (["red</w>"],),
        "add_prefix_space": (True, False),
        "errors": ("replace",),
        "add_bos_token": (False, True),
        "add_eos_token": (False, True),
        "some_new_setting": (1,),
    },
    "special_tokens_map.json": {f"{name}_token": ("!", "<|endoftext|>") for name in ("unk", "bos", "eos", "pad")},
    "config.json": {
        "projection_dim": (10, 12, "absent"),
        "logit_scale_init_value": (1.0,),
        "some_new_setting": (1,),
        "quantization_config": ({"bits": 8},),
        "tie_word_embeddings": (False,),
        **{
            f"{tower}_config.{key}": values
            for tower in ("text", "vision")
            for key, values in {
                "hidden_act": ("gelu", "quick_gelu", "gelu_new", "relu", "absent"),
                "layer_norm_eps": (1e-3, "absent"),
                "num_attention_heads": (2, 4, "absent"),
                "attention_dropout": (0.5,),
                "projection_dim": (7, "absent"),
                "initializer_factor": (3.0,),
                "some_new_setting": (1,),
                "model_type": ("absent", "siglip_text_model"),
                "pruned_heads": ({"0": [1]},),
            }.items()
        },
        "text_config.eos_token_id": (2, 100, None, "absent"),
        "text_config.bos_token_id": (0, "absent"),
        "text_config.pad_token_id": (5, None),
        "vision_config.num_channels": (1, 3),
    },
}

# Where transformers itself fails: there is no row to hold another one against.
NO_REFERENCE = {
    ("tokenizer_config.json", "pad_token", None),
    *(
        ("preprocessor_config.json", key, None)
        for key in ("size", "resample", "rescale_factor", "image_mean", "image_std")
    ),
}


def cases(settings: dict[str, dict[str, tuple[Any, ...]]]) -> list[Any]:
    return [
        pytest.param(file, key, value, id=f"{file}-{key}-{json.dumps(value)[:40]}")
        for file, keys in settings.items()
        for key, values in keys.items()
        for value in values
    ]


def changed(write: Callable[[Path], Path], directory: Path, file: str, key: str, value: Any) -> Path:
    source = directory / "source"
    shutil.copytree(written(write), source)
    if "." in key:
        part, inner = key.split(".")
        values = json.loads((source / file).read_text())[part] | {inner: value}
        key, value = part, {name: one for name, one in values.items() if one != "absent"}
    change_json(source / file, {key: value})
    return source


@functools.cache
def written(write: Callable[[Path], Path]) -> Path:
    return write(Path(tempfile.mkdtemp(prefix="published-"), "source"))


def converted(source: Path) -> Path | None:
    """The converted directory, or None where it was refused, by a message that names a file of the source."""
    try:
        convert_checkpoint(source, source.parent / "out")
    except CheckpointError as error:
        assert re.search(r"source(/|: )", str(error)), error  # noqa: PT017  # either outcome may be right
        assert not (source.parent / "out").exists()
        return None
    return source.parent / "out"


@pytest.mark.requirement("24.1")
@pytest.mark.parametrize(("file", "key", "value"), cases(BERT_SETTINGS))
def test_a_setting_of_a_sentence_encoder(
    tmp_path: Path, assert_within: AssertWithin, file: str, key: str, value: Any
) -> None:
    """24.1: the rows that sentence-transformers gives from the very directory, or CheckpointError."""
    source = changed(write_sentence_bert, tmp_path, file, key, value)
    if (out := converted(source)) is None:
        return
    if value is None and (file, key, None) in NO_REFERENCE:
        with pytest.raises(ValueError, match="padding token"):
            SentenceTransformer(str(source), device="cpu", local_files_only=True).encode("a")
        return
    # one text at a time: where its padding changes a row, the library's own rows depend on the batch
    reference = SentenceTransformer(str(source), device="cpu", local_files_only=True)
    wanted = torch.stack([reference.encode(text, convert_to_tensor=True) for text in TEXTS])
    assert_within("precision-float32-minilm", ArrowEngine(out, dtype="float32").encode(list(TEXTS)), wanted)


@pytest.mark.requirement("24.1")
@pytest.mark.parametrize(("file", "key", "value"), cases(CLIP_SETTINGS))
def test_a_setting_of_a_clip(tmp_path: Path, assert_within: AssertWithin, file: str, key: str, value: Any) -> None:
    """24.1: the rows of both towers that transformers gives from the very directory, or CheckpointError."""
    source = changed(write_clip, tmp_path, file, key, value)
    if (out := converted(source)) is None:
        return
    engine = CLIPEngine(out, dtype="float32")
    model: Any = CLIPModel.from_pretrained(source, local_files_only=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
    processor = CLIPImageProcessorPil.from_pretrained(source, local_files_only=True)
    pixels = np.random.default_rng(0).integers(0, 256, (23, 31, 3), dtype=np.uint8)
    if value is None and file == "preprocessor_config.json" and (file, key, None) in NO_REFERENCE:
        with pytest.raises(ValueError, match=r"must (both )?be specified"):
            processor(Image.fromarray(pixels), return_tensors="pt")
        return
    with torch.inference_mode():
        rows = []
        for text in TEXTS:
            limit = min(tokenizer.model_max_length, model.config.text_config.max_position_embeddings)
            ids = tokenizer(text, truncation=True, max_length=limit, return_tensors="pt")
            rows.append(model.get_text_features(**ids).pooler_output[0])
        image = processor(Image.fromarray(pixels), return_tensors="pt")
        wanted = model.get_image_features(**image).pooler_output
    assert_within("precision-float32-minilm", engine.encode_text(list(TEXTS), normalize=False), torch.stack(rows))
    assert_within("precision-float32-minilm", engine.encode_image(pixels, normalize=False), wanted)
