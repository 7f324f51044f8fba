"""The tensors of a weight file, gathered into transformer blocks as they are read; every encoder loads through this."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping

from torch import Tensor

from llm_compression.inference.weight_format import block_of
from llm_compression.inference.weight_loader import WeightLoader


def stream_blocks(
    loader: WeightLoader, names: Collection[str], layer_prefix: str
) -> Iterator[tuple[int | None, Mapping[str, Tensor]]]:
    """Read some tensors of a file, holding one block at a time.

    Args:
        loader: The file.
        names: The tensors to read.
        layer_prefix: What stands before the number of a block.

    Yields:
        A block's index and its tensors, without the block's prefix, once all of them are there; or None and one tensor
        that is outside the blocks, as soon as it is read.

    Raises:
        WeightFormatError: As `WeightLoader.stream`.
    """
    sizes = Counter(map(block_of, names))
    pending: dict[str, dict[str, Tensor]] = {}
    for name, tensor in loader.stream(names):
        block = block_of(name)
        if not block:
            yield None, {name: tensor}
            del tensor
            continue
        pending.setdefault(block, {})[name.removeprefix(block)] = tensor
        del tensor
        if len(pending[block]) == sizes[block]:
            yield int(block.removeprefix(layer_prefix).rstrip(".")), pending.pop(block)
