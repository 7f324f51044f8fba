"""Gates of texts: all-MiniLM-L6-v2 against transformers, and what the model that ships knows.

Metrics ``text_relative_error``, ``text_cosine``, ``text_latency_to_transformers``, ``text_load_to_transformers``,
``accuracy`` and ``file_size``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Final

import pytest
import torch

from benchmarks.peers.text import checkpoint_path, fastest_tenth, measure_latency, measure_load, reference
from llm_compression.convert import convert_checkpoint
from llm_compression.models import shapes_model
from llm_compression.models.demo import answers
from llm_compression.models.pictures import SEEN, UNSEEN, draw_pictures
from llm_compression.multimodal.clip_engine import CLIPEngine
from llm_compression.text.arrow_engine import ArrowEngine
from tests.sentences import SENTENCES

if TYPE_CHECKING:
    from llm_compression.harness.spec.parser import Gate

PICTURES: Final = 960
CALLS: Final = 150
LOADS: Final = 5

Record = Callable[..., None]


@pytest.fixture
def record(request: pytest.FixtureRequest, gate: Gate) -> Record:
    """Keeps what was measured for the report, then fails if it misses the limit."""

    def keep(value: float, *samples: float, **detail: object) -> None:
        measured = {"value": value, "samples": samples or (value,), "detail": detail}
        request.node.user_properties.append(("measured", measured))
        assert gate.passes(value), f"{gate.id}: {value:g}, allowed {gate.comparison} {gate.limit:g}"

    return keep


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The converted model."""
    directory = tmp_path_factory.mktemp("minilm")
    convert_checkpoint(checkpoint_path(), directory)
    return directory


@pytest.fixture(scope="module")
def wanted() -> torch.Tensor:
    """The reference's rows of the sentences, each alone."""
    embed = reference(checkpoint_path())
    return torch.cat([embed([text]) for text in SENTENCES])


@pytest.mark.metric("text_relative_error")
def test_float32(model: Path, wanted: torch.Tensor, record: Record) -> None:
    """THE ArrowEngine SHALL compute in float32 the rows of the BertModel of transformers (15.2)."""
    found = ArrowEngine(model, dtype="float32").encode(SENTENCES, convert_to_tensor=True)
    errors = (found - wanted).norm(dim=1) / wanted.norm(dim=1)
    assert bool(errors.isfinite().all())
    record(errors.max().item(), *errors.tolist())


@pytest.mark.metric("text_cosine")
def test_bfloat16(model: Path, wanted: torch.Tensor, record: Record) -> None:
    """WHERE `dtype` is bfloat16, THE ArrowEngine SHALL compute rows within the limit (15.10)."""
    cosines = (ArrowEngine(model, dtype="bfloat16").encode(SENTENCES, convert_to_tensor=True) * wanted).sum(1)
    assert bool(cosines.isfinite().all())
    record(cosines.min().item(), *cosines.tolist())


@pytest.mark.metric("text_latency_to_transformers")
def test_latency(model: Path, record: Record) -> None:
    """WHEN one sentence is encoded, THE ArrowEngine SHALL return its row in a part of transformers' time (15.11)."""
    times = measure_latency({"here": ArrowEngine(model).encode, "transformers": reference(checkpoint_path())}, CALLS)
    early = {name: fastest_tenth(values) for name, values in times.items()}
    record(early["here"] / early["transformers"], **early)


@pytest.mark.metric("text_load_to_transformers")
def test_load(model: Path, record: Record) -> None:
    """WHEN constructed, THE ArrowEngine SHALL load in a part of transformers' time within the limit (15.12)."""
    pairs = [
        (measure_load("here", model, 1)[1], measure_load("transformers", checkpoint_path(), 1)[0]) for _ in range(LOADS)
    ]
    ours, theirs = (median(each) for each in zip(*pairs, strict=True))
    record(ours / theirs, *(one / other for one, other in pairs), ours_ms=ours, theirs_ms=theirs)


@pytest.mark.metric("accuracy")
def test_accuracy(gate: Gate, record: Record) -> None:
    """THE Shapes Model SHALL name held-out pictures of seen and of unseen pairs (19.1, 19.2)."""
    pairs = {"accuracy-seen-shapes": list(SEEN), "accuracy-unseen-shapes": sorted(UNSEEN)}[gate.id]
    found = answers(CLIPEngine(shapes_model()), list(draw_pictures(PICTURES, 10_001, pairs)))
    record(sum(answer.is_right for answer in found) / len(found), pictures=len(found))


@pytest.mark.metric("file_size")
def test_size(record: Record) -> None:
    """THE Shapes Model SHALL have a size within the limit (19.4)."""
    record(sum(file.stat().st_size for file in shapes_model().iterdir() if file.is_file()) / 1e6)
