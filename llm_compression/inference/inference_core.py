"""InferenceCore: the transformer stack that every encoder shares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor, nn

from llm_compression.errors import ConfigError, TensorError
from llm_compression.inference.attention import attention
from llm_compression.inference.linear import Linear
from llm_compression.inference.packed_module import Network
from llm_compression.inference.shares import by_shares
from llm_compression.settings import undisturbed

NORM_ORDERS: Final = ("pre", "post")
ACTIVATIONS: Final = ("quick_gelu", "gelu")


class TransformerLayer(Network):
    """One block: attention and an MLP, each with a residual, normed before (pre) or after (post) it."""

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        intermediate_size: int,
        layer_norm_eps: float,
        activation: str,
        norm: str,
    ) -> None:
        super().__init__()
        self.num_heads, self.pre_norm = num_heads, norm == "pre"
        self.norm1 = nn.LayerNorm(hidden_size, layer_norm_eps)
        self.qkv = Linear(hidden_size, 3 * hidden_size)
        self.out = Linear(hidden_size, hidden_size)
        self.norm2 = nn.LayerNorm(hidden_size, layer_norm_eps)
        self.fc1 = Linear(hidden_size, intermediate_size, activation=activation)
        self.fc2 = Linear(intermediate_size, hidden_size)

    @undisturbed
    def forward(self, x: Tensor, mask: Tensor | None, causal: bool, first_token_only: bool) -> Tensor:
        """(n, tokens, hidden) to the same, or to (n, 1, hidden) when only the first token is wanted."""
        residual = x[:, :1] if first_token_only else x
        if self.pre_norm:
            x = residual + self.attend(self.norm1(x), mask, causal, first_token_only)
            return x + self.mlp(self.norm2(x))
        x = self.norm1(residual + self.attend(x, mask, causal, first_token_only))
        out: Tensor = self.norm2(x + self.mlp(x))
        return out

    def attend(self, x: Tensor, mask: Tensor | None, causal: bool, first_token_only: bool) -> Tensor:
        """Queries, keys and values as one product, attention, output product."""
        mixed = attention(self.qkv(x), self.num_heads, mask, causal, first_token_only)
        out: Tensor = self.out(mixed)
        return out

    def mlp(self, x: Tensor) -> Tensor:
        """Two products with the activation between; it runs inside the first."""
        out: Tensor = self.fc2(self.fc1(x))
        return out


class InferenceCore(Network):
    """A stack of transformer blocks, for inference.

    Args:
        hidden_size: Width.
        num_layers: Blocks.
        num_heads: Attention heads; divides ``hidden_size``.
        intermediate_size: Width of the MLP's hidden layer.
        layer_norm_eps: Epsilon of every layer norm.
        activation: ``quick_gelu`` or ``gelu`` (exact, erf).
        norm: ``pre`` (CLIP): ``x + attn(LN(x))``; ``post`` (BERT): ``LN(x + attn(x))``.
        causal: Whether a token sees only itself and those before it.

    Raises:
        ConfigError: A value is unknown, or the heads do not divide the width.
    """

    def __init__(
        self,
        hidden_size: int,
        num_layers: int,
        num_heads: int,
        intermediate_size: int,
        layer_norm_eps: float = 1e-5,
        activation: str = "quick_gelu",
        norm: str = "pre",
        causal: bool = False,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ConfigError(f"activation: {activation!r}, expected one of {', '.join(ACTIVATIONS)}")
        if norm not in NORM_ORDERS:
            raise ConfigError(f"norm: {norm!r}, expected one of {', '.join(NORM_ORDERS)}")
        if min(hidden_size, num_layers, num_heads, intermediate_size) < 1 or hidden_size % num_heads:
            raise ConfigError(
                f"hidden_size {hidden_size}, num_layers {num_layers}, num_heads {num_heads}, intermediate_size "
                f"{intermediate_size}: expected positive numbers, the width a multiple of the heads"
            )
        self.hidden_size, self.causal = hidden_size, causal
        self.layers = nn.ModuleList(
            TransformerLayer(hidden_size, num_heads, intermediate_size, layer_norm_eps, activation, norm)
            for _ in range(num_layers)
        )

    @undisturbed
    def forward(
        self,
        x: Tensor,
        key_padding_mask: Tensor | None = None,
        first_token_only: bool = False,
        on_layer: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        """Run the stack.

        Args:
            x: (n, tokens, hidden).
            key_padding_mask: bool (n, tokens), True where a token is padding and no other token may look at it, as in
                ``torch.nn.MultiheadAttention``.
            first_token_only: Whether the last block computes only the first token's row.
            on_layer: Called with the index and the output of each block.

        Returns:
            (n, tokens, hidden), or (n, 1, hidden) when only the first token is wanted.

        Raises:
            TensorError: The input or the mask has another shape, dtype or device, or a row is all padding.
        """
        if x.dim() != 3 or x.shape[2] != self.hidden_size or x.shape[1] < 1:
            raise TensorError(f"x: shape {tuple(x.shape)}, expected (n, tokens, {self.hidden_size})")
        norm: Tensor = self.layers[0].norm1.weight  # type: ignore[assignment, union-attr]  # a list of layers
        if (x.dtype, x.device) != (norm.dtype, norm.device):
            raise TensorError(f"x: {x.dtype} on {x.device}, expected {norm.dtype} on {norm.device}, as the weights")
        mask = self._mask(x, key_padding_mask)
        if on_layer is not None:
            return self._run(x, mask, first_token_only, on_layer)
        return by_shares(
            lambda part: self._run(x[part], mask if mask is None else mask[part], first_token_only, None), x
        )

    def _run(
        self, x: Tensor, mask: Tensor | None, first_token_only: bool, on_layer: Callable[[int, Tensor], None] | None
    ) -> Tensor:
        for index, layer in enumerate(self.layers):
            last = index + 1 == len(self.layers)
            x = layer(x, mask, self.causal and mask is None, first_token_only and last)
            if on_layer is not None:
                on_layer(index, x)
        return x

    def _mask(self, x: Tensor, key_padding_mask: Tensor | None) -> Tensor | None:
        """Boolean (n, 1, 1 or tokens, tokens), True where a key takes part; None without padding."""
        if key_padding_mask is None:
            return None
        if key_padding_mask.dtype != torch.bool or key_padding_mask.shape != x.shape[:2]:
            raise TensorError(
                f"key_padding_mask: {key_padding_mask.dtype} {tuple(key_padding_mask.shape)}, "
                f"expected bool {tuple(x.shape[:2])}"
            )
        first_visible = key_padding_mask[:, 0] if self.causal else key_padding_mask.all(1)
        if bool(first_visible.any()):
            raise TensorError("key_padding_mask: a row has a token with nothing to attend to")
        keep = ~key_padding_mask[:, None, None, :]
        if not self.causal:
            return keep
        tokens = x.shape[1]
        return keep & torch.ones(tokens, tokens, dtype=torch.bool, device=x.device).tril()
