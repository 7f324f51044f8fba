"""Rows of a weight file changed under its metadata, page checksums made anew, as a tool may do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llm_compression.inference.weight_format import SCHEMA


def rewrite(path: Path, change: Callable[[list[dict[str, Any]]], Any], row_group_size: int | None = None) -> None:
    """Change a file's rows and keep its metadata; all rows in one row group unless a size is given."""
    stored = {key: value for key, value in pq.read_metadata(path).metadata.items() if key != b"ARROW:schema"}
    found = pq.read_table(path).to_pylist()
    change(found)
    columns = [pa.array([row[field.name] for row in found], field.type) for field in SCHEMA]
    with pq.ParquetWriter(path, SCHEMA, write_page_checksum=True) as writer:
        writer.write_table(pa.table(columns, schema=SCHEMA), row_group_size)
        writer.add_key_value_metadata(stored)
