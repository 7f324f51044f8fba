"""Which tensors of a weight file go where in a transformer core, and what is folded into them on the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from llm_compression.errors import UnavailableError
from llm_compression.inference.inference_core import InferenceCore, TransformerLayer
from llm_compression.inference.linear import QUICK_GELU_SCALE, kept, scaled
from llm_compression.inference.placement import Slot
from llm_compression.settings import undisturbed

# A range in which no hidden unit of a trained model comes near the end.
_FOLDS_ABOVE: Final = 1e6

# What a layer needs, under the names that a weight file of CLIP's family gives it.
CLIP_LAYER_NAMES: Final[Mapping[str, str]] = {
    "norm1": "layer_norm1",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "out": "self_attn.out_proj",
    "norm2": "layer_norm2",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}
# The same of BERT's family.
BERT_LAYER_NAMES: Final[Mapping[str, str]] = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "out": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
    "norm2": "output.LayerNorm",
}


class FoldedLayer(TransformerLayer):
    """A pre-norm block whose quick_gelu is a SiLU, which runs inside the product.

    ``s * quick_gelu(x)`` is ``silu(s * x)`` for s = 1.702 (`QUICK_GELU_SCALE`). The second norm and the biases of the
    MLP hold s times what the weight file has, and the sum with the residual divides by it; no matrix is touched. So it
    has no state that another block could load.
    """

    @classmethod
    def of(cls, layer: TransformerLayer) -> FoldedLayer:
        """A block of the sizes of another, without memory until its weights are loaded."""
        with torch.device("meta"):
            width, mlp = layer.fc1.in_features, layer.fc1.out_features
            folded = cls(width, layer.num_heads, mlp, layer.norm1.eps, activation="silu", norm="pre")
        return folded.train(layer.training)

    @undisturbed
    def forward(self, x: Tensor, mask: Tensor | None, causal: bool, first_token_only: bool) -> Tensor:
        """As `TransformerLayer.forward`."""
        residual = x[:, :1] if first_token_only else x
        x = residual + self.attend(self.norm1(x), mask, causal, first_token_only)
        return torch.add(x, self.mlp(self.norm2(x)), alpha=1 / QUICK_GELU_SCALE)

    def _save_to_state_dict(self, *_given: Any, **_options: Any) -> None:
        raise UnavailableError(
            "FoldedLayer: its norm and biases hold a scale and cannot be saved: read the tensors from the weight file, "
            "WeightLoader(path).load_weights()"
        )

    def _load_from_state_dict(self, *_given: Any, **_options: Any) -> None:
        raise UnavailableError(
            "FoldedLayer: its norm and biases hold a scale and cannot be replaced: write a weight file and open it, "
            "such as VisionEncoder(path)"
        )


def core_slots(
    core: InferenceCore, prefix: str, names: Mapping[str, str], device: torch.device, dtype: torch.dtype
) -> Iterator[Slot]:
    """What takes the tensors of all blocks; a block whose quick_gelu can run as a SiLU gives way to a `FoldedLayer`.

    Args:
        core: The stack.
        prefix: What stands before the number of a block in their names.
        names: The name in the file of each part of a block.
        device: Where the stack runs.
        dtype: What it computes in.
    """
    for index, layer in enumerate(core.layers):
        assert isinstance(layer, TransformerLayer)
        # float16 ends at 65504: 1.702 times a unit above 38,486 is infinite, where the unit itself is not
        if layer.pre_norm and layer.fc1.activation == "quick_gelu" and torch.finfo(dtype).max > _FOLDS_ABOVE:
            core.layers[index] = layer = FoldedLayer.of(layer)
        yield from layer_slots(layer, f"{prefix}{index}.", names, device, dtype)


def layer_slots(
    layer: TransformerLayer, prefix: str, names: Mapping[str, str], device: torch.device, dtype: torch.dtype
) -> Iterator[Slot]:
    """What takes the tensors of one block, named ``prefix + names[part] + ".weight"`` or ``".bias"``."""

    def of(*parts: str) -> tuple[str, ...]:
        return tuple(f"{prefix}{names[part]}.{kind}" for kind in ("weight", "bias") for part in parts)

    def qkv(*tensors: Tensor) -> None:
        layer.qkv.load(torch.cat(tensors[:3]), torch.cat(tensors[3:]), device, dtype)

    scale = QUICK_GELU_SCALE if isinstance(layer, FoldedLayer) else 1.0
    yield norm_slot(layer.norm1, of("norm1"), device, dtype)
    yield Slot(of("q", "k", "v"), qkv)
    yield Slot(of("out"), lambda weight, bias: layer.out.load(weight, bias, device, dtype))
    yield norm_slot(layer.norm2, of("norm2"), device, dtype, scale)
    yield Slot(of("fc1"), lambda weight, bias: layer.fc1.load(weight, scaled(bias, scale, dtype), device, dtype))
    yield Slot(of("fc2"), lambda weight, bias: layer.fc2.load(weight, scaled(bias, scale, dtype), device, dtype))


def norm_slot(
    norm: nn.LayerNorm, names: tuple[str, ...], device: torch.device, dtype: torch.dtype, scale: float = 1
) -> Slot:
    """What takes the weight and bias of a layer norm, by their names, and multiplies what comes out by a scale."""

    def take(*tensors: Tensor) -> None:
        norm.weight, norm.bias = (kept(scaled(tensor, scale, dtype), device, dtype) for tensor in tensors)

    return Slot(names, take)
