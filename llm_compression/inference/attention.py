"""Multi-head attention in the form that is fastest for the processor, dtype and token count at hand.

``benchmarks/peers/attention.py`` times both forms on the machine it runs on, and says where the choice is the slower.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812  # the name that PyTorch's users know
from torch import Tensor

from llm_compression.inference.paths import choose
from llm_compression.inference.processor import has_amx, multiplies_bfloat16
from llm_compression.settings import undisturbed

# Up to this many tokens the two forms differ by less than the noise.
_BMM_MIN_TOKENS = 64


@undisturbed
def attention(qkv: Tensor, num_heads: int, mask: Tensor | None, causal: bool, first_token_only: bool) -> Tensor:
    """Scaled dot-product attention, scale ``head_dim ** -0.5``.

    Args:
        qkv: (n, tokens, 3 * width), queries, keys and values side by side.
        num_heads: Heads; divides the width.
        mask: bool, broadcastable to (n, heads, tokens, tokens), True where a key takes part; or None.
        causal: Whether a token sees only itself and those before it; not together with a mask.
        first_token_only: Whether only the first token's row is computed.

    Returns:
        (n, tokens, width), or (n, 1, width).
    """
    n, tokens, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    q, k, v = qkv.view(n, tokens, 3, num_heads, width // num_heads).permute(2, 0, 3, 1, 4)  # each (n, heads, tokens, d)
    if first_token_only:
        q, mask = q[:, :, :1], mask if mask is None else mask[..., :1, :]
        if causal:
            k, v, causal = k[:, :, :1], v[:, :, :1], False  # the first token sees only itself
    possible = ("fused", "bmm") if mask is None and not causal else ("fused",)
    preferred = "bmm" if len(possible) > 1 and prefers_bmm(qkv.dtype, qkv.device, q.shape[2]) else "fused"
    if choose("attention", preferred, possible) == "bmm":
        out = by_bmm(q, k, v)
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    return out.transpose(1, 2).reshape(n, q.shape[2], width)


def prefers_bmm(dtype: torch.dtype, device: torch.device, tokens: int) -> bool:
    """Whether two batched products with a softmax between beat PyTorch's fused kernel.

    They do for bfloat16 on processors that multiply it natively without AMX, whose fused kernel has no fast product.
    """
    if device.type != "cpu" or dtype != torch.bfloat16 or tokens < _BMM_MIN_TOKENS:
        return False
    return multiplies_bfloat16() and not has_amx()


def by_bmm(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention without a mask as two batched products, from (n, heads, tokens, head_dim) to the queries' shape."""
    n, heads, tokens, head_dim = q.shape
    q, k, v = (x.reshape(n * heads, x.shape[2], head_dim) for x in (q, k, v))
    scores = torch.bmm(q * head_dim**-0.5, k.transpose(1, 2))
    return torch.bmm(torch.softmax(scores, -1), v).view(n, heads, tokens, head_dim)
