"""Every path of the encoder against transformers: each form of each computation, dtype, thread count and batch size."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
from transformers.models.clip.modeling_clip import CLIPVisionModelWithProjection

from llm_compression.convert import convert_checkpoint
from llm_compression.harness.clip.checkpoints import VARIANTS, make_checkpoint
from llm_compression.inference import shares, threads
from llm_compression.inference.paths import FORMS, forced
from llm_compression.inference.shares import MAX_ROWS
from llm_compression.multimodal.vision_encoder import VisionEncoder
from tests.strategies import random_pixels

pytestmark = [pytest.mark.requirement("29.2"), pytest.mark.requirement("7.1")]

TINY: Final = VARIANTS["tiny"]
# more images than four threads take as shares by themselves
BEYOND: Final = 4 * (MAX_ROWS // TINY.num_positions + 1) + 3
# relative error of a row; in low precision a few times what the dtype's rounding makes of this tower
ALLOWED: Final = {torch.float32: 2e-5, torch.bfloat16: 8e-2, torch.float16: 1.5e-2}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint with hot channels."""
    return make_checkpoint(tmp_path_factory.mktemp("paths") / "checkpoint", "tiny")


@pytest.fixture(scope="module")
def model(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It, converted."""
    directory = tmp_path_factory.mktemp("paths-model")
    convert_checkpoint(checkpoint, directory)
    return directory


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    """As many images as the largest batch."""
    return random_pixels(BEYOND, TINY.image_size, 0)


@pytest.fixture(scope="module")
def reference(checkpoint: Path, pixels: torch.Tensor) -> torch.Tensor:
    """The rows of transformers in float32."""
    loaded: Any = CLIPVisionModelWithProjection.from_pretrained(checkpoint)
    with torch.inference_mode():
        rows: torch.Tensor = loaded.eval()(pixel_values=pixels).image_embeds
    return rows


@pytest.fixture(params=[1, 2, 4])
def count(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """PyTorch with so many threads, and as many workers, whatever the machine has."""
    number = int(request.param)
    for module in (threads, shares):
        monkeypatch.setattr(module, "available_cpus", lambda: number)
    monkeypatch.setattr(threads, "_workers", None)
    found = torch.get_num_threads()
    torch.set_num_threads(number)
    yield number
    torch.set_num_threads(found)
    if threads._workers is not None:
        threads._workers.shutdown()


@pytest.mark.parametrize("dtype", ALLOWED, ids=str)
@pytest.mark.parametrize("linear", FORMS["linear"])
@pytest.mark.parametrize("attention", FORMS["attention"])
@pytest.mark.parametrize("batch", FORMS["batch"])
def test_every_path_gives_the_rows_of_the_reference(
    model: Path,
    pixels: torch.Tensor,
    reference: torch.Tensor,
    count: int,
    dtype: torch.dtype,
    linear: str,
    attention: str,
    batch: str,
) -> None:
    """29.2: THE VisionEncoder SHALL compute in every form that a machine can run, in float32, bfloat16 and float16, on
    one, two and four threads and for any number of images, the rows of the Reference."""
    with forced(linear=linear, attention=attention, batch=batch):
        encoder = VisionEncoder(model, dtype=dtype)
        for n in (0, 1, 5, BEYOND):
            found = np.asarray(encoder.encode_pixels(pixels[:n], normalize=False), np.float64)
            wanted = reference[:n].double().numpy()
            assert found.shape == wanted.shape
            error = np.linalg.norm(found - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
            assert bool((error <= ALLOWED[dtype]).all()), f"{n} images on {count} threads: {error.max()}"
