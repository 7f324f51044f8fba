"""State dicts as training code leaves them: prefixes, entries, objects beside the tensors, and pointers of git-lfs."""

from __future__ import annotations

import argparse
import collections
import datetime
import itertools
import pathlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from llm_compression.convert import convert_checkpoint
from llm_compression.convert.wrappers import prefix_of
from llm_compression.errors import CheckpointError, CheckpointWarning
from llm_compression.harness.clip.checkpoints import make_checkpoint
from llm_compression.inference.weight_loader import WeightLoader

SEGMENTS = ("module.", "_orig_mod.", "model.", "clip_model.")
PREFIXES = ["".join(some) for size in (1, 2, 3) for some in itertools.product(SEGMENTS, repeat=size)]


@pytest.fixture(scope="module")
def tensors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """A small open_clip model under OpenAI's names."""
    source = make_checkpoint(tmp_path_factory.mktemp("open_clip"), "tiny", layout="open_clip")
    return load_file(source / "open_clip_model.safetensors")


def converted(directory: Path, content: Any) -> dict[str, torch.Tensor]:
    """What a pickle of this content becomes beside its open_clip_config.json."""
    source = make_checkpoint(directory / "source", "tiny", layout="open_clip")
    (source / "open_clip_model.safetensors").unlink()
    torch.save(content, source / "epoch_1.pt")
    convert_checkpoint(source, directory / "out")
    return dict(WeightLoader(directory / "out").stream())


def assert_same(found: dict[str, torch.Tensor], tensors: dict[str, torch.Tensor]) -> None:
    assert len(found) == 40
    assert torch.equal(found["visual_projection.weight"], tensors["visual.proj"].t())
    assert torch.equal(found["vision_model.embeddings.class_embedding"], tensors["visual.class_embedding"])


@pytest.mark.requirement("24.14")
@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_of_wrappers_are_found(tensors: dict[str, torch.Tensor], prefix: str) -> None:
    """24.14: any of the wrappers, in any number and order."""
    assert prefix_of([f"{prefix}{name}" for name in tensors], "x") == prefix


@pytest.mark.requirement("24.14")
@pytest.mark.parametrize("prefix", ["_orig_mod.", "module._orig_mod.", "module.module.", "model.", "clip_model."])
def test_prefixes_are_taken_off(tmp_path: Path, tensors: dict[str, torch.Tensor], prefix: str) -> None:
    """24.14: the tensors of the model, an averaging counter beside them left out."""
    named: dict[str, Any] = {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
    assert_same(converted(tmp_path, named | {"n_averaged": torch.tensor(3)}), tensors)


@pytest.mark.requirement("24.14")
@pytest.mark.parametrize("entry", ["state_dict", "model", "model_state_dict", "net", "module", "params", "ema"])
def test_entries_of_training_code_are_opened(tmp_path: Path, tensors: dict[str, torch.Tensor], entry: str) -> None:
    """24.14: the state dict under a known entry, with what training keeps beside it."""
    beside = {"epoch": 3, "loss": 0.1, "optimizer": {"state": {}, "param_groups": [{"lr": np.float64(1e-3)}]}}
    assert_same(converted(tmp_path, {**beside, entry: tensors}), tensors)


@pytest.mark.requirement("24.14")
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "value",
    [
        *(np.float64(1), np.float32(1), np.int64(3), np.bool_(True), np.zeros(3), np.float16(1)),
        *(argparse.Namespace(lr=1), pathlib.PosixPath("/x"), pathlib.PurePosixPath("x"), {1, 2}),
        *(
            datetime.date(2024, 1, 1),
            datetime.timedelta(1),
            collections.defaultdict(list),
            torch.device("cpu"),
            torch.get_rng_state(),
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_plain_values_may_stand_beside(
    tmp_path: Path, tensors: dict[str, torch.Tensor], value: Any, legacy: bool
) -> None:
    """24.14: numpy scalars and arrays, paths, namespaces and dates are rebuilt as data, and no code runs."""
    content = {"state_dict": {f"model.{name}": tensor for name, tensor in tensors.items()}, "beside": value}
    source = make_checkpoint(tmp_path / "source", "tiny", layout="open_clip")
    (source / "open_clip_model.safetensors").unlink()
    torch.save(content, source / "epoch=3.ckpt", _use_new_zipfile_serialization=not legacy)
    convert_checkpoint(source, tmp_path / "out")
    assert_same(dict(WeightLoader(tmp_path / "out").stream()), tensors)


@pytest.mark.requirement("24.14")
def test_a_tower_by_itself(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """24.14: an image tower saved without ``visual.``, as robust towers are."""
    tower = {name.removeprefix("visual."): tensor for name, tensor in tensors.items() if name.startswith("visual.")}
    assert_same(converted(tmp_path, {"module." + name: tensor for name, tensor in tower.items()}), tensors)


@pytest.mark.requirement("24.15")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda t: {f"encoder.{k}": v for k, v in t.items()}, r"'encoder\.' stands before.*take the prefix off"),
        (lambda t: {**{f"model.{k}": v for k, v in t.items()}, "loss.t": torch.ones(1)}, r"not before \['loss\.t'\]"),
        (
            lambda t: {f"{p}.{k}": v for p in ("a", "b") for k, v in t.items()},
            r"several models, under \['a\.', 'b\.'\]",
        ),
        (lambda t: {"model": t, "ema": t}, r"several state dicts, \['model', 'ema'\]"),
        (lambda t: {"unheard_of": t}, "entry 'unheard_of' is a dict, expected a tensor; save the state dict by itself"),
        (lambda _: torch.nn.Linear(2, 2), r"holds more than tensors \(torch\.nn\.modules\.linear\.Linear\)"),
    ],
    ids=["prefix", "partial", "two-prefixes", "two-entries", "entry", "module"],
)
def test_what_is_not_known_is_named(tmp_path: Path, tensors: dict[str, torch.Tensor], make: Any, message: str) -> None:
    """24.15: another prefix, several models, an object of another class: CheckpointError that names it."""
    with pytest.raises(CheckpointError, match=message):
        converted(tmp_path, make(tensors))


@pytest.mark.requirement("24.13")
@pytest.mark.parametrize("layout", ["hf_clip_model", "hf_sharded", "hf_bin", "open_clip"])
def test_a_pointer_of_git_lfs_is_called_that(tmp_path: Path, layout: Any) -> None:
    """24.13: any file of a checkpoint may be a pointer: the message has the command that fetches it."""
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 2224003\n"
    source = make_checkpoint(tmp_path / "source", "tiny", layout=layout)
    for file in sorted(source.iterdir()):
        content = file.read_bytes()
        file.write_bytes(pointer)
        with pytest.raises(CheckpointError, match=rf"git-lfs pointer.*lfs pull --include {file.name}"):
            convert_checkpoint(source, tmp_path / "out")
        file.write_bytes(content)
    convert_checkpoint(source, tmp_path / "out")


@pytest.mark.requirement("24.17")
def test_weights_of_openai_without_quick_gelu_are_a_warning(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """24.17: sizes that only OpenAI's archives hold, beside a configuration that does not say quick_gelu."""
    source = make_checkpoint(tmp_path / "source", "tiny", layout="open_clip")
    file = source / "open_clip_config.json"
    file.write_text(file.read_text().replace('"quick_gelu": true', '"quick_gelu": false'))
    sizes = {name: torch.tensor(1) for name in ("input_resolution", "context_length", "vocab_size")}
    save_file(tensors | sizes, source / "open_clip_model.safetensors")
    with pytest.warns(CheckpointWarning, match=r"no quick_gelu beside weights of OpenAI.*--hidden-act quick_gelu"):
        convert_checkpoint(source, tmp_path / "out")
    # no warning where it was said
    convert_checkpoint(source, tmp_path / "out", overrides={"hidden_act": "quick_gelu"})
