"""What several gates are taken from, measured once: turns, loads and starts, each from undisturbed samples."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any, Final, TypeVar

from llm_compression.harness.clip.accuracy import Accuracy
from llm_compression.harness.clip.checkpoints import VARIANTS
from llm_compression.harness.clip.limit import model_gflop, pass_gflop, product_rounds, reading_rounds
from llm_compression.harness.clip.live import encoder
from llm_compression.harness.clip.measure import Bounds, Job, Sample, measure
from llm_compression.harness.clip.models import Model
from llm_compression.harness.paired.child import MeasurementError
from llm_compression.harness.paired.turns import Live, take_turns
from llm_compression.harness.paired.waits import Waits
from llm_compression.harness.spec.parser import Condition

T = TypeVar("T")
Say = Callable[[str], None]

ROUNDS: Final = 3
TURNS: Final = 24
_READINGS: Final = 5
# enough to have made what is made once
_FEW_CALLS: Final = 4
# transformers in whichever dtype
_PEER_BOUNDS: Final = Bounds(min_cosine=0.99)


class DisturbedError(MeasurementError):
    """Too few samples had the processors to themselves; `parts` is what others made each of the rest wait."""

    def __init__(self, message: str, parts: Iterable[float] = ()) -> None:
        super().__init__(message)
        self.parts = tuple(parts)


@dataclass(frozen=True)
class Undisturbed:
    """Takes samples until enough of them had the processors to themselves.

    Attributes:
        max_part: What others may make a sample wait, as a part of its time.
        retakes: How often each sample may be taken again.
    """

    max_part: float
    retakes: int

    @classmethod
    def of(cls, conditions: Iterable[Condition]) -> Undisturbed:
        """As the table *Undisturbed samples* says; without it every sample counts."""
        found = {each.quantity: each.value for each in conditions}
        return cls(found["wait"] / 100, int(found["retakes"])) if found else cls(float("inf"), 0)

    def take(
        self, sample: Callable[[int], T], count: int, waits: Callable[[T], Waits]
    ) -> tuple[list[T], tuple[float, ...]]:
        """So many undisturbed samples, and the parts that others made the rest wait.

        Args:
            sample: Takes one; its argument counts from 0, those taken again included.
            count: How many are needed.
            waits: What a sample waited.

        Raises:
            DisturbedError: Too few were left.
        """
        kept: list[T] = []
        parts: list[float] = []
        for number in range(count * (1 + self.retakes)):
            taken = sample(number)
            if (part := waits(taken).part) <= self.max_part:
                kept.append(taken)
                if len(kept) == count:
                    return kept, tuple(parts)
            else:
                parts.append(part)
        raise DisturbedError(
            f"{len(parts)} of {count * (1 + self.retakes)} samples waited for other processes more than "
            f"{self.max_part:.0%} of their time (median {median(parts):.0%}); {count} undisturbed ones are needed",
            parts,
        )


@dataclass(frozen=True)
class Pair:
    """Turns of two live processes: milliseconds of each call, and what the first one waited."""

    ours_ms: tuple[float, ...]
    other_ms: tuple[float, ...]
    waits: Waits

    @property
    def ratio(self) -> float:
        """Median over the turns."""
        return median(one / other for one, other in zip(self.ours_ms, self.other_ms, strict=True))


@dataclass(frozen=True)
class Load:
    """A load from a fresh process, and what reading, checking and copying the same bytes takes beside it."""

    sample: Sample
    reading_ms: float
    megabytes: float


@dataclass(frozen=True)
class Start:
    """This encoder and transformers, each from a fresh process."""

    ours: Sample
    transformers: Sample

    @property
    def waits(self) -> Waits:
        """Of the one that waited more."""
        return max(self.ours.first_waits, self.transformers.first_waits, key=lambda waits: waits.part)


@dataclass
class Series:
    """The samples behind the gates by ratio of each model, taken when they are first asked for.

    Attributes:
        undisturbed: What makes a sample count.
        say: Takes a line on each step.
    """

    undisturbed: Undisturbed
    say: Say
    _made: dict[Any, Any] = field(default_factory=dict)

    def to_limit(self, model: Model, job: Job, within: Bounds) -> tuple[list[Pair], tuple[float, ...]]:
        """Turns of this encoder and the matrix products of its model in the same dtype.

        Raises:
            MeasurementError: A process failed, an answer is out of bounds, or too few pairs were undisturbed.
        """
        config = VARIANTS[model.variant]
        # a pass has the products of the blocks alone; the limit is that of all of the model's operations
        factor = model_gflop(config) / pass_gflop(config)

        def pair(number: int) -> Pair:
            self.say(f"{model.variant} and its matrix products by turns: pair {number + 1}")
            taken = _pair(job, within, product_rounds(config, job.dtype), number)
            return replace(taken, other_ms=tuple(each * factor for each in taken.other_ms))

        return self._once(("limit", job), lambda: self.undisturbed.take(pair, ROUNDS, lambda each: each.waits))

    def to_transformers(self, model: Model, job: Job, within: Bounds) -> tuple[list[Pair], tuple[float, ...]]:
        """Turns of this encoder and transformers in the same dtype; raises as `to_limit`."""

        def pair(number: int) -> Pair:
            self.say(f"{model.variant} and transformers by turns: pair {number + 1}")
            return _pair(job, within, encoder(_peer(model, job)), number)

        return self._once(("transformers", job), lambda: self.undisturbed.take(pair, ROUNDS, lambda each: each.waits))

    def loads(self, job: Job, within: Bounds, count: int) -> tuple[list[Load], tuple[float, ...]]:
        """Loads from a bfloat16 file, each beside the bytes of the same file; raises as `to_limit`."""
        few = replace(job, calls=0, batches=0)

        def load(number: int) -> Load:
            self.say(f"load of {few.model}: sample {number + 1}")
            sample = measure(few, within=within)
            with reading_rounds(few.model, "bfloat16", sample.dtype) as rounds:
                reading_ms = median(float(rounds.ask()["ms"]) for _ in range(_READINGS))
                megabytes = float(rounds.ready["bytes"]) / 1e6
            return Load(sample, reading_ms, megabytes)

        def waits(each: Load) -> Waits:
            return each.sample.first_waits

        return self._once(("loads", few, count), lambda: self.undisturbed.take(load, count, waits))

    def starts(self, model: Model, job: Job, within: Bounds) -> tuple[list[Start], tuple[float, ...]]:
        """Starts of both systems in fresh processes, in turn; raises as `to_limit`."""
        ours = replace(job, calls=_FEW_CALLS, batches=0)
        systems = {"ours": (ours, within), "transformers": (_peer(model, ours), _PEER_BOUNDS)}

        def start(number: int) -> Start:
            self.say(f"{model.variant} and transformers in fresh processes: round {number + 1}")
            names = list(systems)[:: 1 if number % 2 else -1]
            return Start(**{name: measure(systems[name][0], within=systems[name][1]) for name in names})

        return self._once(("starts", job), lambda: self.undisturbed.take(start, ROUNDS, lambda each: each.waits))

    def _once(
        self, key: Any, take: Callable[[], tuple[list[T], tuple[float, ...]]]
    ) -> tuple[list[T], tuple[float, ...]]:
        """What was taken before under this key, an error too; else what is taken now."""
        if key not in self._made:
            try:
                self._made[key] = take()
            except MeasurementError as error:
                self._made[key] = error
        if isinstance(found := self._made[key], MeasurementError):
            raise found
        taken: tuple[list[T], tuple[float, ...]] = found
        return taken


def _peer(model: Model, job: Job) -> Job:
    return replace(job, model=str(model.checkpoint), system="transformers")


def _pair(job: Job, within: Bounds, other: Live, seed: int) -> Pair:
    with encoder(job) as ours, other:
        taken = take_turns((ours, other), random.Random(seed), turns=TURNS)
        said, other_said = ours.last(), other.last()
    for answer, bounds in ((said, within), (other_said, _PEER_BOUNDS)):
        if "accuracy" in answer and not bounds.allow(accuracy := Accuracy(**answer["accuracy"])):
            raise MeasurementError(f"wrong answers, {accuracy}, expected {bounds}: {job}")
    ours_ms, other_ms = zip(*taken, strict=True)
    return Pair(ours_ms, other_ms, Waits(**said["waits"]))
