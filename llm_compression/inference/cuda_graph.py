"""A forward pass replayed from a CUDA graph, one for each batch size, where a graph is exact and pays.

A GPU computes a small batch in less time than the CPU needs to launch its hundred-odd kernels; a graph launches all of
them at once (https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

Forward = Callable[[Tensor], Tensor]

# a pass of more images is long beside its launches, and each graph keeps the activations of its batch size
MAX_IMAGES: Final = 64
MAX_GRAPHS: Final = 8
_WARM_UPS: Final = 3
_TRIALS: Final = 5
# noise decides between times that are closer
_MARGIN: Final = 0.98

_log = logging.getLogger(__name__)
# one trial at a time in the process: a recording on a device forbids others to wait for it
_trial = threading.Lock()
_refused = threading.Event()


class GraphedForward:
    """``forward(x)``, replayed from a graph where that was seen to give the same bits in less time.

    A batch size is tried at its second call, since one that comes once is not worth it; for good, in either way. Once a
    recording failed no other is begun in this process: PyTorch may not recover from it. Safe from several threads: a
    graph has one input and one output, so calls take turns. No other thread may call `torch.cuda.synchronize` while a
    batch size is tried. Hooks of modules do not run in a replay.

    Args:
        forward: A pass on the device of its input, the same operations whatever the values.
        record: ``record(forward, x)`` gives what replays the pass; raises a RuntimeError where it cannot be recorded.
        seconds: ``seconds(forward, x)`` gives the time of a call to its end on the device.
    """

    def __init__(
        self,
        forward: Forward,
        record: Callable[[Forward, Tensor], Forward] | None = None,
        seconds: Callable[[Forward, Tensor], float] | None = None,
    ) -> None:
        self._forward = forward
        self._record = record or record_graph
        self._seconds = seconds or seconds_on_device
        self._lock = threading.Lock()
        self._met: set[int] = set()
        self._chosen: dict[int, Forward] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """What ``forward(x)`` gives, for (n, ...) on a CUDA device."""
        with self._lock:
            images = len(x)
            if images not in self._chosen and images in self._met:
                self._chosen[images] = self._choose(x)
            self._met.add(images)
            return self._chosen.get(images, self._forward)(x)

    @property
    def batch_sizes(self) -> list[int]:
        """The batch sizes that are replayed."""
        return sorted(images for images, chosen in self._chosen.items() if chosen is not self._forward)

    def _choose(self, x: Tensor) -> Forward:
        if not 0 < len(x) <= MAX_IMAGES or len(self.batch_sizes) == MAX_GRAPHS or _refused.is_set():
            return self._forward
        # other values too: a graph that holds a part of its first input would repeat it
        cases = [(values, self._forward(values)) for values in (x, x.flip(-1))]
        with _trial:
            try:
                replay = self._record(self._forward, x)
                exact = all(torch.equal(replay(values), expected) for values, expected in cases)
                pays = exact and self._seconds(replay, x) < _MARGIN * self._seconds(self._forward, x)
            # an operation that cannot be recorded, or no memory for a graph
            except RuntimeError as error:
                _refused.set()
                _log.warning("no CUDA graphs in this process: %s", error)
                return self._forward
        return replay if pays else self._forward


def record_graph(forward: Forward, x: Tensor) -> Forward:
    """Record a pass as a `torch.cuda.CUDAGraph`; what replays it on any values of the same shape.

    Raises:
        RuntimeError: The pass cannot be recorded.
    """
    with torch.cuda.device(x.device):
        given, stream, before = x.clone(), torch.cuda.Stream(), torch.cuda.current_stream()
        stream.wait_stream(before)
        # libraries set themselves up at the first calls on a stream, which cannot be recorded
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                forward(given)
        before.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            # other threads may use the device meanwhile
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                found = forward(given)
        finally:
            # a recording that fails leaves its own
            torch.cuda.set_stream(before)

    def replay(x: Tensor) -> Tensor:
        with torch.cuda.device(given.device):
            given.copy_(x, non_blocking=True)
            graph.replay()
            out = found.clone()
            # the next call may come on another stream, and would write into what this one still reads
            torch.cuda.current_stream().synchronize()
        return out

    return replay


def seconds_on_device(forward: Forward, x: Tensor) -> float:
    """Median time of a call, until the device is done."""
    times, stream = [], torch.cuda.current_stream(x.device)
    for _ in range(_TRIALS):
        stream.synchronize()
        start = time.perf_counter()
        forward(x)
        stream.synchronize()
        times.append(time.perf_counter() - start)
    return sorted(times)[_TRIALS // 2]
