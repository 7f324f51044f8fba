"""Two series to a verdict: what is found, what is not, and that noise is not taken for a change."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from llm_compression.harness.paired.compare import ALPHA, LOOKS, Outcome, Rounds, Verdict, decide, overall
from llm_compression.harness.paired.duets import Level, _of_turns
from llm_compression.harness.paired.project import Metric


def noisy(rounds: int, change: float = 1.0, noise: float = 0.01, seed: int = 0, slow: float = 0.0) -> Rounds:
    """Seeded rounds: each slower or faster as a whole, each process with noise; `slow` of them met another job."""
    random = np.random.default_rng(seed)
    values = np.exp(random.normal(0, noise, (3, rounds)) + random.normal(0, 0.1, rounds))
    values *= np.where(random.random((3, rounds)) < slow, 1.5, 1.0)
    base, head, control = (tuple(side.tolist()) for side in values * 80)
    return Rounds(base, tuple(value * change for value in head), control)


@pytest.mark.requirement("21.7")
@pytest.mark.parametrize(
    ("change", "higher_is_better", "outcome"),
    [
        (1.08, False, Outcome.REGRESSED),
        (1 / 1.08, False, Outcome.IMPROVED),
        (1.08, True, Outcome.IMPROVED),
        (1 / 1.08, True, Outcome.REGRESSED),
        (1.0, False, Outcome.SAME),
        (1.0, True, Outcome.SAME),
    ],
)
def test_a_change_is_found_in_its_direction(change: float, higher_is_better: bool, outcome: Outcome) -> None:
    """21.7: IF a change is significant and exceeds both the floor of its metric and the noise band, THEN THE Comparison
    SHALL call it REGRESSED or IMPROVED, by its direction."""
    found = [decide(noisy(12, change, seed=seed), 4, higher_is_better=higher_is_better) for seed in range(20)]
    assert [verdict.outcome for verdict in found].count(outcome) >= 19
    first = found[0]
    assert first.change is not None
    assert first.change.low < first.change.ratio < first.change.high
    assert first.change.ratio == pytest.approx(change, rel=0.02)


@pytest.mark.requirement("21.7")
def test_a_significant_change_below_the_floor_does_not_count() -> None:
    """21.7: ... and exceeds ... the floor of its metric."""
    rounds = noisy(24, 1.03, noise=0.002)
    verdict = decide(rounds, 4)
    assert verdict.change is not None
    assert verdict.change.low > 1
    assert verdict.outcome is Outcome.SAME
    assert decide(rounds, 2).outcome is Outcome.REGRESSED


@pytest.mark.requirement("21.7")
def test_a_change_below_what_the_control_shows_does_not_count() -> None:
    """21.7: ... and the noise band that the control of the run shows."""
    rounds = noisy(12, 1.10, noise=0.002)
    assert decide(rounds, 4).outcome is Outcome.REGRESSED
    # the control is the base: what it is off by, nothing else may be blamed for
    off = replace(rounds, control=tuple(value * 1.15 for value in rounds.control))
    assert decide(off, 4).outcome is not Outcome.REGRESSED
    assert decide(off, 4).band > 1.15


@pytest.mark.requirement("21.11")
def test_noise_is_no_change() -> None:
    """21.11: ... shares one level of significance: over many comparisons of nothing, at every look, few are called."""
    false = 0
    for seed in range(150):
        rounds = noisy(LOOKS[3], noise=0.03, seed=seed, slow=0.1)
        for look in LOOKS[:4]:
            part = Rounds(rounds.base[:look], rounds.head[:look], rounds.control[:look])
            verdict = decide(part, 4)
            if verdict.decided:
                false += verdict.outcome is not Outcome.SAME
                break
    assert false <= 2


@pytest.mark.requirement("21.7")
def test_slow_processes_do_not_hide_a_change() -> None:
    """21.7, where one process in fifty met another job in all of its turns: the trimmed mean does not follow them."""
    found = [decide(noisy(17, 1.08, seed=seed, slow=0.02), 4).outcome for seed in range(20)]
    assert found.count(Outcome.REGRESSED) >= 18


def simulated(change: float, seed: int, neighbour: bool) -> Outcome:
    """A comparison of latencies: a machine that drifts, processes that differ, turns that meet another process."""
    random = np.random.default_rng(seed)
    metric, levels = Metric("ms", lambda turn: turn["ms"], taken="one"), list[Level]()
    for number in range(1, LOOKS[-1] + 1):
        # who starts first is the slower by a percent and a half
        process = np.exp(random.normal(0, 0.006, 3)) * np.where(random.permutation(3) == 0, 1.015, 1)
        process[1] *= change
        drift = np.exp(np.cumsum(random.normal(0, 0.02, 24)) + random.normal(0, 0.2))
        turns = 30 * drift[:, None] * process * np.exp(random.normal(0, 0.02, (24, 3)))
        turns *= np.where(
            random.random((24, 3)) < (0.3 if neighbour else 0.02), 1 + random.exponential(0.5, (24, 3)), 1
        )
        levels.append(_of_turns("latency", metric, [tuple(turn) for turn in turns.tolist()]))
        if number in LOOKS:
            base, head, control = (tuple(level[place] for level in levels) for place in range(3))
            verdict = decide(Rounds(base, head, control), 2.5)  # type: ignore[arg-type]  # the first three are numbers
            if verdict.decided:
                return verdict.outcome
    return verdict.outcome


@pytest.mark.requirement("21.20")
@pytest.mark.parametrize("neighbour", [False, True], ids=["alone", "beside another process"])
def test_false_alarms_and_power_are_simulated(neighbour: bool) -> None:
    """21.20: WHEN changes of nothing and of a part of the base are simulated with noise of machine, processes and
    turns, THE Comparison SHALL call at most 1 in 100 metrics changed where nothing did, and at least 9 in 10 that
    did."""
    nothing = [simulated(1.0, seed, neighbour) for seed in range(200)]
    assert sum(outcome in (Outcome.REGRESSED, Outcome.IMPROVED) for outcome in nothing) <= 2
    assert nothing.count(Outcome.SAME) >= 180
    slower = [simulated(1.04, seed, neighbour) for seed in range(100)]
    assert slower.count(Outcome.REGRESSED) >= 90


@pytest.mark.requirement("21.8")
def test_what_could_not_be_seen_is_inconclusive() -> None:
    """21.8: IF the smallest change that could have been seen is above the floor and no change was found, THEN THE
    Comparison SHALL call the metric INCONCLUSIVE with the seconds that a decision would take."""
    verdict = decide(noisy(8, noise=0.1, seed=1), 4)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert verdict.detectable > verdict.floor == pytest.approx(1.04)
    assert verdict.rounds_needed is not None
    assert verdict.rounds_needed > 8
    quieter = decide(noisy(8, noise=0.05, seed=1), 4)
    assert quieter.rounds_needed is not None
    assert quieter.rounds_needed < verdict.rounds_needed
    assert decide(noisy(3), 4).outcome is Outcome.INCONCLUSIVE


@pytest.mark.requirement("21.9")
@pytest.mark.parametrize(
    "rounds",
    [
        Rounds(),
        Rounds((1.0,), (), (1.0,)),
        Rounds((1.0, 1.0), (1.0, math.nan), (1.0, 1.0)),
        Rounds((1.0, 0.0), (1.0, 1.0), (1.0, 1.0)),
        Rounds((1.0, 1.0), (1.0, math.inf), (1.0, 1.0)),
    ],
)
def test_what_was_not_measured_cannot_be_compared(rounds: Rounds) -> None:
    """21.9: IF a metric was not measured on one side, THEN THE Comparison SHALL call it NOT COMPARABLE with the
    reason."""
    verdict = decide(rounds, 4)
    assert verdict.outcome is Outcome.NOT_COMPARABLE
    assert verdict.reason
    assert verdict.change is None


@pytest.mark.requirement("21.18")
def test_a_floor_in_the_unit_of_the_values() -> None:
    """21.18: a floor in MB is a difference, whatever the base takes."""

    def memory(base: float, head: float) -> Verdict:
        return decide(Rounds((base,) * 5, (head,) * 5, (base,) * 5), 15, "MB")

    assert memory(600, 640).outcome is Outcome.REGRESSED
    assert memory(640, 600).outcome is Outcome.IMPROVED
    assert memory(600, 614).outcome is memory(614, 600).outcome is Outcome.SAME
    assert memory(60, 74).outcome is memory(44, 30).outcome is Outcome.SAME
    assert memory(6000, 6016).outcome is Outcome.REGRESSED


@pytest.mark.requirement("21.12")
def test_the_gravest_outcome_stands_for_all() -> None:
    """21.12: ... the verdict at the top."""
    assert overall([Outcome.SAME, Outcome.IMPROVED]) is Outcome.IMPROVED
    assert overall([Outcome.SAME, Outcome.INCONCLUSIVE, Outcome.IMPROVED]) is Outcome.INCONCLUSIVE
    assert overall([Outcome.INCONCLUSIVE, Outcome.NOT_COMPARABLE]) is Outcome.NOT_COMPARABLE
    assert overall([Outcome.NOT_COMPARABLE, Outcome.REGRESSED, Outcome.SAME]) is Outcome.REGRESSED
    assert overall([]) is Outcome.NOT_COMPARABLE


@pytest.mark.requirement("21.11")
def test_the_looks_are_planned() -> None:
    """21.11: ... by a schedule that is fixed beforehand and shares one level of significance."""
    assert list(LOOKS) == sorted(set(LOOKS))
    assert LOOKS[0] == 5
    assert 0 < ALPHA <= 0.05
