"""The tensors of a weight file, each to the module that uses it; every encoder loads through this.

An encoder lists its slots: which tensors are used together, and what takes them. Row groups are read side by side, a
thread for each processor up to four, so that reading, checking and packing of different blocks overlap.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor

from llm_compression.inference.memory import release_memory, reuse_freed_memory
from llm_compression.inference.threads import single_threaded_pool
from llm_compression.inference.weight_loader import WeightLoader

# Each thread holds the tensors that it works on; beyond these, reading is bound by memory and not by processors.
_MAX_THREADS: Final = 4


@dataclass(frozen=True)
class Slot:
    """Tensors of a weight file that are used together.

    Attributes:
        names: Their names in the file.
        take: Called once with the tensors, in the order of the names, from a thread of the load.
    """

    names: tuple[str, ...]
    take: Callable[..., None]


def place(loader: WeightLoader, slots: Iterable[Slot]) -> None:
    """Read the tensors of some slots and hand each slot its own as soon as all of them are there.

    At no time is more than a few tensors for each thread held that no slot has taken; what is free at the end goes back
    to the system.

    Raises:
        WeightFormatError: As `WeightLoader.stream`; of several, the first in file order.
    """
    waiting = _Waiting(slots)
    groups = loader.by_row_group(waiting.names)

    def read(names: Sequence[str]) -> None:
        for name, tensor in loader.stream(names):
            waiting.arrive(name, tensor)
            del tensor  # before the next one is read
        # what reading and packing left is a tenth of the model by the end, and returning it costs a millisecond
        release_memory()

    with single_threaded_pool(max(1, min(torch.get_num_threads(), len(groups), _MAX_THREADS))) as pool:
        for _ in pool.map(read, groups):
            pass
    reuse_freed_memory()


@dataclass
class _Waiting:
    """Slots whose tensors are not all there yet."""

    slots: Iterable[Slot]
    _slot_of: dict[str, Slot] = field(default_factory=dict)
    _arrived: dict[str, Tensor] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._slot_of = {name: slot for slot in self.slots for name in slot.names}

    @property
    def names(self) -> list[str]:
        """Every tensor that a slot takes."""
        return list(self._slot_of)

    def arrive(self, name: str, tensor: Tensor) -> None:
        """Note a tensor, and let its slot take all of its own when it was the last."""
        slot = self._slot_of[name]
        with self._lock:
            self._arrived[name] = tensor
            if not all(each in self._arrived for each in slot.names):
                return
            tensors = [self._arrived.pop(each) for each in slot.names]
        slot.take(*tensors)
