"""After a fork: the rows, or an error that says what to do; never a process that waits for threads it does not have."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from llm_compression.errors import LlmCompressionError
from llm_compression.inference.threads import require_unforked
from tests.conftest import AssertWithin
from tests.text_models import TINY_BERT, write_text_model

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of as many files as a batch needs to be computed as shares, for two threads and for four."""
    directory = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for index in range(60):
        Image.fromarray(generator.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(directory / f"{index:02}.png")
    return directory


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with its tokenizer."""
    return write_text_model(tmp_path_factory.mktemp("bert"), TINY_BERT)


def answers(out: Path, *arguments: object) -> dict[str, Any]:
    """What `tests.forked`, run in a process of its own, found."""
    command = [sys.executable, "-m", "tests.forked", arguments[0], out, *arguments[1:]]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = pickle.loads(out.read_bytes())
    return found


@pytest.mark.requirement("26.4")
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_a_fork_gives_the_rows(
    tmp_path: Path, tiny_model: Path, bert: Path, images: Path, threads: int, assert_within: AssertWithin
) -> None:
    """26.4: WHEN a process that has encoded is forked, THE Package SHALL return in the fork the rows that it returns
    before, in float32 with a relative error within the limit of gate `precision-float32-b16`."""
    found = answers(tmp_path / "found", "encodings", threads, tiny_model, bert, images)
    assert len(found) == 7 * 5 + 1
    for case, (before, after) in found.items():
        assert isinstance(after, np.ndarray), f"{case}: {after!r}"
        assert_within("precision-float32-b16", after, before)


@pytest.mark.requirement("26.5")
def test_threads_that_a_fork_does_not_have_are_refused(
    tmp_path: Path, tiny_model: Path, bert: Path, images: Path, assert_within: AssertWithin
) -> None:
    """26.5: IF PyTorch is set to more than one thread in the thread that a fork kept, THEN THE Package SHALL raise
    LlmCompressionError with the number found, one thread and `spawn` as what was expected: one thread works, and so
    does another thread of the fork."""
    found = answers(tmp_path / "found", "refusals", tiny_model, bert, images)
    before = found.pop("before")
    for case in ("with one thread again", "in a new thread"):
        assert_within("precision-float32-b16", found.pop(case), before)
    assert set(found) == {"encode", "encode_pixels", "forward", "text", "a new encoder", "a new engine"}
    for case, error in found.items():
        assert isinstance(error, LlmCompressionError), f"{case}: {error!r}"
        assert "PyTorch set to 2 threads in a fork" in str(error)
        assert "expected torch.set_num_threads(1), or a process started by spawn" in str(error)


@pytest.mark.requirement("26.6")
@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps"])
def test_a_model_on_a_device_stays_with_its_process(device: str) -> None:
    """26.6: IF a model on another device than the CPU is used in a fork of the process that made it, THEN THE Package
    SHALL raise an error that names `spawn`."""
    require_unforked(torch.device(device), os.getpid())
    require_unforked(torch.device("cpu"), os.getpid() + 1)
    with pytest.raises(LlmCompressionError, match=rf"a model on {device} of process \d+, .* started by spawn"):
        require_unforked(torch.device(device), os.getpid() + 1)
