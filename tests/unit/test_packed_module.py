"""A loaded core as a module: where its weights are, and what it refuses before anything changes."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any, Final

import pytest
import torch
from torch import nn

from llm_compression.errors import UnavailableError
from llm_compression.inference.inference_core import InferenceCore
from llm_compression.inference.layer_weights import FoldedLayer
from llm_compression.inference.paths import forced
from tests.cores import loaded, tokens


def tensors_of(module: nn.Module) -> list[torch.Tensor]:
    """Every tensor of a module, a packed one as it was before."""
    found = [*module.parameters(), *module.buffers()]
    return [tensor.to_dense() if tensor.is_mkldnn else tensor for tensor in found]


@pytest.fixture
def packed_core() -> InferenceCore:
    """A post-norm core, which has no scale folded into it, with packed weights."""
    if not torch.backends.mkldnn.is_available():
        pytest.fail("oneDNN is missing, expected in every build of PyTorch for a CPU that the tests run on")
    with forced(linear="packed"):
        return loaded(norm="post")


@pytest.mark.requirement("27.3")
def test_a_packed_weight_is_a_buffer_and_nothing_else(packed_core: InferenceCore) -> None:
    """27.3: WHERE the weight of a layer is packed, THE InferenceCore SHALL hold it as a buffer of that layer and have
    no parameter `weight` and no tensor on the meta device in its place."""
    plain = InferenceCore(hidden_size=12, num_layers=3, num_heads=3, intermediate_size=20)
    matrices = {name for name, tensor in plain.named_parameters() if tensor.dim() == 2}
    assert not matrices & {name for name, _ in packed_core.named_parameters()}
    buffers = dict(packed_core.named_buffers())
    assert {name.replace("packed_weight", "weight") for name in buffers} == matrices
    assert not any(tensor.is_meta for tensor in (*packed_core.parameters(), *buffers.values()))
    for name, buffer in buffers.items():
        assert buffer.shape == plain.get_parameter(name.replace("packed_weight", "weight")).shape
    assert "packed" in repr(packed_core.layers[0])
    assert "packed" not in repr(plain.layers[0])


STATE: Final[dict[str, Callable[[nn.Module], Any]]] = {
    "state_dict": lambda core: core.state_dict(),
    "load_state_dict": lambda core: core.load_state_dict({name: p.double() * 2 for name, p in core.named_parameters()}),
    "load_state_dict, not strict": lambda core: core.load_state_dict(
        {name: parameter * 2 for name, parameter in core.named_parameters()}, strict=False
    ),
    "half": lambda core: core.half(),
    "to": lambda core: core.to(torch.float64),
    "to meta": lambda core: core.to("meta"),
    "to_empty": lambda core: core.to_empty(device="cpu"),
    "share_memory": lambda core: core.share_memory(),
    "deepcopy": copy.deepcopy,
    "pickle": pickle.dumps,
}


@pytest.mark.requirement("27.4")
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("what", STATE)
def test_a_packed_core_refuses_as_a_whole(packed_core: InferenceCore, what: str, wrapped: bool) -> None:
    """27.4: IF an InferenceCore with a packed weight is asked to save, replace, move, cast, copy or pickle its state,
    THEN THE InferenceCore SHALL raise UnavailableError with what to do and leave every tensor as it was."""
    before = [tensor.clone() for tensor in tensors_of(packed_core)]
    with pytest.raises(UnavailableError, match=r"packed for this processor cannot be .*: .*(file|encoder)"):
        STATE[what](nn.ModuleList([packed_core]) if wrapped else packed_core)
    after = tensors_of(packed_core)
    assert all(torch.equal(one, other) and one.dtype == other.dtype for one, other in zip(after, before, strict=True))
    with torch.inference_mode():
        assert packed_core(tokens()).isfinite().all()


@pytest.mark.requirement("27.4")
@torch.inference_mode()
def test_a_core_that_is_not_packed_has_its_state() -> None:
    """27.4: IF an InferenceCore with a packed weight is asked to save, ...: one that PyTorch's own operators run is an
    nn.Module like any other."""
    core = InferenceCore(hidden_size=12, num_layers=2, num_heads=3, intermediate_size=20)
    x, expected = tokens(), core(tokens())
    assert torch.equal(copy.deepcopy(core)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(core))(x), expected)
    other = InferenceCore(hidden_size=12, num_layers=2, num_heads=3, intermediate_size=20)
    other.load_state_dict(core.state_dict())
    assert torch.equal(other(x), expected)
    torch.testing.assert_close(core.double()(x.double()).float(), expected)


@pytest.mark.requirement("27.5")
@pytest.mark.parametrize("form", ["packed", "plain"])
def test_a_core_with_a_scale_has_no_state(form: str) -> None:
    """27.5: IF an InferenceCore whose weights hold a scale is asked to save or replace its state, THEN THE
    InferenceCore SHALL raise UnavailableError: packed or not."""
    with forced(linear=form):
        core = loaded()
    assert all(isinstance(layer, FoldedLayer) for layer in core.layers)
    before = [tensor.clone() for tensor in tensors_of(core)]
    with pytest.raises(UnavailableError, match="cannot be saved: read the tensors from the weight file"):
        core.state_dict()
    with pytest.raises(UnavailableError, match="cannot be replaced: write a weight file"):
        core.load_state_dict({name: parameter * 2 for name, parameter in core.named_parameters()}, strict=False)
    assert all(torch.equal(one, other) for one, other in zip(tensors_of(core), before, strict=True))
