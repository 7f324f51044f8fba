"""Joins specs with evidence: the proofs of each criterion and property, its state, and everything that is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Final

from llm_compression.harness.spec.confirm import changes
from llm_compression.harness.spec.evidence import COLLECTED, INVALID, NOT_RUN, Part, Record, join
from llm_compression.harness.spec.parser import Gate, Reference, Spec, problems

MINIMUM_EXAMPLES: Final = 100


class State(StrEnum):
    """What is known of a criterion, a property or one proof; the first that any proof has is that of the whole."""

    FAILED = "FAILED"
    NOT_RUN = "NOT RUN"
    INVALID = "INVALID"
    NOT_MEASURABLE = "NOT MEASURABLE HERE"
    PROVEN = "PROVEN"
    UNCITED = "UNCITED"


@dataclass(frozen=True)
class Proof:
    """A citing test, or a row of the table *Gates*.

    Attributes:
        name: The node id of the test, or the gate where it has none.
        state: What is known of it.
        outcome: What became of it, in pytest's words.
        reason: Why it is no proof.
        value: A measured value beside its limit, or a number of examples.
    """

    name: str
    state: State
    outcome: str
    reason: str = ""
    value: str = ""


@dataclass(frozen=True)
class Row:
    """A criterion or a property of a spec, with its proofs."""

    spec: str
    id: str
    text: str
    state: State
    proofs: tuple[Proof, ...]


@dataclass(frozen=True)
class Matrix:
    """Every criterion and property of every spec, whatever is wrong, and whether any proof ran at all."""

    rows: tuple[Row, ...]
    problems: tuple[str, ...]
    ran: bool

    def count(self, state: State) -> int:
        """How many rows have this state."""
        return sum(row.state is state for row in self.rows)


def state_of(states: Iterable[State]) -> State:
    """The state of what has proofs of these states: the worst, and UNCITED without any."""
    found = set(states)
    return next((state for state in State if state in found), State.UNCITED)


def build_matrix(root: Path, specs: Sequence[Spec], parts: dict[str, Part], *, strict: bool) -> Matrix:
    """Join specs and evidence.

    Args:
        root: The checkout.
        specs: Its specs.
        parts: The evidence of its tree, by session. That of the session ``collected`` says which tests there are.
        strict: Whether what was not run is a problem.

    Raises:
        SpecError: The confirmed hashes of a spec cannot be read.
    """
    records, complete = join(list(parts.values())), COLLECTED in parts
    found: list[str] = []
    rows: list[Row] = []
    alone = [_judge(record, specs) for record in records]
    judged = [
        _on_this_machine(record, proof, records, alone, specs) for record, proof in zip(records, alone, strict=True)
    ]
    for spec in specs:
        proofs, gone = _proofs_of(spec, specs, records, judged)
        own = list(_rows(spec, proofs, State.UNCITED if complete else State.NOT_RUN))
        wrong = [*problems(spec), *changes(spec, root)]
        # which tests there are is known only where all of them were collected
        wrong += [f"gate {gate.id!r} has no test" for gate in gone if complete]
        wrong += _state_problems(own, strict)
        wrong += _task_problems(spec, {row.id: row.state for row in own}, strict)
        found += [f"{spec.name}: {each}" for each in wrong]
        rows += own
    for record, proof in zip(records, judged, strict=True):
        found += [f"{record.node} cites {each}" for each in _unknown(record, specs)]
        if proof.reason and proof.state in (State.FAILED, State.NOT_RUN):
            found.append(f"{record.node}: {proof.reason}")
    if strict and not complete:
        found.append("the tests of this tree were not collected, so that a missing proof cannot be told")
    ran = any(record.outcome != NOT_RUN for record in records)
    return Matrix(tuple(rows), tuple(found), ran)


def _resolve(citation: str, specs: Sequence[Spec]) -> tuple[str, str]:
    """The name of the spec and the number in it; no name where it cannot be told."""
    name, _, number = citation.rpartition(":")
    return name or (specs[0].name if len(specs) == 1 else ""), number


def _unknown(record: Record, specs: Sequence[Spec]) -> Iterator[str]:
    known = {("criterion", spec.name, each.id) for spec in specs for each in spec.criteria}
    known |= {("property", spec.name, str(each.number)) for spec in specs for each in spec.properties}
    names = {spec.name for spec in specs}
    cited = [("criterion", each) for each in record.requirements] + [("property", each) for each in record.properties]
    for kind, citation in cited:
        name, number = _resolve(citation, specs)
        if not name:
            yield f"{kind} {number}, expected the name of one of {len(specs)} specs before it, or requirement_spec"
        elif name not in names:
            yield f"{kind} {number} of the spec {name!r}, which does not exist"
        elif (kind, name, number) not in known:
            yield f"{kind} {number} of {name}, which does not exist"


def _judge(record: Record, specs: Sequence[Spec]) -> Proof:
    gate = _gate_of(record, specs)
    state, reason, value = State.PROVEN, "", ""
    if record.outcome == NOT_RUN:
        state = State.NOT_RUN
    elif record.outcome == "skipped" and gate and record.lacks == gate.session and record.reason == record.absent:
        state, reason = State.NOT_MEASURABLE, record.reason
    elif record.outcome == "skipped" and gate and record.disturbed and record.reason.startswith(INVALID):
        state, reason = State.INVALID, record.reason
    elif record.outcome == "skipped" and gate and record.value is not None and _slower(record, gate, specs):
        # a miss, unless `_on_this_machine` finds the gates that it rests on passed
        state, reason = State.FAILED, record.reason
    elif record.outcome == "skipped":
        state, reason = State.NOT_RUN, f"was skipped: {record.reason}"
    elif record.outcome != "passed":
        state, reason = State.FAILED, f"{record.outcome}: {record.reason}".rstrip(": ")
    elif record.gate and (gate is None or record.value is None or not gate.passes(record.value)):
        state, reason = State.FAILED, f"passed with the value {record.value}, which is not within the limit"
    elif record.properties and record.examples is None:
        state, reason = State.FAILED, f"cites a property and ran no examples, expected {MINIMUM_EXAMPLES}"
    elif record.properties and (record.examples or 0) < MINIMUM_EXAMPLES:
        state, reason = State.FAILED, f"ran {record.examples} examples, expected {MINIMUM_EXAMPLES}"
    if record.value is not None and gate:
        unit = "" if gate.unit == "1" else f" {gate.unit}"
        value = f"{gate.id} {record.value:.4g}{unit} ({gate.comparison} {gate.limit:g})"
    elif record.examples is not None:
        value = f"{record.examples} examples"
    return Proof(record.node, state, record.outcome, reason, value)


def _reference_of(gate: Gate, specs: Sequence[Spec]) -> Reference | None:
    rows = (each for spec in specs for each in spec.references)
    return next((each for each in rows if (each.metric, each.model) == (gate.metric, gate.model)), None)


def _slower(record: Record, gate: Gate, specs: Sequence[Spec]) -> bool:
    reference = _reference_of(gate, specs)
    return reference is not None and record.rate is not None and record.rate < reference.rate


def _on_this_machine(
    record: Record, proof: Proof, records: Sequence[Record], judged: Sequence[Proof], specs: Sequence[Spec]
) -> Proof:
    """The proof of a gate that was missed on a slow machine: what the gates are that it rests on."""
    gate = _gate_of(record, specs)
    if record.outcome != "skipped" or proof.state is not State.FAILED or gate is None:
        return proof
    reference = _reference_of(gate, specs)
    states = []
    for other, its in zip(records, judged, strict=True):
        found = _gate_of(other, specs)
        if found and reference and (found.metric, found.model) == (reference.rests_on, reference.model):
            states.append(its.state)
    rests_on = {state for state in states if state is not State.NOT_MEASURABLE}
    if rests_on == {State.PROVEN}:
        return replace(proof, state=State.NOT_MEASURABLE)
    if rests_on and rests_on <= {State.PROVEN, State.INVALID}:
        return replace(proof, state=State.INVALID)
    return replace(
        proof, reason=f"{proof.reason}, and what it rests on is {', '.join(sorted(rests_on)) or 'not there'}"
    )


def _gate_of(record: Record, specs: Sequence[Spec]) -> Gate | None:
    return {f"{spec.name}:{gate.id}": gate for spec in specs for gate in spec.gates}.get(record.gate)


def _proofs_of(
    spec: Spec, specs: Sequence[Spec], records: Sequence[Record], judged: Sequence[Proof]
) -> tuple[dict[str, list[Proof]], list[Gate]]:
    """The proofs of each criterion and property of a spec, and its gates without a test."""
    proofs: dict[str, list[Proof]] = {}
    validated = {str(each.number): each.validates for each in spec.properties}
    for record, proof in zip(records, judged, strict=True):
        cited = [_resolve(each, specs) for each in record.requirements]
        names = [number for name, number in cited if name == spec.name]
        for name, number in (_resolve(each, specs) for each in record.properties):
            if name == spec.name:
                # what proves a property proves what the property validates
                names += [f"property {number}", *validated.get(number, ())]
        for name in dict.fromkeys(names):
            proofs.setdefault(name, []).append(proof)
    tested = {record.gate for record in records}
    gone = [gate for gate in spec.gates if f"{spec.name}:{gate.id}" not in tested]
    for gate in gone:
        missing = Proof(f"gate {gate.id}", State.NOT_RUN, NOT_RUN, value=f"({gate.comparison} {gate.limit:g})")
        proofs.setdefault(gate.criterion, []).append(missing)
    return proofs, gone


def _rows(spec: Spec, proofs: dict[str, list[Proof]], without: State) -> Iterator[Row]:
    texts = [(each.id, each.text) for each in spec.criteria]
    texts += [(f"property {each.number}", f"{each.title}: {each.text}") for each in spec.properties]
    for name, text in texts:
        own = proofs.get(name, [])
        yield Row(spec.name, name, text, state_of(proof.state for proof in own) if own else without, tuple(own))


def _state_problems(rows: Iterable[Row], strict: bool) -> Iterator[str]:
    for row in rows:
        name = row.id if row.id.startswith("property") else f"criterion {row.id}"
        if row.state is State.UNCITED:
            yield f"{name} has no proof: no test and no gate cites it"
        elif row.state is State.NOT_RUN and strict:
            waiting = [proof.name for proof in row.proofs if proof.state is State.NOT_RUN]
            yield f"{name} is NOT RUN: {waiting[0] if waiting else 'no evidence of this tree'}"


def _task_problems(spec: Spec, states: dict[str, State], strict: bool) -> Iterator[str]:
    unproven = {State.FAILED, State.UNCITED} | ({State.NOT_RUN} if strict else set())
    for task in (task for task in spec.tasks if task.done):
        if named := [f"{each} {states[each]}" for each in task.requirements if states.get(each) in unproven]:
            yield f"task {task.id} is ticked, but not proven: {', '.join(named)}"
