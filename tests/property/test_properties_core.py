"""Properties of the transformer core: it equals plain PyTorch, and its masks hide what they mark."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm_compression.inference.inference_core import InferenceCore
from llm_compression.inference.paths import forced
from tests.cores import fill_core
from tests.strategies import PATHS, SEEDS

if TYPE_CHECKING:
    from tests.conftest import AssertWithin

CPU = torch.device("cpu")
DTYPES = st.sampled_from((torch.float32, torch.bfloat16))
Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Stack:
    """Sizes and kind of a stack."""

    heads: int
    head_dim: int
    layers: int
    mlp: int
    eps: float
    activation: str
    norm: str
    causal: bool

    @property
    def width(self) -> int:
        return self.heads * self.head_dim

    def weights(self, seed: int) -> list[Weights]:
        """Each block's tensors, under the names of CLIP's family."""
        generator, width = torch.Generator().manual_seed(seed), self.width
        shapes = {f"self_attn.{part}_proj": (width, width) for part in ("q", "k", "v", "out")}
        shapes |= {"mlp.fc1": (self.mlp, width), "mlp.fc2": (width, self.mlp)}
        blocks = []
        for _ in range(self.layers):
            block: Weights = {}
            for name, (rows, columns) in shapes.items():
                block[f"{name}.weight"] = torch.randn(rows, columns, generator=generator) * 1.5 / math.sqrt(columns)
                block[f"{name}.bias"] = torch.randn(rows, generator=generator) / 2
            for name in ("layer_norm1", "layer_norm2"):
                block[f"{name}.weight"] = 1 + torch.randn(width, generator=generator) / 2
                block[f"{name}.bias"] = torch.randn(width, generator=generator) / 2
            blocks.append(block)
        return blocks

    def core(self, weights: list[Weights], dtype: torch.dtype = torch.float32) -> InferenceCore:
        """The core under test with these weights."""
        core = InferenceCore(
            hidden_size=self.width,
            num_layers=self.layers,
            num_heads=self.heads,
            intermediate_size=self.mlp,
            layer_norm_eps=self.eps,
            activation=self.activation,
            norm=self.norm,
            causal=self.causal,
        )
        fill_core(core, weights, dtype)
        return core

    def reference(self, weights: list[Weights], x: torch.Tensor, padding: torch.Tensor | None) -> torch.Tensor:
        """The stack in plain PyTorch operators and float64, one token and head at a time where that is plainest."""
        n, tokens, width = x.shape
        hidden = torch.zeros(n, 1, tokens, tokens, dtype=torch.bool)
        if padding is not None:
            hidden = hidden | padding[:, None, None, :]
        if self.causal:
            hidden = hidden | torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
        x = x.double()
        for block in weights:
            w = {name: tensor.double() for name, tensor in block.items()}

            def linear_of(name: str, y: torch.Tensor, w: Weights = w) -> torch.Tensor:
                return y @ w[f"{name}.weight"].T + w[f"{name}.bias"]

            def norm_of(name: str, y: torch.Tensor, w: Weights = w) -> torch.Tensor:
                centred = y - y.mean(-1, keepdim=True)
                scaled = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + self.eps)
                return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

            def attention_of(y: torch.Tensor) -> torch.Tensor:
                q, k, v = (
                    linear_of(f"self_attn.{part}_proj", y).reshape(n, tokens, self.heads, self.head_dim).transpose(1, 2)
                    for part in ("q", "k", "v")
                )
                scores = (q @ k.transpose(2, 3)) * self.head_dim**-0.5
                mixed = torch.softmax(scores.masked_fill(hidden, -math.inf), -1) @ v
                return linear_of("self_attn.out_proj", mixed.transpose(1, 2).reshape(n, tokens, width))

            def mlp_of(y: torch.Tensor) -> torch.Tensor:
                inner = linear_of("mlp.fc1", y)
                if self.activation == "quick_gelu":
                    inner = inner / (1 + torch.exp(-1.702 * inner))
                else:
                    inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
                return linear_of("mlp.fc2", inner)

            if self.norm == "pre":
                x = x + attention_of(norm_of("layer_norm1", x))
                x = x + mlp_of(norm_of("layer_norm2", x))
            else:
                x = norm_of("layer_norm1", x + attention_of(x))
                x = norm_of("layer_norm2", x + mlp_of(x))
        return x


STACKS = st.builds(
    Stack,
    heads=st.integers(1, 4),
    head_dim=st.integers(5, 17),  # a layer norm over very few channels is ill-conditioned
    layers=st.integers(1, 3),
    mlp=st.integers(1, 60),
    eps=st.sampled_from((1e-5, 1e-12, 1e-2)),
    activation=st.sampled_from(("quick_gelu", "gelu")),
    norm=st.sampled_from(("pre", "post")),
    causal=st.booleans(),
)


@st.composite
def paddings(draw: st.DrawFn, n: int, tokens: int, causal: bool) -> torch.Tensor | None:
    """No mask, or one in which every token has something to look at."""
    if draw(st.booleans()):
        return None
    rows = [draw(st.lists(st.booleans(), min_size=tokens, max_size=tokens)) for _ in range(n)]
    mask = torch.tensor(rows, dtype=torch.bool).reshape(n, tokens)
    mask[:, 0 if causal else draw(st.integers(0, tokens - 1))] = False
    return mask


def tokens_of(stack: Stack, n: int, tokens: int, seed: int) -> torch.Tensor:
    return torch.randn(n, tokens, stack.width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.property(12)
@given(stack=STACKS, n=st.integers(0, 3), tokens=st.integers(1, 20), seed=SEEDS, paths=PATHS, data=st.data())
def test_the_core_equals_plain_pytorch(
    assert_within: AssertWithin,
    stack: Stack,
    n: int,
    tokens: int,
    seed: int,
    paths: dict[str, str],
    data: st.DataObject,
) -> None:
    """Property 12: *For any* sizes, block order, activation and mask, InferenceCore equals a stack written with plain
    PyTorch operators from the same weights, queries, keys and values as three products."""
    padding = data.draw(paddings(n, tokens, stack.causal))
    weights, x = stack.weights(seed), tokens_of(stack, n, tokens, seed)
    expected = stack.reference(weights, x, padding)
    with forced(**paths):
        core = stack.core(weights)
        with torch.inference_mode():
            out = core(x, padding)
            first = core(x, padding, first_token_only=True)
    assert out.shape == x.shape
    assert_within("precision-float32-b16", out.reshape(-1, stack.width), expected.reshape(-1, stack.width))
    assert first.shape == (n, 1, stack.width)
    assert_within("precision-float32-b16", first[:, 0], expected[:, 0])


@pytest.mark.property(13)
@given(stack=STACKS, tokens=st.integers(2, 80), seed=SEEDS, data=st.data(), dtype=DTYPES)
def test_a_causal_mask_hides_later_tokens(
    stack: Stack, tokens: int, seed: int, data: st.DataObject, dtype: torch.dtype
) -> None:
    """Property 13: *For any* tokens, changing a later token leaves the output of a causal core unchanged at the earlier
    ones, and changing a token marked as padding leaves the output unchanged at the others."""
    stack = replace(stack, causal=True)
    changed = data.draw(st.integers(1, tokens - 1))
    core = stack.core(stack.weights(seed), dtype)
    before = tokens_of(stack, 2, tokens, seed).to(dtype)
    after = before.clone()
    after[:, changed] = tokens_of(stack, 2, 1, seed + 1)[:, 0].to(before.dtype)
    with torch.inference_mode():
        first, second = core(before), core(after)
    assert torch.equal(first[:, :changed], second[:, :changed])


@pytest.mark.property(13)
@given(stack=STACKS, tokens=st.integers(2, 80), seed=SEEDS, data=st.data(), dtype=DTYPES)
def test_a_padding_mask_hides_padding(
    stack: Stack, tokens: int, seed: int, data: st.DataObject, dtype: torch.dtype
) -> None:
    """Property 13: *For any* tokens, changing a later token leaves the output of a causal core unchanged at the earlier
    ones, and changing a token marked as padding leaves the output unchanged at the others."""
    padding = torch.zeros(2, tokens, dtype=torch.bool)
    changed = data.draw(st.integers(1, tokens - 1))
    padding[:, changed] = True
    core = stack.core(stack.weights(seed), dtype)
    before = tokens_of(stack, 2, tokens, seed).to(dtype)
    after = before.clone()
    after[:, changed] = tokens_of(stack, 2, 1, seed + 1)[:, 0].to(before.dtype)
    with torch.inference_mode():
        first, second = core(before, padding), core(after, padding)
    assert torch.equal(first[~padding], second[~padding])
