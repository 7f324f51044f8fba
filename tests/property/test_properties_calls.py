"""Property 34: what an image is given as does not matter, and an unreadable one is named whatever holds it."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from llm_compression.errors import ImageError
from llm_compression.multimodal.vision_encoder import VisionEncoder
from tests.series import PandasSeries, PolarsSeries
from tests.strategies import encode_image, random_array

POOL: Final = [encode_image(Image.fromarray(random_array(9 + seed, 12, seed)), "PNG") for seed in range(4)]
UNREADABLE: Final = [b"", b"no image", POOL[0][:40]]


def _struct(images: list[bytes]) -> pa.Array:
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    return pa.array([{"bytes": image, "path": None} for image in images], kind)


def _chunked(images: list[bytes]) -> pa.ChunkedArray:
    middle = len(images) // 2
    whole = pa.array([b"in front", *images], pa.binary_view())[1:]
    return pa.chunked_array([whole[:0], whole[:middle], whole[middle:middle], whole[middle:]], pa.binary_view())


FORMS: Final[dict[str, Callable[[list[bytes]], Any]]] = {
    "generator": lambda images: (image for image in images),
    "files": lambda images: [io.BytesIO(image) for image in images],
    "records": lambda images: [{"bytes": image, "path": "gone"} for image in images],
    "binary": lambda images: pa.array(images, pa.binary()),
    "dictionary": lambda images: pa.array(images, pa.large_binary()).dictionary_encode(),
    "struct": _struct,
    "chunked": _chunked,
    "objects": lambda images: np.array([*images, None], object)[:-1],
    "pandas": PandasSeries,
    "polars": lambda images: PolarsSeries(pa.array(images, pa.binary_view())),
}


@pytest.fixture(scope="module")
def pool_rows(tiny_encoder: VisionEncoder) -> Any:
    """The rows of the pool."""
    return tiny_encoder.encode(POOL)


@pytest.mark.property(34)
@given(
    images=st.lists(st.sampled_from(POOL) | st.sampled_from(UNREADABLE), max_size=7),
    form=st.sampled_from(sorted(FORMS)),
    batch_size=st.integers(1, 5),
)
def test_what_an_image_is_given_as(
    tiny_encoder: VisionEncoder, pool_rows: Any, images: list[bytes], form: str, batch_size: int
) -> None:
    """Property 34: *For any* images, any form that holds them, any batch size and any of them unreadable, the rows and
    positions are those of the list of encoded images, and each unreadable one is named with its position."""
    good = [position for position, image in enumerate(images) if image in POOL]
    bad = [position for position in range(len(images)) if position not in good]
    wanted = np.stack([pool_rows[POOL.index(images[i])] for i in good]) if good else np.empty((0, 16))
    rows, positions, errors = tiny_encoder.encode(FORMS[form](images), batch_size=batch_size, on_error="skip")
    assert positions.tolist() == good
    assert [error.position for error in errors] == bad
    np.testing.assert_allclose(rows, wanted, 1e-4, 1e-5)
    padded = tiny_encoder.encode(FORMS[form](images), batch_size=batch_size, on_error="null")
    assert np.flatnonzero(np.isnan(padded).any(1)).tolist() == bad
    np.testing.assert_allclose(padded[good], wanted, 1e-4, 1e-5)
    if not bad:
        np.testing.assert_allclose(tiny_encoder.encode(FORMS[form](images), batch_size=batch_size), wanted, 1e-4, 1e-5)
        return
    with pytest.raises(ImageError) as caught:
        tiny_encoder.encode(FORMS[form](images), batch_size=batch_size)
    assert [error.position for error in caught.value.errors] == bad
