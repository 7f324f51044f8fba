"""Which passes are replayed. A stand-in for the recorder runs the pass again: without CUDA there are no graphs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llm_compression import VisionEncoder
from llm_compression.inference import cuda_graph
from llm_compression.inference.cuda_graph import MAX_GRAPHS, MAX_IMAGES, Forward, GraphedForward

pytestmark = pytest.mark.requirement("8.13")


@pytest.fixture(autouse=True)
def nothing_refused() -> Iterator[None]:
    """A refusal is for the process; here, for the test."""
    cuda_graph._refused.clear()
    yield
    cuda_graph._refused.clear()


def double(x: Tensor) -> Tensor:
    """The pass."""
    return 2 * x


class Recorder:
    """Replays a pass by running it; notes what was recorded and replayed."""

    def __init__(self, change: Callable[[Tensor], Tensor] = lambda out: out) -> None:
        self.change = change
        self.recorded: list[int] = []
        self.replayed: list[int] = []

    def __call__(self, forward: Forward, x: Tensor) -> Forward:
        self.recorded.append(len(x))

        def replay(x: Tensor) -> Tensor:
            self.replayed.append(len(x))
            return self.change(forward(x))

        return replay


def seconds(of_the_pass: float) -> Callable[[Forward, Tensor], float]:
    """A clock by which a replay takes 1 s."""
    return lambda forward, _x: of_the_pass if forward is double else 1.0


def test_a_batch_size_is_recorded_at_its_second_call_and_replayed() -> None:
    """8.13: each batch size once; what comes once is not recorded."""
    recorder = Recorder()
    graphed = GraphedForward(double, recorder, seconds(2.0))
    for images in (1, 3, 1, 1, 1, 2):
        x = torch.randn(images, 4)
        assert torch.equal(graphed(x), 2 * x)
    assert recorder.recorded == [1]
    # the two comparisons, then every call from the second on
    assert recorder.replayed == [1] * 5
    assert graphed.batch_sizes == [1]


@pytest.mark.parametrize(
    ("change", "of_the_pass"),
    [(lambda out: out, 1.01), (lambda out: out, 0.9), (lambda out: out * (1 + 2e-7), 2.0), (lambda out: out[:1], 2.0)],
    ids=["as fast", "slower", "another bit", "another shape"],
)
def test_a_graph_that_is_not_the_same_and_faster_is_dropped(
    change: Callable[[Tensor], Tensor], of_the_pass: float
) -> None:
    """8.13: it is tried once, and the pass runs as it is from then on."""
    recorder = Recorder(change)
    graphed = GraphedForward(double, recorder, seconds(of_the_pass))
    x = torch.rand(5, 3) + 1
    assert all(torch.equal(graphed(x), 2 * x) for _ in range(4))
    assert (recorder.recorded, graphed.batch_sizes) == ([5], [])


def test_a_graph_that_holds_its_first_input_is_dropped() -> None:
    """8.13: the replay is compared on other values than those that were recorded."""

    def holds(forward: Forward, x: Tensor) -> Forward:
        out = forward(x)
        return lambda _x: out

    graphed = GraphedForward(double, holds, seconds(2.0))
    x = torch.rand(2, 3)
    assert all(torch.equal(graphed(x), 2 * x) for _ in range(3))
    assert graphed.batch_sizes == []


def test_a_pass_that_cannot_be_recorded_runs_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    """8.13: a RuntimeError is CUDA's answer; any other error is a mistake and is seen."""

    def refuses(_forward: Forward, _x: Tensor) -> Forward:
        raise RuntimeError("operation not permitted when stream is capturing")

    def is_wrong(_forward: Forward, _x: Tensor) -> Forward:
        raise TypeError("no such argument")

    x = torch.ones(2, 2)
    graphed = GraphedForward(double, refuses, seconds(2.0))
    assert all(torch.equal(graphed(x), 2 * x) for _ in range(3))
    assert graphed.batch_sizes == []
    # for the process
    recorder = Recorder()
    other = GraphedForward(double, recorder, seconds(2.0))
    assert all(torch.equal(other(x), 2 * x) for _ in range(3))
    assert recorder.recorded == []
    assert [record.message for record in caplog.records] == [
        "no CUDA graphs in this process: operation not permitted when stream is capturing"
    ]
    cuda_graph._refused.clear()
    graphed = GraphedForward(double, is_wrong, seconds(2.0))
    graphed(x)
    with pytest.raises(TypeError, match="no such argument"):
        graphed(x)


def test_graphs_are_few_and_small() -> None:
    """8.13: each keeps memory, so neither large passes nor a long row of batch sizes are recorded."""
    recorder = Recorder()
    graphed = GraphedForward(double, recorder, seconds(2.0))
    for images in (0, MAX_IMAGES + 1, *range(MAX_IMAGES, MAX_IMAGES - MAX_GRAPHS - 3, -1)):
        x = torch.ones(images, 2)
        assert all(torch.equal(graphed(x), 2 * x) for _ in range(3))
    assert graphed.batch_sizes == list(range(MAX_IMAGES - MAX_GRAPHS + 1, MAX_IMAGES + 1))
    assert recorder.recorded == graphed.batch_sizes[::-1]


def test_threads_take_turns() -> None:
    """8.13: a graph has one input; a call that came into the replay of another would change it."""
    inside, seen = threading.Semaphore(0), threading.Event()
    calls = 0

    def replay(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > 2:  # the first two are the comparison
            inside.release()
            seen.wait(30)
        return double(x)

    graphed = GraphedForward(double, lambda _forward, _x: replay, seconds(2.0))
    x = torch.ones(1)
    graphed(x)
    with ThreadPoolExecutor(2) as pool:
        tasks = [pool.submit(graphed, x) for _ in range(2)]
        assert inside.acquire(timeout=30)
        try:
            assert not inside.acquire(timeout=0.1), "two calls were in the graph at once"
        finally:
            seen.set()
        assert all(torch.equal(task.result(), 2 * x) for task in tasks)


def test_the_encoder_replays_its_passes(tiny_model: Path) -> None:
    """8.13: `encode_pixels` goes through the graph, and its rows have the bits of the pass as it is."""
    encoder = VisionEncoder(tiny_model, dtype="float32")
    size = encoder.config.image_size
    batches = [torch.randn(images, 3, size, size) for images in (2, 1, 2, 2)]
    expected = [encoder.encode_pixels(pixels, convert_to_tensor=True) for pixels in batches]
    recorder = Recorder()
    encoder._graphed = GraphedForward(encoder, recorder, lambda forward, _x: 2.0 if forward is encoder else 1.0)
    found = [encoder.encode_pixels(pixels, convert_to_tensor=True) for pixels in batches]
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert (recorder.recorded, encoder._graphed.batch_sizes) == ([2], [2])
