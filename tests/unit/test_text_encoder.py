"""TextEncoder and ArrowEngine: texts in, rows out, or an error that says which text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from llm_compression.errors import ConfigError, LlmCompressionError, TensorError, TextError, WeightFormatError
from llm_compression.text.arrow_engine import ArrowEngine
from llm_compression.text.text_encoder import TextEncoder
from llm_compression.text.tokenizer import write_word_tokenizer
from tests.conftest import AssertWithin
from tests.text_models import TINY_BERT, TINY_CLIP, TINY_CLIP_TEXT, VOCABULARY, text_weights, write_text_model


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> ArrowEngine:
    """A tiny BERT in float32."""
    return ArrowEngine(write_text_model(tmp_path_factory.mktemp("bert"), TINY_BERT), dtype="float32")


@pytest.fixture(scope="module")
def clip_text(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    """A tiny CLIP text tower in float32."""
    return TextEncoder(write_text_model(tmp_path_factory.mktemp("clip"), TINY_CLIP_TEXT), dtype="float32")


@pytest.mark.requirement("15.1")
@pytest.mark.parametrize(
    ("texts", "rows"),
    [
        ("a red cat", 1),
        (["a red cat", "the dog", "blue"], 3),
        (pa.array(["a red cat", "the dog"]), 2),
        ([], 0),
        (pa.array([], pa.string()), 0),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_row_for_each_text(engine: ArrowEngine, texts: list[str], rows: int, dtype: str) -> None:
    """15.1: n texts, n = 0 included, give a numpy float32 array of shape (n, dimension)."""
    found = ArrowEngine(engine.encoder.weight_loader.path, dtype=dtype).encode(texts, convert_to_tensor=True)
    assert found.shape == (rows, engine.dimension)
    assert found.dtype == torch.float32
    assert torch.allclose(found.norm(dim=1), torch.ones(rows), atol=1e-6)


@pytest.mark.requirement("15.1")
def test_an_arrow_column_gives_the_rows_of_a_list(engine: ArrowEngine) -> None:
    """15.1: the same texts give the same rows in whatever they are given."""
    texts = ["a red cat", "the dog"]
    assert torch.equal(
        engine.encode(pa.array(texts), convert_to_tensor=True), engine.encode(texts, convert_to_tensor=True)
    )


@pytest.mark.requirement("15.1")
def test_rows_keep_their_length_when_asked(engine: ArrowEngine) -> None:
    """15.1: without ``normalize`` a row is a positive multiple of the unit row."""
    plain, unit = (
        engine.encode("a red cat", normalize=False, convert_to_tensor=True),
        engine.encode("a red cat", convert_to_tensor=True),
    )
    assert torch.allclose(plain / plain.norm(), unit, atol=1e-6)
    assert abs(plain.norm().item() - 1) > 1e-3


@pytest.mark.requirement("15.5")
@pytest.mark.parametrize(
    ("texts", "position"),
    [
        ("", 0),
        (["a", ""], 1),
        (["a", "b", " \t\n"], 1),
        (["a", "red", " \t\n"], 2),
        (["a", None], 1),
        (["red", "\udfff"], 1),
        (["a", "purple"], 1),
        (None, None),
        (5, None),
    ],
)
def test_a_text_that_cannot_be_embedded_is_named(engine: ArrowEngine, texts: list[str], position: int | None) -> None:
    """15.5: an empty text, one with nothing to read, no str, or a lone surrogate is a TextError with its position."""
    with pytest.raises(TextError) as caught:
        engine.encode(texts, convert_to_tensor=True)
    assert caught.value.position == position


@pytest.mark.requirement("15.1")
@pytest.mark.parametrize("batch_size", [0, -1, 1.5, True])
def test_a_batch_size_is_a_positive_whole_number(engine: ArrowEngine, batch_size: int) -> None:
    """15.1: any other batch size is a ConfigError, also where there is nothing to encode."""
    with pytest.raises(ConfigError, match=f"batch_size: {batch_size}"):
        engine.encode([], batch_size=batch_size, convert_to_tensor=True)


@pytest.mark.requirement("15.4")
def test_a_long_text_is_cut_at_max_length(engine: ArrowEngine) -> None:
    """15.4: WHEN a text has more tokens than ``max_length``, its first tokens count, special tokens kept."""
    assert len(engine.tokenize("cat " * 30)[0]) == TINY_BERT.max_length
    words = ["red", "green", "blue", "round", "square", "large"]
    assert torch.equal(
        engine.encode(" ".join([*words, "dog"]), convert_to_tensor=True),
        engine.encode(" ".join(words), convert_to_tensor=True),
    )
    assert not torch.equal(
        engine.encode(" ".join([*words[:5], "dog"]), convert_to_tensor=True),
        engine.encode(" ".join(words), convert_to_tensor=True),
    )


@pytest.mark.requirement("15.6")
def test_every_mismatch_in_one_error(tmp_path: Path) -> None:
    """15.6: missing, unexpected and mis-shaped tensors are all listed in one WeightFormatError."""
    tensors = text_weights(TINY_BERT)
    del tensors["encoder.layer.1.output.dense.bias"]
    tensors["pooler.dense.weight"] = torch.zeros(2, 2)
    tensors["embeddings.LayerNorm.bias"] = torch.zeros(3)
    model = write_text_model(tmp_path, TINY_BERT, tensors=tensors)
    with pytest.raises(WeightFormatError) as caught:
        TextEncoder(model)
    for line in (
        "missing: encoder.layer.1.output.dense.bias (16,)",
        "unexpected: pooler.dense.weight (2, 2)",
        "mis-shaped: embeddings.LayerNorm.bias (3,), expected (16,)",
    ):
        assert line in str(caught.value)


@pytest.mark.requirement("17.4")
@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([], "0 tokens, expected 1 to 12"),
        ([VOCABULARY - 1] * 13, "13 tokens"),
        ([0, VOCABULARY], f"token {VOCABULARY}, expected 0 to {VOCABULARY - 1}"),
        ([-1, VOCABULARY - 1], "token -1"),
        ([0, 1, 2], f"no end token {VOCABULARY - 1}"),
        ([0, 1.5, VOCABULARY - 1], "token ids: 'float'"),
    ],
)
@pytest.mark.parametrize("pooling", ["eos", "argmax"])
def test_token_ids_that_cannot_be_embedded_are_named(
    tmp_path: Path, row: list[int], message: str, pooling: str
) -> None:
    """17.4: IF a row has no end token, or ids that the model does not, THEN TextError with its position."""
    config = replace(TINY_CLIP_TEXT, pooling=pooling, eos_token_id=VOCABULARY - 1 if pooling == "eos" else None)
    encoder = TextEncoder(write_text_model(tmp_path, config))
    with pytest.raises(TextError, match=message) as caught:
        encoder.encode_ids([[0, VOCABULARY - 1], row], convert_to_tensor=True)
    assert caught.value.position == 1


@pytest.mark.requirement("17.3")
def test_only_what_comes_before_the_end_token_counts(clip_text: TextEncoder, assert_within: AssertWithin) -> None:
    """17.3: a token behind the end token leaves the embedding unchanged, one before it does not."""
    end = VOCABULARY - 1
    row, behind, before = [0, 1, 2, end, 5], [0, 1, 2, end, 7], [0, 1, 3, end, 5]
    found = clip_text(torch.tensor([row, behind, before]))
    assert_within("precision-float32-b16", found[:1], found[1:2])
    assert not torch.allclose(found[0], found[2], atol=1e-3)


@pytest.mark.requirement("17.3")
def test_a_text_is_pooled_at_its_first_end_token(clip_text: TextEncoder, assert_within: AssertWithin) -> None:
    """17.3: of several end tokens the first one counts, as in texts that are padded with it."""
    end = VOCABULARY - 1
    found = clip_text(torch.tensor([[0, 1, end, end, end], [0, 1, end, 3, 4]]))
    assert_within("precision-float32-b16", found[:1], found[1:2])


@pytest.mark.requirement("17.2")
def test_intermediates_name_every_step(engine: ArrowEngine, clip_text: TextEncoder) -> None:
    """17.2: the steps of both families by name, so that a difference to the reference names its layer."""
    ids = torch.tensor([[0, 1, VOCABULARY - 1]])
    steps = engine.encoder(ids, None, True)
    assert list(steps) == [
        *("embeddings", "embedding_layernorm", "transformer.0", "transformer.1", "pooled", "embedding")
    ]
    assert torch.allclose(steps["embedding"], engine.encoder(ids), atol=1e-6)
    steps = clip_text(ids, None, True)
    assert list(steps) == ["embeddings", "transformer.0", "transformer.1", "pooled", "final_layernorm", "embedding"]


@pytest.mark.requirement("12.6")
@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.zeros(2, 13, dtype=torch.int64), r"int64 \(2, 13\), expected int64 \(n, tokens\) with 1 to 12 tokens"),
        (torch.zeros(2, 0, dtype=torch.int64), r"\(2, 0\), expected"),
        (torch.zeros(3, dtype=torch.int64), r"\(3,\), expected"),
        (torch.zeros(2, 3), r"float32 \(2, 3\), expected int64"),
    ],
)
def test_ids_that_do_not_fit(engine: ArrowEngine, ids: torch.Tensor, message: str) -> None:
    """12.6: a refused tensor is an error of the package, with the value found and what was expected."""
    with pytest.raises(TensorError, match=message):
        engine.encoder(ids)


@pytest.mark.requirement("12.6")
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda path: TextEncoder(path).to("cpu"), "pass device and dtype to TextEncoder"),  # type: ignore[attr-defined]  # no
        (lambda path: ArrowEngine(path, dtype="int8"), "dtype: 'int8'"),
        (lambda path: ArrowEngine(path, clean="html"), "clean: 'html', expected one of none, openai"),
    ],
)
def test_what_cannot_be_asked_for(tmp_path: Path, build: Callable[[Path], object], message: str) -> None:
    """12.6: a refused argument is an error of the package, with the value found and what was expected."""
    with pytest.raises(LlmCompressionError, match=message):
        build(write_text_model(tmp_path, TINY_BERT))


@pytest.mark.requirement("17.8")
def test_cleaning_comes_before_the_tokenizer(tmp_path: Path) -> None:
    """17.8: WHERE ``clean`` is ``openai``, a text is cleaned before it is tokenized."""
    model = write_text_model(tmp_path, TINY_CLIP)
    cleaned = ArrowEngine(model, clean="openai").tokenize("a&#32;RED\ncat")
    assert cleaned == ArrowEngine(model).tokenize("a red cat")


@pytest.mark.requirement("15.8")
def test_another_tokenizer_beside_the_weights_is_refused(tmp_path: Path) -> None:
    """15.8: the engine takes no tokenizer but the recorded one."""
    model = write_text_model(tmp_path, TINY_BERT)
    write_word_tokenizer(model / "tokenizer.json", ["cat"], "<start>", "<end>")
    with pytest.raises(ConfigError, match="the tokenizer that the weights came with"):
        ArrowEngine(model)


@pytest.mark.requirement("15.5")
def test_infinite_embeddings_are_an_error(tmp_path: Path) -> None:
    """15.5: an embedding that comes out infinite is a TextError with the position, never a row."""
    tensors = text_weights(TINY_CLIP_TEXT)
    tensors["text_projection.weight"].fill_(3e38)
    tensors["text_model.final_layer_norm.bias"].fill_(3e38)
    encoder = TextEncoder(write_text_model(tmp_path, TINY_CLIP_TEXT, tensors=tensors), dtype="float32")
    with pytest.raises(TextError, match="text 0: an embedding of zero, NaN or infinite length"):
        encoder.encode_ids([[0, VOCABULARY - 1]], convert_to_tensor=True)
