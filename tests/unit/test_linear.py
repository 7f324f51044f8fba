"""One linear layer, packed and plain: the same numbers, whichever this machine has."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # the name that PyTorch's users know

from llm_compression.errors import ConfigError
from llm_compression.inference import linear
from llm_compression.inference.linear import Linear, PatchConv2d, auto_dtype, packs, resolve_dtype, scaled
from llm_compression.inference.paths import forced
from llm_compression.multimodal.vision_encoder import VisionEncoder
from tests.strategies import random_pixels

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
EXACT: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": lambda x: x,
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5)),
    "quick_gelu": lambda x: x / (1 + torch.exp(-1.702 * x)),
    "silu": lambda x: x / (1 + torch.exp(-x)),
}
TOLERANCE: dict[torch.dtype, dict[str, Any]] = {
    torch.float32: {},
    torch.bfloat16: {"rtol": 0.02, "atol": 0.02},
    torch.float16: {"rtol": 0.003, "atol": 0.003},
}


@pytest.fixture(autouse=True)
def fresh_probe() -> Iterator[None]:
    """The probe's answers are kept for the process; here, for one test."""
    packs.cache_clear()
    yield
    packs.cache_clear()


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    scale = shape[-1] ** -0.5 if len(shape) == 2 else 1.0
    return (torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) * scale).to(dtype)


def is_packed(layer: Linear) -> bool:
    """Whether it is: then its weight is the buffer ``packed_weight``, and otherwise the parameter ``weight``."""
    names = {name for name, _ in [*layer.named_parameters(), *layer.named_buffers()]} - {"bias"}
    assert names in ({"weight"}, {"packed_weight"})
    assert (layer.weight is None) is (names == {"packed_weight"})
    assert not any(tensor.is_meta for tensor in (*layer.parameters(), *layer.buffers()))
    return names == {"packed_weight"}


def without_packing(patch: pytest.MonkeyPatch) -> None:
    """Take the private operators away, as another release of PyTorch might."""
    patch.setattr(torch.ops, "mkldnn", types.SimpleNamespace())
    packs.cache_clear()


@pytest.mark.requirement("2.8")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", EXACT)
@pytest.mark.parametrize("shape", [(5, 24), (2, 3, 24), (0, 24), (2, 0, 24), (1, 24), (130, 24)])
def test_packed_and_plain_give_the_same(
    shape: tuple[int, ...], activation: str, bias: bool, dtype: torch.dtype
) -> None:
    """2.8: THE InferenceCore SHALL compute the queries, keys and values of a layer as one matrix product: this one, in
    oneDNN's layout where the machine packs it and in PyTorch's elsewhere; 2.4 and 2.5: each with the activation
    inside."""
    x, weight, offset = drawn(*shape).to(dtype), drawn(37, 24, dtype=dtype), drawn(37, dtype=dtype) if bias else None
    exact = x.double() @ weight.double().T + (0 if offset is None else offset.double())
    expected = EXACT[activation](exact).float()
    results = []
    for form in ("packed", "plain"):
        with forced(linear=form):
            layer = Linear(24, 37, bias, activation)
            layer.load(weight, offset, CPU, dtype)
            assert is_packed(layer) is (form == "packed" and packs(CPU, dtype))
        with torch.inference_mode():
            results.append(layer(x))
    for result in results:
        assert (result.shape, result.dtype) == ((*shape[:-1], 37), dtype)
        torch.testing.assert_close(result.float(), expected, **TOLERANCE[dtype])


@pytest.mark.requirement("5.8")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_are_brought_to_the_computing_dtype(dtype: torch.dtype) -> None:
    """5.8: WHERE `dtype` is `auto`, THE VisionEncoder SHALL compute in bfloat16 on a processor that multiplies bfloat16
    natively, in float32 on other processors, and in float16 or bfloat16 on CUDA: whatever the file stores."""
    stored = drawn(8, 24, dtype=torch.float16)
    layer = Linear(24, 8)
    layer.load(stored, drawn(8), CPU, dtype)
    assert layer.bias.dtype == dtype
    assert layer(drawn(3, 24, dtype=dtype)).dtype == dtype


@pytest.mark.requirement("4.7")
def test_a_bias_does_not_keep_the_memory_it_was_read_into() -> None:
    """4.7: WHILE weights are loaded, THE VisionEncoder SHALL hold at most one whole copy of the model."""
    buffer = drawn(100)
    layer = Linear(24, 10)
    layer.load(drawn(10, 24), buffer[:10], CPU, torch.float32)
    assert layer.bias.data_ptr() != buffer.data_ptr()
    assert layer.bias.untyped_storage().nbytes() == 40
    assert not any(parameter.requires_grad for parameter in layer.parameters())


@pytest.mark.requirement("1.8")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("form", ["packed", "plain"])
@pytest.mark.parametrize("n", [0, 1, 3])
def test_patches_are_a_convolution(dtype: torch.dtype, form: str, n: int) -> None:
    """1.8: THE PatchEmbedding SHALL compute the convolution without bias whose kernel and stride are `patch_size`, its
    patches ordered row by row."""
    weight, pixels = drawn(10, 75).reshape(10, 3, 5, 5).to(dtype), random_pixels(n, 20, 0)
    layer = PatchConv2d(10, 5)
    assert layer.bias is None
    with forced(linear=form):
        layer.load(weight, CPU, dtype)
    with torch.inference_mode():
        out = layer(pixels)
    assert (out.shape, out.dtype) == ((n, 10, 4, 4), dtype)
    expected = F.conv2d(pixels.to(dtype).double(), weight.double(), stride=5)
    torch.testing.assert_close(out.float(), expected.float(), **TOLERANCE[dtype])


@pytest.mark.requirement("8.2")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_this_machine_packs(dtype: torch.dtype) -> None:
    """8.2: WHEN one image's pixels are encoded on CPU, THE VisionEncoder SHALL return its embedding with a 90th
    percentile of latency within the limits of gates `latency-b16` and `latency-b32`: with packed weights wherever
    oneDNN takes the dtype."""
    mkldnn = torch.backends.mkldnn.is_available()
    available = mkldnn and (dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported())
    assert packs(CPU, dtype) is available
    layer = Linear(24, 8)
    with forced(linear="packed"):
        layer.load(drawn(8, 24), None, CPU, dtype)
    assert is_packed(layer) is available


@pytest.mark.requirement("5.8")
@pytest.mark.parametrize("where", [(CPU, torch.float16), (CPU, torch.float64), (CUDA, torch.float32)])
def test_nothing_else_packs(where: tuple[torch.device, torch.dtype]) -> None:
    """5.8: WHERE `dtype` is `auto`, THE VisionEncoder SHALL compute in bfloat16 on a processor that multiplies bfloat16
    natively, in float32 on other processors, and in float16 or bfloat16 on CUDA."""
    assert packs(*where) is False


def raising(error: Exception) -> Callable[..., Any]:
    def operator(*_given: Any, **_options: Any) -> Any:
        raise error

    return operator


real_pack = torch.ops.mkldnn._reorder_linear_weight
real_product = torch.ops.mkldnn._linear_pointwise
BROKEN: dict[str, types.SimpleNamespace] = {
    "absent": types.SimpleNamespace(),
    "product absent": types.SimpleNamespace(_reorder_linear_weight=real_pack),
    "other arguments": types.SimpleNamespace(_reorder_linear_weight=lambda: None),
    "not implemented": types.SimpleNamespace(_reorder_linear_weight=raising(NotImplementedError("not here"))),
    "failing": types.SimpleNamespace(
        _reorder_linear_weight=real_pack, _linear_pointwise=raising(RuntimeError("could not create a primitive"))
    ),
    "wrong numbers": types.SimpleNamespace(
        _reorder_linear_weight=real_pack, _linear_pointwise=lambda *given: real_product(*given) * 1.5
    ),
    "activation ignored": types.SimpleNamespace(
        _reorder_linear_weight=real_pack,
        _linear_pointwise=lambda x, w, b, _name, *_rest: real_product(x, w, b, "none", [], ""),
    ),
    "bias ignored": types.SimpleNamespace(
        _reorder_linear_weight=real_pack, _linear_pointwise=lambda x, w, _b, *rest: real_product(x, w, None, *rest)
    ),
}


@pytest.mark.requirement("7.8")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("what", BROKEN)
def test_operators_that_are_missing_or_wrong_are_not_used(
    monkeypatch: pytest.MonkeyPatch, what: str, dtype: torch.dtype
) -> None:
    """7.8: IF an image of a call cannot be encoded, THEN THE VisionEncoder SHALL raise an error in place of zeros,
    random vectors or a shorter result: a private operator is trusted only where it gives what PyTorch's own gives."""
    monkeypatch.setattr(torch.ops, "mkldnn", BROKEN[what])
    assert packs(CPU, dtype) is False
    x, weight, offset = drawn(5, 24, dtype=dtype), drawn(8, 24, dtype=dtype), drawn(8, dtype=dtype)
    layer = Linear(24, 8, activation="gelu")
    layer.load(weight, offset, CPU, dtype)
    torch.testing.assert_close(layer(x), F.gelu(F.linear(x, weight, offset)))


@pytest.mark.requirement("7.1")
def test_an_encoder_without_the_private_operators(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Path, tiny_encoder: VisionEncoder
) -> None:
    """7.1: WHEN given the same pixels as the Reference, THE VisionEncoder SHALL compute in float32 with a relative
    error within the limits of gates `precision-float32-b16` and `precision-float32-b32`: packed or not."""
    pixels = random_pixels(3, 32, 0)
    packed = tiny_encoder.encode_pixels(pixels)
    without_packing(monkeypatch)
    plain = VisionEncoder(tiny_model, dtype="float32")
    assert not any(name.endswith("packed_weight") for name, _ in plain.transformer.named_buffers())
    torch.testing.assert_close(plain.encode_pixels(pixels), packed)
    assert VisionEncoder(tiny_model).dtype == torch.float32


@pytest.mark.requirement("2.4")
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("computed", [torch.float32, torch.bfloat16])
def test_scaling_rounds_once(stored: torch.dtype, computed: torch.dtype) -> None:
    """2.4: WHERE `activation` is `quick_gelu`, THE InferenceCore SHALL apply `x * sigmoid(1.702 * x)` between the two
    products of the MLP: as a SiLU of what a scaled norm and bias give, each of which is rounded once."""
    tensor = drawn(9, 6, dtype=stored)
    found, exact = scaled(tensor, 1.702, computed), tensor.double() * 1.702
    wide = torch.float32 if torch.float32 in (stored, computed) or stored != computed else torch.bfloat16
    assert found.dtype == wide
    # half a unit in the last place, and what the factor itself is rounded by
    allowed = 0.51 * torch.finfo(wide).eps * exact.abs() + 2e-7 * exact.abs()
    assert bool(((found.double() - exact).abs() <= allowed).all())
    assert scaled(tensor, 1, computed) is tensor


@pytest.mark.requirement("5.8")
@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("taken", [True, False])
def test_auto_on_a_processor(monkeypatch: pytest.MonkeyPatch, native: bool, taken: bool) -> None:
    """5.8: WHERE `dtype` is `auto`, THE VisionEncoder SHALL compute in bfloat16 on a processor that multiplies bfloat16
    natively, in float32 on other processors, and in float16 or bfloat16 on CUDA."""
    monkeypatch.setattr(linear, "multiplies_bfloat16", lambda: native)
    monkeypatch.setattr(linear, "packs", lambda _device, _dtype: taken)
    assert auto_dtype(CPU) == resolve_dtype("auto", CPU) == (torch.bfloat16 if native and taken else torch.float32)


@pytest.mark.requirement("5.8")
@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ((7, 0), torch.float16),
        ((7, 5), torch.float16),
        ((8, 0), torch.bfloat16),
        ((9, 0), torch.bfloat16),
        ((10, 0), torch.bfloat16),
    ],
)
def test_auto_on_cuda(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: torch.dtype) -> None:
    """5.8: WHERE `dtype` is `auto`, THE VisionEncoder SHALL compute in bfloat16 on a processor that multiplies bfloat16
    natively, in float32 on other processors, and in float16 or bfloat16 on CUDA."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    assert auto_dtype(CUDA) == expected


@pytest.mark.requirement("5.8")
def test_auto_on_another_device() -> None:
    """5.8: WHERE `dtype` is `auto`, THE VisionEncoder SHALL compute in bfloat16 on a processor that multiplies bfloat16
    natively, in float32 on other processors, and in float16 or bfloat16 on CUDA: in float32 where nothing is known."""
    assert auto_dtype(torch.device("mps")) == torch.float32


@pytest.mark.requirement("5.8")
@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_a_dtype_by_name(name: str) -> None:
    """5.8: WHERE `dtype` is `auto`, THE VisionEncoder SHALL compute in bfloat16 on a processor that multiplies bfloat16
    natively, in float32 on other processors, and in float16 or bfloat16 on CUDA; a dtype that is named is taken."""
    dtype = getattr(torch, name)
    assert resolve_dtype(name, CPU) == resolve_dtype(dtype, CPU) == dtype


@pytest.mark.requirement("12.6")
@pytest.mark.parametrize("name", ["int8", "float64", "nn", "", "torch.float32", torch.int32, None, 4])
def test_an_unknown_dtype(name: Any) -> None:
    """12.6: IF the Package refuses an input or a file, THEN THE Package SHALL raise a subclass of `LlmCompressionError`
    whose message has the value found and what was expected."""
    with pytest.raises(ConfigError, match=r"dtype: .*, expected auto, float32, bfloat16 or float16"):
        resolve_dtype(name, CPU)
