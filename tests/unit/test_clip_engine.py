"""CLIPEngine: images and texts in one space."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from llm_compression.errors import ConfigError, ImageError, TextError, WeightFormatError
from llm_compression.multimodal.clip_engine import CLIPEngine
from llm_compression.multimodal.vision_encoder import VisionEncoder
from llm_compression.text.text_encoder import TextEncoder
from llm_compression.text.text_inputs import Text
from tests.text_models import TINY_BERT, TINY_CLIP, clip_weights, write_text_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP."""
    return write_text_model(tmp_path_factory.mktemp("clip"), TINY_CLIP)


@pytest.fixture(scope="module")
def engine(model: Path) -> CLIPEngine:
    """It, in float32."""
    return CLIPEngine(model, dtype="float32")


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    """Three pictures of noise."""
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)) for _ in range(3)]


@pytest.mark.requirement("17.1")
def test_each_tower_from_the_file_of_both(model: Path, engine: CLIPEngine, images: list[Image.Image]) -> None:
    """17.1: WHERE a file holds both towers, VisionEncoder and TextEncoder each load theirs, with equal rows."""
    vision, text = VisionEncoder(model, dtype="float32"), TextEncoder(model, dtype="float32")
    assert torch.equal(
        vision.encode(images, convert_to_tensor=True), engine.encode_image(images, convert_to_tensor=True)
    )
    assert torch.equal(
        text.encode_ids(engine.text.tokenize("a red cat"), convert_to_tensor=True),
        engine.encode_text("a red cat", convert_to_tensor=True),
    )
    assert engine.dimension == vision.dimension == text.dimension == 10


@pytest.mark.requirement("15.6")
@pytest.mark.parametrize(
    ("name", "tensor", "message", "sees"),
    [
        ("vision_model.post_layernorm.bias", None, "missing: vision_model.post_layernorm.bias", ("vision",)),
        ("text_projection.weight", None, "missing: text_projection.weight", ("text",)),
        ("text_projection.weight", (3, 16), "mis-shaped: text_projection.weight", ("text",)),
        ("logit_scale", None, "missing: logit_scale", ()),
        ("logit_scale", (1,), "mis-shaped: logit_scale", ()),
        ("text_model.extra", (2,), "unexpected: text_model.extra", ("text",)),
        ("logit_bias", (), "unexpected: logit_bias", ("vision", "text")),
    ],
)
def test_every_tensor_of_a_file_of_both_is_somebodys(
    tmp_path: Path, name: str, tensor: tuple[int, ...] | None, message: str, sees: tuple[str, ...]
) -> None:
    """15.6: no tensor of a file of both towers goes unchecked; a tower does not judge what is the other's."""
    tensors = clip_weights(TINY_CLIP)
    tensors.pop(name, None)
    if tensor is not None:
        tensors[name] = torch.zeros(tensor)
    model = write_text_model(tmp_path, TINY_CLIP, tensors=tensors)
    with pytest.raises(WeightFormatError, match=message):
        CLIPEngine(model)
    for tower, encoder in (("vision", VisionEncoder), ("text", TextEncoder)):
        if tower in sees:
            with pytest.raises(WeightFormatError, match=message):
                encoder(model)
        else:
            encoder(model)


@pytest.mark.requirement("17.2")
def test_logits_are_the_scaled_cosine(engine: CLIPEngine, images: list[Image.Image]) -> None:
    """17.2: ``logits`` gives exp(logit_scale) times the cosine, of rows of any length; ``similarity`` the cosine."""
    a, b = engine.encode_image(images, normalize=False), engine.encode_text(["a cat", "a dog"], normalize=False)
    cosine = (a @ b.T) / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)
    assert np.allclose(engine.logits(a, b), np.exp(1.5) * cosine, atol=1e-5)
    assert np.allclose(engine.logits(a * 7, torch.from_numpy(b)), np.exp(1.5) * cosine, atol=1e-5)
    assert np.allclose(engine.similarity(a, b), cosine, atol=1e-6)


@pytest.mark.requirement("17.9", "28.3")
@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_both_kinds_in_one_call(engine: CLIPEngine, images: list[Image.Image], tmp_path: Path, batch_size: int) -> None:
    """17.9, 28.3: in ``encode`` a `Text` is a text and a string the path of an image, rows in the order given."""
    images[2].save(tmp_path / "a.png")
    given = [Text("a cat"), images[0], str(tmp_path / "a.png"), Text("a dog")]
    texts, pictures = engine.encode_text(["a cat", "a dog"]), engine.encode_image([images[0], images[2]])
    wanted = np.stack((texts[0], pictures[0], pictures[1], texts[1]))
    for each in (given, iter(given), tuple(given)):
        assert np.allclose(engine.encode(each, batch_size=batch_size), wanted, atol=1e-6)
    assert engine.encode(Text("a cat")).shape == engine.encode(tmp_path / "a.png").shape == (1, 10)


@pytest.mark.requirement("17.9", "28.3")
def test_an_error_names_the_place_in_a_mixed_call(engine: CLIPEngine, images: list[Image.Image]) -> None:
    """17.9, 28.3: the position that an error carries is the one in the call."""
    for batch_size in (1, 2, 32):
        with pytest.raises(TextError, match="text 2: empty") as text_error:
            engine.encode([images[0], Text("a cat"), Text(""), images[1]], batch_size=batch_size)
        assert text_error.value.position == 2
        given = [Text("a cat"), images[0], Path("no-such-file.png"), Text("a dog"), b"none"]
        with pytest.raises(ImageError) as image_error:
            engine.encode(given, batch_size=batch_size)
        assert (image_error.value.position, image_error.value.name) == (2, "no-such-file.png")
        assert [error.position for error in image_error.value.errors] == [2, 4]
        kept = engine.encode(given, batch_size=batch_size, on_error="skip")
        assert kept.positions.tolist() == [0, 1, 3]
        assert [error.position for error in kept.errors] == [2, 4]
        wanted = np.concatenate([engine.encode(given[i]) for i in (0, 1, 3)])
        assert np.allclose(kept.embeddings, wanted, atol=1e-6)


@pytest.mark.requirement("28.4")
@pytest.mark.parametrize("words", ["a cat", "cat.jpg", "a photo of a cat " * 300, "a\0cat"])
def test_a_string_is_never_guessed(
    engine: CLIPEngine, images: list[Image.Image], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """28.4: a string that names no file is an error that says how words are marked, in `encode` and in `search`."""
    monkeypatch.chdir(tmp_path)
    embeddings = engine.encode_image(images)
    for call in (
        lambda: engine.encode(words),
        lambda: engine.encode([images[0], words]),
        lambda: engine.search(words, embeddings, 1),
    ):
        with pytest.raises(ImageError, match=r"words are marked: Text\('"):
            call()
    images[1].save(tmp_path / "cat.jpg", "PNG")
    assert engine.search("cat.jpg", embeddings, 1).indices.tolist() == [1]
    assert np.allclose(engine.encode("cat.jpg"), engine.vision.encode(tmp_path / "cat.jpg"), atol=1e-6)


@pytest.mark.requirement("17.5")
def test_classify_gives_probabilities(engine: CLIPEngine, images: list[Image.Image]) -> None:
    """17.5: one row of probabilities for each image, the softmax of the logits of the labels in the template."""
    labels = ["cat", "dog", "red square"]
    found = engine.classify(images, labels)
    texts = engine.encode_text([f"a photo of a {label}" for label in labels])
    assert (type(found), found.dtype.name, found.shape) == (np.ndarray, "float32", (3, 3))
    assert np.allclose(found.sum(1), 1)
    wanted = np.exp(engine.logits(engine.encode_image(images), texts))
    assert np.allclose(found, wanted / wanted.sum(1, keepdims=True), atol=1e-6)
    other = engine.classify(images, labels, "the {} dog")
    assert not np.allclose(found, other, atol=1e-4)
    assert engine.classify([], labels).shape == (0, 3)


@pytest.mark.requirement("17.6")
@pytest.mark.parametrize(
    ("labels", "position", "message"),
    [
        ([], None, "no labels"),
        (["cat", "dog", "cat"], 2, "'cat' stands there twice"),
        (["cat", ""], 1, "an empty label"),
        (["cat", " "], 1, "an empty label"),
        (["cat", None], 1, "got NoneType"),
        (["cat", "dog\ud800"], 1, "lone surrogate"),
        (["cat", "purple"], 1, "words that this model does not know"),
        (None, None, "got NoneType"),
    ],
)
def test_bad_labels_are_named(
    engine: CLIPEngine, images: list[Image.Image], labels: list[str], position: int | None, message: str
) -> None:
    """17.6: IF labels are missing, empty, repeated or no texts, THEN TextError with the position."""
    with pytest.raises(TextError, match=message) as caught:
        engine.classify(images, labels)
    assert caught.value.position == position


@pytest.mark.requirement("17.6")
@pytest.mark.parametrize("template", ["a photo", "{} and {}", "a {label}", "", None])
def test_a_template_has_one_place(engine: CLIPEngine, images: list[Image.Image], template: str) -> None:
    """17.6: IF the template does not have one ``{}``, THEN ConfigError with the template."""
    with pytest.raises(ConfigError, match=r"template: .*, expected a sentence with one"):
        engine.classify(images, ["cat"], template)


@pytest.mark.requirement("17.5")
def test_braces_of_a_label_are_its_own(engine: CLIPEngine, images: list[Image.Image]) -> None:
    """17.5: a label is put into the template as it is."""
    with pytest.raises(TextError, match=r"\['\{0\}'\]"):
        engine.classify(images, ["{0}"])


@pytest.mark.requirement("17.7", "28.4")
def test_search_returns_the_nearest_rows(engine: CLIPEngine, images: list[Image.Image]) -> None:
    """17.7: ``search`` gives the k rows of highest cosine, nearest first, for a text, an image or an embedding."""
    embeddings = engine.encode_image(images)
    by_image = engine.search(images[1], embeddings * 5, 3)
    assert by_image.indices[0] == 1
    assert (by_image.indices.dtype.name, by_image.scores.dtype.name) == ("int64", "float32")
    assert by_image.scores[0] == pytest.approx(1, abs=1e-5)
    assert by_image.scores.tolist() == sorted(by_image.scores.tolist(), reverse=True)
    by_text, row = engine.search(Text("a cat"), embeddings, 2), engine.encode_text("a cat")
    cosine = (embeddings @ row[0]).tolist()
    assert by_text.indices.tolist() == sorted(range(3), key=lambda i: -cosine[i])[:2]
    for query in (row, row[0], torch.from_numpy(row[0]), row.astype(np.float64)):
        assert np.array_equal(engine.search(query, torch.from_numpy(embeddings), 2).indices, by_text.indices)


@pytest.mark.requirement("17.7")
@pytest.mark.parametrize("k", [0, 4, -1, True, 1.0])
def test_k_is_a_number_of_rows(engine: CLIPEngine, images: list[Image.Image], k: int) -> None:
    """17.7: a k that is no number from 1 to the number of rows is a ConfigError, not a shorter result."""
    with pytest.raises(ConfigError, match=f"k: {k}, expected 1 to 3"):
        engine.search(Text("a cat"), engine.encode_image(images), k)


@pytest.mark.requirement("17.7")
def test_a_search_has_one_query(engine: CLIPEngine, images: list[Image.Image]) -> None:
    """17.7: several queries at once, or embeddings of another width, are ConfigErrors."""
    embeddings = engine.encode_image(images)
    with pytest.raises(ConfigError, match="query: 2 inputs, expected one"):
        engine.search(embeddings[:2], embeddings, 1)
    with pytest.raises(ConfigError, match="width 9 and 10"):
        engine.search(embeddings[0, :9], embeddings, 1)
    with pytest.raises(ConfigError, match="query: 3 inputs"):
        engine.search(images, embeddings, 1)
    with pytest.raises(ConfigError, match="a row of zero, NaN or infinite length"):
        engine.search(Text("a cat"), np.zeros((2, 10), np.float32), 1)


@pytest.mark.requirement("17.1")
def test_other_models_are_refused(tmp_path: Path) -> None:
    """17.1: a file that does not hold both towers is refused with what it is."""
    with pytest.raises(ConfigError, match="model_type: 'bert'"):
        CLIPEngine(write_text_model(tmp_path, TINY_BERT))
