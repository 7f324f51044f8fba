"""Attention: both forms give the same, and the choice between them follows the processor."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from llm_compression.inference import attention as module
from llm_compression.inference.attention import attention, by_bmm, prefers_bmm
from llm_compression.inference.paths import forced

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
TOLERANCE: dict[torch.dtype, dict[str, Any]] = {
    torch.float32: {},
    torch.bfloat16: {"rtol": 0.02, "atol": 0.02},
    torch.float16: {"rtol": 0.003, "atol": 0.003},
}
FORMS = ["fused", "bmm"]


def qkv_of(n: int, tokens: int, heads: int, head_dim: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n + tokens)
    return torch.randn(n, tokens, 3 * heads * head_dim, generator=generator).to(dtype)


def reference(qkv: torch.Tensor, heads: int, keep: torch.Tensor | None) -> torch.Tensor:
    """One head of one row at a time, in float64; ``keep``: (n, tokens, tokens), True where a key takes part."""
    n, tokens, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    dim = width // heads
    out = torch.empty(n, tokens, width, dtype=torch.float64)
    for row in range(n):
        q, k, v = qkv[row].double().split(width, dim=1)
        for head in range(heads):
            part = slice(head * dim, (head + 1) * dim)
            scores = q[:, part] @ k[:, part].T / math.sqrt(dim)
            if keep is not None:
                scores = scores.masked_fill(~keep[row], -math.inf)
            out[row, :, part] = torch.softmax(scores, 1) @ v[:, part]
    return out


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The queries of each call of `by_bmm` from now on."""
    used: list[int] = []

    def recording(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        used.append(q.shape[2])
        return by_bmm(q, k, v)

    monkeypatch.setattr(module, "by_bmm", recording)
    return used


def processor(monkeypatch: pytest.MonkeyPatch, *, bfloat16: bool, amx: bool) -> None:
    """Make the processor one that multiplies bfloat16, or not, on AMX, or not."""
    monkeypatch.setattr(module, "multiplies_bfloat16", lambda: bfloat16)
    monkeypatch.setattr(module, "has_amx", lambda: amx)


@pytest.mark.requirement("2.2")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("n", "tokens", "heads", "dim"), [(0, 70, 2, 4), (1, 1, 1, 1), (2, 7, 3, 5), (1, 64, 2, 16), (3, 70, 1, 9)]
)
def test_both_forms_give_the_same(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, n: int, tokens: int, heads: int, dim: int
) -> None:
    """2.2: WHERE `norm` is `pre`, THE InferenceCore SHALL compute each layer as `x = x + attention(norm1(x))`, then `x
    = x + mlp(norm2(x))`: the same attention in whichever form is fastest here."""
    qkv, results = qkv_of(n, tokens, heads, dim, dtype), []
    used = recorded(monkeypatch)
    for form in FORMS:
        with forced(attention=form):
            results.append(attention(qkv, heads, None, False, False))
    assert used == [tokens]
    for result in results:
        assert (result.shape, result.dtype) == ((n, tokens, heads * dim), dtype)
        torch.testing.assert_close(result.float(), reference(qkv, heads, None).float(), **TOLERANCE[dtype])
    torch.testing.assert_close(results[0], results[1], **TOLERANCE[dtype])


@pytest.mark.requirement("2.7")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("first_token_only", [True, False])
def test_masks_in_either_form(form: str, masked: bool, causal: bool, first_token_only: bool) -> None:
    """2.7: WHEN given a key padding mask, THE InferenceCore SHALL leave the output of each other token unchanged when a
    token marked as padding changes; 2.6: causal likewise. Also where only the first row is computed."""
    qkv = qkv_of(2, 6, 2, 4)
    keep = torch.ones(2, 6, 6, dtype=torch.bool)
    mask = None
    if masked:
        keep[0, :, 4:] = keep[1, :, 2] = False
        mask = keep[:, None]
    if causal and masked:  # a caller merges the two
        keep &= torch.ones(6, 6, dtype=torch.bool).tril()
    allowed = keep.tril() if causal else keep
    with forced(attention=form):
        out = attention(qkv, 2, mask, causal and not masked, first_token_only)
    expected = reference(qkv, 2, allowed)[:, :1] if first_token_only else reference(qkv, 2, allowed)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.requirement("2.1")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("causal", [True, False])
def test_no_rows(form: str, dtype: torch.dtype, causal: bool) -> None:
    """2.1: WHEN given a tensor of shape (n, tokens, hidden_size), n = 0 included, THE InferenceCore SHALL return a
    tensor of the same shape."""
    with forced(attention=form):
        assert attention(torch.zeros(0, 70, 24, dtype=dtype), 2, None, causal, False).shape == (0, 70, 8)
        assert attention(torch.zeros(0, 70, 24, dtype=dtype), 2, None, causal, True).shape == (0, 1, 8)


@pytest.mark.requirement("8.2")
@pytest.mark.parametrize(
    ("bfloat16", "amx", "dtype", "device", "tokens", "expected"),
    [
        (True, False, torch.bfloat16, CPU, 64, True),
        (True, False, torch.bfloat16, CPU, 197, True),
        (True, False, torch.bfloat16, CPU, 63, False),
        (True, False, torch.float32, CPU, 197, False),
        (True, False, torch.float16, CPU, 197, False),
        (True, False, torch.bfloat16, CUDA, 197, False),
        (True, True, torch.bfloat16, CPU, 197, False),
        (False, False, torch.bfloat16, CPU, 197, False),
    ],
)
def test_which_form_is_preferred(
    monkeypatch: pytest.MonkeyPatch,
    bfloat16: bool,
    amx: bool,
    dtype: torch.dtype,
    device: torch.device,
    tokens: int,
    expected: bool,
) -> None:
    """8.2: WHEN one image's pixels are encoded on CPU, THE VisionEncoder SHALL return its embedding with a 90th
    percentile of latency within the limits of gates `latency-b16` and `latency-b32`: two products only where the
    processor has a fast one for them and none for the fused kernel."""
    processor(monkeypatch, bfloat16=bfloat16, amx=amx)
    assert prefers_bmm(dtype, device, tokens) is expected


@pytest.mark.requirement("8.2")
def test_the_preference_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """8.2: WHEN one image's pixels are encoded on CPU, THE VisionEncoder SHALL return its embedding with a 90th
    percentile of latency within the limits of gates `latency-b16` and `latency-b32`: the preferred form is used."""
    used = recorded(monkeypatch)
    # what a run of the tests has forced does not count here
    monkeypatch.setattr(module, "choose", lambda _choice, preferred, _possible: preferred)
    processor(monkeypatch, bfloat16=True, amx=False)
    qkv = qkv_of(1, 80, 2, 8, torch.bfloat16)
    attention(qkv, 2, None, False, False)
    attention(qkv, 2, None, False, True)  # one row of queries is no work for two products
    attention(qkv, 2, None, True, False)
    attention(qkv, 2, torch.ones(1, 1, 1, 80, dtype=torch.bool), False, False)
    processor(monkeypatch, bfloat16=True, amx=True)
    attention(qkv, 2, None, False, False)
    assert used == [80]
