"""Measures an encoder, each sample in a fresh process, and refuses a sample whose answers are wrong.

`measure` starts a process that imports a system, loads a model and encodes seeded pixels; it returns one `Sample`. The
program of that process is `llm_compression.harness.clip.sample`. No image is given twice in a row, and every embedding
of a timed call is compared with the reference's, which a process of its own computed beforehand (`make_reference`).
Times are in milliseconds, memory in MB (10^6 bytes).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Final

from llm_compression.harness.clip.accuracy import Accuracy
from llm_compression.harness.paired.child import MeasurementError, percentile, run_child
from llm_compression.harness.paired.waits import Waits

CALLS: Final = 64
REFERENCE_ROWS: Final = 80
_PROGRAM: Final = ("-m", "llm_compression.harness.clip.sample")
# nothing that is measured or compared with may ask a hub
OFFLINE: Final = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


@dataclass(frozen=True)
class Job:
    """What one process measures.

    Attributes:
        model: What the system loads: a weight file, or a checkpoint directory for ``transformers``.
        reference: The ``.npy`` file of the reference's embeddings, row i for `seeded_pixels` number i.
        image_size: Height and width of an image.
        dtype: What the system computes in; ``auto`` leaves it to this package.
        device: Where it runs.
        system: A name in `SYSTEMS`.
        calls: Calls of one image each, after the first, that make the distribution of latency.
        batches: Batches timed for throughput, after one that is not; none is run for 0.
        batch_size: Images in each.
        seed: Of the pixels.
    """

    model: str
    reference: str
    image_size: int
    dtype: str
    device: str = "cpu"
    system: str = "arrow"
    calls: int = CALLS
    batches: int = 3
    batch_size: int = 16
    seed: int = 0


@dataclass(frozen=True)
class Sample:
    """What one process measured.

    Attributes:
        job: What it was asked.
        import_ms: Time of each import, in order: module to milliseconds.
        import_mb: Resident memory after the imports.
        load_ms: Constructing the encoder, imports excluded.
        loaded_mb: Resident memory once it is loaded.
        first_call_ms: The first call, of one image.
        start_to_first_ms: From before the process was started to its first embedding.
        first_peak_mb: Peak resident memory from the start of the process to its first embedding.
        latency_ms: Each of the later calls of one image.
        batch_ms: Each batch.
        peak_mb: Peak resident memory from the start of the process to the last call.
        accuracy: Of every embedding.
        dtype: What it computed in.
        first_waits: What the process waited from its start to its first embedding.
        call_waits: And over the calls of one image.
    """

    job: Job
    import_ms: Mapping[str, float]
    import_mb: float
    load_ms: float
    loaded_mb: float
    first_call_ms: float
    start_to_first_ms: float
    first_peak_mb: float
    latency_ms: tuple[float, ...]
    batch_ms: tuple[float, ...]
    peak_mb: float
    accuracy: Accuracy
    dtype: str
    first_waits: Waits
    call_waits: Waits

    @property
    def latency_p50(self) -> float:
        """Median of `latency_ms`."""
        return percentile(self.latency_ms, 50)

    @property
    def latency_p90(self) -> float:
        """90th percentile of `latency_ms`."""
        return percentile(self.latency_ms, 90)

    @property
    def throughput_img_s(self) -> float:
        """Images a second, in batches."""
        return self.job.batch_size * len(self.batch_ms) / (sum(self.batch_ms) / 1000)


@dataclass(frozen=True)
class Bounds:
    """What embeddings must meet for a sample to count; NaN never does.

    Attributes:
        min_cosine: Lowest cosine to the reference.
        max_relative_error: Highest relative error.
    """

    min_cosine: float = -1.0
    max_relative_error: float = float("inf")

    def allow(self, accuracy: Accuracy) -> bool:
        """Whether every row is within the bounds."""
        return accuracy.cosine_min >= self.min_cosine and accuracy.relative_error_max <= self.max_relative_error


def measure(job: Job, *, within: Bounds | None, timeout_s: float = 600) -> Sample:
    """Take one sample in a fresh process.

    Args:
        job: What to measure.
        within: What its embeddings must meet; None where their accuracy is what is measured.
        timeout_s: After how many seconds the process is ended.

    Raises:
        MeasurementError: The process failed, or an embedding is out of bounds.
    """
    sample = _read_sample(job, _ask("sample", asdict(job), timeout_s))
    if within is not None and not within.allow(sample.accuracy):
        raise MeasurementError(f"wrong answers, {sample.accuracy}, expected {within}: {job}")
    return sample


def make_reference(
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str],
    image_size: int,
    *,
    rows: int = REFERENCE_ROWS,
    seed: int = 0,
    timeout_s: float = 600,
) -> None:
    """Write the embeddings that transformers computes in float32 on the CPU, from a process of its own, as ``.npy``.

    Raises:
        MeasurementError: The process failed, or two images have nearly the same embedding, so that the answer for one
            would pass for the other.
    """
    request = {"checkpoint": os.fspath(checkpoint), "out": os.fspath(out), "image_size": image_size, "rows": rows}
    _ask("reference", {**request, "seed": seed}, timeout_s)


def encode_files(
    system: str,
    model: str | os.PathLike[str],
    files: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    dtype: str,
    device: str = "cpu",
    warm: int = 0,
    timeout_s: float = 600,
) -> float:
    """Write a system's embeddings of image files, from a process of its own, as ``.npy``.

    The first ``warm`` files are encoded once before, untimed.

    Returns:
        Milliseconds that encoding took, loading excluded.

    Raises:
        MeasurementError: The process failed.
    """
    request = {"system": system, "model": os.fspath(model), "dtype": dtype, "device": device, "out": os.fspath(out)}
    given = {"warm": warm, "files": [os.fspath(file) for file in files]}
    return float(_ask("files", {**request, **given}, timeout_s)["encode_ms"])


def measure_growth(
    model: str | os.PathLike[str],
    files: Sequence[str | os.PathLike[str]],
    *,
    dtype: str,
    device: str = "cpu",
    system: str = "arrow",
    first: int = 200,
    calls: int = 500,
    timeout_s: float = 600,
) -> float:
    """MB that resident memory grows by over calls of one file each, from a process of its own.

    Args:
        model: What the system loads.
        files: Images, encoded in turn.
        dtype: What the system computes in.
        device: Where it runs.
        system: A name in `SYSTEMS`.
        first: Calls before the first reading, which fill what is kept on purpose, such as compiled kernels.
        calls: Calls between the readings.
        timeout_s: After how many seconds the process is ended.

    Raises:
        MeasurementError: The process failed.
    """
    request = {"system": system, "model": os.fspath(model), "dtype": dtype, "device": device}
    counts = {"first": first, "calls": calls, "files": [os.fspath(file) for file in files]}
    found = _ask("growth", {**request, **counts}, timeout_s)
    return float(found["after_mb"]) - float(found["before_mb"])


def summarise(samples: Sequence[Sample]) -> dict[str, float]:
    """Medians over samples of everything beside latency and accuracy, which pool every call; for a report."""
    latency = [value for sample in samples for value in sample.latency_ms]
    figures: dict[str, list[float]] = {
        "load_ms": [sample.load_ms for sample in samples],
        "first_call_ms": [sample.first_call_ms for sample in samples],
        "start_to_first_ms": [sample.start_to_first_ms for sample in samples],
        "import_ms": [sum(sample.import_ms.values()) for sample in samples],
        "import_torch_ms": [sample.import_ms["torch"] for sample in samples if "torch" in sample.import_ms],
        "import_mb": [sample.import_mb for sample in samples],
        "first_peak_mb": [sample.first_peak_mb for sample in samples],
        "peak_mb": [sample.peak_mb for sample in samples],
        "throughput_img_s": [sample.throughput_img_s for sample in samples if sample.batch_ms],
    }
    summary = {name: median(values) for name, values in figures.items() if values}
    if latency:
        summary |= {"latency_p50_ms": percentile(latency, 50), "latency_p90_ms": percentile(latency, 90)}
    summary["cosine_min"] = min(sample.accuracy.cosine_min for sample in samples)
    return summary


def _ask(kind: str, request: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
    return run_child(kind, request, timeout_s, program=_PROGRAM, environment=OFFLINE)


def _read_sample(job: Job, answer: dict[str, Any]) -> Sample:
    accuracy = Accuracy(**answer.pop("accuracy"))
    first_waits, call_waits = (Waits(**answer.pop(name)) for name in ("first_waits", "call_waits"))
    latency, batches = tuple(answer.pop("latency_ms")), tuple(answer.pop("batch_ms"))
    if (len(latency), len(batches)) != (job.calls, job.batches):
        raise MeasurementError(
            f"{len(latency)} calls and {len(batches)} batches, expected {job.calls} and {job.batches}"
        )
    spans = {"first_waits": first_waits, "call_waits": call_waits}
    figures: dict[str, Any] = {**answer, **spans, "latency_ms": latency, "batch_ms": batches}
    return Sample(job=job, accuracy=accuracy, **figures)
