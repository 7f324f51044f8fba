"""The errors: one base, and messages that name what was found and what was expected."""

from __future__ import annotations

import ast
import builtins
import copy
import importlib
import pickle
import pkgutil
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import benchmarks.regression
import llm_compression
from llm_compression.errors import (
    CheckpointError,
    ConfigError,
    ImageError,
    LlmCompressionError,
    MissingDependencyError,
    MissingFileError,
    MissingTensorError,
    TensorError,
    TextError,
    UnavailableError,
    WeightFormatError,
)
from llm_compression.inference.inference_core import InferenceCore
from llm_compression.inference.weight_format import WeightMetadata, write_weights
from llm_compression.inference.weight_loader import WeightLoader
from llm_compression.multimodal.image_processor import ImageProcessor
from llm_compression.multimodal.vision_config import VisionConfig
from llm_compression.multimodal.vision_encoder import PatchEmbedding, VisionEncoder

PACKAGE = Path(llm_compression.__file__).parent


@pytest.mark.requirement("12.6")
@pytest.mark.parametrize("error", [CheckpointError, ConfigError, ImageError, WeightFormatError])
def test_one_base(error: type[Exception]) -> None:
    """12.6: IF the Package refuses an input or a file, THEN THE Package SHALL raise a subclass of `LlmCompressionError`
    whose message has the value found and what was expected."""
    assert issubclass(error, LlmCompressionError)
    assert issubclass(error, ValueError)  # what code that does not know this package would catch
    assert str(error("width: 7, expected 8")).endswith("width: 7, expected 8")


SECOND_BASES: dict[type[LlmCompressionError], type[Exception]] = {
    MissingFileError: FileNotFoundError,
    MissingTensorError: KeyError,
    MissingDependencyError: ImportError,
    UnavailableError: AttributeError,
    **dict.fromkeys((ConfigError, WeightFormatError, CheckpointError, TensorError, TextError, ImageError), ValueError),
}


@pytest.mark.requirement("27.12")
@pytest.mark.parametrize("error", SECOND_BASES)
def test_who_catches_pythons_own_catches_ours(error: type[LlmCompressionError]) -> None:
    """27.12: WHERE Python has an exception of its own for what was refused, THE Package SHALL raise an error that is a
    subclass of both."""
    assert issubclass(error, SECOND_BASES[error])
    raised = error("width: 7, expected 8")
    assert str(raised).endswith("width: 7, expected 8")
    assert not str(raised).startswith("'")
    if error not in (TextError, ImageError):
        copied = pickle.loads(pickle.dumps(raised))
        assert (type(copied), str(copied)) == (error, str(raised))


# What else the package raises, by file: it never leaves it, or Python asks for it.
OTHERS: dict[str, set[str]] = {
    "__init__.py": {"AttributeError"},  # of a module, as PEP 562 wants it
    "__main__.py": {"SystemExit"},
    "harness/clip/sample.py": {"SystemExit"},  # a program of its own
    "inference/encoder.py": {"AttributeError"},  # of an object, for hasattr
    "json_text.py": {"ValueError"},  # as json's own, which each caller turns into its own with the name of the file
    "multimodal/decoding.py": {"ValueError", "OSError"},  # caught where they become an ImageError
}


@pytest.mark.requirement("12.6")
@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_no_refusal_is_pythons_own(file: Path) -> None:
    """12.6: IF the Package refuses an input or a file, THEN THE Package SHALL raise a subclass of `LlmCompressionError`
    whose message has the value found and what was expected: no file raises one of Python's own exceptions itself."""
    raised = {
        node.exc.func.id: node.lineno
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name)
    }
    pythons = {name: line for name, line in raised.items() if hasattr(builtins, name)}
    assert set(pythons) == OTHERS.get(file.relative_to(PACKAGE).as_posix(), set()), f"{file}: {pythons}"


@pytest.mark.requirement("6.6")
@pytest.mark.parametrize(
    ("position", "name", "message"),
    [
        (None, None, "image: too small"),
        (0, None, "image 0: too small"),
        (3, "a/b.png", "image 3 (a/b.png): too small"),
        (None, "a/b.png", "image (a/b.png): too small"),
    ],
)
def test_an_image_error_says_which_image(position: int | None, name: str | None, message: str) -> None:
    """6.6: IF an image is missing or cannot be read, THEN THE ImageProcessor SHALL raise ImageError with the position
    of the image in the call and its name."""
    error = ImageError("too small", position=position, name=name)
    assert str(error) == message
    assert (error.reason, error.position, error.name) == ("too small", position, name)


def errors_of(kind: type[LlmCompressionError] = LlmCompressionError) -> Iterator[type[LlmCompressionError]]:
    """Every class of errors that the package and the regression report have."""
    yield kind
    for each in kind.__subclasses__():
        yield from errors_of(each)


for _package in (llm_compression, benchmarks.regression):
    for _module in pkgutil.walk_packages(_package.__path__, f"{_package.__name__}."):
        if not _module.name.endswith("__main__"):
            importlib.import_module(_module.name)

# the arguments of those whose constructor takes more than a message
ARGUMENTS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "TextError": (("no token",), {"position": 3}),
    "ImageError": (("too small",), {"position": 3, "name": "a/b.png"}),
    "SpecError": ((Path("a.md"), 7, "no number"), {}),
    "SideError": (("head", WeightFormatError("cut short")), {}),
    "GitError": (("not installed", "status"), {}),
}


def _pickled(protocol: int) -> Callable[[Any], Any]:
    return lambda each: pickle.loads(pickle.dumps(each, protocol))


WAYS: dict[str, Callable[[Any], Any]] = {"copy": copy.copy, "deepcopy": copy.deepcopy}
WAYS |= {f"pickle {protocol}": _pickled(protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)}
ERRORS = {each.__name__: each for each in errors_of()}


@pytest.mark.requirement("25.15")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", sorted(ERRORS))
def test_a_copy_says_what_its_original_says(name: str, way: str) -> None:
    """25.15: WHEN an error of the Package is copied or pickled, THE Package SHALL keep its class, message, attributes
    and notes, however often that is done."""
    error = ERRORS[name]
    arguments, named = ARGUMENTS.get(name, (("width: 7, expected 8",), {}))
    given = error(*arguments, **named)
    given.add_note("seen twice")
    again = WAYS[way](WAYS[way](given))
    assert (type(again), str(again), again.args) == (error, str(given), given.args)
    assert again.__dict__.keys() == given.__dict__.keys()
    assert {name: str(value) for name, value in vars(again).items()} == {n: str(v) for n, v in vars(given).items()}
    assert again.__notes__ == ["seen twice"]
    assert again is not given


Refusal = Callable[[VisionEncoder, Path], Any]
CORE = InferenceCore(hidden_size=8, num_layers=1, num_heads=2, intermediate_size=8)
REFUSALS: dict[str, tuple[Refusal, type[Exception], str, str]] = {
    "size": (lambda _e, _p: VisionConfig(patch_size=0), ConfigError, "0", "positive whole number"),
    "activation": (lambda _e, _p: VisionConfig(hidden_act="relu"), ConfigError, "relu", "quick_gelu, gelu"),
    "heads": (
        lambda _e, _p: InferenceCore(hidden_size=8, num_layers=1, num_heads=3, intermediate_size=8),
        ConfigError,
        "3",
        "multiple",
    ),
    "dtype": (lambda e, _p: VisionEncoder(e.weight_loader.path, dtype="int8"), ConfigError, "int8", "bfloat16"),
    "batch size": (lambda e, _p: e.encode([], batch_size=0), ConfigError, "0", "positive whole number"),
    "crop": (lambda _e, _p: ImageProcessor(crop_offset="ceil"), ConfigError, "ceil", "floor, round"),
    "not a weight file": (lambda _e, p: WeightLoader(p / "text"), WeightFormatError, "Parquet", "text"),
    "stored dtype": (
        lambda _e, p: write_weights(p / "w", [("a", torch.zeros(1, dtype=torch.complex64))], WeightMetadata({})),
        WeightFormatError,
        "complex64",
        "float32",
    ),
    "image type": (lambda e, _p: e.encode(3), ImageError, "int", "a path"),
    "image array": (lambda e, _p: e.encode(np.zeros((2, 2, 2), np.uint8)), ImageError, "(2, 2, 2)", "(H, W, 3)"),
    "column": (lambda e, _p: e.encode(pa.array([1, 2])), ImageError, "int64", "string"),
    "pixels": (lambda e, _p: e.encode_pixels(torch.zeros(1, 3, 9, 9)), ImageError, "(1, 3, 9, 9)", "(n, 3, 32, 32)"),
    "patches": (
        lambda _e, _p: PatchEmbedding(VisionConfig())(torch.zeros(1, 1, 224, 224)),
        ImageError,
        "(1, 1, 224, 224)",
        "(n, 3, 224, 224)",
    ),
    "whole numbers": (lambda e, _p: e(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)), ImageError, "uint8", "floating"),
    "moving": (
        lambda e, _p: e.to("meta"),  # type: ignore[attr-defined]  # what it does not have
        UnavailableError,
        "VisionEncoder",
        "device",
    ),
}


@pytest.mark.requirement("12.6")
@pytest.mark.parametrize("what", REFUSALS)
def test_a_refusal_says_what_was_found_and_what_was_expected(
    tiny_encoder: VisionEncoder, tmp_path: Path, what: str
) -> None:
    """12.6: IF the Package refuses an input or a file, THEN THE Package SHALL raise a subclass of `LlmCompressionError`
    whose message has the value found and what was expected."""
    (tmp_path / "text").write_text("this is no weight file", encoding="utf-8")
    refusal, error, found, expected = REFUSALS[what]
    with pytest.raises(error, match=re.escape(found)) as caught:
        refusal(tiny_encoder, tmp_path)
    assert isinstance(caught.value, LlmCompressionError)
    assert expected in str(caught.value)
