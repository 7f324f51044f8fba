"""What a caller sets in PyTorch for its own work changes no row."""

from __future__ import annotations

import copy
import io
import os
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
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import llm_compression
from llm_compression.errors import ImageError
from llm_compression.inference.inference_core import TransformerLayer
from llm_compression.inference.linear import packs
from llm_compression.inference.paths import forced
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


@contextmanager
def _attribute(holder: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(holder, name)
    setattr(holder, name, value)
    try:
        yield
    finally:
        setattr(holder, name, before)


@contextmanager
def _frozen(setting: AbstractContextManager[Any]) -> Iterator[None]:
    """PyTorch's switches as after `torch.backends.disable_global_flags`, for which it has no way back."""
    with setting, _attribute(torch.backends, "__allow_nonbracketed_mutation_flag", False):
        yield


@contextmanager
def _medium_products() -> Iterator[None]:
    """Its counterpart in PyTorch writes a precision where there was none."""
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")
        for backend in (torch.backends.cuda.matmul, _MKLDNN.matmul):
            backend.fp32_precision = "none"


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
    "medium products": _medium_products,
    "deterministic": lambda: _set(torch.use_deterministic_algorithms, True, False),
    "numpy raises": lambda: np.errstate(all="raise"),
    "products of all backends": lambda: _attribute(torch.backends, "fp32_precision", "bf16"),
    "without oneDNN": lambda: _MKLDNN.flags(enabled=False, allow_tf32=None),
    "a frozen switch of oneDNN": lambda: _frozen(_MKLDNN.flags(enabled=False, allow_tf32=None)),
    "plain attention": lambda: sdpa_kernel(SDPBackend.MATH),
    "anomalies": lambda: torch.autograd.set_detect_anomaly(True),
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


def _parts(dtype: str) -> Iterator[tuple[str, Any]]:
    """Each module of both encoders that computes, called by itself."""
    packs.cache_clear()
    engine = CLIPEngine(MODEL, dtype=dtype)
    size = engine.vision.config.image_size
    pixels = torch.linspace(-2, 2, 2 * 3 * size * size, dtype=torch.float32, device="cpu").view(2, 3, size, size)
    yield "patch_embedding", engine.vision.patch_embedding(pixels)
    for tower, encoder in (("vision", engine.vision), ("text", engine.text.encoder)):
        for part, whole in [(name, part) for name, part in vars(encoder).items() if isinstance(part, nn.Module)]:
            for name, module in whole.named_modules():
                layer = isinstance(module, TransformerLayer)
                if not layer and not isinstance(module, nn.Linear | nn.LayerNorm):
                    continue
                norm = module.norm1 if layer else module
                width = norm.in_features if isinstance(norm, nn.Linear) else norm.normalized_shape[0]
                x = torch.linspace(-3, 3, 2 * 9 * width, dtype=torch.float32, device="cpu").view(2, 9, width)
                x = x.to((*norm.parameters(), *norm.buffers())[0].dtype)
                yield f"{tower}.{part}.{name}", module(x, None, False, False) if layer else module(x)


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
@pytest.mark.requirement("37.1")
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


@pytest.mark.requirement("37.2")
@pytest.mark.parametrize("form", ["packed", "plain"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_settings_of_the_caller_change_no_bit_of_a_part(dtype: str, form: str) -> None:
    """37.2: WHILE a caller has changed any of these or is in autocast, THE Encoder SHALL return from each of its parts
    the bits that the part returns without.
    """
    with forced(linear=form):
        without = {name: _bits(found) for name, found in _parts(dtype)}
        assert len(without) > 20
        for setting, change in SETTINGS.items():
            with change():
                found = dict(_parts(dtype))
            assert [(setting, name) for name in without if _bits(found[name]) != without[name]] == []
    packs.cache_clear()


@pytest.mark.requirement("37.1")
@pytest.mark.parametrize("name", SETTINGS)
def test_what_computes_has_kernels_and_precision_of_its_own_and_the_caller_its_settings(name: str) -> None:
    """37.1: WHILE a caller has switched oneDNN or a kernel of attention off, or lowered the precision of products for
    all backends, THE EmbeddingProvider SHALL return the bits that it returns without and leave the setting as it was.
    """
    start = _settings()
    with SETTINGS[name]():
        before = _settings()
        with own_settings(), own_settings():
            assert _settings()["precision"] in (["ieee"] * 2, ["none"] * 2, ["none", "ieee"])
            assert all(_settings()["on"])
            assert not torch.is_autocast_enabled("cpu")
        assert _settings() == before
    assert _settings() == start


def _settings() -> dict[str, Any]:
    cuda: Any = torch.backends.cuda  # not typed
    on = (cuda.flash_sdp_enabled, cuda.math_sdp_enabled, cuda.mem_efficient_sdp_enabled, cuda.cudnn_sdp_enabled)
    precision = [each.fp32_precision for each in (cuda.matmul, _MKLDNN.matmul)]
    return {"on": [_MKLDNN.enabled, *(each() for each in on)], "precision": precision}


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


@pytest.mark.requirement("37.1")
@pytest.mark.parametrize("name", ["without oneDNN", "plain attention"])
@pytest.mark.parametrize("first", ["this thread", "the other"])
def test_a_context_of_one_thread_leaves_nothing_behind_beside_another(name: str, first: str) -> None:
    """37.1: ... and leave the setting as it was: also where the caller's context ends while another thread computes."""
    start, inside, leave = _settings(), threading.Event(), threading.Event()

    def other() -> None:
        with own_settings():
            inside.set()
            leave.wait(30)

    thread = threading.Thread(target=other)
    if first == "the other":
        thread.start()
        assert inside.wait(30)
    with SETTINGS[name]():
        before = _settings()
        with own_settings():
            assert all(_settings()["on"])
            if first == "this thread":
                thread.start()
                assert inside.wait(30)
        assert _settings()["on"] == before["on"]
    leave.set()
    thread.join(30)
    assert _settings() == start


@pytest.mark.requirement("37.1")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_beside_a_thread_that_computes_has_settings_of_its_own() -> None:
    """37.1: ... and leave the setting as it was: in a child, to which only the thread that forked goes along."""
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with own_settings():
            inside.set()
            leave.wait(30)

    with SETTINGS["medium products"]():
        thread = threading.Thread(target=other)
        thread.start()
        assert inside.wait(30)
        child = os.fork()
        if child == 0:
            given_back = _MKLDNN.matmul.fp32_precision == "bf16"
            with own_settings():
                held = _MKLDNN.matmul.fp32_precision == "ieee"
            os._exit(0 if given_back and held and _MKLDNN.matmul.fp32_precision == "bf16" else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        leave.set()
        thread.join(30)
