"""How one linear layer runs on this machine; nothing else in the package knows.

On a CPU the weights are laid out once in oneDNN's blocked format, and the activation runs inside the product. The
operators for it are private to PyTorch, so they are probed for once; where they are missing or fail the probe,
`torch.nn.functional.linear` computes the same from the plain weights.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812  # the name that PyTorch's users know
from torch import Tensor, nn

from llm_compression.errors import ConfigError
from llm_compression.inference.packed_module import PackedModule
from llm_compression.inference.paths import choose
from llm_compression.inference.processor import multiplies_bfloat16
from llm_compression.settings import undisturbed

QUICK_GELU_SCALE: Final = 1.702


def quick_gelu(x: Tensor) -> Tensor:
    """``x * sigmoid(1.702 x)``, OpenAI's approximation of GELU (openai/CLIP, ``clip/model.py``)."""
    return x * torch.sigmoid(QUICK_GELU_SCALE * x)


_FUNCTIONS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "none": lambda x: x,
    "gelu": F.gelu,
    "quick_gelu": quick_gelu,
    "silu": F.silu,
}
# oneDNN's names, as (attribute, algorithm) of the fused operator; "none" is the exact GELU, by erf.
_FUSED: Final[dict[str, tuple[str, str]]] = {"none": ("none", ""), "gelu": ("gelu", "none"), "silu": ("swish", "")}


class Linear(PackedModule, nn.Linear):
    """``activation(x @ weight.T + bias)``, from packed weights once `load` was called on a CPU.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        bias: Whether there is one.
        activation: ``none``, ``gelu`` (exact), ``quick_gelu`` or ``silu``.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, activation: str = "none") -> None:
        super().__init__(in_features, out_features, bias)
        self.activation = activation
        self.register_buffer("packed_weight", None)

    def load(self, weight: Tensor, bias: Tensor | None, device: torch.device, dtype: torch.dtype) -> None:
        """Take the weights: packed where this machine can, as they are elsewhere.

        Args:
            weight: (out_features, in_features), any floating dtype; not kept when packed.
            bias: (out_features,), or None.
            device: Where the layer runs.
            dtype: What it computes in.
        """
        self.bias = None if bias is None else kept(bias, device, dtype)  # type: ignore[assignment]  # as in nn.Linear
        weight = weight.to(device, dtype)
        if to_be_packed(device, dtype):
            self._hold(None, torch.ops.mkldnn._reorder_linear_weight(weight))
        else:
            self._hold(frozen(weight), None)

    @undisturbed
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # the name in nn.Linear
        """(..., in_features) to (..., out_features)."""
        packed = self.packed_weight
        if packed is None:
            return _FUNCTIONS[self.activation](F.linear(input, self.weight, self.bias))
        return linear_pointwise(input, packed, self.bias, self.activation)


class PatchConv2d(PackedModule, nn.Conv2d):
    """A convolution whose stride is its kernel, without bias: a linear layer on patches, and run as one.

    Args:
        out_channels: Width of the output.
        patch_size: Kernel and stride.
    """

    def __init__(self, out_channels: int, patch_size: int) -> None:
        super().__init__(3, out_channels, patch_size, stride=patch_size, bias=False)
        self.register_buffer("packed_weight", None)

    def load(self, weight: Tensor, device: torch.device, dtype: torch.dtype) -> None:
        """Take the weight, (out_channels, 3, patch, patch), as `Linear.load` does."""
        weight = weight.to(device, dtype)
        if to_be_packed(device, dtype):
            self._hold(None, torch.ops.mkldnn._reorder_linear_weight(weight.flatten(1)))
        else:
            self._hold(frozen(weight), None)

    @undisturbed
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # the name in nn.Conv2d
        """(n, 3, S, S) to (n, out_channels, S / patch, S / patch)."""
        n, channels, height, width = input.shape
        size = self.kernel_size[0]
        rows, columns = height // size, width // size
        grid = input.view(n, channels, rows, size, columns, size).permute(0, 2, 4, 1, 3, 5)
        packed = self.packed_weight
        dtype = self.weight.dtype if packed is None else packed.dtype
        patches = torch.empty(grid.shape, dtype=dtype, device=input.device).copy_(grid)
        patches = patches.view(n, rows * columns, channels * size * size)
        if packed is None:
            out = F.linear(patches, self.weight.flatten(1))
        else:
            out = linear_pointwise(patches, packed, None, "none")
        return out.view(n, rows, columns, self.out_channels).permute(0, 3, 1, 2)


def linear_pointwise(x: Tensor, packed: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """The fused product: (..., in) with packed (out, in) to (..., out)."""
    attribute, algorithm = _FUSED.get(activation, _FUSED["none"])
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, attribute, [], algorithm)
    return out if activation in _FUSED else _FUNCTIONS[activation](out)


def scaled(tensor: Tensor, factor: float, dtype: torch.dtype) -> Tensor:
    """``tensor * factor``, rounded once: in the wider of its own dtype and the one that computes."""
    return tensor if factor == 1 else tensor.to(torch.promote_types(tensor.dtype, dtype)) * factor


def to_be_packed(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether weights that are loaded now are packed: where this machine can, unless the plain form is forced."""
    possible = ("packed", "plain") if packs(device, dtype) else ("plain",)
    return choose("linear", possible[0], possible) == "packed"


@cache
@undisturbed  # what is found holds for the process
def packs(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the packed operators exist here and give what `torch.nn.functional.linear` gives."""
    if device.type != "cpu" or dtype not in (torch.float32, torch.bfloat16):
        return False
    sizes, generator = ((5, 24), (40, 24), (40,)), torch.Generator("cpu").manual_seed(0)
    x, weight, bias = (
        torch.randn(*size, generator=generator, dtype=torch.float32, device="cpu").to(dtype) for size in sizes
    )
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        for activation in _FUSED:
            got = linear_pointwise(x, packed, bias, activation)
            expected = _FUNCTIONS[activation](F.linear(x, weight, bias))
            if not torch.allclose(got.float(), expected.float(), atol=1e-5 if dtype == torch.float32 else 0.1):
                return False
    # a private operator may be absent, renamed, or take other arguments
    except (AttributeError, RuntimeError, TypeError, NotImplementedError):
        return False
    return True


def resolve_device(device: str | torch.device | None) -> torch.device:
    """The device that a user named, the CPU for None.

    Raises:
        ConfigError: There is no such device on this machine.
    """
    try:
        # with its index: "cuda" alone is another device in each thread that set one
        found = torch.empty(0, device="cpu" if device is None else device).device
    # PyTorch raises a RuntimeError for an unknown name, and an AssertionError for a backend that it was built without
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ConfigError(f"device: {device!r}, expected one of this machine: {error}") from error
    return found


def auto_dtype(device: torch.device) -> torch.dtype:
    """What ``dtype="auto"`` means: bfloat16 where the processor multiplies it natively, else float32 (CPU).

    On CUDA bfloat16 where it is native (compute capability 8.0 and later), else float16; float32 on other devices.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    if device.type == "cpu" and packs(device, torch.bfloat16) and multiplies_bfloat16():
        return torch.bfloat16
    return torch.float32


def resolve_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype that a user named: ``auto``, ``float32``, ``bfloat16``, ``float16`` or PyTorch's own.

    Raises:
        ConfigError: It is another one.
    """
    if dtype == "auto":
        return auto_dtype(device)
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if found not in (torch.float32, torch.bfloat16, torch.float16):
        raise ConfigError(f"dtype: {dtype!r}, expected auto, float32, bfloat16 or float16")
    return found


def kept(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> nn.Parameter:
    """A small tensor of a block as a parameter of its own; a view would keep the buffer it was read into."""
    return frozen(tensor.to(device, dtype, copy=True))


def frozen(tensor: Tensor) -> nn.Parameter:
    """A parameter that is never trained."""
    return nn.Parameter(tensor, requires_grad=False)
