"""Properties of the encoder's public calls: shapes, concatenation, order, unit norm, no images, unreadable images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm_compression.errors import ImageError
from llm_compression.inference.inference_core import InferenceCore
from llm_compression.multimodal.image_processor import ImageProcessor
from llm_compression.multimodal.vision_config import VisionConfig
from llm_compression.multimodal.vision_encoder import PatchEmbedding, VisionEncoder
from llm_compression.multimodal.vision_provider import ArrowVisionProvider
from tests.strategies import (
    BATCH_SIZES,
    SEEDS,
    UNREADABLE,
    encode_image,
    encoded_images,
    images,
    random_image,
    random_pixels,
    vision_configs,
)

if TYPE_CHECKING:
    from tests.conftest import AssertWithin, BuildEncoder

DTYPES = st.sampled_from(("float32", "bfloat16"))


def core_of(config: VisionConfig) -> InferenceCore:
    """A core of the tower's sizes, its weights drawn by PyTorch."""
    return InferenceCore(
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        intermediate_size=config.intermediate_size,
        activation=config.hidden_act,
    )


@pytest.mark.property(1)
@given(config=vision_configs(), dtype=DTYPES, n=BATCH_SIZES, batch_size=st.integers(1, 3), data=st.data())
def test_shapes_of_every_public_call(
    build_encoder: BuildEncoder, config: VisionConfig, dtype: str, n: int, batch_size: int, data: st.DataObject
) -> None:
    """Property 1: *For any* configuration and any number of images, PatchEmbedding, InferenceCore, ImageProcessor,
    `encode`, `encode_pixels` and `encode_arrow` return the shape and dtype that their signature states."""
    size, width, dimension = config.image_size, config.hidden_size, config.projection_dim or config.hidden_size
    encoder = build_encoder(config, dtype=dtype)
    assert encoder.dimension == dimension
    pixels = random_pixels(n, size, n)
    patches = PatchEmbedding(config)(pixels)
    assert (patches.shape, patches.dtype) == ((n, config.num_patches, width), torch.float32)
    tokens = torch.zeros(n, config.num_positions, width)
    out = core_of(config)(tokens)
    assert (out.shape, out.dtype) == (tokens.shape, torch.float32)
    given_images = data.draw(st.lists(images(), min_size=n, max_size=n))
    processed = ImageProcessor(size)(given_images)
    assert (processed.shape, processed.dtype) == ((n, 3, size, size), torch.float32)
    column = pa.array(data.draw(st.lists(encoded_images(), min_size=n, max_size=n)), pa.binary())
    arrow = encoder.encode_arrow(column, batch_size=batch_size)
    assert (len(arrow), arrow.type, arrow.null_count) == (n, pa.list_(pa.float32(), dimension), 0)
    for embeddings in (
        encoder.encode(given_images, batch_size=batch_size, convert_to_tensor=True),
        encoder.encode_pixels(pixels, convert_to_tensor=True),
    ):
        assert (embeddings.shape, embeddings.dtype) == ((n, dimension), torch.float32)
        assert bool(embeddings.isfinite().all())


@pytest.mark.property(2)
@given(
    config=vision_configs(),
    first=st.lists(images(), max_size=4),
    second=st.lists(images(), max_size=4),
    batch_sizes=st.tuples(*[st.integers(1, 5)] * 3),
    normalize=st.booleans(),
)
def test_encoding_distributes_over_concatenation(
    build_encoder: BuildEncoder,
    assert_within: AssertWithin,
    config: VisionConfig,
    first: list[Any],
    second: list[Any],
    batch_sizes: tuple[int, int, int],
    normalize: bool,
) -> None:
    """Property 2: *For any* two lists of images and any batch size, encoding their concatenation gives the rows of the
    first followed by the rows of the second."""
    encoder = build_encoder(config)
    parts = [
        encoder.encode(part, normalize, batch_size, convert_to_tensor=True)
        for part, batch_size in zip((first + second, first, second), batch_sizes, strict=True)
    ]
    assert_within("precision-float32-b16", parts[0], torch.cat(parts[1:]))


@pytest.mark.property(3)
@given(config=vision_configs(), data=st.data(), batch_sizes=st.tuples(*[st.integers(1, 5)] * 2))
def test_encoding_follows_a_permutation(
    build_encoder: BuildEncoder,
    assert_within: AssertWithin,
    config: VisionConfig,
    data: st.DataObject,
    batch_sizes: tuple[int, int],
) -> None:
    """Property 3: *For any* list of images and any permutation of it, the rows of the permuted list are the permuted
    rows of the list."""
    given_images = data.draw(st.lists(images(), max_size=5))
    order = data.draw(st.permutations(range(len(given_images))))
    encoder = build_encoder(config)
    rows = encoder.encode(given_images, batch_size=batch_sizes[0], convert_to_tensor=True)
    permuted = encoder.encode([given_images[i] for i in order], batch_size=batch_sizes[1], convert_to_tensor=True)
    assert_within("precision-float32-b16", permuted, rows[torch.tensor(order, dtype=torch.long)])


@pytest.mark.property(4)
@given(config=vision_configs(), dtype=DTYPES, given_images=st.lists(images(), max_size=3), seed=SEEDS)
def test_unit_norm(
    build_encoder: BuildEncoder, config: VisionConfig, dtype: str, given_images: list[Any], seed: int
) -> None:
    """Property 4: *For any* images, each row has Euclidean norm one where normalisation is asked for, and is a positive
    multiple of that row where it is not."""
    encoder = build_encoder(config, dtype=dtype)
    pixels = random_pixels(2, config.image_size, seed)
    for unit, raw in (
        (
            encoder.encode(given_images, convert_to_tensor=True),
            encoder.encode(given_images, normalize=False, convert_to_tensor=True),
        ),
        (
            encoder.encode_pixels(pixels, convert_to_tensor=True),
            encoder.encode_pixels(pixels, normalize=False, convert_to_tensor=True),
        ),
    ):
        torch.testing.assert_close(unit.norm(dim=1), torch.ones(len(unit)))
        torch.testing.assert_close(unit * raw.norm(dim=1, keepdim=True), raw)
    # that length is the model's own
    with torch.inference_mode():
        torch.testing.assert_close(raw, encoder(pixels))


@pytest.mark.property(11)
@given(config=vision_configs(), dtype=DTYPES, side=st.integers(0, 9), kind=st.sampled_from((pa.binary, pa.string)))
def test_no_images_no_rows(build_encoder: BuildEncoder, config: VisionConfig, dtype: str, side: int, kind: Any) -> None:
    """Property 11: *For any* configuration, every public call that takes images or pixels returns zero rows of the
    usual width and dtype for an empty list, array, tensor or column."""
    encoder, size = build_encoder(config, dtype=dtype), config.image_size
    column = pa.array([], kind())
    nothing: list[Any] = [[], (), np.zeros((0, side, side, 3), np.uint8), column, pa.chunked_array([], kind())]
    for empty in nothing:
        assert encoder.encode(empty, convert_to_tensor=True).shape == (0, encoder.dimension)
        assert encoder.encode(empty, normalize=False, convert_to_tensor=True).dtype == torch.float32
        pixels = ImageProcessor(size)(empty)
        assert (pixels.shape, pixels.dtype) == ((0, 3, size, size), torch.float32)
        assert list(ImageProcessor(size).batches(empty, 2)) == []
    for normalize in (True, False):
        rows = encoder.encode_pixels(torch.zeros(0, 3, size, size), normalize, convert_to_tensor=True)
        assert (rows.shape, rows.dtype) == ((0, encoder.dimension), torch.float32)
    for empty in (column, pa.chunked_array([column, column])):
        arrow = encoder.encode_arrow(empty)
        assert (len(arrow), arrow.type) == (0, pa.list_(pa.float32(), encoder.dimension))
    assert PatchEmbedding(config)(torch.zeros(0, 3, size, size)).shape == (0, config.num_patches, config.hidden_size)
    assert core_of(config)(torch.zeros(0, 3, config.hidden_size)).shape == (0, 3, config.hidden_size)


@pytest.mark.property(15)
@given(before=st.lists(images(), max_size=5), after=st.lists(images(), max_size=5), batch_size=st.integers(1, 6))
@pytest.mark.parametrize("kind", UNREADABLE)
def test_an_unreadable_image_is_named(
    tiny_encoder: VisionEncoder, kind: str, before: list[Any], after: list[Any], batch_size: int
) -> None:
    """Property 15: *For any* list of images and any position in it, an unreadable image at that position raises
    ImageError with that position and its name, and no embedding is returned."""
    bad, position = UNREADABLE[kind](), len(before)
    name = bad if isinstance(bad, str) else f"{len(bad)} bytes" if isinstance(bad, bytes) else None
    for encode in (tiny_encoder.encode, ImageProcessor(16)):
        options: dict[str, Any] = {} if isinstance(encode, ImageProcessor) else {"batch_size": batch_size}
        with pytest.raises(ImageError) as caught:
            encode([*before, bad, *after], **options)
        assert (caught.value.position, caught.value.name) == (position, name)
        assert f"image {position}" in str(caught.value)
        assert name is None or name in str(caught.value)


@pytest.mark.property(15)
@given(
    sound=st.lists(encoded_images(), max_size=5),
    data=st.data(),
    bad=st.sampled_from((None, b"", b"this is no image", encode_image(random_image("L", 9, 9, 0), "PNG")[:50])),
)
def test_an_unreadable_value_of_a_column_is_named(
    tiny_provider: ArrowVisionProvider, sound: list[bytes], data: st.DataObject, bad: bytes | None
) -> None:
    """Property 15: *For any* list of images and any position in it, an unreadable image at that position raises
    ImageError with that position and its name, and no embedding is returned."""
    position = data.draw(st.integers(0, len(sound)))
    values: list[bytes | None] = [*sound[:position], bad, *sound[position:]]
    cut = data.draw(st.integers(0, len(values)))
    column = pa.chunked_array([values[:cut], values[cut:]], pa.binary())
    encoder = tiny_provider.encoder
    for encode in (encoder.encode_arrow, tiny_provider.encode):
        with pytest.raises(ImageError) as caught:
            encode(column)
        assert caught.value.position == position
        assert bad is None or caught.value.name == f"{len(bad)} bytes"


@pytest.fixture(scope="module")
def tiny_provider(tiny_model: Path) -> ArrowVisionProvider:
    """Provider over `tiny_model`."""
    return ArrowVisionProvider(tiny_model, dtype="float32")
