"""Properties of the join of spec and evidence."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_compression.harness.spec.proofs import State, state_of

PROOFS = [state for state in State if state is not State.UNCITED]


@pytest.mark.property(22)
@given(states=st.lists(st.sampled_from(PROOFS)), shuffle=st.randoms(use_true_random=False))
def test_one_bad_proof_decides(states: list[State], shuffle: Random) -> None:
    """Property 22: *For any* proofs of a criterion, it is PROVEN only where there is one and every one of them passed,
    and FAILED where any of them failed."""
    state = state_of(states)
    assert (state is State.PROVEN) == (bool(states) and set(states) == {State.PROVEN})
    assert (state is State.FAILED) == (State.FAILED in states)
    assert (state is State.UNCITED) == (not states)
    shuffle.shuffle(states)
    assert state_of(states) is state
