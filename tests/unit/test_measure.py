"""Fresh-process measurement: what a sample holds, and what is refused in place of a number."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from llm_compression.harness.clip.accuracy import Accuracy, compare, merge, seeded_pixels
from llm_compression.harness.clip.checkpoints import VARIANTS, make_checkpoint
from llm_compression.harness.clip.limit import measure_limit, model_gflop
from llm_compression.harness.clip.measure import (
    Bounds,
    Job,
    encode_files,
    make_reference,
    measure,
    measure_growth,
    summarise,
)
from llm_compression.harness.clip.this_machine import this_machine
from llm_compression.harness.paired.child import MeasurementError, percentile
from llm_compression.multimodal.vision_encoder import VisionEncoder
from tests.conftest import AssertWithin
from tests.strategies import random_array

SIZE = VARIANTS["tiny"].image_size
ROWS = 24


@pytest.fixture(scope="module")
def job(tiny_model: Path, tiny_encoder: VisionEncoder, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A job on the variant ``tiny`` in float32; its reference is the encoder's own answers."""
    file = tmp_path_factory.mktemp("reference") / "reference.npy"
    pixels = torch.from_numpy(np.stack([seeded_pixels(0, index, SIZE) for index in range(ROWS)]))
    np.save(file, tiny_encoder.encode_pixels(pixels, normalize=False))
    return Job(str(tiny_model), str(file), SIZE, "float32")


@pytest.mark.requirement("13.1", "13.2")
def test_a_sample_comes_from_a_fresh_process_and_holds_every_metric(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """13.1, 13.2: load and first call, at least 64 calls, batch throughput, peak memory, the imports apart; 13.3."""
    real, commands = subprocess.run, []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return real(command, **options)

    monkeypatch.setattr(subprocess, "run", run)
    sample = measure(job, within=Bounds(min_cosine=0.9999, max_relative_error=1e-4))
    assert [command[:2] for command in commands] == [[sys.executable, "-m"]]
    assert list(sample.import_ms)[:3] == ["numpy", "torch", "pyarrow"]
    times = [*sample.import_ms.values(), sample.load_ms, sample.first_call_ms, *sample.latency_ms, *sample.batch_ms]
    assert all(math.isfinite(value) and value > 0 for value in times)
    assert (len(sample.latency_ms), len(sample.batch_ms)) == (64, job.batches)
    assert sample.start_to_first_ms > sum(sample.import_ms.values()) + sample.load_ms + sample.first_call_ms
    assert 0 < sample.import_mb <= sample.loaded_mb <= sample.first_peak_mb <= sample.peak_mb
    # the first call, the calls, a batch that is not timed and those that are
    assert sample.accuracy.rows == 1 + 64 + (1 + job.batches) * job.batch_size
    summary = summarise([sample])
    assert summary["throughput_img_s"] == pytest.approx(16 * job.batches / sum(sample.batch_ms) * 1000)
    assert summary["latency_p50_ms"] == sample.latency_p50 <= sample.latency_p90 == summary["latency_p90_ms"]
    json.dumps(asdict(sample), allow_nan=False)


@pytest.mark.requirement("13.3")
@pytest.mark.parametrize("wrong", ["another image's answers", "NaN"])
def test_a_wrong_answer_is_an_error_and_not_a_number(job: Job, wrong: str, tmp_path: Path) -> None:
    """13.3: WHEN a call is timed, THE Harness SHALL compare its embeddings with those of the Reference."""
    rows = np.load(job.reference)
    if wrong == "another image's answers":  # as if the last answer were given again
        rows = np.roll(rows, 1, axis=0)
    else:
        rows[-1] = np.nan
    np.save(tmp_path / "wrong.npy", rows)
    changed = replace(job, reference=str(tmp_path / "wrong.npy"), calls=ROWS, batches=0)
    with pytest.raises(MeasurementError, match="wrong answers"):
        measure(changed, within=Bounds(min_cosine=0.99))


def test_a_process_that_fails_or_hangs_is_an_error(job: Job, tmp_path: Path) -> None:
    """A sample is never made of less than what was asked: the child's own message comes with the error."""
    with pytest.raises(MeasurementError, match=r"exit status 1(.|\n)*MissingFileError(.|\n)*nowhere"):
        measure(replace(job, model=str(tmp_path / "nowhere")), within=None)
    with pytest.raises(MeasurementError, match="not done after"):
        measure(job, within=None, timeout_s=0.05)


@pytest.mark.requirement("13.2")
def test_the_memory_of_the_parent_is_not_counted(job: Job) -> None:
    """13.2: peak resident memory of the process; the kernel's ``ru_maxrss`` would begin with that of its parent."""
    ballast = np.ones(600_000_000, np.uint8)
    sample = measure(replace(job, calls=0, batches=0), within=Bounds(0.9999))
    assert sample.peak_mb < ballast.nbytes / 1e6


@pytest.mark.requirement("13.2")
def test_memory_that_was_given_back_still_counts() -> None:
    """13.2: the peak is since the start of the process, not what is resident at the end."""
    program = (
        "from llm_compression.harness.paired.peak_memory import PeakMemory\n"
        "with PeakMemory() as memory:\n"
        "    bytearray(b'\\1') * 200_000_000\n"
        "    print(memory.now_mb, memory.peak_mb)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    now, peak = map(float, done.stdout.split())
    assert now < 150 < 200 < peak


@pytest.mark.requirement("13.3")
def test_a_reference_that_cannot_tell_images_apart_is_refused(tmp_path: Path) -> None:
    """13.3 means little where one image's answer passes for another's: such a model is refused."""
    file = make_checkpoint(tmp_path / "blind", "tiny") / "model.safetensors"
    tensors = load_file(file)
    tensors["vision_model.embeddings.patch_embedding.weight"].zero_()
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(MeasurementError, match="a wrong answer could pass for a right one"):
        make_reference(file.parent, tmp_path / "reference.npy", SIZE, rows=2)


def test_accuracy_is_the_worst_and_best_row_and_keeps_nan() -> None:
    """Relative error: the norm of the difference divided by that of the Reference's row, the largest over the rows."""
    reference = np.array([[3.0, 4.0], [0.0, 2.0]], np.float32)
    found = np.array([[3.0, 4.5], [2.0, 0.0]], np.float32)
    accuracy = compare(found, reference)
    assert (accuracy.rows, accuracy.cosine_min) == (2, 0.0)
    assert accuracy.relative_error_min == pytest.approx(0.1)
    assert accuracy.relative_error_max == pytest.approx(math.sqrt(2))
    damaged = compare(np.full_like(found, np.nan), reference)
    for merged in (merge([accuracy, damaged]), merge([damaged, accuracy])):
        assert merged.rows == 4
        assert math.isnan(merged.cosine_min)
        assert math.isnan(merged.relative_error_max)
        assert not Bounds().allow(merged)
    with pytest.raises(ValueError, match="shape"):
        compare(found[:1], reference)


def test_bounds_are_kept_on_both_sides() -> None:
    """A cosine below the least or a relative error above the most is out of bounds."""
    accuracy = Accuracy(rows=1, cosine_min=0.99, cosine_max=1.0, relative_error_min=0.0, relative_error_max=0.1)
    assert Bounds(min_cosine=0.99, max_relative_error=0.1).allow(accuracy)
    assert not Bounds(min_cosine=0.991).allow(accuracy)
    assert not Bounds(max_relative_error=0.09).allow(accuracy)


def test_percentile_interpolates() -> None:
    """The 90th percentile of 11 evenly spaced values is the tenth; between two values it is in proportion."""
    assert percentile(range(11), 90) == 9
    assert percentile([1.0, 2.0], 50) == 1.5
    assert percentile([7.0], 90) == 7.0
    with pytest.raises(MeasurementError, match="no values"):
        percentile([], 50)


def test_pixels_are_seeded_and_differ_from_image_to_image() -> None:
    """The same number gives the same image in every process; another number or seed gives another."""
    first = seeded_pixels(0, 1, 8)
    assert first.shape == (3, 8, 8)
    assert first.dtype == np.float32
    assert np.array_equal(first, seeded_pixels(0, 1, 8))
    assert not np.array_equal(first, seeded_pixels(0, 2, 8))
    assert not np.array_equal(first, seeded_pixels(1, 1, 8))


def test_the_machine_names_what_a_figure_depends_on() -> None:
    """Every measurement carries its machine: processor, processors allowed, memory, system, and versions."""
    info = this_machine()
    assert info.cores >= 1
    assert info.memory_mb > 0
    assert info.processor
    assert info.system
    assert {"torch", "pyarrow", "numpy", "pillow", "transformers"} <= set(info.versions)
    json.dumps(asdict(info), allow_nan=False)


@pytest.mark.requirement("8.12")
def test_growth_is_what_stays_of_the_calls(tiny_model: Path, tmp_path: Path) -> None:
    """8.12: the process encodes every file in turn; memory is read after the first calls and after the last."""
    files = [tmp_path / f"{number}.png" for number in range(3)]
    for number, file in enumerate(files):
        Image.fromarray(random_array(30 + number, 40, number)).save(file)
    grown = measure_growth(tiny_model, files, dtype="float32", first=20, calls=40)
    assert -20 < grown < 20
    with pytest.raises(MeasurementError, match=r"none\.png"):
        measure_growth(tiny_model, [*files, tmp_path / "none.png"], dtype="float32", first=2, calls=4)


@pytest.mark.requirement("13.5")
def test_files_are_encoded_once_more_when_warmed(
    tiny_model: Path, tmp_path: Path, tiny_encoder: VisionEncoder, assert_within: AssertWithin
) -> None:
    """13.5: what is timed is every file, whichever were encoded before; the rows are in the order of the files."""
    files = [tmp_path / f"{number}.png" for number in range(5)]
    for number, file in enumerate(files):
        Image.fromarray(random_array(30 + number, 40, number)).save(file)
    assert encode_files("arrow", tiny_model, files, tmp_path / "rows.npy", dtype="float32", warm=2) > 0
    # of a process with as many threads as there are processors
    rows = torch.from_numpy(np.load(tmp_path / "rows.npy"))
    assert_within("precision-float32-b16", rows, tiny_encoder.encode(files, normalize=False, convert_to_tensor=True))


@pytest.mark.requirement("8.8")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_limit_is_of_the_products_alone(dtype: str) -> None:
    """8.8: the model's operations at the rate that its products reach on this machine."""
    limit = measure_limit("tiny", dtype)
    assert limit.gflop == pytest.approx(model_gflop(VARIANTS["tiny"]))
    assert limit.limit_ms == pytest.approx(limit.gflop / limit.gflops * 1e3)
    with pytest.raises(MeasurementError, match=r"products in float33: exit status 1(.|\n)*float33"):
        measure_limit("tiny", "float33")


@pytest.mark.requirement("8.8")
def test_the_operations_of_a_model() -> None:
    """8.8: 35.1 GFLOP for a B/16 and 8.8 for a B/32, a multiplication and an addition each, as published."""
    assert model_gflop(VARIANTS["b16"]) == pytest.approx(35.1, abs=0.05)
    assert model_gflop(VARIANTS["b32"]) == pytest.approx(8.8, abs=0.05)
