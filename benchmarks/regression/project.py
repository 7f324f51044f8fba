"""What the comparison of two revisions is told of this project: its metrics, seeded models and bounds."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from llm_compression.harness.clip import accuracy
from llm_compression.harness.clip.accuracy import Accuracy
from llm_compression.harness.clip.checkpoints import VARIANTS
from llm_compression.harness.clip.measure import OFFLINE, Bounds
from llm_compression.harness.clip.models import CACHE_DIRECTORY, Model, prepare_model
from llm_compression.harness.clip.this_machine import this_machine
from llm_compression.harness.paired import peak_memory
from llm_compression.harness.paired.duets import ask
from llm_compression.harness.paired.project import END, Metric, Project, Side, WrongAnswersError
from llm_compression.harness.paired.worktrees import Revision
from llm_compression.harness.spec.parser import Floor, read_specs
from llm_compression.inference.weight_format import WEIGHTS_FILE

WEIGHTS: Final = Path(".cache", "regression")
BATCH_SIZE: Final = 16
WEIGHTS_DTYPE: Final = "bfloat16"
# what a user gets who names none
DTYPE: Final = "auto"
# of a variant for which the spec has no gate: rounding costs a narrow tower more
_LOOSE: Final = Bounds(min_cosine=0.99)
_PATCHED: Final = Path("llm_compression", "multimodal", "vision_encoder.py")
_PATCH: Final = """

def _slowed(function, factor):
    import functools
    import time

    @functools.wraps(function)
    def slowed(*args, **kwargs):
        start = time.perf_counter()
        result = function(*args, **kwargs)
        time.sleep((time.perf_counter() - start) * (factor - 1))
        return result

    return slowed


VisionEncoder.encode_pixels = _slowed(VisionEncoder.encode_pixels, {latency})
VisionEncoder.__init__ = _slowed(VisionEncoder.__init__, {load})
_KEPT = bytearray(b"1") * int({memory_mb} * 1_000_000)
"""

METRICS: Final[Mapping[str, Metric]] = {
    "load": Metric("ms", lambda sample: sample["load_ms"]),
    "first_call": Metric("ms", lambda sample: sample["first_call_ms"]),
    "latency": Metric("ms", lambda turn: turn["ms"], taken="one"),
    "throughput": Metric("img/s", lambda turn: 1000 * BATCH_SIZE / turn["ms"], taken="batch", higher_is_better=True),
    "cold_start": Metric("ms", lambda sample: sample["start_to_first_ms"]),
    "import": Metric("ms", lambda sample: sample["import_ms"], once=True),
    # what the system counts until the first embedding
    "start_cpu": Metric("ms", lambda sample: sample["cpu_ms"]),
    "page_faults": Metric("thousand", lambda sample: sample["page_faults"] / 1000),
    "bytes_read": Metric("MB", lambda sample: sample["read_mb"]),
    "peak_memory": Metric("MB", lambda end: end["peak_mb"], taken=END),
    "relative_error": Metric("1", lambda end: end["accuracy"]["relative_error_max"], taken=END, of_answers=True),
    "cosine": Metric("1", lambda end: end["accuracy"]["cosine_min"], taken=END, higher_is_better=True, of_answers=True),
}


@dataclass(frozen=True)
class Shared:
    """What both sides share of a model.

    Attributes:
        model: The seeded checkpoint and the reference's embeddings.
        bounds: What the answers must meet.
        weights: Directory of the weight files that the sides' converters made.
        keep: The package trees whose files stay there.
    """

    model: Model
    bounds: Bounds
    weights: Path
    keep: tuple[str, ...]


def bounds_of(root: Path, models: Sequence[str]) -> dict[str, Bounds]:
    """What the answers for each model must meet: the limit of its gate in bfloat16."""
    limits = {gate.id: gate.limit for spec in read_specs(root) for gate in spec.gates}
    gates = {model: limits.get(f"precision-bfloat16-{model}") for model in models}
    return {model: _LOOSE if limit is None else Bounds(min_cosine=limit) for model, limit in gates.items()}


def floors(root: Path) -> dict[str, Floor]:
    """The floor of each metric, from the specs of a checkout."""
    return {floor.metric: floor for spec in read_specs(root) for floor in spec.floors}


def prepare(root: Path, models: Sequence[str], sides: Sequence[Revision]) -> dict[str, Shared]:
    """Make the seeded models, or find them in the cache of the checkout.

    Raises:
        LlmCompressionError: One cannot be made.
    """
    bounds, keep = bounds_of(root, models), tuple(side.tree for side in sides)
    made = {model: prepare_model(model, root / CACHE_DIRECTORY) for model in models}
    return {name: Shared(model, bounds[name], root / WEIGHTS, keep) for name, model in made.items()}


def request(side: Side, shared: Shared) -> dict[str, Any]:
    """What a sample is asked: weights of the side's own converter, and the same pixels on both sides.

    Raises:
        MeasurementError: The converter failed.
    """
    model = shared.model
    paths = {"model": str(converted(side, shared).resolve()), "reference": str(model.reference.resolve())}
    sizes = {"image_size": model.image_size, "batch_size": BATCH_SIZE}
    return {**paths, "dtype": DTYPE, "seed": 0, **sizes}


def converted(side: Side, shared: Shared) -> Path:
    """The weight file that a side's own converter makes of a seeded checkpoint, made once for each package tree.

    The control has one of its own.

    Raises:
        MeasurementError: The converter failed.
    """
    model, cache = shared.model, shared.weights
    # the seeded checkpoint's directory is named after a hash of what made it
    made_of = model.checkpoint.parent.name
    again = "-control" if side.control else ""
    home = cache / f"{made_of}-{side.revision.tree}{again}"
    if not home.is_dir():
        for stale in cache.glob(f"{model.variant}-*"):
            if not stale.name.startswith(f"{made_of}-") or not stale.name.removesuffix("-control").endswith(
                shared.keep
            ):
                shutil.rmtree(stale)
        partial = home.with_name(f".{home.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        asked = {"checkpoint": str(model.checkpoint.resolve()), "out": str(partial.resolve())}
        ask(PROJECT, side, "convert", {**asked, "dtype": WEIGHTS_DTYPE})
        partial.replace(home)
    return home / WEIGHTS_FILE


def check(sample: Mapping[str, Any], shared: Shared) -> None:
    """Refuse a process whose embeddings are out of bounds.

    Raises:
        WrongAnswersError: They are.
    """
    found = Accuracy(**sample["accuracy"])
    if not shared.bounds.allow(found):
        raise WrongAnswersError(f"wrong answers, {found}, expected {shared.bounds}")


def inject(worktree: Path, injection: Mapping[str, float]) -> None:
    """Slow the encoder of a worktree down: sleep in proportion to each call and load, keep memory that was written."""
    values = {"latency": 1.0, "load": 1.0, "memory_mb": 0.0, **injection}
    with (worktree / _PATCHED).open("a", encoding="utf-8") as file:
        file.write(_PATCH.format(**values))


PROJECT: Final = Project(
    package="llm_compression",
    probe=Path(__file__).with_name("probe.py"),
    metrics=METRICS,
    models=("b16", "b32"),
    known_models=tuple(VARIANTS),
    floors=floors,
    command="nox -s regression --",
    prepare=prepare,
    request=request,
    check=check,
    program=tuple(Path(str(name)) for name in (__file__, accuracy.__file__, peak_memory.__file__)),
    environment=OFFLINE,
    machine=this_machine,
    sample_s=6,
    turn_s=8,
    budget_s=320,
    inject=inject,
    injections={"latency": 1.04, "load": 1.1, "memory_mb": 20},
)
