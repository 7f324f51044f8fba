"""The model that ships: what it knows, that a mistake in its layers or pixels shows, and how it was made."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import MethodType

import numpy as np
import pytest
import torch
from PIL import Image

from llm_compression.cli import main
from llm_compression.errors import ConfigError
from llm_compression.harness.spec.parser import Spec
from llm_compression.inference.inference_core import InferenceCore, TransformerLayer
from llm_compression.inference.weight_loader import WeightLoader
from llm_compression.models import shapes_model
from llm_compression.models.demo import Answer, answers, contact_sheet, run_demo
from llm_compression.models.pictures import (
    COLOURS,
    LABELS,
    SEEN,
    SHAPES,
    SIZES,
    TRAINING,
    UNSEEN,
    VALUES,
    Picture,
    caption,
    draw_pictures,
    vocabulary,
)
from llm_compression.models.train_shapes import CONFIG, train
from llm_compression.multimodal.clip_engine import CLIPEngine

# Other seeds than the training's, so that no picture is one of its own.
HELD_OUT_SEED = 10_001
PAIRS = {"seen": list(SEEN), "unseen": sorted(UNSEEN)}
COUNT = 480


def _accuracy(
    engine: CLIPEngine, kind: str, change: Callable[[Image.Image], Image.Image] = lambda image: image
) -> float:
    pictures = list(draw_pictures(COUNT, HELD_OUT_SEED, PAIRS[kind]))
    best = engine.classify([change(picture.draw()) for picture in pictures], LABELS).argmax(1).tolist()
    right = sum(LABELS[index] == picture.label for index, picture in zip(best, pictures, strict=True))
    return float(right) / COUNT


@pytest.fixture(scope="module")
def engine() -> CLIPEngine:
    """The shipped model in float32."""
    return CLIPEngine(shapes_model(), dtype="float32")


@pytest.fixture(scope="module")
def accuracy(engine: CLIPEngine) -> dict[str, float]:
    """Its accuracy among all pairs on pictures of seen and of unseen ones."""
    return {kind: _accuracy(engine, kind) for kind in PAIRS}


@pytest.mark.requirement("19.1", "19.2")
@pytest.mark.parametrize("kind", PAIRS)
def test_it_names_colours_and_shapes(accuracy: dict[str, float], spec: Spec, kind: str) -> None:
    """19.1, 19.2: held-out pictures of seen pairs, and pairs that the training never showed, named among all pairs."""
    assert spec.gate(f"accuracy-{kind}-shapes").passes(accuracy[kind]), f"{accuracy[kind]:.1%} of {kind} pairs"


@pytest.mark.requirement("19.3")
@pytest.mark.parametrize("kind", PAIRS)
def test_layers_in_the_wrong_order_show(accuracy: dict[str, float], kind: str) -> None:
    """19.3: IF the layers run in post-norm order, THEN the accuracy falls under half."""
    sabotaged = CLIPEngine(shapes_model(), dtype="float32")
    for core in (sabotaged.vision.transformer, sabotaged.text.encoder.transformer):
        assert isinstance(core, InferenceCore)
        for layer in core.layers:
            assert isinstance(layer, TransformerLayer)
            assert layer.pre_norm
            layer.pre_norm = False
            # not that of a folded block, which knows no other order
            layer.forward = MethodType(TransformerLayer.forward, layer)  # type: ignore[method-assign]  # the sabotage
    assert _accuracy(sabotaged, kind) < accuracy[kind] / 2


@pytest.mark.requirement("19.3")
@pytest.mark.parametrize("kind", PAIRS)
def test_swapped_channels_show(engine: CLIPEngine, accuracy: dict[str, float], kind: str) -> None:
    """19.3: IF red and blue are swapped in the pixels, THEN the accuracy falls under half."""
    swapped = _accuracy(engine, kind, lambda image: Image.fromarray(np.asarray(image)[..., ::-1].copy()))
    assert swapped < accuracy[kind] / 2


@pytest.mark.requirement("19.4")
def test_it_is_small_and_says_what_it_is(spec: Spec) -> None:
    """19.4: a Weight File in bfloat16 of both towers, within the limit of gate `size-shapes`, tokenizer beside it."""
    loader = WeightLoader(shapes_model())
    size = sum(file.stat().st_size for file in shapes_model().iterdir() if file.is_file())
    assert spec.gate("size-shapes").passes(size / 1e6)
    assert {info.dtype for info in loader.tensors.values()} == {torch.bfloat16}
    assert loader.config == CONFIG.to_dict()
    assert loader.metadata is not None
    assert loader.metadata.source["name"] == "shapes"
    assert {file.name for file in shapes_model().iterdir()} == {"weights.parquet", "tokenizer.json"}


@pytest.mark.requirement("19.5")
def test_it_needs_no_extra() -> None:
    """19.5: it loads and encodes images and texts where none of the extras can be imported."""
    script = """
import sys
for name in ("tokenizers", "transformers", "safetensors", "huggingface_hub", "ftfy", "tqdm"):
    sys.modules[name] = None
from PIL import Image
from llm_compression import CLIPEngine, shapes_model
engine = CLIPEngine(shapes_model())
print(tuple(engine.classify(Image.new("RGB", (60, 48)), ["red circle", "blue square"]).shape))
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout == "(1, 2)\n"


@pytest.mark.requirement("19.2")
def test_what_is_held_out_is_never_drawn_for_training() -> None:
    """19.2: each colour and each shape is in an unseen pair, the pairs apart, and training draws from the seen ones."""
    assert set(SEEN) | UNSEEN == {(colour, shape) for colour in COLOURS for shape in SHAPES}
    assert not set(SEEN) & UNSEEN
    assert {colour for colour, _ in UNSEEN} == set(COLOURS)
    assert {shape for _, shape in UNSEEN} == set(SHAPES)
    drawn = Counter((picture.colour, picture.shape) for picture in draw_pictures(10 * len(TRAINING), 0, TRAINING))
    assert set(drawn) & UNSEEN == set()
    assert {drawn[pair] for pair in SEEN} == {20}


@pytest.mark.requirement("19.1")
@pytest.mark.parametrize("field", ["colour", "shape", "size", "texture", "position", "seed"])
def test_everything_about_a_picture_shows(field: str) -> None:
    """19.1: the same picture is drawn the same, and each of its values changes the pixels."""
    picture = Picture("red", "star", "large", "plain", "in the middle", 5)
    other = {"colour": "blue", "shape": "ring", "size": "small", "texture": "striped", "position": "at the top"}
    changed = Picture(**{**picture.__dict__, field: other.get(field, 6)})
    assert picture.draw() == picture.draw()
    difference = np.abs(np.asarray(picture.draw(), float) - np.asarray(changed.draw(), float))
    assert difference.mean() > 1


@pytest.mark.requirement("19.1")
@pytest.mark.parametrize(
    ("position", "axis", "side"),
    [
        (name, *where)
        for name, where in {
            "on the left": (1, -1),
            "on the right": (1, 1),
            "at the top": (0, -1),
            "at the bottom": (0, 1),
        }.items()
    ],
)
@pytest.mark.parametrize("size", SIZES)
def test_a_shape_is_where_its_caption_says(position: str, axis: int, side: int, size: str) -> None:
    """19.1: captions tell the truth about the place."""
    for seed in range(10):
        pixels = np.asarray(Picture("red", "square", size, "plain", position, seed).draw(), float)
        redness = (pixels[..., 0] - pixels[..., 1:].mean(2)).clip(40) - 40
        places = np.indices(redness.shape)[axis]
        centre = (redness * places).sum() / redness.sum()
        assert (centre - 23.5) * side > 1, (seed, centre)


@pytest.mark.requirement("19.1")
def test_captions_are_true_and_in_the_vocabulary() -> None:
    """19.1: a caption says only what is true, at least the colour or the shape, in words that the tokenizer knows."""
    rng, words, said_at_all = random.Random(0), set(vocabulary()), Counter[int]()
    known_values = tuple(map(tuple, VALUES))
    for picture in draw_pictures(2 * len(TRAINING), 3, TRAINING):
        text, said = caption(picture, rng)
        assert set(text.split()) <= words, text
        values = (picture.colour, picture.shape, picture.size, picture.texture, picture.position)
        for value, known, is_said in zip(values, known_values, said, strict=True):
            found = [one for one in known if one in text]
            assert found == ([value] if is_said else []), (text, value)
        assert said[0] or said[1]
        said_at_all.update(index for index, is_said in enumerate(said) if is_said)
    assert len(said_at_all) == 5


@pytest.mark.requirement("19.8")
def test_the_same_seed_gives_the_same_tensors(tmp_path: Path) -> None:
    """19.8: training twice with one seed gives the same tensors, and another seed gives others."""
    hashes = []
    threads = torch.get_num_threads()
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(tmp_path / name, seed, 3, 8, 32)
        loader = WeightLoader(tmp_path / name)
        assert loader.metadata is not None
        hashes.append(loader.metadata.tensors_sha256)
        CLIPEngine(tmp_path / name).encode_text("a red circle")
    assert hashes[0] == hashes[1] != hashes[2]
    assert torch.get_num_threads() == threads


def _photo(directory: Path, colour: str, shape: str) -> str:
    Picture(colour, shape, "large", "plain", "in the middle", 11).draw().save(directory / f"{colour}.png")
    return str(directory / f"{colour}.png")


@pytest.mark.requirement("19.6")
def test_the_command_classify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """19.6: each label with its probability for each image, most probable first, and the model that was used."""
    images = [_photo(tmp_path, "red", "circle"), _photo(tmp_path, "blue", "square")]
    assert main(["classify", *images, "--labels", "blue square, red circle,green star"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "model       shapes, the one that comes with the package"
    assert lines[2] == images[0]
    assert lines[3].split()[:2] == ["red", "circle"]
    assert lines[6] == images[1]
    assert lines[7].split()[:2] == ["blue", "square"]
    assert sum(float(line.split()[2].rstrip("%")) for line in lines[3:6]) == pytest.approx(100, abs=0.02)
    assert main(["classify", images[0], "--labels", "red circle", "--model", str(shapes_model())]) == 0
    assert capsys.readouterr().out.startswith(f"model       {shapes_model()}")


@pytest.mark.requirement("10.9", "17.6")
@pytest.mark.parametrize(
    ("labels", "template", "message"),
    [
        ("red circle,red circle", "a {}", "label 'red circle' stands there twice"),
        ("red circle,", "a {}", "an empty label"),
        ("red elephant", "a {}", "words that this model does not know: ['elephant']"),
        ("red circle", "a photo", "template: 'a photo'"),
    ],
)
def test_classify_refuses_bad_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], labels: str, template: str, message: str
) -> None:
    """10.9, 17.6: a refused label is a message without a traceback and exit status 1."""
    image = _photo(tmp_path, "red", "circle")
    assert main(["classify", image, "--labels", labels, "--template", template]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.requirement("10.9")
def test_classify_names_an_image_that_it_cannot_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """10.9: a missing image is named."""
    assert main(["classify", str(tmp_path / "none.png"), "--labels", "red circle"]) == 1
    assert "none.png" in capsys.readouterr().err


@pytest.mark.requirement("19.7")
def test_the_command_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """19.7: a contact sheet of pictures and answers, and a line for each answer."""
    sheet = tmp_path / "new" / "sheet.png"
    assert main(["demo", "-o", str(sheet), "--count", "8", "--seed", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 8 + 2
    assert lines[-1].startswith(f"wrote {sheet}: ")
    assert sum("pair never seen" in line for line in lines) == 4
    with Image.open(sheet) as image:
        assert image.size == (6 * 156 + 12, 2 * (144 + 51 + 12) + 12)
    assert [file.name for file in sheet.parent.iterdir()] == ["sheet.png"]


@pytest.mark.requirement("10.9", "19.7")
def test_the_demo_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """10.9, 19.7: a name of no image format is refused before anything is drawn."""
    with pytest.raises(ConfigError, match="expected a name ending in"):
        run_demo(tmp_path / "demo.txt", 2, 0)
    assert main(["demo", "-o", str(tmp_path / "demo")]) == 1
    assert "expected a name ending in" in capsys.readouterr().err


@pytest.mark.requirement("19.7")
def test_a_contact_sheet_marks_what_is_wrong(engine: CLIPEngine) -> None:
    """19.7: right and wrong answers look different on the sheet."""
    found: Sequence[Answer] = answers(engine, list(draw_pictures(1, 1)))
    picture = found[0].picture
    right, wrong = Answer(picture, picture.label, 0.9), Answer(picture, "nothing", 0.9)
    assert (right.is_right, wrong.is_right) == (True, False)
    assert contact_sheet([right]) != contact_sheet([wrong])
