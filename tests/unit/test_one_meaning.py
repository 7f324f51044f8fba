"""Sources that readers would take differently, or that change while they are read, are refused by name."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from llm_compression.convert import convert_checkpoint, tensor_files
from llm_compression.embed.reasons import PASSING
from llm_compression.embed.shards import embed_batches
from llm_compression.errors import CheckpointError, ConfigError, ImageError, MissingFileError, WeightFormatError
from llm_compression.harness.clip.checkpoints import Layout, make_checkpoint
from llm_compression.inference.weight_format import WEIGHTS_FILE
from llm_compression.inference.weight_loader import WeightLoader
from llm_compression.models import shapes_model
from llm_compression.multimodal import decoding
from llm_compression.multimodal.image_processor import ImageProcessor
from llm_compression.multimodal.vision_encoder import VisionEncoder
from llm_compression.text import tokenizer as tokenizers
from llm_compression.text.arrow_engine import ArrowEngine
from llm_compression.text.tokenizer import TOKENIZER_FILE, LibraryTokenizer, load_tokenizer, write_word_tokenizer
from tests.published import write_clip, write_json, write_sentence_bert
from tests.text_models import TINY_BERT, WORDS, write_text_model

EARLIER: Final = Path(__file__).parents[1] / "compat" / "earlier_layout"
SOURCES: Final[dict[str, Callable[[Path], Path]]] = {
    "sentence-transformers": write_sentence_bert,
    "CLIPModel": write_clip,
    "open_clip": lambda path: make_checkpoint(path, "tiny", layout="open_clip"),
    "shards": lambda path: make_checkpoint(path, "tiny", layout="hf_sharded"),
}
# what no row rests on
_UNREAD: Final = {"special_tokens_map.json", "config_sentence_transformers.json", "README.md"}


def _objects(values: Any, *path: str) -> Iterator[tuple[str, ...]]:
    """Where the objects of a JSON value are, the first of each list."""
    if isinstance(values, dict):
        if values:
            yield path
        for key, value in values.items():
            yield from _objects(value, *path, key)


def _doubled(values: Any, path: tuple[str, ...]) -> str:
    """The JSON text in which the first key of one object stands twice."""
    if not path:
        key, value = next(iter(values.items()))
        return f"{{{json.dumps(key)}: {json.dumps(value)}, {json.dumps(values)[1:]}"
    inner = _doubled(values[path[0]], path[1:])
    return json.dumps({**values, path[0]: "@"}).replace('"@"', inner)


@pytest.mark.requirement("37.3")
@pytest.mark.parametrize("kind", SOURCES)
def test_a_key_that_stands_twice_is_refused_wherever_it_is(tmp_path: Path, kind: str) -> None:
    """37.3: IF a key stands twice in an object of a JSON file of a checkpoint ..., THEN THE Package SHALL refuse the
    file by its name and the key.
    """
    source = SOURCES[kind](tmp_path / "source")
    tried = 0
    for file in sorted(source.rglob("*.json")):
        sound = file.read_text(encoding="utf-8")
        if file.name in _UNREAD or not isinstance(json.loads(sound), dict):
            continue
        for path in list(_objects(json.loads(sound)))[:3]:
            file.write_text(_doubled(json.loads(sound), path), encoding="utf-8")
            with pytest.raises(CheckpointError, match=rf"{file.name}: .*key '.*' stands there twice, expected once"):
                convert_checkpoint(source, tmp_path / "out")
            tried += 1
        file.write_text(sound, encoding="utf-8")
    assert tried >= 2
    assert convert_checkpoint(source, tmp_path / "out").num_params > 0


@pytest.mark.requirement("37.3")
def test_a_tensor_that_stands_twice_is_refused(tmp_path: Path) -> None:
    """37.3: IF a name ... in the header of a safetensors file, THEN THE Package SHALL refuse the file by its name and
    the key: the library takes the last of two in silence.
    """
    source = make_checkpoint(tmp_path / "source", "tiny", layout="hf")
    file = source / "model.safetensors"
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    name = next(name for name in header if name.endswith("fc1.weight"))
    other = {**header[name], "shape": header[name]["shape"][::-1]}
    doubled = json.dumps(header)[:-1] + f", {json.dumps(name)}: {json.dumps(other)}}}"
    file.write_bytes(len(doubled).to_bytes(8, "little") + doubled.encode() + content[8 + size :])
    assert list(load_file(file)[name].shape) == other["shape"] != header[name]["shape"]
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: .*key '{name}' stands there twice"):
        convert_checkpoint(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.requirement("37.3")
def test_a_key_that_stands_twice_in_what_is_opened(tmp_path: Path) -> None:
    """37.3: IF a key stands twice in an object ... of the configuration beside a weight file or of a tokenizer of whole
    words, ..., THEN THE Package SHALL refuse the file by its name and the key.
    """
    shutil.copytree(EARLIER, tmp_path / "model")
    beside = tmp_path / "model" / "config.json"
    beside.write_text(_doubled(json.loads(beside.read_text()), ()))
    with pytest.raises(WeightFormatError, match=r"config\.json: .*stands there twice"):
        WeightLoader(tmp_path / "model")
    file = tmp_path / TOKENIZER_FILE
    write_word_tokenizer(file, WORDS, "<start>", "<end>")
    file.write_text(_doubled(json.loads(file.read_text()), ("model",)))
    with pytest.raises(ConfigError, match=rf"{TOKENIZER_FILE}: .*stands there twice"):
        load_tokenizer(file, 8, TINY_BERT.vocab_size)


@pytest.mark.requirement("37.4")
@pytest.mark.parametrize("text", ["NaN", "9.5", '"9"', "[9]", "true", "0", "-1", "Infinity"])
@pytest.mark.parametrize(
    ("file", "key"), [("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")]
)
def test_a_length_is_a_whole_number(tmp_path: Path, file: str, key: str, text: str) -> None:
    """37.4: IF a length of texts that a checkpoint states is no whole number, THEN THE CheckpointConverter SHALL refuse
    it by file, key and value: but for the float by which transformers writes that there is none.
    """
    source = write_sentence_bert(tmp_path / "source")
    if file != "sentence_bert_config.json":
        write_json(source / "sentence_bert_config.json", {"do_lower_case": False})
    values = json.loads((source / file).read_text()) if (source / file).exists() else {}
    write_json(source / file, values | {key: json.loads(text)})
    if text == "Infinity":
        convert_checkpoint(source, tmp_path / "out")
        return
    with pytest.raises(CheckpointError, match=rf"{file}: {key}: .*, expected a (positive )?whole number"):
        convert_checkpoint(source, tmp_path / "out")


@pytest.mark.requirement("37.5")
@pytest.mark.parametrize(
    ("layout", "key", "value"),
    [
        ("hf", "num_hidden_layers", "2"),
        ("hf", "layer_norm_eps", 0),
        ("hf", "num_attention_heads", 2.0),
        ("hf", "projection_dim", -1),
        ("open_clip", "embed_dim", "16"),
    ],
)
def test_a_refused_value_names_its_file_and_key(tmp_path: Path, layout: Layout, key: str, value: object) -> None:
    """37.5: IF a value of a configuration is refused, THEN THE CheckpointConverter SHALL name the file and the key, or
    the override, that it comes from.
    """
    source = make_checkpoint(tmp_path / "source", "tiny", layout=layout)
    file = source / ("config.json" if layout == "hf" else "open_clip_config.json")
    values = json.loads(file.read_text())
    (values["model_cfg"] if layout == "open_clip" else values)[key] = value
    file.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=rf"{file.name}: .*{key}: {value!r}, expected"):
        convert_checkpoint(source, tmp_path / "out")


@pytest.mark.requirement("37.5")
def test_a_refused_override_is_called_one(tmp_path: Path) -> None:
    """37.5: IF a value of a configuration is refused, THEN THE CheckpointConverter SHALL name the file and the key, or
    the override, that it comes from.
    """
    source = make_checkpoint(tmp_path / "source", "tiny", layout="hf")
    with pytest.raises(CheckpointError, match="overrides: num_heads: 0, expected"):
        convert_checkpoint(source, tmp_path / "out", overrides={"num_heads": 0})
    with pytest.raises(CheckpointError, match=r"overrides: hidden_size: \d+ is not a multiple of num_heads 3"):
        convert_checkpoint(source, tmp_path / "out", overrides={"num_heads": 3})


@pytest.mark.requirement("37.6")
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("way", ["replaced", "written", "removed"])
def test_a_checkpoint_that_changes_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, way: str
) -> None:
    """37.6: IF a file of a checkpoint changes while it is converted, THEN THE CheckpointConverter SHALL refuse the
    checkpoint by the file and leave what the target stood for as it was.
    """
    source = make_checkpoint(tmp_path / "source", "tiny", layout="hf")
    convert_checkpoint(make_checkpoint(tmp_path / "old", "tiny", layout="hf", seed=1), tmp_path / "out")
    before = (tmp_path / "out" / WEIGHTS_FILE).read_bytes()
    make_checkpoint(tmp_path / "new", "tiny", layout="hf", seed=2)
    read = tensor_files._safetensors_reader

    def change_first(file: Any, tensor: str) -> Callable[[], torch.Tensor]:
        def reading() -> torch.Tensor:
            if not done:
                done.append(tensor)
                _change(source / name, tmp_path / "new" / name, way)
            return read(file, tensor)()

        return reading

    done: list[str] = []
    monkeypatch.setattr(tensor_files, "_safetensors_reader", change_first)
    with pytest.raises(CheckpointError, match=rf"{name}: changed while the checkpoint was read, expected it whole"):
        convert_checkpoint(source, tmp_path / "out")
    assert done
    assert (tmp_path / "out" / WEIGHTS_FILE).read_bytes() == before


@pytest.mark.requirement("37.6")
def test_what_says_nothing_of_a_checkpoint_may_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """37.6: IF a file of a checkpoint changes ...: the log of a training beside it, and its later checkpoints, do."""
    source = make_checkpoint(tmp_path / "source", "tiny", layout="hf")
    others = [source / name for name in ("log.txt", "results.json", "checkpoint-5/config.json", ".cache/config.json")]
    read = tensor_files._safetensors_reader

    def write_first(file: Any, tensor: str) -> Callable[[], torch.Tensor]:
        def reading() -> torch.Tensor:
            for other in others:
                other.parent.mkdir(exist_ok=True)
                other.write_text(tensor)
            return read(file, tensor)()

        return reading

    for other in others:
        other.parent.mkdir(exist_ok=True)
        other.write_text("{}")
    monkeypatch.setattr(tensor_files, "_safetensors_reader", write_first)
    assert convert_checkpoint(source, tmp_path / "out").num_params > 0
    assert others[0].read_text() != "{}"


def _change(file: Path, other: Path, way: str) -> None:
    if way == "replaced":
        other.replace(file)
    elif way == "removed":
        file.unlink()
    else:
        # the same bytes, so that what is mapped stays sound: the time of writing tells
        file.write_bytes(file.read_bytes())
        os.utime(file, ns=(0, file.stat().st_mtime_ns + 1_000_000))


@pytest.mark.requirement("37.7")
@pytest.mark.parametrize("kind", ["BMP", "PNG", "JPEG", "TIFF"])
def test_a_picture_that_changes_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """37.7: IF the file of a picture changes while it is decoded, THEN THE ImageProcessor SHALL raise an ImageError
    that names the file and says so.
    """
    file = tmp_path / f"picture.{kind.lower()}"
    Image.new("RGB", (40, 30), (200, 30, 10)).save(file, kind)
    assert ImageProcessor(32)([file]).shape == (1, 3, 32, 32)
    decode = decoding._decoded

    def change_then_decode(opened: Any, *arguments: Any) -> Any:
        Image.new("RGB", (60, 50), (0, 0, 255)).save(file, kind)
        os.utime(file, ns=(0, file.stat().st_mtime_ns + 1_000_000))
        return decode(opened, *arguments)

    monkeypatch.setattr(decoding, "_decoded", change_then_decode)
    with pytest.raises(ImageError, match=rf"{file.name}.*the file changed while it was read"):
        ImageProcessor(32)([file])
    # what may pass when it is tried again
    monkeypatch.setattr(decoding, "_decoded", decode)
    encoder = VisionEncoder(shapes_model(), dtype="float32")
    monkeypatch.setattr(decoding, "_decoded", change_then_decode)
    (found,) = embed_batches([pa.record_batch({"image": [str(file)]})], encoder, "image")
    assert found["error"].to_pylist() == ["unreadable"]
    assert "unreadable" in PASSING


@pytest.mark.requirement("37.8")
def test_the_tokenizer_is_made_of_the_bytes_that_were_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """37.8: WHEN a tokenizer is opened, THE Package SHALL make it of the bytes whose sha256 it compared."""
    write_text_model(tmp_path, TINY_BERT)

    def replace_then_leave_to_the_library(path: Path, *_: object) -> None:
        write_word_tokenizer(path, WORDS[::-1], "<start>", "<end>")

    expected = ArrowEngine(tmp_path, dtype="float32").tokenize(["red dog"])
    monkeypatch.setattr(tokenizers, "_word_tokenizer", replace_then_leave_to_the_library)
    engine = ArrowEngine(tmp_path, dtype="float32")
    assert isinstance(engine.tokenizer, LibraryTokenizer)
    assert engine.tokenize(["red dog"]) == expected
    with pytest.raises(ConfigError, match="the tokenizer that the weights came with"):
        ArrowEngine(tmp_path, dtype="float32")


@pytest.mark.requirement("37.9")
@pytest.mark.parametrize("way", ["replaced", "written", "removed"])
def test_a_file_of_the_earlier_layout_that_changes_after_it_was_opened(tmp_path: Path, way: str) -> None:
    """37.9: IF a weight file of the earlier layout changes after it was opened, THEN THE WeightLoader SHALL refuse to
    read tensors from it.
    """
    shutil.copytree(EARLIER, tmp_path / "model")
    loader = WeightLoader(tmp_path / "model")
    assert loader.load_weights()
    shutil.copy(EARLIER / WEIGHTS_FILE, tmp_path / "other")
    _change(loader.path, tmp_path / "other", way)
    error, message = (MissingFileError, "no such file") if way == "removed" else (WeightFormatError, "changed since")
    with pytest.raises(error, match=message):
        loader.load_weights()
    with pytest.raises(error, match=message):
        loader.get_layer(next(iter(loader.tensors)))
