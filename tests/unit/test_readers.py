"""Which family a source is, which files it is made of, and what no reader takes."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llm_compression.convert.readers import Checkpoint, open_checkpoint
from llm_compression.errors import CheckpointError
from llm_compression.harness.clip.checkpoints import VARIANTS, Layout, make_checkpoint
from llm_compression.multimodal.vision_config import VisionConfig

TINY = VARIANTS["tiny"]


def read(source: str | Path, **arguments: Any) -> Checkpoint:
    with open_checkpoint(source, **arguments) as checkpoint:
        return checkpoint


def rewrite(file: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file)


@pytest.mark.requirement("9.1")
@pytest.mark.parametrize(
    ("layout", "family", "projection"),
    [
        ("hf", "huggingface", 16),
        ("hf_sharded", "huggingface", 16),
        ("hf_bin", "huggingface", 16),
        ("hf_clip_model", "huggingface", 16),
        ("hf_vision", "huggingface", None),
        ("hf_vision_bare", "huggingface_bare", None),
        ("open_clip", "open_clip", 16),
    ],
)
def test_a_directory_says_its_family_and_sizes(
    tmp_path: Path, layout: Layout, family: str, projection: int | None
) -> None:
    """CLIPModel, CLIPVisionModelWithProjection, CLIPVisionModel with and without prefix, open_clip are told apart."""
    checkpoint = read(make_checkpoint(tmp_path / "tiny", "tiny", layout=layout), vision_only=True)
    assert (checkpoint.family, checkpoint.name) == (family, "tiny")
    assert checkpoint.config.to_dict() == {**TINY.to_dict(), "projection_dim": projection}


@pytest.mark.requirement("9.3")
def test_an_openai_archive_has_quick_gelu_and_64_channels_a_head(tmp_path: Path) -> None:
    """TorchScript archives are OpenAI's: quick_gelu always, width // 64 heads, every size from a shape."""
    config = VisionConfig(
        image_size=24, patch_size=8, hidden_size=128, num_layers=2, num_heads=2, intermediate_size=96, projection_dim=20
    )
    checkpoint = read(make_checkpoint(tmp_path, config, layout="openai"))
    assert (checkpoint.family, checkpoint.name, checkpoint.config) == ("openai", "model.pt", config)
    assert checkpoint.preprocessing is not None
    assert checkpoint.preprocessing.crop_offset == "round"


@pytest.mark.parametrize(
    ("layout", "file"), [("hf", "model.safetensors"), ("open_clip", "open_clip_model.safetensors")]
)
def test_a_weight_file_is_read_with_the_configuration_beside_it(tmp_path: Path, layout: Layout, file: str) -> None:
    """A source may be the file itself; what stands beside it is used as for the directory."""
    checkpoint = read(make_checkpoint(tmp_path, "tiny", layout=layout) / file)
    assert (checkpoint.name, checkpoint.config) == (file, TINY)


def test_a_lone_weight_file_of_any_name_is_found(tmp_path: Path) -> None:
    """A directory with one weight file needs no well-known name; with two, the caller has to say which."""
    make_checkpoint(tmp_path, "tiny", layout="open_clip")
    (tmp_path / "open_clip_model.safetensors").rename(tmp_path / "epoch_30.safetensors")
    assert read(tmp_path).files == (tmp_path / "epoch_30.safetensors",)
    shutil.copy(tmp_path / "epoch_30.safetensors", tmp_path / "epoch_31.safetensors")
    with pytest.raises(CheckpointError, match=r"several weight files \(epoch_30\.safetensors, epoch_31\.safetensors\)"):
        read(tmp_path)


def test_a_timm_repository_is_read_by_its_open_clip_weights(tmp_path: Path) -> None:
    """Beside timm's own config.json and model.safetensors, the open_clip weights are the ones that are CLIP's."""
    make_checkpoint(tmp_path, "tiny", layout="open_clip")
    (tmp_path / "config.json").write_text('{"architecture": "vit_base_patch16_clip_224"}')
    save_file({"blocks.0.norm1.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    assert read(tmp_path).family == "open_clip"


@pytest.mark.requirement("9.2")
def test_shards_are_found_by_their_index(tmp_path: Path) -> None:
    """An index names the shards; they are read sorted by name, whatever order it has them in."""
    checkpoint = read(make_checkpoint(tmp_path, "tiny", layout="hf_sharded"))
    assert [file.name for file in checkpoint.files] == [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    assert set(checkpoint.tensors.shapes) == set(TINY.expected_shapes())


@pytest.mark.requirement("9.2")
def test_shards_of_pickles(tmp_path: Path) -> None:
    """``pytorch_model.bin.index.json`` is read as the index of safetensors is."""
    whole = make_checkpoint(tmp_path, "tiny", layout="hf_bin") / "pytorch_model.bin"
    tensors = torch.load(whole, weights_only=True)
    whole.unlink()
    weight_map: dict[str, str] = {}
    for shard in (0, 1):
        file = f"pytorch_model-0000{shard + 1}-of-00002.bin"
        part = {name: tensors[name] for name in list(tensors)[shard::2]}
        torch.save(part, tmp_path / file)
        weight_map |= dict.fromkeys(part, file)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    checkpoint = read(tmp_path)
    assert (checkpoint.config, len(checkpoint.files)) == (TINY, 2)
    assert set(checkpoint.tensors.shapes) == set(TINY.expected_shapes())


@pytest.mark.requirement("9.3")
@pytest.mark.parametrize("legacy", [False, True])
def test_a_training_checkpoint_is_unwrapped(tmp_path: Path, legacy: bool) -> None:
    """open_clip: unwrap ``state_dict``, strip ``module.``; in the zip format of torch.save and in the older one."""
    weights = make_checkpoint(tmp_path, "tiny", layout="open_clip") / "open_clip_model.safetensors"
    tensors = load_file(weights)
    state = {f"module.{name}": tensor for name, tensor in tensors.items()}
    file = tmp_path / "epoch_32.pt"
    torch.save({"epoch": 32, "state_dict": state}, file, _use_new_zipfile_serialization=not legacy)
    checkpoint = read(file)
    assert (checkpoint.family, checkpoint.config) == ("open_clip", TINY)
    assert set(checkpoint.tensors.shapes) == set(tensors)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        (
            {"a": "../elsewhere.safetensors"},
            r"shards \['\.\./elsewhere\.safetensors'\], expected file names in the same",
        ),
        ({"a": "model-9.safetensors"}, "names shards that are missing: model-9.safetensors"),
        ({}, "no weight_map"),
        (["model.safetensors"], "no weight_map"),
    ],
)
def test_a_bad_index_is_an_error(tmp_path: Path, weight_map: Any, message: str) -> None:
    """An index that is empty, names a missing shard, or leads out of the directory is refused."""
    make_checkpoint(tmp_path, "tiny", layout="hf_sharded")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path)


@pytest.mark.requirement("9.7")
@pytest.mark.parametrize(
    ("layout", "name", "what"),
    [
        ("open_clip", "visual.attnpool.positional_embedding", "attention pool"),
        ("open_clip", "visual.layer1.0.conv1.weight", "ResNet"),
        ("open_clip", "visual.trunk.patch_embed.proj.weight", "timm"),
        ("open_clip", "visual.attn_pool.query", "attentional pooling"),
        ("open_clip", "visual.transformer.resblocks.0.ls_1.gamma", "layer scale"),
        ("hf", "vision_model.head.probe", "SigLIP"),
        ("hf", "vision_model.embeddings.patch_embedding.bias", "SigLIP"),
    ],
)
def test_an_unsupported_architecture_is_named(tmp_path: Path, layout: Layout, name: str, what: str) -> None:
    """Attention pool, ResNet, timm and SigLIP towers and layer scale: an error that says which, and by what tensor."""
    make_checkpoint(tmp_path, "tiny", layout=layout)
    file = next(tmp_path.glob("*.safetensors"))
    rewrite(file, lambda tensors: tensors.update({name: torch.ones(2)}))
    with pytest.raises(CheckpointError, match=f"{what}.*{name}.*expected CLIP's own vision transformer"):
        read(tmp_path)


@pytest.mark.requirement("9.7")
def test_no_pre_layernorm_is_an_error(tmp_path: Path) -> None:
    """A tower without ``ln_pre`` is another architecture, whatever its configuration says."""
    make_checkpoint(tmp_path, "tiny", layout="open_clip")
    rewrite(tmp_path / "open_clip_model.safetensors", lambda tensors: tensors.pop("visual.ln_pre.weight"))
    with pytest.raises(CheckpointError, match=r"no pre-layernorm \(visual\.ln_pre\.weight is missing\)"):
        read(tmp_path)


@pytest.mark.parametrize("tensors", [{"bert.pooler.weight": torch.ones(2)}, {"text_model.x": torch.ones(2)}])
def test_a_checkpoint_without_an_image_tower_is_an_error(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Weights of something else: the message names what is there and what was expected."""
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"no image tower of CLIP.*visual\.\*, found {next(iter(tensors))}"):
        read(tmp_path)


def test_unknown_overrides_are_an_error(tmp_path: Path) -> None:
    """Overrides are fields of VisionConfig; a misspelt one is not ignored."""
    make_checkpoint(tmp_path, "tiny")
    with pytest.raises(CheckpointError, match=r"overrides: unknown \['heads'\], expected some of image_size, "):
        read(tmp_path, overrides={"heads": 4})


def test_overrides_take_the_place_of_the_configuration(tmp_path: Path) -> None:
    """A field given by the caller wins over the file's, and is validated as the file's is."""
    make_checkpoint(tmp_path, "tiny")
    assert read(tmp_path, overrides={"hidden_act": "gelu"}).config == replace(TINY, hidden_act="gelu")
    with pytest.raises(CheckpointError, match="hidden_act: 'relu', expected one of quick_gelu, gelu"):
        read(tmp_path, overrides={"hidden_act": "relu"})


@pytest.mark.requirement("12.3")
@pytest.mark.parametrize("source", ["missing", "./org/name", "/no/such/dir", "a/b/c", "org/na me"])
def test_a_missing_path_is_an_error_and_opens_no_socket(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network is used only for what has the form of a hub id."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket, "socket", _no_socket)
    with pytest.raises(CheckpointError, match=f"{source}: no such file or directory$"):
        read(source)
    with pytest.raises(CheckpointError, match=r"org/name: no such file or directory$"):
        read(Path("org/name"))  # a Path is a path


@pytest.mark.requirement("12.3")
def test_an_existing_path_is_never_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that has the form of a hub id is read as it is, and no socket is opened."""
    make_checkpoint(tmp_path / "openai" / "clip", "tiny")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket, "socket", _no_socket)
    checkpoint = read("openai/clip", revision="v1")
    assert (checkpoint.name, checkpoint.revision, checkpoint.config) == ("clip", "v1", TINY)


@pytest.mark.requirement("9.9")
def test_a_hub_id_needs_the_hub_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without huggingface_hub the message says what to install."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"pip install 'llm-compression\[hub\]'"):
        read("org/name")


@pytest.mark.requirement("9.9")
@pytest.mark.parametrize("layout", ["hf", "hf_sharded", "hf_bin", "open_clip"])
def test_a_hub_id_is_read_from_the_library_and_its_commit_recorded(tmp_path: Path, layout: Layout) -> None:
    """What huggingface_hub has in its cache is read offline; the revision is the commit."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--org--name"
    make_checkpoint(repository / "snapshots" / commit, "tiny", layout=layout)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    done = _read_offline(tmp_path, "org/name")
    assert done.stdout == f"org/name {commit} {TINY}\n", done.stderr


@pytest.mark.requirement("9.9")
def test_a_hub_id_that_cannot_be_had_is_an_error(tmp_path: Path) -> None:
    """Neither a path nor in the cache nor to be reached: a CheckpointError that says so."""
    done = _read_offline(tmp_path, "org/name")
    assert "CheckpointError: org/name: no such file or directory, and not to be had from the hub: " in done.stderr


def _no_socket(*_: object, **__: object) -> None:
    raise AssertionError("a socket was opened")


def _read_offline(home: Path, source: str) -> subprocess.CompletedProcess[str]:
    # the library reads its settings when it is imported, so this takes a process of its own
    program = (
        "import sys\n"
        "from llm_compression.convert.readers import open_checkpoint\n"
        "with open_checkpoint(sys.argv[1]) as checkpoint:\n"
        "    print(checkpoint.name, checkpoint.revision, checkpoint.config)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", program, source],
        env={**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
    )
