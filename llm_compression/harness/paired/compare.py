"""Two series of measurements, and a control, to a verdict. No input, no output.

A round holds one value of the base, one of the head and one of the control, which is the base measured once more. In
each round the head is compared with the mean of the two values of the base, and the control with the base, as log
ratios, so that what slows all three down cancels. Rounds are of fresh processes, and exchangeable; turns within a round
are not independent, and each round has the median of its own. Over the rounds, both are summarised by a mean and its
interval by Student's t; from eight rounds on an eighth of each end is cut (Tukey and McLaughlin, from SciPy).

The looks are planned. A decision may fall at the numbers of rounds in `LOOKS` or when the time is spent, which replaces
the next planned look; each look has an equal share of `ALPHA`, so that many looks make no false alarm likelier.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import median
from typing import Final

import numpy as np
from scipy import stats

LOOKS: Final = (5, 8, 12, 17, 24)
ALPHA: Final = 0.03
# of the interval of the control, whose far end is the noise band
CONTROL_ALPHA: Final = 0.02
# cut from each end before the mean is taken
TRIM: Final = 0.125


class Outcome(StrEnum):
    """What became of a metric, the gravest first."""

    REGRESSED = "REGRESSED"
    NOT_COMPARABLE = "NOT COMPARABLE"
    INCONCLUSIVE = "INCONCLUSIVE"
    IMPROVED = "IMPROVED"
    SAME = "SAME"


@dataclass(frozen=True)
class Rounds:
    """What was measured of one metric: a value of each side in each round.

    Attributes:
        base: Values of the base.
        head: Values of the head.
        control: Values of the base, measured once more.
        turns: What each round was taken from, where it was taken by turns: the three values of each turn.
    """

    base: tuple[float, ...] = ()
    head: tuple[float, ...] = ()
    control: tuple[float, ...] = ()
    turns: tuple[tuple[tuple[float, ...], ...], ...] = ()

    @property
    def sides(self) -> dict[str, tuple[float, ...]]:
        """The values of each side."""
        return {"base": self.base, "head": self.head, "control": self.control}

    def __len__(self) -> int:
        return len(self.base)


@dataclass(frozen=True)
class Interval:
    """A ratio, and the ends of its confidence interval."""

    ratio: float
    low: float
    high: float


@dataclass(frozen=True)
class Verdict:
    """A metric and what became of it; ratios are head / base in the metric's own unit.

    Attributes:
        outcome: What became of it.
        rounds: What was measured.
        change: Head to base; None where they cannot be compared.
        noise: Control to base: what the run shows where nothing changed.
        floor: The floor of the metric, as a ratio above 1.
        band: The noise band, never below the floor, as a ratio above 1.
        detectable: The smallest change that could have been seen, as a ratio above 1.
        rounds_needed: About how many rounds a decision would take, where it is INCONCLUSIVE.
        seconds_needed: How long they would take of its model.
        reason: Why it is NOT COMPARABLE, or what else led to the outcome.
    """

    outcome: Outcome
    rounds: Rounds = field(default_factory=Rounds)
    change: Interval | None = None
    noise: Interval | None = None
    floor: float = math.nan
    band: float = math.nan
    detectable: float = math.nan
    rounds_needed: int | None = None
    seconds_needed: float | None = None
    reason: str = ""

    @property
    def decided(self) -> bool:
        """Whether more rounds would be of no use."""
        return self.outcome is not Outcome.INCONCLUSIVE


def decide(rounds: Rounds, floor: float, unit: str = "%", *, higher_is_better: bool = False) -> Verdict:
    """Judge one metric at one look.

    Args:
        rounds: What was measured.
        floor: What a change must exceed, in `unit`.
        unit: ``%`` of the base, or the unit of the values.
        higher_is_better: Whether a ratio above 1 is an improvement.
    """
    sizes = {len(rounds.base), len(rounds.head), len(rounds.control)}
    values = (*rounds.base, *rounds.head, *rounds.control)
    if len(sizes) > 1 or not values:
        return not_comparable("it was not measured on every side", rounds)
    if not all(math.isfinite(value) and value > 0 for value in values):
        return not_comparable("a value is not a positive number", rounds)
    base, head, control = (np.log(np.asarray(side, np.float64)) for side in (rounds.base, rounds.head, rounds.control))
    # a ratio of 1 + f up and of 1 / (1 + f) down: the same distance, so that exchanging the sides changes nothing
    low_side = min(median((*rounds.base, *rounds.control)), median(rounds.head))
    least = math.log1p(floor / 100 if unit == "%" else floor / low_side)
    centre, low, high = _interval(head - (base + control) / 2, ALPHA / len(LOOKS))
    middle, noise_low, noise_high = _interval(control - base, CONTROL_ALPHA)
    band = max(least, -noise_low, noise_high)
    detectable = max(band, (high - low) / 2)
    needed = None
    if (low > 0 or high < 0) and abs(centre) > band:
        outcome = Outcome.IMPROVED if (centre > 0) is higher_is_better else Outcome.REGRESSED
    elif detectable <= least and abs(centre) <= least:
        outcome = Outcome.SAME
    else:
        outcome = Outcome.INCONCLUSIVE
        # an interval narrows with the square root of the number of rounds
        wide = min((detectable / least) ** 2, 1e6)
        needed = max(len(rounds) + 1, math.ceil(len(rounds) * wide)) if math.isfinite(wide) else None
    return Verdict(
        outcome,
        rounds,
        _ratios(centre, low, high),
        _ratios(middle, noise_low, noise_high),
        _exp(least),
        _exp(band),
        _exp(detectable),
        rounds_needed=needed,
    )


def not_comparable(reason: str, rounds: Rounds | None = None) -> Verdict:
    """The verdict on a metric that was not measured on one side."""
    return Verdict(Outcome.NOT_COMPARABLE, rounds or Rounds(), reason=reason)


def overall(outcomes: Sequence[Outcome]) -> Outcome:
    """The gravest outcome; nothing measured is NOT COMPARABLE."""
    return min(outcomes, key=list(Outcome).index, default=Outcome.NOT_COMPARABLE)


def _interval(differences: np.ndarray[tuple[int], np.dtype[np.float64]], alpha: float) -> tuple[float, float, float]:
    """Trimmed mean and the ends of its interval; without end where there are too few values for one."""
    count = len(differences)
    cut = int(TRIM * count)
    ordered = np.sort(differences)
    centre = float(ordered[cut : count - cut].mean())
    if count < 2:
        return centre, -math.inf, math.inf
    if not cut:
        half = float(stats.t.ppf(1 - alpha / 2, count - 1) * np.std(differences, ddof=1)) / math.sqrt(count)
        return centre, centre - half, centre + half
    # the part that is cut, and not the part that would be of more values
    low, high = map(float, stats.mstats.trimmed_mean_ci(differences, (cut / count, cut / count), alpha=alpha))
    return centre, low, high


def _ratios(centre: float, low: float, high: float) -> Interval:
    return Interval(*map(_exp, (centre, low, high)))


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
