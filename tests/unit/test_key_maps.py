"""The name tables against the names that a weight file has and the facts of each family."""

from __future__ import annotations

import ast
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from llm_compression.convert import key_maps
from llm_compression.convert.key_maps import (
    LEFT_OUT,
    MARKERS,
    OLD_NORMS,
    OPENAI,
    STRIPPED_TOWER,
    TABLES,
    UNSUPPORTED,
    Entry,
    Family,
)
from llm_compression.multimodal.vision_config import VisionConfig

FAMILIES: tuple[Family, ...] = ("huggingface", "huggingface_bare", "open_clip", "openai")
BLOCK = "vision_model.encoder.layers.{n}."


@pytest.mark.requirement("9.1")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_table_names_every_tensor_of_a_tower_and_no_other(family: Family) -> None:
    """With a number for ``{n}``, a table's keys are exactly the tensors of a weight file."""
    config = VisionConfig(num_layers=3)
    named = {name.format(n=n) for name in TABLES[family] for n in range(3)}
    assert named == set(config.expected_shapes())


@pytest.mark.parametrize("family", FAMILIES)
def test_no_two_tensors_come_from_the_same_place(family: Family) -> None:
    """Every entry of a table is another tensor, or another part of one."""
    assert len(set(TABLES[family].values())) == len(TABLES[family])


@pytest.mark.requirement("9.3")
@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("vision_model.embeddings.class_embedding", Entry("visual.class_embedding")),
        ("vision_model.embeddings.patch_embedding.weight", Entry("visual.conv1.weight")),
        ("vision_model.embeddings.position_embedding.weight", Entry("visual.positional_embedding")),
        ("vision_model.pre_layrnorm.weight", Entry("visual.ln_pre.weight")),
        ("vision_model.post_layernorm.bias", Entry("visual.ln_post.bias")),
        (BLOCK + "layer_norm1.weight", Entry("visual.transformer.resblocks.{n}.ln_1.weight")),
        (BLOCK + "layer_norm2.bias", Entry("visual.transformer.resblocks.{n}.ln_2.bias")),
        (BLOCK + "self_attn.out_proj.weight", Entry("visual.transformer.resblocks.{n}.attn.out_proj.weight")),
        (BLOCK + "mlp.fc1.weight", Entry("visual.transformer.resblocks.{n}.mlp.c_fc.weight")),
        (BLOCK + "mlp.fc2.bias", Entry("visual.transformer.resblocks.{n}.mlp.c_proj.bias")),
        ("visual_projection.weight", Entry("visual.proj", "transpose")),
    ],
)
def test_openai_names(name: str, entry: Entry) -> None:
    """The table of key names: Hugging Face against OpenAI and open_clip; the projection is transposed."""
    assert OPENAI[name] == entry


@pytest.mark.requirement("9.3")
@pytest.mark.parametrize("kind", ["weight", "bias"])
def test_fused_attention_is_split_in_the_order_q_k_v(kind: str) -> None:
    """``attn.in_proj_{weight,bias}``: three equal chunks in the order q, k, v."""
    source = "visual.transformer.resblocks.{n}.attn.in_proj_" + kind
    assert [OPENAI[f"{BLOCK}self_attn.{one}_proj.{kind}"] for one in "qkv"] == [
        Entry(source, "split3", part) for part in range(3)
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_that_a_tower_needs_is_left_out_or_called_unsupported(family: Family) -> None:
    """The patterns of what is left out, and of other architectures, meet no tensor of a CLIP image tower."""
    needed = [entry.source.format(n=n) for entry in TABLES[family].values() for n in (0, 11)]
    patterns = [*LEFT_OUT[family], *UNSUPPORTED]
    assert [(name, pattern) for name in needed for pattern in patterns if fnmatchcase(name, pattern)] == []


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("huggingface", "text_model.embeddings.token_embedding.weight"),
        ("huggingface", "text_projection.weight"),
        ("huggingface", "logit_scale"),
        ("huggingface", "vision_model.embeddings.position_ids"),
        ("huggingface_bare", "embeddings.position_ids"),
        ("open_clip", "transformer.resblocks.0.ln_1.weight"),
        ("open_clip", "text.transformer.resblocks.0.ln_1.weight"),
        ("open_clip", "text_projection"),
        ("openai", "input_resolution"),
        ("openai", "context_length"),
        ("openai", "vocab_size"),
    ],
)
def test_what_an_image_encoder_has_no_use_for_is_left_out(family: Family, name: str) -> None:
    """Drop ``position_ids``, OpenAI's three sizes, and the text tower under its names, ``text.`` included."""
    assert any(fnmatchcase(name, pattern) for pattern in LEFT_OUT[family])


def tables_in(text: str, names: set[str]) -> list[int]:
    """Lines of the tuples, lists, sets and mappings of a program that hold one of some names."""
    literals = (ast.Tuple, ast.List, ast.Set, ast.Dict)
    return [
        node.lineno
        for node in ast.walk(ast.parse(text))
        if isinstance(node, literals)
        and any(isinstance(each, ast.Constant) and each.value in names for each in ast.iter_child_nodes(node))
    ]


@pytest.mark.requirement("33.10")
def test_the_tables_are_in_one_file() -> None:
    """33.10: THE Package SHALL keep every table of other projects' tensor names in one file of `convert`."""
    names = {entry.source for table in TABLES.values() for entry in table.values()}
    names |= {name.format(n=0) for name in names}
    names |= {
        *UNSUPPORTED,
        *MARKERS,
        *STRIPPED_TOWER,
        *OLD_NORMS,
        *(name for each in LEFT_OUT.values() for name in each),
    }
    # a word without a part is a key of a configuration too
    names = {name for name in names if "." in name}
    home = Path(key_maps.__file__)
    found = {file.name: tables_in(file.read_text(encoding="utf-8"), names) for file in home.parent.glob("*.py")}
    assert found.pop(home.name)
    assert [f"{name}:{line}" for name, lines in sorted(found.items()) for line in lines] == []
    assert tables_in('x = ("visual.proj",)\n\ny = {"module.": "", "ln_pre.weight": 1}', names) == [1, 3]
