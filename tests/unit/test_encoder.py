"""Encoders as objects: plain classes, copies and pickles that are opened again from the file."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from torch import nn

from llm_compression.errors import (
    LlmCompressionError,
    MissingFileError,
    UnavailableError,
    WeightFormatError,
)
from llm_compression.harness.clip.checkpoint_weights import make_weights
from llm_compression.harness.clip.checkpoints import VARIANTS
from llm_compression.inference.inference_core import InferenceCore
from llm_compression.inference.weight_format import WEIGHTS_FILE, WeightMetadata, write_weights
from llm_compression.inference.weight_loader import WeightLoader
from llm_compression.multimodal.clip_engine import CLIPEngine
from llm_compression.multimodal.image_processor import ImageProcessor
from llm_compression.multimodal.vision_config import VisionConfig
from llm_compression.multimodal.vision_encoder import VisionEncoder
from llm_compression.multimodal.vision_provider import ArrowVisionProvider
from llm_compression.text.arrow_engine import ArrowEngine
from llm_compression.text.text_encoder import TextEncoder
from llm_compression.text.tokenizer import TOKENIZER_FILE, WordTokenizer, write_word_tokenizer
from tests.strategies import random_pixels
from tests.text_models import TINY_BERT, TINY_CLIP, VOCABULARY, WORDS, text_weights, write_text_model

COMPAT: Final = Path(__file__).parents[1] / "compat"
TEXTS: Final = ["a red cat", "the large round dog", "blue"]


def rows_of(encoder: Any) -> torch.Tensor:
    """What an encoder of any kind makes of the same inputs; runs in other processes too."""
    torch.set_num_threads(1)
    if isinstance(encoder, ArrowVisionProvider):
        encoder = encoder.encoder
    if isinstance(encoder, CLIPEngine):
        return torch.cat([rows_of(encoder.vision), torch.as_tensor(encoder.encode_text(TEXTS))])
    if isinstance(encoder, ArrowEngine):
        return torch.as_tensor(encoder.encode(TEXTS))
    if isinstance(encoder, TextEncoder):
        return torch.as_tensor(encoder.encode_ids([[0, 3, VOCABULARY - 1], [0, 1, 2, VOCABULARY - 1]]))
    return torch.as_tensor(encoder.encode_pixels(random_pixels(3, encoder.config.image_size, 0)))


def earlier_layout(directory: Path) -> VisionEncoder:
    """An encoder over a file without metadata, whose configuration the caller gives."""
    shutil.copy(COMPAT / "earlier_layout" / WEIGHTS_FILE, directory / WEIGHTS_FILE)
    config = WeightLoader(COMPAT / "earlier_layout").config
    assert config is not None
    return VisionEncoder(directory, dtype="float32", config=VisionConfig.from_dict(config))


def image_tower(directory: Path) -> Path:
    """A file of the variant ``tiny``."""
    config = VARIANTS["tiny"]
    write_weights(directory / WEIGHTS_FILE, make_weights(config).items(), WeightMetadata(config=config.to_dict()))
    return directory


KINDS: Final[dict[str, Callable[[Path], Any]]] = {
    "VisionEncoder": lambda path: VisionEncoder(image_tower(path), dtype="float32"),
    "VisionEncoder of the earlier layout": earlier_layout,
    "TextEncoder": lambda path: TextEncoder(write_text_model(path, TINY_CLIP), dtype="float32"),
    "ArrowEngine": lambda path: ArrowEngine(write_text_model(path, TINY_BERT), dtype="float32"),
    "ArrowEngine that cleans": lambda path: ArrowEngine(
        write_text_model(path, TINY_CLIP), "cpu", "float32", clean="openai"
    ),
    "CLIPEngine": lambda path: CLIPEngine(write_text_model(path, TINY_CLIP), dtype="float32"),
    "ArrowVisionProvider": lambda path: ArrowVisionProvider(image_tower(path), dtype="float32"),
}


def pickled(encoder: Any) -> Any:
    return pickle.loads(pickle.dumps(encoder))


COPIES: Final[dict[str, Callable[[Any], Any]]] = {
    "pickle": pickled,
    "the oldest pickle": lambda encoder: pickle.loads(pickle.dumps(encoder, protocol=0)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "in a list": lambda encoder: copy.deepcopy([encoder])[0],
    "twice": lambda encoder: pickled(pickled(encoder)),
}


@pytest.mark.requirement("27.1")
@pytest.mark.parametrize("kind", [VisionEncoder, TextEncoder])
def test_an_encoder_is_a_plain_class(tmp_path: Path, kind: type[VisionEncoder | TextEncoder]) -> None:
    """27.1: THE Encoder SHALL be a plain class that runs `forward` when it is called and holds its modules by name."""
    assert not issubclass(kind, nn.Module)
    encoder = kind(write_text_model(tmp_path, TINY_CLIP), dtype="float32")
    given = torch.tensor([[0, VOCABULARY - 1]]) if isinstance(encoder, TextEncoder) else random_pixels(2, 16, 0)
    assert torch.equal(encoder(given), encoder.forward(given))
    assert list(encoder(given, intermediates=True))[-1] == "embedding"
    assert isinstance(encoder.transformer, InferenceCore)
    modules = [module for part in vars(encoder).values() if isinstance(part, nn.Module) for module in part.modules()]
    assert modules
    assert not any(module.training for module in modules)


MEMBERS: Final = sorted(
    name for name in {*dir(nn.Module), "training"} - set(dir(VisionEncoder)) if not name.startswith("_")
)


@pytest.mark.requirement("27.2")
@pytest.mark.parametrize("member", MEMBERS)
def test_what_an_encoder_has_not_it_says(tiny_encoder: VisionEncoder, member: str) -> None:
    """27.2: IF a member of PyTorch's modules that the Encoder does not have is asked for, THEN THE Encoder SHALL raise
    UnavailableError, which is an AttributeError, with what to do instead."""
    with pytest.raises(UnavailableError, match=rf"^VisionEncoder\.{member}: an encoder is no nn\.Module: \w") as caught:
        getattr(tiny_encoder, member)
    assert isinstance(caught.value, AttributeError)
    assert not hasattr(tiny_encoder, member)


@pytest.mark.requirement("27.2")
@pytest.mark.parametrize(
    ("member", "instead"),
    [
        ("to", r"pass device and dtype to VisionEncoder\(\.\.\.\)"),
        ("state_dict", "load_weights"),
        ("parameters", "load_weights"),
        ("load_state_dict", "write one and open that"),
        ("eval", "leave this out"),
        ("register_forward_hook", r"a part that is one, such as \.transformer"),
    ],
)
def test_it_says_what_to_do(tiny_encoder: VisionEncoder, member: str, instead: str) -> None:
    """27.2: IF a member of PyTorch's modules that the Encoder does not have is asked for, THEN THE Encoder SHALL raise
    UnavailableError, which is an AttributeError, with what to do instead."""
    with pytest.raises(UnavailableError, match=instead):
        getattr(tiny_encoder, member)
    with pytest.raises(AttributeError, match="'VisionEncoder' object has no attribute 'no_such_thing'"):
        getattr(tiny_encoder, "no_such_thing")  # noqa: B009  # mypy knows that it is not there


@pytest.mark.requirement("27.6", "27.7")
@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_gives_the_same_bits(tmp_path: Path, kind: str, way: str) -> None:
    """27.6: WHEN a VisionEncoder, TextEncoder, ArrowEngine, CLIPEngine or ArrowVisionProvider is pickled or copied, THE
    Package SHALL open the copy from the same file, on the same device, in the same dtype and with the same options;
    27.7: its rows are in float32 the same bits."""
    original = KINDS[kind](tmp_path)
    found = COPIES[way](original)
    assert type(found) is type(original)
    assert torch.equal(rows_of(found), rows_of(original))


@pytest.mark.requirement("27.6")
@pytest.mark.parametrize("kind", KINDS)
def test_a_pickle_holds_no_weights(tmp_path: Path, kind: str) -> None:
    """27.6: the copy is opened from the same file, so that a task of a pool carries a path and no model."""
    assert len(pickle.dumps(KINDS[kind](tmp_path))) < 4096


@pytest.mark.requirement("27.6")
def test_a_copy_has_the_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """27.6: device, dtype, cleaning, the pixels' constants and the tokenizer are those of the original, also where they
    were set since, from another working directory, and where `auto` would mean another dtype."""
    model = write_text_model(tmp_path / "model", TINY_CLIP)
    monkeypatch.chdir(tmp_path)
    engine = CLIPEngine("model", "cpu", torch.bfloat16, clean="openai")
    constants = ImageProcessor(16, 20, crop_offset="round")
    engine.vision.processor = constants
    engine.text.tokenizer = WordTokenizer(
        {word: 1 + place for place, word in enumerate(WORDS)}, [0], [VOCABULARY - 1], 4
    )
    dumped = pickle.dumps(engine)
    monkeypatch.chdir("/")
    found = pickle.loads(dumped)
    assert (found.vision.dtype, found.text.dtype) == (torch.bfloat16, torch.bfloat16)
    assert found.vision.device == found.text.device == torch.device("cpu")
    assert found.vision.weight_loader.path == model / WEIGHTS_FILE
    ids = found.text.tokenize("a&#32;RED\ncat")
    assert ids == engine.text.tokenize("a red cat") != CLIPEngine(model).text.tokenize("a red cat")
    assert found.vision.processor.to_dict() == constants.to_dict()
    assert (found.config, found.logit_scale) == (engine.config, engine.logit_scale)


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    """Two processes that were spawned, as on macOS and Windows."""
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as executor:
        yield executor


@pytest.mark.requirement("27.8")
@pytest.mark.parametrize("kind", KINDS)
def test_a_spawned_pool_gives_the_same_bits(tmp_path: Path, pool: ProcessPoolExecutor, kind: str) -> None:
    """27.8: WHEN an encoder is given to a pool of spawned processes, THE Package SHALL return from each process the
    bits that the encoder returns itself."""
    encoder = KINDS[kind](tmp_path)
    expected = rows_of(encoder)
    assert all(torch.equal(found, expected) for found in pool.map(rows_of, [encoder] * 4, timeout=300))


@pytest.mark.requirement("27.8")
def test_a_changed_file_is_an_error_in_the_pool(tmp_path: Path) -> None:
    """27.8: WHEN an encoder is given to a pool of spawned processes, THE Package SHALL return from each process the
    bits that the encoder returns itself: a process that finds another file says so, and none hangs."""
    encoder = VisionEncoder(image_tower(tmp_path), dtype="float32")
    with multiprocessing.get_context("spawn").Pool(
        1, initializer=_open_later, initargs=(pickle.dumps(encoder),)
    ) as pool:
        expected = rows_of(encoder)
        assert torch.equal(pool.apply(_rows_later), expected)
        (tmp_path / WEIGHTS_FILE).unlink()
        with pytest.raises(MissingFileError, match=re.escape(str(tmp_path))):
            pool.apply(_rows_later)


_dumped = b""


def _open_later(dumped: bytes) -> None:
    global _dumped  # what an initializer of a pool is for
    _dumped = dumped


def _rows_later() -> torch.Tensor:
    return rows_of(pickle.loads(_dumped))


@pytest.mark.requirement("27.9")
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_gone(tmp_path: Path, kind: str) -> None:
    """27.9: IF the weight file or the tokenizer of a copy is gone, THEN THE Package SHALL raise MissingFileError with
    its path."""
    dumped = pickle.dumps(KINDS[kind](tmp_path))
    needed = [WEIGHTS_FILE, *([TOKENIZER_FILE] if "Engine" in kind else [])]
    for name in reversed(needed):
        (tmp_path / name).unlink()
        with pytest.raises(MissingFileError, match=rf"{re.escape(str(tmp_path / name))}: no such file"):
            pickle.loads(dumped)


def another_file(directory: Path) -> None:
    """The same model with other numbers in one tensor, as a training that goes on would write it."""
    loader = WeightLoader(directory)
    tensors = loader.load_weights()
    name = next(name for name in reversed(list(tensors)) if name.endswith("weight"))
    tensors[name] = tensors[name].flip(0)
    assert loader.metadata is not None
    write_weights(loader.path, tensors.items(), loader.metadata)


@pytest.mark.requirement("27.10")
@pytest.mark.parametrize("way", ["pickle", "deepcopy"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if "earlier" not in kind])
def test_another_file_is_not_taken(tmp_path: Path, kind: str, way: str) -> None:
    """27.10: IF the weight file or the tokenizer of a copy is not the one that the original opened, THEN THE Package
    SHALL raise an error with the sha256 found and the sha256 expected."""
    encoder = KINDS[kind](tmp_path)
    dumped = pickle.dumps(encoder)
    another_file(tmp_path)
    with pytest.raises(WeightFormatError, match=r"changed since .*: sha256 [0-9a-f]{64}, expected [0-9a-f]{64}"):
        pickle.loads(dumped) if way == "pickle" else copy.deepcopy(encoder)


@pytest.mark.requirement("27.10")
def test_another_file_of_the_earlier_layout_is_not_taken(tmp_path: Path) -> None:
    """27.10: IF the weight file or the tokenizer of a copy is not the one that the original opened, THEN THE Package
    SHALL raise an error with the sha256 found and the sha256 expected: of a file that records none over its bytes; one
    that changed since it was opened is not pickled."""
    encoder = earlier_layout(tmp_path)
    dumped, file = pickle.dumps(encoder), tmp_path / WEIGHTS_FILE
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 16] = content[middle + 8 : middle + 16] + content[middle : middle + 8]
    file.write_bytes(content)
    with pytest.raises(WeightFormatError, match=r"changed since .*: sha256 [0-9a-f]{64}, expected [0-9a-f]{64}"):
        pickle.loads(dumped)
    with pytest.raises(WeightFormatError, match="changed since it was opened"):
        pickle.dumps(encoder)
    file.unlink()
    with pytest.raises(MissingFileError, match="no such file"):
        pickle.dumps(encoder)


@pytest.mark.requirement("27.10")
@pytest.mark.parametrize("recorded", [True, False])
def test_another_tokenizer_is_not_taken(tmp_path: Path, recorded: bool) -> None:
    """27.10: IF the weight file or the tokenizer of a copy is not the one that the original opened, THEN THE Package
    SHALL raise an error with the sha256 found and the sha256 expected: whether or not the weight file records it."""
    write_text_model(tmp_path, TINY_BERT)
    if not recorded:
        metadata = WeightMetadata(config=TINY_BERT.to_dict())
        write_weights(tmp_path / WEIGHTS_FILE, text_weights(TINY_BERT).items(), metadata)
    dumped = pickle.dumps(ArrowEngine(tmp_path, dtype="float32"))
    write_word_tokenizer(tmp_path / TOKENIZER_FILE, WORDS[::-1], "<start>", "<end>")
    with pytest.raises(LlmCompressionError, match=r"sha256 is [0-9a-f]{64}, expected [0-9a-f]{64}"):
        pickle.loads(dumped)
