"""Embeddings within a Spark job: the function that `DataFrame.mapInArrow` takes. It needs nothing of Spark itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any, Final

import pyarrow as pa

from llm_compression.embed.encoders import AnyEncoder, open_encoder
from llm_compression.embed.shards import embed_batches
from llm_compression.embed.sources import file_identity
from llm_compression.inference.model_path import weight_file_of
from llm_compression.text.tokenizer import TOKENIZER_FILE

# Columns behind a frame's own, in Spark's words; its arrays have no fixed size.
NEW_COLUMNS: Final = "embedding array<float>, error string, error_message string"
# Behind these, or alone, where texts are embedded.
NEW_TEXT_COLUMNS: Final = "text_embedding array<float>, text_error string, text_error_message string"
_THREADS_VARIABLE: Final = "LLM_COMPRESSION_NUM_THREADS"


def map_in_arrow(
    model: str | os.PathLike[str],
    column: str | None = None,
    *,
    text_column: str | None = None,
    normalize: bool = True,
    batch_size: int = 32,
    threads: int = 1,
    device: str = "cpu",
    dtype: str = "float32",
) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """What `DataFrame.mapInArrow` takes to embed columns of images and texts: one row out for each row in, in order.

    Args:
        model: A directory that holds ``weights.parquet``, or the file, under the same name on every machine.
        column: The column of encoded images (binary), paths (string) or both (struct<bytes, path>); None with a
            sentence encoder.
        text_column: The column of texts (string), if they are embedded; with a CLIP, or with a sentence encoder.
        normalize: Whether each embedding gets unit length.
        batch_size: Images or texts of one pass.
        threads: Of each task; as many as ``spark.task.cpus``.
        device: Where it is computed.
        dtype: What it is computed in; what ``auto`` is may differ between machines.

    Returns:
        A function from record batches to the same with the columns of `NEW_COLUMNS`, then those of `NEW_TEXT_COLUMNS`,
        behind their own. The model is opened once in a process of Spark's, and again where its files changed. It
        raises as `embed_batches`.
    """
    options = {"text_column": text_column, "normalize": normalize, "batch_size": batch_size}
    return partial(_embedded, os.fspath(model), column, options, threads, device, dtype)


def _embedded(
    model: str,
    column: str | None,
    options: dict[str, Any],
    threads: int,
    device: str,
    dtype: str,
    batches: Iterator[pa.RecordBatch],
) -> Iterator[pa.RecordBatch]:
    encoder = _opened(model, _state_of(model), threads, device, dtype, options["text_column"])
    yield from embed_batches(batches, encoder, column, vector_type="list", **options)


def _state_of(model: str) -> str:
    """What another model under the same name changes: Spark goes on with a process for later jobs."""
    weights = weight_file_of(model)
    return f"{file_identity(weights)} {file_identity(weights.with_name(TOKENIZER_FILE))}"


@lru_cache(maxsize=1)
def _opened(
    model: str,
    state: str,  # noqa: ARG001  # a part of the key
    threads: int,
    device: str,
    dtype: str,
    text_column: str | None,
) -> AnyEncoder:
    # read once in a process, by what follows; each of a machine's tasks has a process
    os.environ.setdefault(_THREADS_VARIABLE, str(threads))
    return open_encoder(model, device, dtype, text_column)
