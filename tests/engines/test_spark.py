"""`mapInArrow` in a Spark of this machine, as the page shows it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from llm_compression import VisionEncoder
from llm_compression.embed.shards import embed_batches
from tests.engines.runs import MODEL, ROWS, program
from tests.pages import ROOT, blocks_and_prose

START = """
from pyspark.sql import SparkSession

spark = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
"""


@pytest.mark.parametrize("images", ["path", "binary"])
def test_spark_gives_the_rows_of_embed_batches(listed: Path, tmp_path: Path, images: str) -> None:
    """37.8 in Spark: the block of the page gives the rows of `embed_batches`, whatever the partitions; on two tasks."""
    blocks, _ = blocks_and_prose((ROOT / "docs" / "embed.md").read_text(encoding="utf-8"))
    (block,) = [each.text for each in blocks if "mapInArrow" in each.text]
    names = [Path(name) for name in listed.read_text().split()]
    column = pa.array(map(str, names))
    if images == "binary":
        column = pa.array([name.read_bytes() if name.exists() else None for name in names], pa.binary())
    table = pa.table({"n": list(range(ROWS)), "image": column})
    pq.write_table(table, tmp_path / "photos.parquet", row_group_size=10)
    for old, new in (
        ("models/clip", MODEL),
        ("photos.parquet", str(tmp_path / "photos.parquet")),
        ("vectors", str(tmp_path / "vectors")),
        ("spark.read", 'spark.read.option("maxPartitionBytes", "1k")'),
    ):
        assert old in block
        block = block.replace(old, new)
    (tmp_path / "job.py").write_text(START + block)
    ended = program(str(tmp_path / "job.py"), PYSPARK_PYTHON=sys.executable, SPARK_LOCAL_IP="127.0.0.1")
    assert ended.returncode == 0, ended.stderr
    found = ds.dataset(tmp_path / "vectors", format="parquet").to_table().sort_by("n")
    assert found.column_names == ["n", "image", "embedding", "error", "error_message"]
    encoder = VisionEncoder(MODEL, dtype="float32")
    wanted = pa.Table.from_batches(list(embed_batches(table.to_batches(), encoder, "image")))
    for name in ("n", "image", "error", "error_message"):
        assert found[name].to_pylist() == wanted[name].to_pylist()
    pairs = list(zip(found["embedding"].to_pylist(), wanted["embedding"].to_pylist(), strict=True))
    assert [one is None for one, _ in pairs] == [other is None for _, other in pairs]
    assert sum(one is None for one, _ in pairs) == 2
    kept = np.array([pair for pair in pairs if pair[0] is not None], np.float32)
    assert np.abs(kept[:, 0] - kept[:, 1]).max() <= 2e-6
