"""Properties of the comparison of two revisions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_compression.harness.paired.compare import Outcome, Rounds, decide

VALUES = st.floats(1e-3, 1e6)
FLOORS = st.floats(0.1, 50)
CHANGES = (Outcome.REGRESSED, Outcome.IMPROVED)
OPPOSITE = {Outcome.REGRESSED: Outcome.IMPROVED, Outcome.IMPROVED: Outcome.REGRESSED}


@st.composite
def all_rounds(draw: st.DrawFn, *, quiet: bool = False) -> Rounds:
    """Rounds around any two values; where `quiet`, the control has the values of the base."""
    count = draw(st.integers(1, 12))
    noise = st.lists(st.floats(0.9, 1.1), min_size=count, max_size=count)
    one, other = draw(VALUES), draw(st.floats(0.5, 2))
    base = tuple(one * each for each in draw(noise))
    head = tuple(one * other * each for each in draw(noise))
    return Rounds(base, head, base if quiet else tuple(one * each for each in draw(noise)))


@pytest.mark.property(23)
@given(rounds=all_rounds(quiet=True), floor=FLOORS, unit=st.sampled_from(["%", "MB"]), higher=st.booleans())
def test_swapping_the_sides_inverts_the_verdict(rounds: Rounds, floor: float, unit: str, higher: bool) -> None:
    """Property 23: *For any* rounds in which the base is as quiet as the control, exchanging base and head inverts the
    ratio and exchanges REGRESSED and IMPROVED."""
    one = decide(rounds, floor, unit, higher_is_better=higher)
    other = decide(Rounds(rounds.head, rounds.base, rounds.head), floor, unit, higher_is_better=higher)
    assert one.change is not None
    assert other.change is not None
    assert one.change.ratio == pytest.approx(1 / other.change.ratio)
    assert one.outcome is OPPOSITE.get(other.outcome, other.outcome)


@pytest.mark.property(24)
@given(rounds=all_rounds(), floor=FLOORS, higher=st.booleans())
def test_nothing_changed_is_never_a_change(rounds: Rounds, floor: float, higher: bool) -> None:
    """Property 24: *For any* values of base and control, a head whose values are those of the base and the control in
    equal parts is neither REGRESSED nor IMPROVED, and identical rounds are SAME."""
    middle = tuple((a * b) ** 0.5 for a, b in zip(rounds.base, rounds.control, strict=True))
    assert decide(Rounds(rounds.base, middle, rounds.control), floor, higher_is_better=higher).outcome not in CHANGES
    same = Rounds(rounds.base * 5, rounds.base * 5, rounds.base * 5)
    assert decide(same, floor, higher_is_better=higher).outcome is Outcome.SAME


@pytest.mark.property(25)
@given(rounds=all_rounds(), floor=FLOORS, power=st.integers(-20, 20))
def test_the_unit_does_not_matter(rounds: Rounds, floor: float, power: int) -> None:
    """Property 25: *For any* rounds and any positive factor, the verdict of a metric with a floor in percent is that of
    the scaled rounds."""
    base, head, control = (tuple(value * 2.0**power for value in side) for side in rounds.sides.values())
    scaled = Rounds(base, head, control)
    one, other = decide(rounds, floor), decide(scaled, floor)
    assert one.outcome is other.outcome
    assert one.change is not None
    assert other.change is not None
    assert one.change.ratio == pytest.approx(other.change.ratio)
    assert one.band == pytest.approx(other.band)


@pytest.mark.property(26)
@given(rounds=all_rounds(), floor=FLOORS, higher=st.booleans())
def test_a_floor_is_a_floor(rounds: Rounds, floor: float, higher: bool) -> None:
    """Property 26: *For any* rounds, a metric whose ratio is within its floor is neither REGRESSED nor IMPROVED."""
    verdict = decide(rounds, floor, higher_is_better=higher)
    assert verdict.change is not None
    if max(verdict.change.ratio, 1 / verdict.change.ratio) <= 1 + floor / 100:
        assert verdict.outcome not in CHANGES
    if verdict.outcome in CHANGES:
        assert verdict.band >= verdict.floor
        assert not verdict.change.low < 1 < verdict.change.high
