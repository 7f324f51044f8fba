"""Shared by all tests: hypothesis's depth, no network, the spec's limits, and tiny models on disk."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import HealthCheck, settings

from llm_compression.harness.clip.checkpoint_weights import make_weights
from llm_compression.harness.clip.checkpoints import VARIANTS
from llm_compression.harness.spec.parser import Spec, read_spec
from llm_compression.inference.paths import ran
from llm_compression.inference.weight_format import WEIGHTS_FILE, WeightMetadata, write_weights
from llm_compression.multimodal.vision_config import VisionConfig
from llm_compression.multimodal.vision_encoder import VisionEncoder

# runs of pytest within a test
pytest_plugins = ["pytester"]

ROOT: Final = Path(__file__).parents[1]
THREADS_VARIABLE: Final = "LLM_COMPRESSION_TEST_THREADS"
PATHS_RAN_VARIABLE: Final = "LLM_COMPRESSION_PATHS_RAN"
PROFILE_VARIABLE: Final = "LLM_COMPRESSION_HYPOTHESIS_PROFILE"

for _name, _examples in (("default", 100), ("thorough", 1000)):
    settings.register_profile(
        _name,
        max_examples=_examples,
        deadline=None,
        print_blob=True,
        # the same examples for the same commit where a build decides; new ones at every desk
        derandomize="CI" in os.environ,
        # the first example pays for imports
        suppress_health_check=[HealthCheck.too_slow],
    )
settings.load_profile(os.environ.get(PROFILE_VARIABLE, "default"))

# what a test starts is no worker of pytest-xdist, whoever runs the test
for _name in [name for name in os.environ if name.startswith("PYTEST_XDIST_")]:
    del os.environ[_name]

# a product of tiny matrices on two threads is slower than on one, much slower beside other processes
torch.set_num_threads(int(os.environ.get(THREADS_VARIABLE, "1")))

Rows = torch.Tensor | npt.NDArray[np.float32]
AssertWithin = Callable[[str, Rows, Rows], None]
BuildEncoder = Callable[..., VisionEncoder]


def pytest_sessionfinish() -> None:
    """Leave what ran, for the table of `nox -s processors`."""
    if path := os.environ.get(PATHS_RAN_VARIABLE):
        Path(path).write_text(json.dumps(sorted(f"{choice}={form}" for choice, form in ran())), encoding="utf-8")


@pytest.fixture(scope="session")
def sessions() -> ModuleType:
    """The noxfile as a module, loaded once in a process: nox warns of sessions that are registered twice."""
    spec = importlib.util.spec_from_file_location("noxfile", ROOT / "noxfile.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Fail whatever opens a network connection, in any thread; `network` lifts it for one test."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex"):
            patch.setattr(socket.socket, name, _refusing(getattr(socket.socket, name)))
        yield


@pytest.fixture
def network() -> Iterator[None]:
    """For a test that needs the network."""
    refusing = {name: getattr(socket.socket, name) for name in ("connect", "connect_ex")}
    with pytest.MonkeyPatch.context() as patch:
        for name, method in refusing.items():
            patch.setattr(socket.socket, name, method.__wrapped__)
        yield


def _refusing(real: Callable[..., Any]) -> Callable[..., Any]:
    def connect(self: socket.socket, address: Any) -> Any:
        if self.family == socket.AF_UNIX:  # between processes of this machine
            return real(self, address)
        # not an Exception, so that no handler mistakes it for a missing network
        return pytest.fail(f"a network connection to {address!r}, expected none")

    connect.__wrapped__ = real  # type: ignore[attr-defined]  # as functools.wraps does
    return connect


@pytest.fixture(scope="session")
def spec() -> Spec:
    """The spec of the encoder."""
    return read_spec(ROOT / ".kiro" / "specs" / "multimodal-encoder-system")


@pytest.fixture(scope="session")
def assert_within(spec: Spec) -> AssertWithin:
    """``assert_within(gate_id, got, reference)``: rows agree within the limit that the spec's gate states."""

    def check(gate_id: str, given: Rows, wanted_rows: Rows) -> None:
        gate = spec.gate(gate_id)
        got, reference = torch.as_tensor(given), torch.as_tensor(wanted_rows)
        assert got.shape == reference.shape
        assert got.dtype == torch.float32
        if not len(got):
            return
        found, wanted = got.double(), reference.double()
        if gate.metric.endswith("relative_error"):
            value = ((found - wanted).norm(dim=1) / wanted.norm(dim=1)).max().item()
        else:
            value = torch.nn.functional.cosine_similarity(found, wanted, dim=1).min().item()
        assert gate.passes(value), f"{gate.metric} {value}, {gate_id} allows {gate.comparison} {gate.limit}"

    return check


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of the variant ``tiny`` with hot channels, in float32."""
    directory = tmp_path_factory.mktemp("tiny")
    config = VARIANTS["tiny"]
    write_weights(directory / WEIGHTS_FILE, make_weights(config).items(), WeightMetadata(config=config.to_dict()))
    return directory


@pytest.fixture(scope="session")
def tiny_encoder(tiny_model: Path) -> VisionEncoder:
    """Encoder over `tiny_model` in float32."""
    return VisionEncoder(tiny_model, dtype="float32")


@pytest.fixture(scope="session")
def build_encoder() -> BuildEncoder:
    """``build_encoder(config, seed=0, dtype="float32", tensors=None)``: an encoder over seeded or given weights.

    Its file is deleted once it is loaded.
    """

    def build(
        config: VisionConfig,
        seed: int = 0,
        dtype: str = "float32",
        tensors: dict[str, torch.Tensor] | None = None,
    ) -> VisionEncoder:
        with tempfile.TemporaryDirectory() as directory:
            write_weights(
                Path(directory, WEIGHTS_FILE),
                (make_weights(config, seed) if tensors is None else tensors).items(),
                WeightMetadata(config=config.to_dict()),
            )
            return VisionEncoder(directory, dtype=dtype)

    return build
