"""Embeddings within a Spark job: the function that `DataFrame.mapInArrow` takes. It needs nothing of Spark itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import TYPE_CHECKING, Final

import pyarrow as pa

from llm_compression.embed.shards import embed_batches

if TYPE_CHECKING:
    from llm_compression.multimodal.vision_encoder import VisionEncoder

# Columns behind a frame's own, in Spark's words; its arrays have no fixed size.
NEW_COLUMNS: Final = "embedding array<float>, error string, error_message string"
_THREADS_VARIABLE: Final = "LLM_COMPRESSION_NUM_THREADS"


def map_in_arrow(
    model: str | os.PathLike[str],
    column: str,
    *,
    normalize: bool = True,
    batch_size: int = 32,
    threads: int = 1,
    device: str = "cpu",
    dtype: str = "float32",
) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """What `DataFrame.mapInArrow` takes to embed a column of images: one row out for each row in, in order.

    Args:
        model: A directory that holds ``weights.parquet``, or the file, under the same name on every machine.
        column: The column of encoded images (binary), paths (string) or both (struct<bytes, path>).
        normalize: Whether each embedding gets unit length.
        batch_size: Images of one pass.
        threads: Of each task; as many as ``spark.task.cpus``.
        device: Where it is computed.
        dtype: What it is computed in; what ``auto`` is may differ between machines.

    Returns:
        A function from record batches to the same with the columns of `NEW_COLUMNS` behind their own. The model is
        opened once in a process of Spark's. It raises as `embed_batches`.
    """
    return partial(_embedded, os.fspath(model), column, normalize, batch_size, threads, device, dtype)


def _embedded(
    model: str,
    column: str,
    normalize: bool,
    batch_size: int,
    threads: int,
    device: str,
    dtype: str,
    batches: Iterator[pa.RecordBatch],
) -> Iterator[pa.RecordBatch]:
    encoder = _opened(model, threads, device, dtype)
    yield from embed_batches(batches, encoder, column, normalize=normalize, batch_size=batch_size, vector_type="list")


@cache
def _opened(model: str, threads: int, device: str, dtype: str) -> VisionEncoder:
    # read once in a process, by what follows; each of a machine's tasks has a process
    os.environ.setdefault(_THREADS_VARIABLE, str(threads))
    from llm_compression.multimodal.vision_encoder import VisionEncoder

    return VisionEncoder(model, device, dtype)
