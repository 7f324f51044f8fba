"""`mapInArrow` in a Spark of this machine, as the page shows it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from llm_compression import CLIPEngine, VisionEncoder
from llm_compression.embed.shards import embed_batches
from tests.engines.runs import MODEL, ROWS, program
from tests.pages import ROOT, blocks_and_prose
from tests.text_models import TINY_CLIP, write_text_model

VECTORS = ("embedding", "text_embedding")
START = """
from pyspark.sql import SparkSession

spark = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
"""


def spark_rows(table: pa.Table, folder: Path, **changes: str) -> pa.Table:
    """What the block of the page makes of a table, with some of its words changed, on two tasks."""
    blocks, _ = blocks_and_prose((ROOT / "docs" / "embed.md").read_text(encoding="utf-8"))
    (block,) = [each.text for each in blocks if "mapInArrow" in each.text]
    pq.write_table(table, folder / "photos.parquet", row_group_size=10)
    words = {"models/clip": MODEL, "photos.parquet": str(folder / "photos.parquet"), "vectors": str(folder / "vectors")}
    for old, new in {**words, "spark.read": 'spark.read.option("maxPartitionBytes", "1k")', **changes}.items():
        assert old in block
        block = block.replace(old, new)
    (folder / "job.py").write_text(START + block)
    ended = program(str(folder / "job.py"), PYSPARK_PYTHON=sys.executable, SPARK_LOCAL_IP="127.0.0.1")
    assert ended.returncode == 0, ended.stderr
    return ds.dataset(folder / "vectors", format="parquet").to_table().sort_by("n")


def assert_same_rows(found: pa.Table, wanted: pa.Table, vectors: str) -> None:
    """The same but for the order of sums, which the size of a batch decides."""
    assert found.column_names == wanted.column_names
    for name in set(wanted.column_names) - set(VECTORS):
        assert found[name].to_pylist() == wanted[name].to_pylist()
    pairs = list(zip(found[vectors].to_pylist(), wanted[vectors].to_pylist(), strict=True))
    assert [one is None for one, _ in pairs] == [other is None for _, other in pairs]
    kept = np.array([pair for pair in pairs if pair[0] is not None], np.float32)
    assert len(kept) > 0
    assert np.abs(kept[:, 0] - kept[:, 1]).max() <= 2e-6


@pytest.mark.parametrize("images", ["path", "binary"])
def test_spark_gives_the_rows_of_embed_batches(listed: Path, tmp_path: Path, images: str) -> None:
    """38.8 in Spark: the block of the page gives the rows of `embed_batches`, whatever the partitions."""
    names = [Path(name) for name in listed.read_text().split()]
    column = pa.array(map(str, names))
    if images == "binary":
        column = pa.array([name.read_bytes() if name.exists() else None for name in names], pa.binary())
    table = pa.table({"n": list(range(ROWS)), "image": column})
    found = spark_rows(table, tmp_path)
    encoder = VisionEncoder(MODEL, dtype="float32")
    assert_same_rows(found, pa.Table.from_batches(embed_batches(table.to_batches(), encoder, "image")), "embedding")
    assert found["embedding"].null_count == 2


def test_spark_gives_texts_beside_images(listed: Path, tmp_path: Path) -> None:
    """38.8 in Spark, of images and texts."""
    model = write_text_model(tmp_path / "clip", TINY_CLIP)
    texts = ["a red cat", "the dog", "", None] * (ROWS // 4)
    table = pa.table({"n": list(range(ROWS)), "image": listed.read_text().split(), "caption": texts})
    found = spark_rows(
        table,
        tmp_path,
        **{
            "import NEW_COLUMNS": "import NEW_COLUMNS, NEW_TEXT_COLUMNS",
            "fromDDL(NEW_COLUMNS)": 'fromDDL(NEW_COLUMNS + ", " + NEW_TEXT_COLUMNS)',
            f'"{MODEL}", "image"': f'"{model}", "image", text_column="caption"',
        },
    )
    batches = embed_batches(table.to_batches(), CLIPEngine(model, dtype="float32"), "image", text_column="caption")
    wanted = pa.Table.from_batches(batches)
    for vectors in VECTORS:
        assert_same_rows(found, wanted, vectors)
    assert found["text_embedding"].null_count == ROWS // 2
