"""Published configurations and layouts, read as the library that made them reads them, or refused."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]  # public, not in __all__
from hypothesis import given, reject
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import BertModel, CLIPConfig

from llm_compression.cli import main
from llm_compression.convert import convert_checkpoint
from llm_compression.convert.checkpoint_config import from_huggingface, from_open_clip
from llm_compression.convert.text_configs import clip_text_from_huggingface
from llm_compression.errors import CheckpointError, TextError
from llm_compression.harness.clip.checkpoints import make_checkpoint
from llm_compression.inference.inference_core import InferenceCore
from llm_compression.multimodal.clip_engine import CLIPEngine
from llm_compression.multimodal.vision_encoder import VisionEncoder
from llm_compression.text.arrow_engine import ArrowEngine
from llm_compression.text.text_encoder import TextEncoder
from tests.conftest import AssertWithin
from tests.cores import SIZES, block_tensors, fill_core, tokens
from tests.published import MODULES, change_json, write_clip, write_json, write_sentence_bert
from tests.text_models import TINY_CLIP_TEXT, VOCABULARY, write_text_model

TEXT: dict[str, Any] = {
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "dropout": 0.0,
    "eos_token_id": 2,
    "hidden_act": "quick_gelu",
    "hidden_size": 512,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 2048,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 8,
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "vocab_size": 49408,
}
VISION: dict[str, Any] = {
    "attention_dropout": 0.0,
    "dropout": 0.0,
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "image_size": 224,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-05,
    "model_type": "clip_vision_model",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "patch_size": 32,
}
# What transformers 4.2x wrote into each nested part.
DUMPED: dict[str, Any] = {
    **dict.fromkeys(("add_cross_attention", "do_sample", "early_stopping", "is_decoder", "is_encoder_decoder"), False),
    **dict.fromkeys(("bad_words_ids", "cross_attention_hidden_size", "finetuning_task", "prefix", "problem_type")),
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "pruned_heads": {},
    "chunk_size_feed_forward": 0,
    "top_k": 50,
    "return_dict": True,
    "torch_dtype": None,
    "transformers_version": "4.16.0.dev0",
    "use_bfloat16": False,
}
SIZES_OF: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    name: (
        dict(zip(("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers"), text, strict=True)),
        dict(
            zip(
                ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "patch_size"),
                vision,
                strict=True,
            )
        ),
        dim,
    )
    for name, text, vision, dim in (
        ("b32", (512, 2048, 8, 12), (768, 3072, 12, 12, 32), 512),
        ("l14", (768, 3072, 12, 12), (1024, 4096, 16, 24, 14), 768),
        ("h14", (1024, 4096, 16, 24), (1280, 5120, 16, 32, 14), 1024),
        ("g14", (1024, 4096, 16, 24), (1408, 6144, 16, 40, 14), 1024),
        ("bigg14", (1280, 5120, 20, 32), (1664, 8192, 16, 48, 14), 1280),
        ("tiny", (256, 1024, 4, 3), (256, 1024, 4, 10, 16), 512),
    )
}


def whole(size: str, *, act: str = "quick_gelu", older: bool = False, **vision: Any) -> dict[str, Any]:
    """A config.json of a CLIPModel; with the older dictionaries, these say only what is no default."""
    text_sizes, vision_sizes, dim = SIZES_OF[size]
    extra = {} if act == "quick_gelu" else {"hidden_act": act}
    values: dict[str, Any] = {
        "architectures": ["CLIPModel"],
        "initializer_factor": 1.0,
        "logit_scale_init_value": 2.6592,
        "model_type": "clip",
        "projection_dim": dim,
        "torch_dtype": "float32",
        "text_config": {**TEXT, **DUMPED, **text_sizes, **extra, "projection_dim": dim},
        "vision_config": {**VISION, **DUMPED, **vision_sizes, **extra, **vision, "projection_dim": dim},
    }
    if older:
        values["text_config_dict"] = {**text_sizes, **extra, "projection_dim": dim}
        values["vision_config_dict"] = {**vision_sizes, **extra, **vision, "projection_dim": dim}
    return values


PUBLISHED = {
    "openai/clip-vit-base-patch32": whole("b32") | {"text_config_dict": None, "vision_config_dict": None},
    "openai/clip-vit-large-patch14": whole("l14", older=True),
    "openai/clip-vit-large-patch14-336": whole("l14", older=True, image_size=336),
    "laion/CLIP-ViT-B-32-laion2B": whole("b32", act="gelu", older=True),
    "laion/CLIP-ViT-H-14-laion2B": whole("h14", act="gelu", older=True),
    "laion/CLIP-ViT-g-14-laion2B": whole("g14", act="gelu", older=True),
    "laion/CLIP-ViT-bigG-14-laion2B": whole("bigg14", act="gelu", older=True),
    "wkcn/TinyCLIP-ViT-8M-16": whole("tiny", older=True),
    "patrickjohncyr/fashion-clip": whole("b32"),
    "facebook/metaclip-h14-fullcc2.5b": whole("h14", act="quick_gelu"),
}
KEYS = ("hidden_size", "intermediate_size", "layer_norm_eps", "hidden_act")
RENAMED = {"num_layers": "num_hidden_layers", "num_heads": "num_attention_heads"}


def assert_read_as_transformers(file: Path, values: Mapping[str, Any]) -> None:
    write_json(file, values)
    reference: Any = CLIPConfig.from_dict(copy.deepcopy(dict(values)))
    text, vision = clip_text_from_huggingface(file, {}), from_huggingface(file, True, {})
    for key, theirs in {**{key: key for key in KEYS}, **RENAMED}.items():
        assert getattr(text, key) == getattr(reference.text_config, theirs), key
        assert getattr(vision, key) == getattr(reference.vision_config, theirs), key
    assert (text.vocab_size, text.num_positions) == (49408, reference.text_config.max_position_embeddings)
    assert (vision.image_size, vision.patch_size) == (
        reference.vision_config.image_size,
        reference.vision_config.patch_size,
    )
    assert text.projection_dim == vision.projection_dim == reference.projection_dim
    eos = reference.text_config.eos_token_id
    assert (text.pooling, text.eos_token_id) == (("argmax", None) if eos == 2 else ("eos", eos))


@pytest.mark.requirement("24.7")
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_configuration(tmp_path: Path, name: str) -> None:
    """24.7: every size, activation and end token is the one that transformers reads."""
    assert_read_as_transformers(tmp_path / "config.json", PUBLISHED[name])


@pytest.mark.property(31)
@given(
    size=st.sampled_from(sorted(SIZES_OF)),
    lost=st.sets(st.sampled_from((*SIZES_OF["l14"][1], "hidden_act", "eos_token_id", "image_size"))),
    act=st.sampled_from(("gelu", "quick_gelu")),
    eos=st.sampled_from((2, 49407)),
    towers=st.sampled_from((("text",), ("vision",), ("text", "vision"))),
)
def test_any_older_dictionary(
    tmp_path_factory: pytest.TempPathFactory,
    size: str,
    lost: set[str],
    act: str,
    eos: int,
    towers: tuple[str, ...],
) -> None:
    """Property 31: for any keys left out of an older dictionary, what transformers reads, or a refusal of a
    contradiction: a key that the newer part states, and that transformers replaces by its default."""
    values = whole(size, act=act)
    values["text_config"]["eos_token_id"] = eos
    for tower in towers:
        stated = {key: one for key, one in values[f"{tower}_config"].items() if key not in lost and key not in DUMPED}
        values[f"{tower}_config_dict"] = stated
    file = tmp_path_factory.mktemp("older") / "config.json"
    try:
        CLIPConfig.from_dict(copy.deepcopy(values))
    except StrictDataclassClassValidationError:
        reject()  # heads that do not divide the width: transformers has no such configuration
    try:
        assert_read_as_transformers(file, values)
    except CheckpointError as error:
        reference = CLIPConfig.from_dict(copy.deepcopy(values))
        changed = {
            key
            for tower in towers
            for key in lost & set(values[f"{tower}_config"])
            if getattr(getattr(reference, f"{tower}_config"), key) != values[f"{tower}_config"][key]
        }
        assert any(f"has {key} " in str(error) for key in changed), error  # noqa: PT017  # either outcome may be right


def read_both(file: Path) -> None:
    clip_text_from_huggingface(file, {})
    from_huggingface(file, True, {})


@pytest.mark.requirement("24.8")
@pytest.mark.parametrize("tower", ["text", "vision"])
def test_a_real_contradiction_stays_refused(tmp_path: Path, tower: str) -> None:
    """24.8: gelu in the newer part and no activation in the older one, which transformers reads as quick_gelu."""
    values = whole("b32", act="gelu", older=True)
    del values[f"{tower}_config_dict"]["hidden_act"]
    write_json(tmp_path / "config.json", values)
    message = (
        f"{tower}_config has hidden_act 'gelu', .*reads as 'quick_gelu'; say which.*or take {tower}_config_dict out"
    )
    with pytest.raises(CheckpointError, match=message):
        read_both(tmp_path / "config.json")
    overrides = {"hidden_act": "gelu"}
    assert clip_text_from_huggingface(tmp_path / "config.json", overrides).hidden_act == "gelu"


@pytest.mark.requirement("24.2")
@pytest.mark.parametrize("part", ["", "text_config", "vision_config"])
def test_an_unknown_key_is_refused_by_name(tmp_path: Path, part: str) -> None:
    """24.2: the key and its value, wherever it stands; null is no value."""
    values = whole("b32")
    place = values[part] if part else values
    write_json(tmp_path / "config.json", values | {"quantization_config": None})
    from_huggingface(tmp_path / "config.json", True, {})
    place["rope_theta"] = 10000
    write_json(tmp_path / "config.json", values)
    with pytest.raises(CheckpointError, match=r"config\.json.*unknown settings rope_theta: 10000"):
        read_both(tmp_path / "config.json")


@pytest.mark.requirement("24.2")
def test_published_open_clip_configurations(tmp_path: Path) -> None:
    """24.2: DFN and MetaCLIP say quick_gelu; an unknown key of the model is refused."""
    cfg: dict[str, Any] = {
        "embed_dim": 1024,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 224, "layers": 32, "width": 1280, "head_width": 80, "patch_size": 14},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 1024, "heads": 16, "layers": 24},
    }
    write_json(tmp_path / "open_clip_config.json", {"model_cfg": cfg, "preprocess_cfg": {}})
    config = from_open_clip(tmp_path / "open_clip_config.json", {})
    assert (config.hidden_act, config.num_heads, config.projection_dim) == ("quick_gelu", 16, 1024)
    write_json(tmp_path / "open_clip_config.json", {"model_cfg": cfg | {"multimodal_cfg": {"width": 8}}})
    with pytest.raises(CheckpointError, match=r"model_cfg: unknown settings multimodal_cfg"):
        from_open_clip(tmp_path / "open_clip_config.json", {})


@pytest.mark.requirement("24.10")
@pytest.mark.parametrize("prefix", ["", "bert."])
@pytest.mark.parametrize("absent", [(), ("layer_norm_eps", "type_vocab_size")])
def test_a_bert_as_bert_model_reads_it(
    tmp_path: Path, assert_within: AssertWithin, prefix: str, absent: tuple[str, ...]
) -> None:
    """24.10: old names of norms, absent defaults, heads beside the model left out and reported."""
    source = write_sentence_bert(tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    for new, name in old.items():
        tensors = {key.replace(new, name): tensor for key, tensor in tensors.items()}
    tensors = {f"{prefix}{key}": tensor for key, tensor in tensors.items()}
    heads = ["cls.predictions.bias", *(["classifier.weight", "qa_outputs.weight"] if prefix else [])]
    save_file(
        tensors | {head: torch.zeros(3) for head in heads}, source / "model.safetensors", metadata={"format": "pt"}
    )
    change_json(source / "config.json", dict.fromkeys(absent, "absent"))
    report = convert_checkpoint(source, tmp_path / "out")
    wanted = {"pooler", "pre-training heads", *(["classifier", "question answering head"] if prefix else [])}
    assert set(report.left_out) == wanted
    ids = [[2, 5, 6, 3]]
    with torch.inference_mode():
        reference = BertModel.from_pretrained(source).eval()(torch.tensor(ids)).last_hidden_state.mean(1)
    found = TextEncoder(tmp_path / "out", dtype="float32").encode_ids(ids, normalize=False)
    assert_within("precision-float32-minilm", found, reference)


@pytest.mark.requirement("24.11")
@pytest.mark.parametrize("folder", ["", "0_CLIPModel"])
@pytest.mark.parametrize("kind", ["CLIPModel", "Transformer"])
@pytest.mark.parametrize("normalize", [False, True])
def test_a_clip_of_sentence_transformers(tmp_path: Path, folder: str, kind: str, normalize: bool) -> None:
    """24.11: the layout of one module CLIPModel, and that of 5.4 and later, give the model that is in it."""
    root = tmp_path / "source"
    write_clip(root / folder)
    one = {"idx": 0, "name": "0", "path": folder, "type": f"sentence_transformers.base.modules.{kind}"}
    write_json(root / "modules.json", [one, *([MODULES[2]] if normalize else [])])
    convert_checkpoint(root, tmp_path / "out")
    convert_checkpoint(root / folder, tmp_path / "inner")
    texts = [CLIPEngine(tmp_path / name, dtype="float32").encode_text("a red cat") for name in ("out", "inner")]
    assert np.array_equal(texts[0], texts[1])
    write_json(root / "modules.json", [one, MODULES[1]])
    with pytest.raises(CheckpointError, match=r"modules\.json: modules"):
        convert_checkpoint(root, tmp_path / "third")


@pytest.mark.requirement("24.12")
def test_an_added_token_is_pooled_where_it_is_the_largest(tmp_path: Path) -> None:
    """24.12: the largest id is the added token's; the end token is still asked for."""
    config = dict(TINY_CLIP_TEXT.to_dict(), pooling="argmax", eos_token_id=VOCABULARY - 2)
    encoder = TextEncoder(write_text_model(tmp_path, type(TINY_CLIP_TEXT)(**config)), dtype="float32")
    added, end = VOCABULARY - 1, VOCABULARY - 2
    with_added = encoder.encode_ids([[0, added, 1, end]])
    assert np.array_equal(with_added, encoder.encode_ids([[0, added, 2, end]]))
    assert not np.array_equal(with_added, encoder.encode_ids([[1, added, 1, end]]))
    with pytest.raises(TextError, match=f"no end token {end}"):
        encoder.encode_ids([[0, added, 1]])


@pytest.mark.requirement("24.12")
def test_the_end_token_of_a_grown_vocabulary(tmp_path: Path) -> None:
    """24.12: with ``eos_token_id`` 2 the tokenizer says which token every text must have."""
    source = write_clip(tmp_path / "source", rows=3)
    values = json.loads((source / "config.json").read_text())
    end = values["text_config"]["eos_token_id"]
    values["text_config"]["eos_token_id"] = 2
    write_json(source / "config.json", values)
    convert_checkpoint(source, tmp_path / "out")
    engine = ArrowEngine(tmp_path / "out")
    assert (engine.config.pooling, engine.config.eos_token_id) == ("argmax", end)
    assert engine.encode("a cat").shape == (1, 10)


def repository(directory: Path, kind: str) -> Path:
    if kind == "sentence":
        return write_sentence_bert(directory)
    if kind == "open_clip":
        return make_checkpoint(directory, "tiny", layout="open_clip")
    if kind == "clip":
        return write_clip(directory)
    write_clip(directory / "0_CLIPModel")
    one = {"idx": 0, "name": "0", "path": "0_CLIPModel", "type": "sentence_transformers.models.CLIPModel"}
    write_json(directory / "modules.json", [one])
    return directory


@pytest.mark.requirement("24.9")
@pytest.mark.parametrize("kind", ["clip", "sentence", "open_clip", "inner"])
def test_a_hub_id_gives_what_its_path_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """24.9: what the library's own filter lets through gives the same model; nothing else is fetched."""
    source, cache = repository(tmp_path / "source", kind), tmp_path / "snapshots" / ("c" * 40)
    unwanted_files = ["onnx/model.onnx", "README.md", "flax_model.msgpack", "onnx/model.safetensors"]
    # a path takes this one before the weights of open_clip, as a hub id does
    for unwanted in (*unwanted_files, *([] if kind == "open_clip" else ["pytorch_model.bin"])):
        (source / unwanted).parent.mkdir(exist_ok=True)
        (source / unwanted).write_bytes(b"unwanted")

    def snapshot_download(hub_id: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        assert (hub_id, revision) == ("org/name", None)
        cache.mkdir(parents=True, exist_ok=True)
        names = [file.relative_to(source).as_posix() for file in source.rglob("*") if file.is_file()]
        for name in filter_repo_objects(names, allow_patterns=allow_patterns):
            (cache / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, cache / name)
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    hub, path = convert_checkpoint("org/name", tmp_path / "hub"), convert_checkpoint(source, tmp_path / "path")
    assert (hub.tensors_sha256, hub.settings) == (path.tensors_sha256, path.settings)
    assert bool(hub.tokenizer) == bool(path.tokenizer) == (kind != "open_clip")
    assert b"unwanted" not in [file.read_bytes() for file in cache.rglob("*") if file.is_file()]


@pytest.mark.requirement("24.16")
def test_convert_says_where_activation_and_pooling_came_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """24.16: activation, pooling and tokenizer, with file or argument; what took another's place; warnings."""
    source = write_sentence_bert(tmp_path / "source")
    change_json(source / "tokenizer_config.json", {"do_lower_case": False})
    assert main(["convert", str(source), str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "activation  gelu, from hidden_act of config.json" in out
    assert "pooling     mean, from 1_Pooling/config.json" in out
    assert "words from  tokenizer.json" in out
    assert "do_lower_case False of tokenizer_config.json was taken" in out
    assert main(["convert", str(source), str(tmp_path / "out"), "--pooling", "cls"]) == 0
    assert "pooling     cls, from the argument overrides" in capsys.readouterr().out
    other = make_checkpoint(tmp_path / "openai", "tiny", layout="open_clip")
    change_json(other / "open_clip_config.json", {})
    values = json.loads((other / "open_clip_config.json").read_text())
    del values["model_cfg"]["quick_gelu"]
    write_json(other / "open_clip_config.json", values)
    assert main(["convert", str(other), str(tmp_path / "clip")]) == 0
    captured = capsys.readouterr()
    assert "activation  gelu, from open_clip's default" in captured.out
    assert "warning: " in captured.err
    assert "no quick_gelu beside weights of OpenAI" in captured.err
    assert VisionEncoder(tmp_path / "clip").config.hidden_act == "gelu"


@pytest.mark.requirement("24.18")
@pytest.mark.parametrize("unit", [1000.0, 38400.0, 42000.0, 65000.0, -42000.0])
@torch.inference_mode()
def test_float16_keeps_its_range(unit: float) -> None:
    """24.18: WHERE `dtype` is float16, hidden units up to the largest float16 give finite rows, those of float32."""
    block, rows = block_tensors(0), []
    block["mlp.fc1.weight"] = torch.zeros_like(block["mlp.fc1.weight"])
    block["mlp.fc1.bias"] = torch.full_like(block["mlp.fc1.bias"], unit)
    block["mlp.fc2.weight"] = torch.full_like(block["mlp.fc2.weight"], 1e-5)
    for dtype in (torch.float16, torch.float32):
        core = InferenceCore(**SIZES, activation="quick_gelu")
        fill_core(core, [block] * SIZES["num_layers"], dtype)
        rows.append(core(tokens().to(dtype)).float())
    assert rows[0].isfinite().all()
    torch.testing.assert_close(*rows, rtol=1e-2, atol=1e-2 * rows[1].abs().max().item())


@pytest.mark.requirement("24.19")
@pytest.mark.parametrize("write", [write_sentence_bert, write_clip])
def test_a_json_file_that_cannot_be_read_is_named(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    """24.19: IF a JSON file of a source is nested deeper than Python reads, is not UTF-8 or begins with a byte order
    mark, THEN THE convert_checkpoint SHALL raise CheckpointError with its name and write nothing.
    """
    source, out = write(tmp_path / "source"), tmp_path / "out"
    for file in sorted(source.rglob("*.json")):
        sound = file.read_text(encoding="utf-8")
        damaged = [sound.encode(encoding) for encoding in ("utf-8-sig", "utf-16", "utf-32-le")]
        damaged += [(text * 100_000).encode() for text in ("[", '{"a":')]
        for content in damaged:
            file.write_bytes(content)
            with pytest.raises(CheckpointError, match=re.escape(file.name)):
                convert_checkpoint(source, out)
            assert not out.exists()
        file.write_text(sound, encoding="utf-8")
    convert_checkpoint(source, out)


@pytest.mark.requirement("12.6")
@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 400, "0", "-1"])
def test_an_epsilon_that_is_no_number(tmp_path: Path, value: str) -> None:
    """12.6: IF the Package refuses an input or a file, THEN THE Package SHALL raise a subclass of
    `LlmCompressionError` whose message has the value found and what was expected."""
    source = write_sentence_bert(tmp_path / "source")
    file = source / "config.json"
    change_json(file, {"layer_norm_eps": "here"})
    file.write_text(file.read_text().replace('"here"', value))
    with pytest.raises(CheckpointError, match="expected a positive number"):
        convert_checkpoint(source, tmp_path / "out")
