"""Tables of embeddings in every form that holds one, and the files that the command `encode` writes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from llm_compression.embedding_provider import EmbeddingMethods
from llm_compression.embeddings import column_of, cosine, table_of, write_embeddings
from llm_compression.errors import ConfigError
from llm_compression.multimodal.clip_engine import CLIPEngine
from tests.series import PandasSeries, PolarsSeries
from tests.text_models import TINY_CLIP, write_text_model

TABLE: Final = np.random.default_rng(0).standard_normal((6, 10)).astype(np.float32)
UNIT: Final = TABLE / np.linalg.norm(TABLE, axis=1, keepdims=True)


def _written(path: Path) -> Path:
    write_embeddings(path, [f"{i}.png" for i in range(len(TABLE))], TABLE, range(len(TABLE)))
    return path


FORMS: Final[dict[str, Callable[[Path], Any]]] = {
    "array": lambda _: TABLE,
    "float64": lambda _: TABLE.astype(np.float64),
    "strided": lambda _: np.asfortranarray(TABLE)[::-1][::-1],
    "tensor": lambda _: torch.from_numpy(TABLE),
    "tensor with a gradient": lambda _: torch.from_numpy(TABLE.copy()).requires_grad_(),
    "column": lambda _: column_of(TABLE),
    "sliced column": lambda _: column_of(np.concatenate([TABLE[:1], TABLE])).slice(1),
    "chunked": lambda _: pa.chunked_array([column_of(TABLE[:2]), column_of(TABLE[:0]), column_of(TABLE[2:])]),
    "lists": lambda _: pa.array(TABLE.tolist(), pa.list_(pa.float32())),
    "large lists": lambda _: pa.array(TABLE.tolist(), pa.large_list(pa.float64())),
    "table": lambda _: pa.table({"image": [*"abcdef"], "embedding": column_of(TABLE)}),
    "npy": lambda folder: _written(folder / "e.npy"),
    "parquet": lambda folder: str(_written(folder / "e.parquet")),
    "parquet that was read": lambda folder: pq.read_table(_written(folder / "e.parquet"))["embedding"],
    "mapped npy": lambda folder: np.load(_written(folder / "e.npy"), mmap_mode="r"),
    "pandas": lambda _: PandasSeries(list(TABLE)),
    "polars": lambda _: PolarsSeries(column_of(TABLE)),
}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> CLIPEngine:
    """A tiny CLIP."""
    return CLIPEngine(write_text_model(tmp_path_factory.mktemp("clip"), TINY_CLIP), dtype="float32")


@pytest.mark.requirement("28.2", "28.5")
@pytest.mark.parametrize("form", FORMS)
def test_a_table_in_any_form(engine: CLIPEngine, tmp_path: Path, form: str) -> None:
    """28.5: `search`, `similarity` and `logits` give for every form the numbers of the array; 28.2: the cosine."""
    given = FORMS[form](tmp_path)
    wanted = UNIT @ UNIT[:3].T
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for similarity in (engine.similarity, EmbeddingMethods().similarity, cosine):
            np.testing.assert_allclose(similarity(given, TABLE[:3]), wanted, atol=1e-6)
        np.testing.assert_allclose(engine.similarity(TABLE[:3], given), wanted.T, atol=1e-6)
        np.testing.assert_allclose(engine.logits(given, TABLE[:3]), wanted * engine.logit_scale, rtol=1e-5, atol=1e-5)
        found = engine.search(TABLE[4] * 9, given, 6)
    assert found.indices.tolist() == np.argsort(-(UNIT @ UNIT[4])).tolist()
    assert found.scores[0] == pytest.approx(1, abs=1e-6)


@pytest.mark.requirement("28.2")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    """28.2: the cosine of rows of half precision is that of the numbers that they hold, large ones included."""
    half = torch.from_numpy(UNIT * 60000).to(dtype)
    wanted = torch.nn.functional.normalize(half.double()) @ torch.from_numpy(UNIT).double().T
    np.testing.assert_allclose(cosine(half, UNIT), wanted.numpy(), atol=1e-6)
    np.testing.assert_allclose(cosine(TABLE * np.float32(1e30), TABLE * np.float32(1e-30)), UNIT @ UNIT.T, atol=1e-6)


@pytest.mark.requirement("28.5")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (column_of(TABLE, np.arange(6) % 3 == 1), "a null where an embedding is expected: rows 1, 4"),
        (pa.chunked_array([column_of(TABLE), column_of(TABLE, np.arange(6) == 2)]), "row 8"),
        (PandasSeries([TABLE[0], None]), "row 1"),
        (np.where(np.arange(6)[:, None] == 3, np.nan, TABLE), r"zero, NaN or infinite length.*row 3.*isfinite"),
        (np.zeros((2, 10)), "rows 0, 1"),
        (pa.array([[1.0], [1.0, 2.0]]), "rows of several widths"),
        (PandasSeries([TABLE[0], TABLE[0][:3]]), "rows of several widths"),
        (pa.array([[1.0, None]]), "nulls in its rows"),
        (pa.array([[1, 2]]), "no floats"),
        (pa.array([1.0]), "a column of double"),
        (pa.table({"vector": [[1.0]]}), r"columns \['vector'\], expected 'embedding'"),
        ("no-such.npy", "no such file"),
        ("photo.jpg", r"expected a name ending in \.npy or \.parquet"),
        (TABLE.astype(np.int64), "int64"),
        (TABLE[0], r"\(10,\)"),
        ([TABLE[0]], "list"),
        (None, "NoneType"),
        (TABLE[:, :4], "width 4 and 10"),
    ],
)
def test_what_is_no_table(engine: CLIPEngine, given: Any, message: str) -> None:
    """28.5: what is no table of embeddings, or has a row without a direction, is refused with the row."""
    with pytest.raises(ConfigError, match=message):
        engine.similarity(given, TABLE)


@pytest.mark.requirement("28.5")
@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_a_file_that_holds_something_else(tmp_path: Path, suffix: str) -> None:
    """28.5: a damaged file, one of Python objects and one without the column are refused with their path."""
    path = tmp_path / f"e{suffix}"
    path.write_bytes(b"none")
    with pytest.raises(ConfigError, match=f"e\\{suffix}: cannot be read"):
        table_of(path, "a")
    if suffix == ".npy":
        np.save(path, np.array([{}], object), allow_pickle=True)
    else:
        pq.write_table(pa.table({"image": ["a"]}), path)
    with pytest.raises(ConfigError, match=f"e\\{suffix}: "):
        table_of(path, "a")


@pytest.mark.requirement("28.5", "5.4")
def test_a_view_where_one_can_be_had(tmp_path: Path) -> None:
    """28.5: an array, a tensor and a column are read in place."""
    for given in (TABLE, torch.from_numpy(TABLE), column_of(TABLE)):
        assert np.shares_memory(table_of(given, "a"), TABLE)
    assert table_of(_written(tmp_path / "e.parquet"), "a").tolist() == TABLE.tolist()
    assert table_of(column_of(TABLE[:0]), "a").shape == (0, 10)
    assert cosine(TABLE[:0], TABLE).shape == (0, 6)
