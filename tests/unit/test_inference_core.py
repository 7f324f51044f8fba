"""InferenceCore: its arguments, its masks, one product for q, k and v, and loading a block."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn

from llm_compression.errors import ConfigError, TensorError
from llm_compression.inference.inference_core import InferenceCore, TransformerLayer
from llm_compression.inference.layer_weights import CLIP_LAYER_NAMES, FoldedLayer
from llm_compression.inference.linear import QUICK_GELU_SCALE, Linear
from tests.cores import SIZES, block_tensors, fill_core, loaded, tokens


@pytest.mark.requirement("2.1")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize(("n", "count"), [(0, 5), (1, 1), (2, 7)])
@torch.inference_mode()
def test_shapes(n: int, count: int, norm: str, dtype: torch.dtype) -> None:
    """2.1: WHEN given a tensor of shape (n, tokens, hidden_size), n = 0 included, THE InferenceCore SHALL return a
    tensor of the same shape."""
    core, x = loaded(dtype, norm=norm), tokens(n, count).to(dtype)
    for mask in (None, torch.zeros(n, count, dtype=torch.bool)):
        assert (core(x, mask).shape, core(x, mask).dtype) == (x.shape, dtype)
        assert core(x, mask, first_token_only=True).shape == (n, 1, 12)


def silent(core: InferenceCore) -> InferenceCore:
    """The core with attention and MLP that add nothing, so that only the order of norms and residuals is left."""
    for layer in core.layers:
        assert isinstance(layer, TransformerLayer)
        nn.init.zeros_(layer.out.weight)
        nn.init.zeros_(layer.out.bias)
        nn.init.zeros_(layer.fc2.weight)
        nn.init.zeros_(layer.fc2.bias)
    return core


@pytest.mark.requirement("2.2")
@torch.inference_mode()
def test_pre_norm_keeps_the_residual() -> None:
    """2.2: WHERE `norm` is `pre`, THE InferenceCore SHALL compute each layer as `x = x + attention(norm1(x))`, then `x
    = x + mlp(norm2(x))`: where both add nothing, x comes out as it went in."""
    x = tokens() * 7
    assert torch.equal(silent(InferenceCore(**SIZES, norm="pre"))(x), x)


@pytest.mark.requirement("2.3")
@torch.inference_mode()
def test_post_norm_norms_the_residual() -> None:
    """2.3: WHERE `norm` is `post`, THE InferenceCore SHALL compute each layer as `x = norm1(x + attention(x))`, then `x
    = norm2(x + mlp(x))`: where both add nothing, x comes out normed."""
    x = tokens() * 7
    torch.testing.assert_close(
        silent(InferenceCore(**SIZES, norm="post"))(x), nn.functional.layer_norm(x, (12,)), rtol=1e-4, atol=1e-4
    )


@pytest.mark.requirement("2.4")
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("norm", ["pre", "post"])
@torch.inference_mode()
def test_the_activation_is_between_the_products(activation: str, norm: str) -> None:
    """2.4: WHERE `activation` is `quick_gelu`, THE InferenceCore SHALL apply `x * sigmoid(1.702 * x)` between the two
    products of the MLP; 2.5: WHERE `activation` is `gelu`, the exact GELU, through the error function."""
    layer = loaded(activation=activation, norm=norm).layers[0]
    assert isinstance(layer, TransformerLayer)
    assert layer.fc1.activation == ("silu" if (activation, norm) == ("quick_gelu", "pre") else activation)
    block, x = block_tensors(0), tokens().double()
    inner = x @ block["mlp.fc1.weight"].double().T + block["mlp.fc1.bias"].double()
    inner *= torch.sigmoid(1.702 * inner) if activation == "quick_gelu" else (1 + torch.erf(inner / 2**0.5)) / 2
    expected = inner @ block["mlp.fc2.weight"].double().T + block["mlp.fc2.bias"].double()
    # in a folded block the norm in front multiplies what the sum with the residual divides
    assert isinstance(layer, FoldedLayer) == (layer.fc1.activation == "silu")
    scale = QUICK_GELU_SCALE if isinstance(layer, FoldedLayer) else 1.0
    found = layer.mlp(x.float() * scale) / scale
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.requirement("2.2")
@torch.inference_mode()
def test_epsilon_reaches_every_norm() -> None:
    """2.2: WHERE `norm` is `pre`, THE InferenceCore SHALL compute each layer as `x = x + attention(norm1(x))`, then `x
    = x + mlp(norm2(x))`: norms with the epsilon that was given."""
    core = InferenceCore(**SIZES, layer_norm_eps=0.25)
    norms = [module for module in core.modules() if isinstance(module, nn.LayerNorm)]
    assert [norm.eps for norm in norms] == [0.25] * 6


@pytest.mark.requirement("2.6")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_a_later_token_does_not_reach_an_earlier_one(dtype: torch.dtype) -> None:
    """2.6: WHERE `causal` is true, THE InferenceCore SHALL leave the output of each token unchanged when a later token
    changes."""
    before, core = tokens(1, 6).to(dtype), loaded(dtype, causal=True)
    for changed in range(6):
        after = before.clone()
        after[:, changed] = -3 * after[:, changed] + 1
        same = (core(before) == core(after)).all(-1)[0]
        assert same.tolist() == [token < changed for token in range(6)]
    assert not (loaded(dtype)(before) == loaded(dtype)(after)).all(-1).any()


@pytest.mark.requirement("2.7")
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_padding_does_not_reach_another_token(dtype: torch.dtype, causal: bool) -> None:
    """2.7: WHEN given a key padding mask, THE InferenceCore SHALL leave the output of each other token unchanged when a
    token marked as padding changes."""
    core, before = loaded(dtype, causal=causal), tokens(2, 6).to(dtype)
    padding = torch.zeros(2, 6, dtype=torch.bool)
    padding[0, 2] = padding[1, 4] = padding[1, 5] = True
    after = before.clone()
    after[padding] = -3 * after[padding] + 1
    first, second = core(before, padding), core(after, padding)
    assert torch.equal(first[~padding], second[~padding])
    assert not (first[padding] == second[padding]).all(-1).any()
    unmasked = (core(before) == core(after)).all(-1)
    assert unmasked.tolist() == [
        [causal and token < 2 for token in range(6)],
        [causal and token < 4 for token in range(6)],
    ]


@pytest.mark.requirement("5.6")
@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@torch.inference_mode()
def test_the_first_row_alone(norm: str, causal: bool, masked: bool) -> None:
    """5.6: WHERE the checkpoint has no visual projection, THE VisionEncoder SHALL return the class row after the
    post-layernorm, with `dimension` equal to `hidden_size`: the class row alone is that of the whole."""
    core, x = loaded(norm=norm, causal=causal), tokens(3, 6)
    padding = torch.tensor([[False] * 6, [False] * 3 + [True] * 3, [False, True] * 3]) if masked else None
    torch.testing.assert_close(core(x, padding, first_token_only=True), core(x, padding)[:, :1])


@pytest.mark.requirement("2.8")
@pytest.mark.parametrize("load", [True, False])
@torch.inference_mode()
def test_one_product_for_queries_keys_and_values(load: bool) -> None:
    """2.8: THE InferenceCore SHALL compute the queries, keys and values of a layer as one matrix product."""
    core = loaded() if load else InferenceCore(**SIZES)
    calls: Counter[tuple[int, int]] = Counter()
    for module in core.modules():
        if isinstance(module, nn.Linear):
            sizes = (module.in_features, module.out_features)
            module.register_forward_hook(lambda _module, _given, _out, sizes=sizes: calls.update([sizes]))
    core(tokens())
    assert calls == {(12, 36): 3, (12, 12): 3, (12, 20): 3, (20, 12): 3}


@pytest.mark.requirement("2.8")
@torch.inference_mode()
def test_queries_keys_and_values_keep_their_places() -> None:
    """2.8: THE InferenceCore SHALL compute the queries, keys and values of a layer as one matrix product: in which each
    of the three is where it belongs."""
    layer = loaded().layers[1]
    assert isinstance(layer, TransformerLayer)
    block, x = block_tensors(1), tokens()
    parts = [
        nn.functional.linear(x, block[f"self_attn.{name}_proj.weight"], block[f"self_attn.{name}_proj.bias"])
        for name in "qkv"
    ]
    torch.testing.assert_close(layer.qkv(x), torch.cat(parts, -1), rtol=1e-5, atol=1e-5)


@pytest.mark.requirement("5.5")
@torch.inference_mode()
def test_each_layer_is_reported() -> None:
    """5.5: WHEN `forward` is called with `intermediates=True`, THE VisionEncoder SHALL return the tensor of each of its
    steps by name: patches, class token in front, positions added, pre-layernorm, core, class row, post-layernorm and
    projection."""
    core, seen = loaded(), dict[int, torch.Tensor]()
    out = core(tokens(), on_layer=seen.__setitem__)
    assert list(seen) == [0, 1, 2]
    assert seen[2] is out
    assert not torch.equal(seen[0], seen[1])


@pytest.mark.requirement("2.2")
def test_other_names_for_a_block() -> None:
    """2.2: WHERE `norm` is `pre`, THE InferenceCore SHALL compute each layer as `x = x + attention(norm1(x))`, then `x
    = x + mlp(norm2(x))`: from a block whose tensors another family of checkpoints named."""
    names = {part: f"other.{part}" for part in CLIP_LAYER_NAMES}
    core, renamed = loaded(), InferenceCore(**SIZES)
    blocks = [
        {
            f"other.{part}.{kind}": block_tensors(index)[f"{name}.{kind}"]
            for part, name in CLIP_LAYER_NAMES.items()
            for kind in ("weight", "bias")
        }
        for index in range(3)
    ]
    fill_core(renamed, blocks, torch.float32, names)
    with torch.inference_mode():
        assert torch.equal(core(tokens()), renamed(tokens()))


@pytest.mark.requirement("2.9")
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"norm": "rms"}, "norm: 'rms', expected .*pre.*post"),
        ({"norm": None}, "norm: None, expected"),
        ({"activation": "relu"}, "activation: 'relu', expected .*quick_gelu.*gelu"),
        ({"activation": ""}, "activation: '', expected"),
        ({"num_heads": 5}, "12.*5.*multiple of the heads"),
        ({"num_heads": 0}, "expected positive numbers"),
        ({"num_layers": 0}, "expected positive numbers"),
        ({"num_layers": -1}, "expected positive numbers"),
        ({"hidden_size": 0}, "expected positive numbers"),
        ({"intermediate_size": 0}, "expected positive numbers"),
    ],
)
def test_arguments_that_do_not_fit(values: dict[str, Any], message: str) -> None:
    """2.9: IF `norm` or `activation` is unknown, or `hidden_size` is not a multiple of `num_heads`, THEN THE
    InferenceCore SHALL raise ConfigError with the argument, the value found and what was expected."""
    with pytest.raises(ConfigError, match=message):
        InferenceCore(**{**SIZES, **values})


@pytest.mark.requirement("12.6")
@pytest.mark.parametrize("shape", [(5, 12), (2, 5, 13), (2, 0, 12), (1, 2, 5, 12)])
def test_tokens_of_another_shape(shape: tuple[int, ...]) -> None:
    """12.6: IF the Package refuses an input or a file, THEN THE Package SHALL raise a subclass of `LlmCompressionError`
    whose message has the value found and what was expected."""
    with pytest.raises(TensorError, match=re.escape(f"x: shape {shape}, expected (n, tokens, 12)")):
        InferenceCore(**SIZES)(torch.zeros(shape))


@pytest.mark.requirement("12.6")
@pytest.mark.parametrize("own", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("found", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_tokens_of_another_dtype_or_device(own: torch.dtype, found: torch.dtype, device: str) -> None:
    """12.6: tokens that the weights cannot multiply are an error that says both, not one of an operator."""
    core = InferenceCore(12, 1, 3, 16).to(own)
    x = torch.ones(2, 5, 12).to(found).to(device)
    if (found, device) == (own, "cpu"):
        assert core(x).dtype == own
    else:
        with pytest.raises(TensorError, match=re.escape(f"x: {found} on {device}, expected {own} on cpu")):
            core(x)


@pytest.mark.requirement("12.6")
@pytest.mark.parametrize(
    ("mask", "causal", "message"),
    [
        (torch.zeros(2, 5), False, r"key_padding_mask: torch.float32 \(2, 5\), expected bool \(2, 5\)"),
        (torch.zeros(2, 4, dtype=torch.bool), False, r"torch.bool \(2, 4\), expected bool \(2, 5\)"),
        (torch.zeros(2, 5, 5, dtype=torch.bool), False, r"torch.bool \(2, 5, 5\), expected bool"),
        (torch.tensor([[True] * 5, [False] * 5]), False, "nothing to attend to"),
        (torch.tensor([[False] * 5, [True] + [False] * 4]), True, "nothing to attend to"),
    ],
)
def test_masks_that_do_not_fit(mask: torch.Tensor, causal: bool, message: str) -> None:
    """12.6: IF the Package refuses an input or a file, THEN THE Package SHALL raise a subclass of `LlmCompressionError`
    whose message has the value found and what was expected: here rows that would be NaN."""
    with pytest.raises(TensorError, match=message):
        InferenceCore(**SIZES, causal=causal)(tokens(), mask)


@pytest.mark.requirement("2.8")
def test_the_core_is_built_of_the_one_linear_layer() -> None:
    """2.8: THE InferenceCore SHALL compute the queries, keys and values of a layer as one matrix product: the layer
    that knows how this machine multiplies."""
    core = InferenceCore(**SIZES)
    assert all(isinstance(module, Linear) for module in core.modules() if isinstance(module, nn.Linear))
