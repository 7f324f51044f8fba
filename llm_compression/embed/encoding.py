"""Rows as they are read to rows with their embeddings; one that has none costs itself alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from llm_compression.embed.encoders import Towers
from llm_compression.embed.reasons import Reason, Trace, reason_of, trace_of
from llm_compression.embed.rows import RowBatch
from llm_compression.embed.tables import Embedded
from llm_compression.embed.texts import embed_texts
from llm_compression.errors import ImageError


def embed_rows(
    read: Callable[[], Iterable[RowBatch]],
    towers: Towers,
    normalize: bool,
    batch_size: int,
    crashed: Mapping[int, str] | None = None,
    crashed_texts: Mapping[int, str] | None = None,
    on_rows: Callable[[int], None] = lambda _: None,
) -> Embedded:
    """Embed rows as they are read; decoding the next images overlaps with encoding these. Then their texts.

    Args:
        read: Gives the rows from the first on, each time it is called.
        towers: What embeds them.
        normalize: Whether each embedding gets unit length.
        batch_size: Images or texts of one pass.
        crashed: Rows whose images are not read, and why.
        crashed_texts: Rows whose texts are not, and why.
        on_rows: Told of rows as they are read, and now and then of none; where there are no images, as they are
            embedded.

    Returns:
        All rows, in order.
    """
    found, texts = _without_texts(read, towers, normalize, batch_size, crashed or {}, on_rows)
    if towers.texts is None:
        return found

    def on_texts(count: int) -> None:
        on_rows(count if towers.images is None else 0)

    embedded = embed_texts(texts, towers.texts, normalize, batch_size, crashed_texts or {}, on_texts)
    return replace(found, texts=embedded)


def _without_texts(
    read: Callable[[], Iterable[RowBatch]],
    towers: Towers,
    normalize: bool,
    batch_size: int,
    crashed: Mapping[int, str],
    on_rows: Callable[[int], None],
) -> tuple[Embedded, list[str | None]]:
    """The rows with their images embedded, and their texts."""
    known = {row: Reason("crashed", how) for row, how in crashed.items()}
    while True:
        carried, traces, texts = list[pa.RecordBatch](), list[Trace](), list[str | None]()

        def images(
            carried: list[pa.RecordBatch] = carried,
            traces: list[Trace] = traces,
            texts: list[str | None] = texts,
        ) -> Iterator[Any]:
            for batch in read():
                carried.append(batch.carried)
                texts.extend(batch.texts)
                for image in batch.images:
                    traces.append(trace_of(image))
                    yield None if len(traces) - 1 in known else image
                if towers.images is not None:
                    on_rows(len(batch.images))

        if towers.images is None:
            for _ in images():  # there are none
                pass
            return Embedded(pa.Table.from_batches(carried), None), texts
        try:
            found = towers.images.encode(images(), normalize, batch_size, on_error="skip")
        except ImageError as error:
            # the picture is sound and its embedding is none: the others are embedded without it
            if error.position is None or error.position in known:
                raise
            known[error.position] = Reason("not_finite", error.reason)
            continue
        reasons = dict(known)
        for bad in found.errors:
            # what is known to end a process is not looked at again
            if bad.position is not None and bad.position not in known:
                reasons[bad.position] = reason_of(bad, traces[bad.position])
        embeddings = np.zeros((len(traces), towers.images.dimension), np.float32)
        embeddings[found.positions] = found.embeddings
        return Embedded(pa.Table.from_batches(carried), embeddings, reasons), texts
