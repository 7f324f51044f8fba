"""Rows with their embeddings as a table: a null and a reason where there is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from llm_compression.embed.reasons import Reason
from llm_compression.embed.rows import EMBEDDING, ERROR, ERROR_MESSAGE, TEXT_PREFIX
from llm_compression.embed.texts import TextVectors
from llm_compression.embeddings import column_of

VectorType = Literal["fixed_size_list", "list"]
VectorDtype = Literal["float32", "float16"]


@dataclass(frozen=True)
class Embedded:
    """Rows with their embeddings.

    Attributes:
        carried: ``id`` and the columns that went through, (n).
        embeddings: Of the images, float32 (n, dimension), zero in rows that have a reason; None where no images are
            embedded.
        reasons: Why an image has no embedding, by its row.
        texts: The same of the texts; None where no texts are embedded.
    """

    carried: pa.Table
    embeddings: npt.NDArray[np.float32] | None
    reasons: Mapping[int, Reason] = field(default_factory=dict)
    texts: TextVectors | None = None


def table_of(
    found: Embedded, vector_type: VectorType = "fixed_size_list", vector_dtype: VectorDtype = "float32"
) -> pa.Table:
    """The rows as a table: what they carry, ``embedding``, ``error`` and ``error_message``, then those of the texts."""
    table = found.carried
    if found.embeddings is not None:
        table = _with_vectors(table, "", found.embeddings, found.reasons, vector_type, vector_dtype)
    if found.texts is not None:
        table = _with_vectors(table, TEXT_PREFIX, *found.texts, vector_type, vector_dtype)
    return table


def _with_vectors(
    table: pa.Table,
    prefix: str,
    embeddings: npt.NDArray[np.float32],
    why: Mapping[int, Reason],
    vector_type: VectorType,
    vector_dtype: VectorDtype,
) -> pa.Table:
    rows, width = embeddings.shape
    nulls = np.zeros(rows, bool)
    nulls[list(why)] = True
    vectors: pa.Array = column_of(embeddings, nulls)
    value: Any = getattr(pa, vector_dtype)()
    kind = pa.list_(value, width) if vector_type == "fixed_size_list" else pa.list_(value)
    if vectors.type != kind:
        values = pa.array(embeddings.astype(vector_dtype).ravel())
        mask = pa.array(nulls)
        if vector_type == "fixed_size_list":
            vectors = pa.FixedSizeListArray.from_arrays(values, width, mask=mask)
        else:
            offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * width)
            vectors = pa.ListArray.from_arrays(offsets, values, mask=mask)
    reasons = [why.get(row) for row in range(rows)]
    columns = {
        EMBEDDING: vectors,
        ERROR: pa.array([None if reason is None else reason.code for reason in reasons], pa.string()),
        ERROR_MESSAGE: pa.array([None if reason is None else reason.message for reason in reasons], pa.string()),
    }
    for name, column in columns.items():
        table = table.append_column(prefix + name, column)
    return table
