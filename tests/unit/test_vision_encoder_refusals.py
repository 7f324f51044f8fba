"""VisionEncoder: what does not fit is refused, all of it in one message, and no row stands for what was not read."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from llm_compression.errors import ConfigError, ImageError, LlmCompressionError, WeightFormatError
from llm_compression.harness.clip.checkpoint_weights import make_weights
from llm_compression.harness.clip.checkpoints import VARIANTS
from llm_compression.inference.weight_format import WeightMetadata, write_weights
from llm_compression.multimodal.image_processor import ImageProcessor
from llm_compression.multimodal.vision_encoder import PatchEmbedding, VisionEncoder
from tests.strategies import encode_image, random_array, random_image, random_pixels

if TYPE_CHECKING:
    from tests.conftest import BuildEncoder

TINY = VARIANTS["tiny"]
LAYER = "vision_model.encoder.layers.1."
PNG = encode_image(random_image("RGB", 30, 24, 0), "PNG")


@pytest.mark.requirement("4.3")
def test_every_mismatch_in_one_message(build_encoder: BuildEncoder) -> None:
    """4.3: IF tensors are missing, unexpected or mis-shaped, THEN THE VisionEncoder SHALL raise one WeightFormatError
    that lists every one of them, mis-shaped ones with the shape found and the shape expected."""
    weights = make_weights(TINY)
    for name in (f"{LAYER}self_attn.q_proj.bias", "visual_projection.weight"):
        del weights[name]
    weights["vision_model.embeddings.position_ids"] = torch.arange(17)
    weights["vision_model.encoder.layers.2.mlp.fc1.bias"] = torch.zeros(64)
    weights["vision_model.embeddings.class_embedding"] = torch.zeros(1, 32)
    weights[f"{LAYER}mlp.fc1.weight"] = torch.zeros(32, 64)
    weights["vision_model.post_layernorm.bias"] = torch.zeros(32, dtype=torch.int64)
    with pytest.raises(WeightFormatError) as caught:
        build_encoder(TINY, tensors=weights)
    assert {line.strip() for line in str(caught.value).splitlines()[1:]} == {
        f"missing: {LAYER}self_attn.q_proj.bias (32,)",
        "missing: visual_projection.weight (16, 32)",
        "unexpected: vision_model.embeddings.position_ids (17,)",
        "unexpected: vision_model.encoder.layers.2.mlp.fc1.bias (64,)",
        "mis-shaped: vision_model.embeddings.class_embedding (1, 32), expected (32,)",
        f"mis-shaped: {LAYER}mlp.fc1.weight (32, 64), expected (64, 32)",
        "not floating point: vision_model.post_layernorm.bias torch.int64",
    }


@pytest.mark.requirement("4.3")
def test_a_projection_where_the_config_has_none(build_encoder: BuildEncoder) -> None:
    """4.3: IF tensors are missing, unexpected or mis-shaped, THEN THE VisionEncoder SHALL raise one WeightFormatError
    that lists every one of them, mis-shaped ones with the shape found and the shape expected."""
    with pytest.raises(WeightFormatError, match=r"unexpected: visual_projection\.weight \(16, 32\)"):
        build_encoder(replace(TINY, projection_dim=None), tensors=make_weights(TINY))


@pytest.mark.requirement("4.3")
@pytest.mark.parametrize("name", TINY.expected_shapes())
def test_each_tensor_is_missed(build_encoder: BuildEncoder, name: str) -> None:
    """4.3: IF tensors are missing, unexpected or mis-shaped, THEN THE VisionEncoder SHALL raise one WeightFormatError
    that lists every one of them, mis-shaped ones with the shape found and the shape expected."""
    weights = make_weights(TINY)
    del weights[name]
    with pytest.raises(WeightFormatError, match=re.escape(f"missing: {name} ")):
        build_encoder(TINY, tensors=weights)


@pytest.mark.requirement("4.3")
@pytest.mark.parametrize("name", TINY.expected_shapes())
def test_each_tensor_is_used(build_encoder: BuildEncoder, tiny_encoder: VisionEncoder, name: str) -> None:
    """4.3: IF tensors are missing, unexpected or mis-shaped, THEN THE VisionEncoder SHALL raise one WeightFormatError
    that lists every one of them, mis-shaped ones with the shape found and the shape expected: and one that is there
    counts."""
    weights, pixels = make_weights(TINY), random_pixels(2, 32, 0)
    weights[name] = weights[name] + 0.3 * torch.randn(weights[name].shape, generator=torch.Generator().manual_seed(1))
    changed = build_encoder(TINY, tensors=weights).encode_pixels(pixels, convert_to_tensor=True)
    difference = (changed - tiny_encoder.encode_pixels(pixels, convert_to_tensor=True)).norm(dim=1).max()
    if name.endswith("k_proj.bias"):
        # it adds the same to every score of a row, which the softmax takes out
        assert difference < 1e-5
    else:
        assert difference > 1e-4


@pytest.mark.requirement("4.6")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["visual_projection.weight", f"{LAYER}mlp.fc2.bias", "vision_model.pre_layrnorm.bias"])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_a_weight_that_is_no_number(build_encoder: BuildEncoder, name: str, value: float, stored: torch.dtype) -> None:
    """4.6: IF a weight is NaN or infinite, THEN THE VisionEncoder SHALL raise WeightFormatError with the name of its
    tensor."""
    weights = {name: tensor.to(stored) for name, tensor in make_weights(TINY).items()}
    weights[name].view(-1)[-1] = value
    with pytest.raises(WeightFormatError, match=re.escape(f"{name}: NaN or infinite weights")):
        build_encoder(TINY, tensors=weights)


PIXELS: dict[str, tuple[Any, str]] = {
    "three dimensions": (torch.zeros(3, 32, 32), "(3, 32, 32)"),
    "five dimensions": (torch.zeros(1, 1, 3, 32, 32), "(1, 1, 3, 32, 32)"),
    "none": (torch.zeros(()), "()"),
    "one dimension": (torch.zeros(0), "(0,)"),
    "one channel": (torch.zeros(1, 1, 32, 32), "(1, 1, 32, 32)"),
    "four channels": (torch.zeros(1, 4, 32, 32), "(1, 4, 32, 32)"),
    "channels last": (torch.zeros(1, 32, 32, 3), "(1, 32, 32, 3)"),
    "another size": (torch.zeros(1, 3, 40, 40), "(1, 3, 40, 40)"),
    "not square": (torch.zeros(1, 3, 32, 40), "(1, 3, 32, 40)"),
    "float64": (torch.zeros(1, 3, 32, 32, dtype=torch.float64), "torch.float64"),
    "bfloat16": (torch.zeros(1, 3, 32, 32, dtype=torch.bfloat16), "torch.bfloat16"),
    "uint8": (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "torch.uint8"),
    "array": (np.zeros((1, 3, 32, 31), np.float32), "(1, 3, 32, 31)"),
    "float64 array": (np.zeros((1, 3, 32, 32)), "float64"),
    "list": ([0.0], "list"),
    "None": (None, "NoneType"),
}


@pytest.mark.requirement("5.3")
@pytest.mark.parametrize("what", PIXELS)
def test_pixels_that_do_not_fit(tiny_encoder: VisionEncoder, what: str) -> None:
    """5.3: IF `encode_pixels` is given another shape, channel count or dtype, THEN THE VisionEncoder SHALL raise
    ImageError with what was found and what was expected."""
    pixels, found = PIXELS[what]
    with pytest.raises(ImageError, match=re.escape(found)) as caught:
        tiny_encoder.encode_pixels(pixels)
    assert "expected " in str(caught.value)
    assert "(n, 3, 32, 32)" in str(caught.value)


@pytest.mark.requirement("5.3")
@pytest.mark.parametrize("shape", [(0, 3, 16, 16), (0, 1, 32, 32), (0, 3, 32, 16), (0, 32, 32, 3)])
def test_no_pixels_of_another_shape(tiny_encoder: VisionEncoder, shape: tuple[int, ...]) -> None:
    """5.3: IF `encode_pixels` is given another shape, channel count or dtype, THEN THE VisionEncoder SHALL raise
    ImageError with what was found and what was expected: also where there is no row."""
    with pytest.raises(ImageError, match=re.escape(f"{shape}, expected (n, 3, 32, 32)")):
        tiny_encoder.encode_pixels(torch.zeros(shape))


@pytest.mark.requirement("1.7")
@pytest.mark.parametrize("shape", [(1, 3, 31, 32), (3, 32, 32), (1, 4, 32, 32)])
def test_patches_of_pixels_that_do_not_fit(shape: tuple[int, ...]) -> None:
    """1.7: WHEN given pixels of shape (n, 3, S, S), n = 0 included, THE PatchEmbedding SHALL return a tensor of shape
    (n, num_patches, hidden_size); others are refused."""
    with pytest.raises(ImageError, match=re.escape(f"pixels of shape {shape}, expected (n, 3, 32, 32)")):
        PatchEmbedding(TINY)(torch.zeros(shape))


@pytest.mark.requirement("7.8")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_pixels_that_are_no_numbers(tiny_encoder: VisionEncoder, value: float) -> None:
    """7.8: IF an image of a call cannot be encoded, THEN THE VisionEncoder SHALL raise an error in place of zeros,
    random vectors or a shorter result."""
    pixels = random_pixels(3, 32, 0)
    pixels[1, 2, 3, 4] = value
    for normalize in (True, False):
        with pytest.raises(ImageError, match="an embedding of zero, NaN or infinite length"):
            tiny_encoder.encode_pixels(pixels, normalize)


@pytest.mark.requirement("7.8")
def test_an_embedding_of_no_length(build_encoder: BuildEncoder) -> None:
    """7.8: IF an image of a call cannot be encoded, THEN THE VisionEncoder SHALL raise an error in place of zeros,
    random vectors or a shorter result."""
    weights = make_weights(TINY)
    weights["visual_projection.weight"].zero_()
    with pytest.raises(ImageError, match="an embedding of zero, NaN or infinite length"):
        build_encoder(TINY, tensors=weights).encode_pixels(random_pixels(1, 32, 0))


@pytest.mark.requirement("7.8")
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("batch_size", [1, 2, 10])
def test_an_unreadable_image_in_the_middle(
    tiny_encoder: VisionEncoder, tmp_path: Path, normalize: bool, batch_size: int
) -> None:
    """7.8: IF an image of a call cannot be encoded, THEN THE VisionEncoder SHALL raise an error in place of zeros,
    random vectors or a shorter result."""
    broken = tmp_path / "broken.png"
    broken.write_bytes(PNG[:-50])
    given = [PNG, random_array(9, 9, 0), broken, PNG, PNG]
    with pytest.raises(ImageError) as caught:
        tiny_encoder.encode(given, normalize, batch_size)
    assert (caught.value.position, caught.value.name) == (2, str(broken))
    with pytest.raises(ImageError) as caught:
        tiny_encoder.encode_arrow(pa.array([PNG, PNG, None, PNG]), normalize, batch_size)
    assert caught.value.position == 2
    # the encoder is as good as before
    assert tiny_encoder.encode([PNG, PNG], normalize, batch_size).shape == (2, 16)


@pytest.mark.requirement("12.6")
@pytest.mark.parametrize(
    "given", [[PNG], PNG, np.zeros((4, 4, 3), np.uint8), None, pa.array([1]), pa.table({"a": [PNG]})]
)
def test_what_is_no_column(tiny_encoder: VisionEncoder, given: Any) -> None:
    """12.6: IF the Package refuses an input or a file, THEN THE Package SHALL raise a subclass of `LlmCompressionError`
    whose message has the value found and what was expected."""
    with pytest.raises(ImageError, match=r"expected (an Arrow array of binary or string|string \(paths\))"):
        tiny_encoder.encode_arrow(given)


@pytest.mark.requirement("12.6")
@pytest.mark.parametrize("batch_size", [0, -1, 1.5, "2", None, True])
def test_a_batch_size_that_is_none(tiny_encoder: VisionEncoder, batch_size: Any) -> None:
    """12.6: IF the Package refuses an input or a file, THEN THE Package SHALL raise a subclass of `LlmCompressionError`
    whose message has the value found and what was expected."""
    for call in (tiny_encoder.encode, lambda images, **options: tiny_encoder.encode_arrow(pa.array(images), **options)):
        with pytest.raises(ConfigError, match=re.escape(f"batch_size: {batch_size!r}, expected a positive whole")):
            call([PNG], batch_size=batch_size)


def write(directory: Path, **metadata: Any) -> Path:
    """The tiny model with other metadata."""
    given = WeightMetadata(**{"config": TINY.to_dict(), **metadata})
    write_weights(directory / "weights.parquet", make_weights(TINY).items(), given)
    return directory


@pytest.mark.requirement("1.4")
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hidden_act": "gelu_new"}, "hidden_act: 'gelu_new', expected one of quick_gelu, gelu"),
        ({"model_type": "siglip"}, "model_type: 'siglip', expected 'clip_vision_model'"),
        ({"num_heads": 5}, "hidden_size: 32 is not a multiple of num_heads 5"),
        ({"pooling": "mean"}, "missing [], unknown ['pooling']"),
    ],
)
def test_a_config_that_is_not_supported(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    """1.4: IF `hidden_act` is neither `quick_gelu` nor `gelu`, THEN THE VisionConfig SHALL raise ConfigError with the
    value found and the accepted values; likewise whatever else this encoder does not know."""
    with pytest.raises(ConfigError, match=re.escape(message)):
        VisionEncoder(write(tmp_path, config={**TINY.to_dict(), **config}))


@pytest.mark.requirement("1.4")
def test_a_config_without_an_activation_is_not_guessed(tmp_path: Path) -> None:
    """1.4: IF `hidden_act` is neither `quick_gelu` nor `gelu`, THEN THE VisionConfig SHALL raise ConfigError with the
    value found and the accepted values."""
    config = TINY.to_dict()
    del config["hidden_act"]
    with pytest.raises(ConfigError, match=re.escape("missing ['hidden_act']")):
        VisionEncoder(write(tmp_path, config=config))


@pytest.mark.requirement("12.6")
def test_a_config_that_contradicts_the_file(tmp_path: Path) -> None:
    """12.6: IF the Package refuses an input or a file, THEN THE Package SHALL raise a subclass of `LlmCompressionError`
    whose message has the value found and what was expected."""
    path = write(tmp_path)
    assert VisionEncoder(path, config=TINY).config == TINY
    with pytest.raises(ConfigError, match=r"config .*hidden_act='gelu'.*the file says .*hidden_act='quick_gelu'"):
        VisionEncoder(path, config=replace(TINY, hidden_act="gelu"))


@pytest.mark.requirement("5.9")
@pytest.mark.parametrize(
    ("preprocessing", "message"),
    [
        (ImageProcessor(40).to_dict(), "preprocessing makes 40 pixels, the model takes 32"),
        ({"image_size": 32}, "preprocessing: missing ['crop_offset', 'mean', 'resize_size', 'std'], unknown []"),
        ({**ImageProcessor(32).to_dict(), "std": [1, 1, 0]}, "std: (1, 1, 0), expected three finite numbers"),
    ],
)
def test_preprocessing_that_does_not_fit(tmp_path: Path, preprocessing: dict[str, Any], message: str) -> None:
    """5.9: WHERE a Weight File carries preprocessing constants, THE VisionEncoder SHALL preprocess images with them: or
    refuse them."""
    with pytest.raises(ConfigError, match=re.escape(message)):
        VisionEncoder(write(tmp_path, preprocessing=preprocessing))


@pytest.mark.requirement("4.4")
def test_no_weight_file(tmp_path: Path) -> None:
    """4.4: IF a Weight File is truncated, empty, not Parquet or of another schema, THEN THE WeightLoader SHALL raise
    WeightFormatError with the path and what was found; a path that is none is a FileNotFoundError."""
    with pytest.raises(FileNotFoundError, match=r"weights\.parquet: no such file"):
        VisionEncoder(tmp_path)
    (tmp_path / "weights.parquet").write_bytes(b"PAR1")
    with pytest.raises(WeightFormatError, match="not a sound Parquet file"):
        VisionEncoder(tmp_path)


@pytest.mark.requirement("12.6")
@pytest.mark.parametrize("dtype", ["int8", "float64", "bf16", torch.int64])
def test_an_unknown_dtype(tiny_model: Path, dtype: Any) -> None:
    """12.6: IF the Package refuses an input or a file, THEN THE Package SHALL raise a subclass of `LlmCompressionError`
    whose message has the value found and what was expected."""
    with pytest.raises(ConfigError, match="expected auto, float32, bfloat16 or float16"):
        VisionEncoder(tiny_model, dtype=dtype)


@pytest.mark.requirement("12.6")
@pytest.mark.parametrize("device", ["no such device", "cuda:99"])
def test_a_device_that_is_not_there(tiny_model: Path, device: str) -> None:
    """12.6: IF the Package refuses an input or a file, THEN THE Package SHALL raise a subclass of `LlmCompressionError`
    whose message has the value found and what was expected."""
    with pytest.raises(LlmCompressionError, match=re.escape(device)):
        VisionEncoder(tiny_model, device)


@pytest.mark.requirement("12.6")
@pytest.mark.parametrize("move", ["half", "bfloat16", "double", "cpu"])
def test_an_encoder_is_not_moved(tiny_encoder: VisionEncoder, move: str) -> None:
    """12.6: IF the Package refuses an input or a file, THEN THE Package SHALL raise a subclass of `LlmCompressionError`
    whose message has the value found and what was expected: packed weights cannot be cast."""
    with pytest.raises(LlmCompressionError, match=r"pass device and dtype to VisionEncoder\(\.\.\.\)"):
        getattr(tiny_encoder, move)()
