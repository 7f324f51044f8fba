"""Files of tensors: what they hold, and what is refused before any of its code could run."""

from __future__ import annotations

import hashlib
import os
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from llm_compression.convert.tensor_files import open_tensors, sha256_of
from llm_compression.errors import CheckpointError
from llm_compression.harness.clip.checkpoints import make_checkpoint


class Malicious:
    """What pickle runs when it reads it back."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.proof),)


def names_in(*files: Path) -> set[str]:
    with open_tensors(files) as store:
        return set(store.shapes)


@pytest.mark.requirement("9.2")
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_a_store_says_shape_and_dtype_and_reads_the_bits(tmp_path: Path, suffix: str) -> None:
    """Names, shapes and dtypes are known before a tensor is read; what is read is what was written."""
    tensors = {
        "a": torch.randn(2, 3).to(torch.bfloat16),
        "b": torch.randn(4).half(),
        "c": torch.arange(5),
        "d": torch.tensor(1.5),
    }
    file = tmp_path / f"x{suffix}"
    if suffix == ".bin":
        torch.save(tensors, file)
    else:
        save_file(tensors, file)
    with open_tensors([file]) as store:
        assert store.shapes == {"a": (2, 3), "b": (4,), "c": (5,), "d": ()}
        assert store.dtypes == {"a": "bfloat16", "b": "float16", "c": "int64", "d": "float32"}
        assert all(torch.equal(store.read(name), tensor) for name, tensor in tensors.items())


@pytest.mark.requirement("9.2")
def test_a_pickle_with_code_is_refused_and_its_code_never_runs(tmp_path: Path) -> None:
    """``pytorch_model.bin`` only with ``weights_only=True``: code in it is an error and does not run."""
    torch.save({"visual.proj": torch.ones(2), "x": Malicious(tmp_path / "ran")}, tmp_path / "evil.bin")
    with pytest.raises(CheckpointError, match=r"evil\.bin: no checkpoint, or one that holds more than tensors"):
        names_in(tmp_path / "evil.bin")
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "evil.bin", weights_only=False)  # the control: it would have run
    assert (tmp_path / "ran").exists()


@pytest.mark.requirement("12.6")
@pytest.mark.parametrize("name", ["x.safetensors", "x.bin", "x.pt"])
@pytest.mark.parametrize("content", [b"", b"\x80", b"not a checkpoint at all" * 9, b"PK\x03\x04" + bytes(40)])
def test_a_file_that_is_no_checkpoint_is_an_error(tmp_path: Path, name: str, content: bytes) -> None:
    """An empty file and files of anything else: a CheckpointError that names the file."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        names_in(tmp_path / name)


@pytest.mark.parametrize("layout", ["hf", "hf_bin", "openai"])
@pytest.mark.parametrize("kept", [0.2, 0.9, 0.999])
def test_a_truncated_file_is_an_error(tmp_path: Path, layout: Any, kept: float) -> None:
    """A download that broke off is an error when it is opened."""
    made = make_checkpoint(tmp_path, "tiny", layout=layout)
    file = made if made.is_file() else next(f for f in made.iterdir() if f.suffix in (".safetensors", ".bin"))
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * kept)])
    with pytest.raises(CheckpointError, match=file.name):
        names_in(file)


def test_a_damaged_torchscript_archive_is_an_error(tmp_path: Path) -> None:
    """A zip archive that looks like TorchScript and is not."""
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/constants.pkl", b"not a pickle")
    with pytest.raises(CheckpointError, match=r"x\.pt: not a sound TorchScript archive: "):
        names_in(tmp_path / "x.pt")


@pytest.mark.requirement("12.6")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(2)], "holds a list, expected a dictionary of tensors"),
        ({"visual.proj": torch.ones(2), "epoch": 3}, "entry 'epoch' is a int, expected a tensor"),
        ({3: torch.ones(2)}, "entry 3 is a Tensor, expected a tensor"),
    ],
)
def test_a_pickle_of_something_else_is_an_error(tmp_path: Path, content: Any, message: str) -> None:
    """A checkpoint is a dictionary of tensors, or has one under ``state_dict``."""
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=message):
        names_in(tmp_path / "x.pt")


def test_the_same_tensor_in_two_shards_is_an_error(tmp_path: Path) -> None:
    """Which of the two is meant cannot be known."""
    for name in ("a", "b"):
        save_file({"visual.proj": torch.ones(2)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match=r"b\.safetensors: tensor 'visual\.proj' is in another file"):
        names_in(tmp_path / "a.safetensors", tmp_path / "b.safetensors")


def test_shards_of_different_kinds_are_an_error(tmp_path: Path) -> None:
    """An index does not mix safetensors and pickles."""
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    torch.save({"b": torch.ones(2)}, tmp_path / "b.bin")
    with pytest.raises(CheckpointError, match="shards of different kinds: pickle, safetensors"):
        names_in(tmp_path / "a.safetensors", tmp_path / "b.bin")


def test_a_prefix_is_stripped_only_where_every_name_has_it(tmp_path: Path) -> None:
    """``module.`` is DataParallel's only if it stands before all names."""
    save_file({"module.a": torch.ones(1), "module.b": torch.zeros(1)}, tmp_path / "all.safetensors")
    save_file({"module.a": torch.ones(1), "b": torch.zeros(1)}, tmp_path / "some.safetensors")
    assert names_in(tmp_path / "all.safetensors") == {"a", "b"}
    assert names_in(tmp_path / "some.safetensors") == {"module.a", "b"}


def test_without_safetensors_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime-only install: a CheckpointError with the extra to install, not an ImportError."""
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(CheckpointError, match=r"pip install 'llm-compression\[convert\]'"):
        names_in(tmp_path / "a.safetensors")


def test_the_hash_is_that_of_the_files_in_order(tmp_path: Path) -> None:
    """sha256 of the source file; for shards over their bytes, one file after the other."""
    (tmp_path / "a").write_bytes(b"first" * 999_999)
    (tmp_path / "b").write_bytes(b"second")
    assert sha256_of([tmp_path / "a"]) == hashlib.sha256(b"first" * 999_999).hexdigest()
    assert sha256_of([tmp_path / "a", tmp_path / "b"]) == hashlib.sha256(b"first" * 999_999 + b"second").hexdigest()
