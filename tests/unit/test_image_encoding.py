"""What becomes of images that cannot be read, and of pixels in every form."""

from __future__ import annotations

import gc
import io
import pickle
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from llm_compression.errors import ConfigError, ImageError
from llm_compression.harness.clip.checkpoints import VARIANTS, make_checkpoint
from llm_compression.multimodal.image_encoding import ON_ERROR, KeptRows
from llm_compression.multimodal.vision_encoder import VisionEncoder
from llm_compression.multimodal.vision_provider import ArrowVisionProvider, CLIPVisionProvider, VisionProvider
from tests.strategies import encode_image, random_array, random_pixels

ARRAYS: Final = [random_array(40, 50, seed) for seed in range(3)]
PNGS: Final = [encode_image(Image.fromarray(array), "PNG") for array in ARRAYS]
# positions 1, 3, 4 and 6 cannot be read
GIVEN: Final = [PNGS[0], b"no image", PNGS[1], "no/such/file.png", None, PNGS[2], PNGS[0][:60]]
GOOD: Final = [0, 2, 5]
BAD: Final = [1, 3, 4, 6]
NAMES: Final = ["8 bytes", "no/such/file.png", None, "60 bytes"]


@pytest.fixture(scope="module", params=["encoder", "provider", "baseline"])
def encoder(request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Each encoder of images, in float32."""
    if request.param == "encoder":
        return VisionEncoder(tiny_model, dtype="float32")
    if request.param == "provider":
        return ArrowVisionProvider(tiny_model, dtype="float32")
    return CLIPVisionProvider(make_checkpoint(tmp_path_factory.mktemp("checkpoint"), "tiny"))


@pytest.mark.requirement("28.11")
@pytest.mark.parametrize("batch_size", [1, 2, 3, 32])
@pytest.mark.parametrize("form", [list, iter, tuple])
def test_every_bad_image_of_a_call_is_named(
    encoder: VisionEncoder, batch_size: int, form: Callable[[list[Any]], Any]
) -> None:
    """28.11: WHERE `on_error` is `raise`, one ImageError names every unreadable image, and the first as its own."""
    with pytest.raises(ImageError) as caught:
        encoder.encode(form(GIVEN), batch_size=batch_size)
    error = caught.value
    assert (error.position, error.name) == (1, "8 bytes")
    assert [each.position for each in error.errors] == BAD
    assert [each.name for each in error.errors] == NAMES
    lines = str(error).splitlines()
    assert len(lines) == 4
    for line, position in zip(lines, BAD, strict=True):
        assert line.startswith(f"image {position}")


@pytest.mark.requirement("28.12")
@pytest.mark.parametrize("batch_size", [1, 2, 3, 32])
def test_rows_that_are_kept_say_whose_they_are(encoder: VisionEncoder, batch_size: int) -> None:
    """28.12: WHERE `on_error` is `skip`, the rows of the others come with their positions and the errors."""
    wanted = encoder.encode(PNGS)
    for given in (GIVEN, iter(GIVEN)):
        kept = encoder.encode(given, batch_size=batch_size, on_error="skip")
        assert isinstance(kept, KeptRows)
        np.testing.assert_allclose(kept.embeddings, wanted, 1e-5, 1e-6)
        assert (kept.positions.tolist(), kept.positions.dtype.name) == (GOOD, "int64")
        assert [error.position for error in kept.errors] == BAD
    tensors = encoder.encode(GIVEN, on_error="skip", convert_to_tensor=True)
    assert isinstance(tensors.embeddings, torch.Tensor)
    rows, positions, errors = encoder.encode(PNGS, on_error="skip")
    assert (rows.shape, positions.tolist(), errors) == ((3, 16), [0, 1, 2], ())
    for none in ([b"x", b"y"], b"x"):
        rows, positions, errors = encoder.encode(none, on_error="skip")
        assert (rows.shape, len(positions), len(errors)) == ((0, 16), 0, len(none) if isinstance(none, list) else 1)


@pytest.mark.requirement("28.13")
@pytest.mark.parametrize("batch_size", [1, 2, 3, 32])
def test_a_null_for_what_cannot_be_read(encoder: VisionEncoder, batch_size: int) -> None:
    """28.13: WHERE `on_error` is `null`, a row of NaN from `encode` and a null from `encode_arrow`."""
    wanted = encoder.encode(PNGS)
    for given in (GIVEN, iter(GIVEN)):
        rows = encoder.encode(given, batch_size=batch_size, on_error="null")
        assert rows.shape == (7, 16)
        assert np.isnan(rows[BAD]).all()
        np.testing.assert_allclose(rows[GOOD], wanted, 1e-5, 1e-6)
    column = pa.array([PNGS[0], b"no image", PNGS[1], None])
    found = encoder.encode_arrow(column, batch_size=batch_size, on_error="null")
    assert found.type == pa.list_(pa.float32(), 16)
    assert [value.is_valid for value in found] == [True, False, True, False]
    np.testing.assert_allclose(np.array(found.to_pylist()[::2]), wanted[:2], 1e-5, 1e-6)
    kept = encoder.encode_arrow(column, batch_size=batch_size, on_error="skip")
    assert (len(kept.embeddings), kept.embeddings.null_count, kept.positions.tolist()) == (2, 0, [0, 2])
    with pytest.raises(ImageError) as caught:
        encoder.encode_arrow(column, batch_size=batch_size)
    assert [error.position for error in caught.value.errors] == [1, 3]


@pytest.mark.requirement("28.11")
@pytest.mark.parametrize("on_error", ["ignore", None, True, ""])
def test_an_unknown_way(encoder: VisionEncoder, on_error: Any) -> None:
    """28.11: an unknown `on_error` is a ConfigError, also where nothing is given."""
    for given in (PNGS, []):
        with pytest.raises(ConfigError, match="expected one of raise, skip, null"):
            encoder.encode(given, on_error=on_error)


@pytest.mark.requirement("28.11", "28.12")
def test_an_embedding_that_is_not_finite_is_always_an_error(
    tiny_encoder: VisionEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """28.11: a fault of the dtype is no bad file: it raises whatever `on_error` says, with the image's position."""
    real = VisionEncoder._embed

    def overflowing(self: VisionEncoder, pixels: torch.Tensor) -> torch.Tensor:
        rows = real(self, pixels)
        rows[-1] = torch.inf
        return rows

    monkeypatch.setattr(VisionEncoder, "_embed", overflowing)
    for on_error in ON_ERROR:
        with pytest.raises(ImageError, match="NaN or infinite length") as caught:
            tiny_encoder.encode([PNGS[0], PNGS[1], PNGS[2]] if on_error == "raise" else GIVEN, on_error=on_error)
        assert caught.value.position == (2 if on_error == "raise" else 5)
    with pytest.raises(ImageError, match="image 1: an embedding") as caught:
        tiny_encoder.encode_pixels(random_pixels(2, 32, 0))


@pytest.mark.requirement("28.12")
def test_errors_hold_no_image(tiny_encoder: VisionEncoder) -> None:
    """28.12: the errors that are returned keep nothing of their images in memory."""
    images = [io.BytesIO(b"no image") for _ in range(3)]
    watched = [weakref.ref(image) for image in images]
    kept = tiny_encoder.encode(images, on_error="skip")
    assert len(kept.errors) == 3
    assert all(error.__cause__ is not None for error in kept.errors)
    images.clear()
    gc.collect()
    assert [each() for each in watched] == [None] * 3


@pytest.mark.requirement("28.11")
def test_a_message_stays_short_and_a_pickle_whole() -> None:
    """28.11: of very many bad images the message names some; the error has all."""
    others = [ImageError("broken", position=i, name=f"{i}.png") for i in range(1, 1000)]
    error = ImageError("broken", position=0, name="0.png", others=others)
    assert len(str(error).splitlines()) == 21
    assert str(error).endswith("and 980 more images")
    assert len(error.errors) == 1000
    again = pickle.loads(pickle.dumps(error))
    assert (again.position, again.name, len(again.errors)) == (0, "0.png", 1000)


@pytest.mark.requirement("28.17")
def test_pixels_of_any_array(tiny_encoder: VisionEncoder) -> None:
    """28.17: an array of pixels, contiguous or not, read-only or not, gives the rows of the tensor."""
    pixels = random_pixels(3, VARIANTS["tiny"].image_size, 1)
    wanted, array = tiny_encoder.encode_pixels(pixels), pixels.numpy()
    read_only = array.copy()
    read_only.flags.writeable = False
    for given in (array, read_only, np.asfortranarray(array), array[::-1].copy()[::-1], pa.array(array.ravel())):
        if isinstance(given, pa.Array):
            given = given.to_numpy().reshape(array.shape)
        found = tiny_encoder.encode_pixels(given)
        assert (type(found), found.dtype.name) == (np.ndarray, "float32")
        np.testing.assert_allclose(found, wanted, 1e-5, 1e-6)
    assert tiny_encoder.encode_pixels(array[:0]).shape == (0, 16)
    refused: list[Any] = [array.astype(np.float64), array.astype(np.uint8), array.astype(">f4"), [1.0], array[0]]
    for wrong in refused:
        with pytest.raises(ImageError, match=r"\(n, 3, 32, 32\)"):
            tiny_encoder.encode_pixels(wrong)


@pytest.mark.requirement("28.1")
def test_a_provider_of_ones_own_needs_encode_alone() -> None:
    """28.1: a provider that is written elsewhere over `VisionProvider` gives `encode` and `dimension`."""

    class Mine(VisionProvider):
        dimension = 2

        def encode(self, images: Any, *_: Any, **__: Any) -> Any:
            return np.ones((len(images), 2), np.float32)

    assert Mine().similarity(Mine().encode_batch([1]), Mine().encode([1, 2])).tolist() == [pytest.approx([1, 1])]
