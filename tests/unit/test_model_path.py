"""A path that holds no weight file: what is there instead, and the command that makes one of it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from llm_compression.cli import main
from llm_compression.errors import LlmCompressionError, MissingFileError, WeightFormatError
from llm_compression.harness.clip.checkpoints import LAYOUTS, Layout, make_checkpoint
from llm_compression.inference.weight_format import WEIGHTS_FILE
from llm_compression.inference.weight_loader import WeightLoader
from llm_compression.multimodal.clip_engine import CLIPEngine
from llm_compression.multimodal.vision_config import VisionConfig
from llm_compression.multimodal.vision_encoder import VisionEncoder
from llm_compression.multimodal.vision_provider import ArrowVisionProvider
from llm_compression.open_model import get_default_provider
from llm_compression.text.arrow_engine import ArrowEngine
from llm_compression.text.text_encoder import TextEncoder

OPENERS: Final[dict[str, Callable[[Path], Any]]] = {
    "VisionEncoder": VisionEncoder,
    "TextEncoder": TextEncoder,
    "ArrowEngine": ArrowEngine,
    "CLIPEngine": CLIPEngine,
    "ArrowVisionProvider": ArrowVisionProvider,
    "WeightLoader": WeightLoader,
    "get_default_provider": get_default_provider,
}


def command_of(error: LlmCompressionError) -> list[str]:
    """The arguments of the command that a message gives."""
    found = re.search(r"convert it first: llm-compression (convert .*)$", str(error))
    assert found is not None, str(error)
    return shlex.split(found[1])


@pytest.mark.requirement("27.11")
@pytest.mark.parametrize("opener", OPENERS)
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", "x.pt"])
def test_a_directory_with_a_checkpoint(tmp_path: Path, opener: str, name: str) -> None:
    """27.11: IF a path names a checkpoint of another project in place of a weight file, THEN THE WeightLoader SHALL
    raise an error with the command that converts it: whoever was asked to open it."""
    directory = tmp_path / "my clip"
    directory.mkdir()
    (directory / name).write_bytes(b"tensors")
    (directory / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(MissingFileError, match=rf"is a checkpoint \({re.escape(name)}\)") as caught:
        OPENERS[opener](directory)
    assert command_of(caught.value) == ["convert", str(directory), "models/my clip"]


@pytest.mark.requirement("27.11")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_command_makes_what_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: Layout) -> None:
    """27.11: IF a path names a checkpoint of another project in place of a weight file, THEN THE WeightLoader SHALL
    raise an error with the command that converts it: for a directory and for a file of it, and it does."""
    monkeypatch.chdir(tmp_path)
    source = make_checkpoint(tmp_path / "source", VisionConfig(16, 8, 64, 1, 1, 128, 16), layout=layout)
    directory = source if source.is_dir() else source.parent
    files = [file for file in directory.iterdir() if file.suffix in (".safetensors", ".bin", ".pt")]
    assert files
    for given in (directory, *files):
        with pytest.raises(WeightFormatError if given in files else MissingFileError, match="checkpoint") as caught:
            VisionEncoder(given)
        command = command_of(caught.value)
        assert main([*command, *(["--vision-only"] if layout == "hf_clip_model" else [])]) == 0
        assert VisionEncoder(command[-1]).dimension > 0


@pytest.mark.requirement("27.11")
@pytest.mark.parametrize(
    ("given", "says"),
    [("openai/clip-vit-base-patch16", True), ("models/x.parquet", False), ("./models", False), ("clip", False)],
)
def test_what_may_be_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, says: bool) -> None:
    """27.11: IF a path names a checkpoint of another project in place of a weight file, THEN THE WeightLoader SHALL
    raise an error with the command that converts it: also one of the hub."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingFileError, match="no such file, expected a weight file") as caught:
        VisionEncoder(given)
    assert ("if it is a hub id" in str(caught.value)) is says
    if says:
        assert command_of(caught.value) == ["convert", given, "models/clip-vit-base-patch16"]


@pytest.mark.requirement("27.11")
def test_another_directory_is_no_checkpoint(tmp_path: Path) -> None:
    """27.11: IF a path names a checkpoint of another project in place of a weight file, THEN THE WeightLoader SHALL
    raise an error with the command that converts it: of no other directory is that said."""
    (tmp_path / "notes.txt").write_text("nothing here", encoding="utf-8")
    with pytest.raises(MissingFileError, match=rf"{WEIGHTS_FILE}: no such file, expected a weight file") as caught:
        WeightLoader(tmp_path)
    assert "convert" not in str(caught.value)


@pytest.mark.requirement("27.11")
def test_a_weight_file_may_have_any_name(tiny_model: Path, tmp_path: Path) -> None:
    """27.11: IF a path names a checkpoint of another project in place of a weight file, THEN THE WeightLoader SHALL
    raise an error with the command that converts it: what a file is, its first bytes say and not its name."""
    renamed = tmp_path / "weights.bin"
    renamed.write_bytes((tiny_model / WEIGHTS_FILE).read_bytes())
    assert WeightLoader(renamed).names == WeightLoader(tiny_model).names
