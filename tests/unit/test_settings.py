"""What a caller sets in PyTorch for its own work changes no row."""

from __future__ import annotations

import copy
import io
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

import llm_compression
from llm_compression.errors import ImageError
from llm_compression.inference.linear import packs
from llm_compression.multimodal.clip_engine import CLIPEngine
from llm_compression.settings import own_settings
from llm_compression.text.text_inputs import Text

MODEL: Final = Path(llm_compression.__file__).parent / "models" / "shapes"
WORDS: Final = ("red circle", "a blue square", "green triangle")
PICTURES: Final = [np.random.default_rng(i).integers(0, 256, (50, 70, 3), dtype=np.uint8) for i in range(3)]

# a class in the place of its module, which types do not know
_MKLDNN: Final[Any] = torch.backends.mkldnn


@contextmanager
def _set(change: Callable[[Any], Any], value: Any, back: Any) -> Iterator[None]:
    change(value)
    try:
        yield
    finally:
        change(back)


SETTINGS: Final[dict[str, Callable[[], AbstractContextManager[Any]]]] = {
    "float16": lambda: _set(torch.set_default_dtype, torch.float16, torch.float32),
    "bfloat16": lambda: _set(torch.set_default_dtype, torch.bfloat16, torch.float32),
    "float64": lambda: _set(torch.set_default_dtype, torch.float64, torch.float32),
    "meta": lambda: _set(torch.set_default_device, "meta", None),
    "meta in a context": lambda: torch.device("meta"),
    "inference mode": torch.inference_mode,
    "gradients": torch.enable_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast to float16": lambda: torch.autocast("cpu", torch.float16),
    "medium products": lambda: _set(torch.set_float32_matmul_precision, "medium", "highest"),
    "deterministic": lambda: _set(torch.use_deterministic_algorithms, True, False),
    "numpy raises": lambda: np.errstate(all="raise"),
}


def _calls(dtype: str) -> Iterator[tuple[str, Any]]:
    """Each public call that computes, on an engine that is opened here."""
    packs.cache_clear()  # what a process finds first, it keeps
    engine = CLIPEngine(MODEL, dtype=dtype)
    vision, text = engine.vision, engine.text
    pixels, ids = vision.processor(PICTURES), text.tokenize(WORDS)
    yield "processor", pixels
    yield "batches", torch.cat([batch.clone() for batch in vision.processor.batches(PICTURES, 2)])
    yield "encode", vision.encode(PICTURES)
    yield "a generator", vision.encode(iter(PICTURES), batch_size=2)
    yield "to a tensor", vision.encode(PICTURES, convert_to_tensor=True)
    yield "none", vision.encode([])
    yield "unreadable to null", vision.encode([*PICTURES, b"x"], on_error="null")
    yield "unreadable skipped", vision.encode([*PICTURES, b"x"], on_error="skip")[0]
    yield "encode_pixels", vision.encode_pixels(pixels)
    column = vision.encode_arrow(pa.array([b"x", b"y"]), on_error="null")
    assert column.null_count == 2
    yield "forward", vision.forward(pixels)
    yield from ((f"forward: {name}", step) for name, step in vision(pixels, intermediates=True).items())
    one = torch.tensor(ids[:1], device="cpu")
    for name, encoder in (("vision", vision), ("text", text.encoder)):
        hidden = torch.linspace(-1, 1, 18 * encoder.transformer.hidden_size, dtype=torch.float32, device="cpu")
        yield f"core of {name}", encoder.transformer(hidden.to(encoder.dtype).view(2, 9, -1))
    stored = io.BytesIO()
    Image.fromarray(PICTURES[0]).save(stored, "PNG")
    rows = vision.encode_arrow(pa.array([stored.getvalue(), b"x"]), on_error="null")
    assert rows.is_null().to_pylist() == [False, True]
    yield "a column", rows[0].values.to_numpy().copy()
    yield "forward of ids", text.encoder.forward(one)
    yield from ((f"ids: {name}", step) for name, step in text.encoder(one, None, True).items())
    yield "texts", text.encode(WORDS)
    yield "no texts", text.encode([])
    yield "encode_ids", text.encoder.encode_ids(ids)
    images, texts = vision.encode(PICTURES), text.encode(WORDS)
    yield "both", engine.encode([PICTURES[0], Text(WORDS[0])])
    yield "similarity", engine.similarity(images, texts)
    yield "logits", engine.logits(images, texts)
    yield "classify", engine.classify(PICTURES, WORDS)
    yield "search", engine.search(Text(WORDS[0]), images, 2).scores
    yield "a copy", copy.deepcopy(vision).encode(PICTURES)
    yield "unpickled", pickle.loads(pickle.dumps(text)).encode(WORDS)
    yield from vision.weight_loader.load_weights().items()


def _bits(found: Any) -> tuple[Any, ...]:
    tensor = torch.as_tensor(found, device="cpu").detach()
    width = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.dtype.itemsize]
    return tensor.device.type, tensor.dtype, tensor.contiguous().view(width).numpy().tolist()


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def expected(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """What each call gives while nothing is set."""
    return request.param, {name: _bits(found) for name, found in _calls(request.param)}


@pytest.mark.requirement("28.18")
@pytest.mark.requirement("28.19")
@pytest.mark.parametrize("setting", SETTINGS)
def test_settings_of_the_caller_change_no_bit(setting: str, expected: tuple[str, dict[str, Any]]) -> None:
    """28.18: WHILE a caller has changed the default dtype or device of PyTorch, the precision of its float32 products,
    its choice of deterministic algorithms or numpy's handling of floating-point errors, or is in inference mode or in
    autocast, THE EmbeddingProvider SHALL open a model and return the bits that it returns without.

    28.19: WHILE a caller has changed the default dtype or device of PyTorch or is in autocast, THE InferenceCore SHALL
    return the bits that it returns without.
    """
    dtype, without = expected
    with SETTINGS[setting]():
        found = dict(_calls(dtype))
    packs.cache_clear()
    assert found.keys() == without.keys()
    assert [name for name in found if _bits(found[name]) != without[name]] == []


@pytest.mark.requirement("28.18")
def test_an_engine_opened_in_inference_mode_is_one_for_outside_of_it_too() -> None:
    """28.18: WHILE a caller ... is in inference mode ..., THE EmbeddingProvider SHALL open a model and return the bits
    that it returns without.
    """
    with torch.inference_mode():
        vision = CLIPEngine(MODEL, dtype="float32").vision
    assert not vision.cls_token.is_inference()
    assert not vision.position_embedding.is_inference()
    assert not any(each.is_inference() for each in vision.transformer.parameters())


@pytest.mark.requirement("28.18")
def test_precision_of_products_is_held_while_any_thread_computes_and_then_as_the_caller_set_it() -> None:
    """28.18: WHILE a caller has changed ... the precision of its float32 products ..., THE EmbeddingProvider SHALL ...
    return the bits that it returns without.
    """
    inside, leave, found = threading.Event(), threading.Event(), list[str]()

    def other() -> None:
        with own_settings():
            inside.set()
            leave.wait(30)
            found.append(_MKLDNN.matmul.fp32_precision)

    with SETTINGS["medium products"]():
        with own_settings():
            thread = threading.Thread(target=other)
            thread.start()
            assert inside.wait(30)
        # this thread has left, the other one still computes
        assert _MKLDNN.matmul.fp32_precision == "ieee"
        leave.set()
        thread.join(30)
        assert found == ["ieee"]
        assert _MKLDNN.matmul.fp32_precision == "bf16"
        assert torch.get_float32_matmul_precision() == "medium"


@pytest.mark.requirement("28.18")
def test_settings_of_the_caller_are_as_they_were_after_an_error() -> None:
    """28.18: WHILE a caller ... is in ... autocast, THE EmbeddingProvider SHALL ... return the bits that it returns
    without.
    """
    vision = CLIPEngine(MODEL).vision
    size = vision.config.image_size
    with SETTINGS["autocast"](), SETTINGS["medium products"]():
        with pytest.raises(ImageError):
            vision.encode_pixels(np.full((1, 3, size, size), np.nan, np.float32))
        assert torch.is_autocast_enabled("cpu")
        assert torch.get_float32_matmul_precision() == "medium"
        assert _MKLDNN.matmul.fp32_precision == "bf16"
