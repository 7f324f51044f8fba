"""The values of an Arrow binary array as views of the array's own memory.

`pyarrow.BinaryScalar.as_buffer` copies each value; slicing a memoryview of the array's data buffer does not, and stays
writable where the buffer is, as PyTorch wants it.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa


def binary_views(array: pa.Array) -> list[memoryview | None]:
    """Each value of a binary or large_binary array, None for a null, without copying."""
    width = np.int64 if pa.types.is_large_binary(array.type) else np.int32
    _, offset_buffer, data = array.buffers()
    if len(array) == 0 or offset_buffer is None:
        return [None] * len(array)
    offsets = np.frombuffer(offset_buffer, width, count=len(array) + 1, offset=array.offset * np.dtype(width).itemsize)
    memory = memoryview(b"" if data is None else data).cast("B")
    # pyarrow.compute, which is_valid imports, costs a load tens of milliseconds
    valid = [value.is_valid for value in array] if array.null_count else [True] * len(array)
    return [
        memory[int(start) : int(end)] if is_valid else None
        for start, end, is_valid in zip(offsets[:-1], offsets[1:], valid, strict=True)
    ]
