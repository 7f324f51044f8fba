"""A batch as equal shares: who takes what, in which mode, and that the rows are those of the whole batch."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from llm_compression.inference import shares, threads
from llm_compression.inference.inference_core import InferenceCore
from llm_compression.inference.shares import MAX_ROWS, MIN_ROWS, by_shares, items_of_share
from llm_compression.inference.threads import workers
from tests.conftest import AssertWithin
from tests.cores import SIZES, loaded, tokens

pytestmark = pytest.mark.requirement("2.10")


@pytest.fixture(autouse=True)
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """PyTorch with two threads, and two workers that were not started yet, whatever the machine has."""
    for module in (threads, shares):
        monkeypatch.setattr(module, "available_cpus", lambda: 2)
    monkeypatch.setattr(threads, "_workers", None)
    found = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(found)
    if threads._workers is not None:
        threads._workers.shutdown()


@pytest.mark.parametrize(
    ("shape", "count", "expected"),
    [
        ((10, MIN_ROWS // 5), 2, 5),
        ((11, MIN_ROWS // 5), 2, 5),
        ((9, MIN_ROWS // 5), 2, 0),
        ((2, MAX_ROWS), 2, 1),
        ((2, MAX_ROWS + 1), 2, 0),
        ((1, MIN_ROWS), 2, 0),
        ((0, MIN_ROWS), 2, 0),
        ((8, MIN_ROWS), 8, 1),
        ((8, MIN_ROWS), 1, 0),
    ],
)
def test_the_size_of_a_share(shape: tuple[int, int], count: int, expected: int) -> None:
    """2.10: as many items for each thread, within the bounds; else the batch is left whole."""
    with torch.inference_mode():
        assert items_of_share(torch.empty(*shape, 4), count) == expected
        assert items_of_share(torch.empty(*shape, 4, device="meta"), count) == 0
    # a graph for gradients is made by one thread
    assert items_of_share(torch.empty(*shape, 4), count) == 0


@torch.inference_mode()
def test_each_share_has_a_thread_and_the_rest_has_all() -> None:
    """2.10: shares run on the workers, one PyTorch thread each and without gradients; the odd item comes after them."""
    x, log = torch.arange(11.0).reshape(11, 1).expand(11, MIN_ROWS // 5), list[tuple[Any, ...]]()
    meet = threading.Barrier(2, timeout=30)

    def run(part: slice) -> Tensor:
        if part.start in (0, 5):
            meet.wait()  # both shares are under way at once
        alone = threading.current_thread() is not threading.main_thread()
        log.append((part.start, alone, torch.get_num_threads(), torch.is_inference_mode_enabled()))
        return x[part, :1] * 10

    assert torch.equal(by_shares(run, x), x[:, :1] * 10)
    assert sorted(log[:2]) == [(0, True, 1, True), (5, True, 1, True)]
    assert log[2:] == [(10, False, 2, True)]
    log.clear()
    torch.set_num_threads(1)
    assert torch.equal(by_shares(run, x), x[:, :1] * 10)
    assert log == [(None, False, 1, True)]


@torch.inference_mode()
def test_the_error_of_a_share_is_raised_when_all_are_done() -> None:
    """2.10: no share goes on behind the caller's back, and nothing shorter is returned."""
    done, failed, late = list[int](), threading.Event(), threading.Event()

    def run(part: slice) -> Tensor:
        if part.start == 0:
            failed.set()
            raise ArithmeticError("no such number")
        failed.wait(30)
        late.wait(0.1)  # nobody sets it: the other share is still at work when this one has failed
        done.append(part.start)
        return torch.empty(1)

    with pytest.raises(ArithmeticError, match="no such number"):
        by_shares(run, torch.empty(2, MIN_ROWS))
    assert done == [1]


@pytest.mark.parametrize("options", [{}, {"norm": "post", "activation": "gelu"}, {"causal": True}])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("first_token_only", [True, False])
@torch.inference_mode()
def test_shares_have_the_rows_of_the_whole(
    options: dict[str, Any], masked: bool, first_token_only: bool, assert_within: AssertWithin
) -> None:
    """2.10: WHEN a batch is computed as shares, each on a thread of its own, THE InferenceCore SHALL return the rows
    that it returns for the batch as a whole, in float32 with a relative error within the limit of gate
    `precision-float32-b16`."""
    core, x = loaded(**options), tokens(5, MIN_ROWS // 2)
    assert items_of_share(x, 2) == 2
    padding = torch.zeros(x.shape[:2], dtype=torch.bool)
    for item in range(5):
        padding[item, 20 + item :] = True
    mask, seen = padding if masked else None, list[int]()
    core.layers[0].register_forward_pre_hook(lambda _layer, inputs: seen.append(len(inputs[0])))
    shared = core(x, mask, first_token_only)
    assert seen == [2, 2, 1]
    whole = core._run(x, core._mask(x, mask), first_token_only, None)
    assert shared.shape == whole.shape
    assert_within("precision-float32-b16", shared.flatten(1), whole.flatten(1))
    assert torch.equal(core(x, mask, first_token_only), shared)


@torch.inference_mode()
def test_without_threads_the_batch_is_left_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """2.10: where no thread can be started, as at the end of the interpreter, the caller computes the batch."""
    x = torch.rand(5, MIN_ROWS)
    workers().shutdown()
    assert torch.equal(by_shares(lambda part: x[part], x), x)

    def refuse() -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(shares, "workers", refuse)
    assert torch.equal(by_shares(lambda part: x[part], x), x)


def test_gradients_are_left_alone() -> None:
    """2.10: outside of inference mode, as in training, the batch is one graph."""
    core = InferenceCore(**SIZES)  # as a training makes it, with weights that take gradients
    x = tokens(4, MIN_ROWS).requires_grad_()
    core(x).sum().backward()
    assert x.grad is not None
    assert bool((x.grad != 0).any(dim=2).all())


def test_a_fork_starts_workers_of_its_own() -> None:
    """2.10: a child process has none of its parent's workers and must not wait for them."""
    code = (
        "import os, torch\n"
        "from llm_compression.inference.shares import by_shares\n"
        "torch.set_num_threads(2)\n"
        "def answer():\n"
        "    with torch.inference_mode():\n"
        "        return by_shares(lambda part: torch.ones(2)[part], torch.empty(2, 400)).tolist()\n"
        "assert answer() == [1, 1]\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os._exit(0 if answer() == [1, 1] else 1)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    if not hasattr(os, "fork"):
        pytest.fail("written for systems that fork")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout.split() == ["0"]


def test_there_is_one_pool() -> None:
    """2.10: threads that ask at once get the same workers."""
    found, meet = list[object](), threading.Barrier(8, timeout=30)

    def ask() -> None:
        meet.wait()
        found.append(workers())

    askers = [threading.Thread(target=ask) for _ in range(8)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert set(found) == {workers()}
