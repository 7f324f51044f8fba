"""Gates of the metrics ``relative_error``, ``cosine`` and ``photo_cosine``: embeddings against the reference's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import pytest

from llm_compression.harness.clip.accuracy import cosines
from llm_compression.harness.clip.measure import encode_files
from llm_compression.harness.clip.models import WEIGHT_DTYPES
from llm_compression.harness.clip.photos import photo_paths, write_variants

if TYPE_CHECKING:
    from .conftest import GateRun

# one image at a time and in a batch, since the two may run different code
CALLS: Final = 15


@pytest.mark.metric("relative_error")
def test_float32(run: GateRun) -> None:
    """THE VisionEncoder SHALL compute in float32 with a relative error within the limits (7.1, 7.5)."""
    samples, _ = run.samples([run.job("float32", calls=CALLS, batches=1)], None)
    run.keep(samples[0].accuracy.relative_error_max, [sample.accuracy.relative_error_max for sample in samples])


@pytest.mark.metric("cosine")
def test_bfloat16(run: GateRun) -> None:
    """WHEN given checkpoints with hot channels, THE VisionEncoder SHALL compute in bfloat16 (7.3, 7.5).

    From a weight file of each dtype: rounding at the conversion and at the load may differ.
    """
    jobs = [run.job("bfloat16", weights, calls=CALLS, batches=1) for weights in WEIGHT_DTYPES]
    lowest = [sample.accuracy.cosine_min for sample in run.samples(jobs, None)[0]]
    assert len(lowest) == len(WEIGHT_DTYPES)
    # numpy's minimum is NaN where a value is; Python's is not
    run.keep(float(np.min(lowest)), lowest)


@pytest.mark.metric("photo_cosine")
def test_photos(run: GateRun, tmp_path: Path) -> None:
    """WHEN given image files, THE VisionEncoder SHALL compute in float32 within the limit of `photo-...` (7.4, 7.5).

    Over the photos that scikit-image ships and files of every mode and shape made from them, against transformers with
    its own image processor.
    """
    files = [*photo_paths(), *write_variants(tmp_path)]
    found, reference = tmp_path / "found.npy", tmp_path / "reference.npy"
    run.say(f"{run.gate.id}: {len(files)} files by transformers")
    encode_files("transformers", run.model.checkpoint, files, reference, dtype="float32")
    run.say(f"{run.gate.id}: {len(files)} files by this package")
    encode_files("arrow", run.model.weights["float32"], files, found, dtype="float32", device=run.device)
    values = cosines(np.load(found), np.load(reference))
    assert len(values) == len(files)
    by_file = {file.name: float(value) for file, value in zip(files, values, strict=True)}
    run.keep(float(values.min()), list(by_file.values()), files=by_file)
