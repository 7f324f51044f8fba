"""What is wrong with a spec that could be read: its numbers, its words, and what it cites."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import chain

from llm_compression.harness.spec.model import Spec

_GATES_NAMED = re.compile(r"\bgates? ((?:`[^`]+`(?:, and |, | and | or )?)+)")
_EARS = re.compile(r"(?:(?:WHEN|WHILE|WHERE) .+?, (?:and )?|IF .+?,? THEN )*THE [^,]+? SHALL \S.*\.")
_VAGUE = re.compile(
    r"\b(?:(?:fast|slow|quick|appropriate|robust|proper|efficient|adequate|sufficient|graceful|seamless|optimal|normal"
    r"|usual|typical|general)(?:ly)?|(?:reasonab|suitab|simp)l[ey]|eas(?:y|ily)|several|various|many|few|some|good"
    r"|better|best|nice|user-friendly|as needed|as necessary|if possible|where possible|and/or|etc)\b",
    re.IGNORECASE,
)
# a number with a unit, a comparison with a number, a power of ten, or a fraction below one
_LIMIT = re.compile(
    r"\d[ -]?(?:%|(?:ns|us|ms|s|seconds?|milliseconds?|minutes?|[kKMG]i?B|bytes|percent|times|fps|img/s)\b)"
    r"|[<>]=? *\d|\b\d+(?:\.\d+)?e-?\d+\b|\b0\.\d+"
)


def problems(spec: Spec) -> list[str]:
    """Everything that is wrong with a spec that could be read, a sentence each; empty for a sound one."""
    return [*_numbering_problems(spec), *_wording_problems(spec), *_citation_problems(spec)]


def _numbering_problems(spec: Spec) -> Iterator[str]:
    yield from _out_of_order("requirement", (each.number for each in spec.requirements))
    for requirement in spec.requirements:
        numbers = (criterion.number for criterion in requirement.criteria)
        yield from _out_of_order(f"criterion of requirement {requirement.number}", numbers)
    yield from _out_of_order("property", (each.number for each in spec.properties))
    group, last = 0, 0
    for task in spec.tasks:
        number = tuple(int(part) for part in task.id.split("."))
        if number not in ((group, last + 1), (group + 1, 1)):
            yield f"task {task.id} after {group}.{last}, expected the next number"
        group, last = number
    ids = [gate.id for gate in spec.gates]
    yield from (f"gate {each!r} is listed {ids.count(each)} times" for each in sorted(set(ids)) if ids.count(each) > 1)
    metrics = [floor.metric for floor in spec.floors]
    twice = sorted({metric for metric in metrics if metrics.count(metric) > 1})
    yield from (f"floor of {metric!r} is listed more than once" for metric in twice)
    for floor in spec.floors:
        if floor.floor <= 0:
            yield f"floor of {floor.metric!r}: {floor.floor:g} {floor.unit}, expected more than 0"
    yield from _reference_problems(spec)


def _reference_problems(spec: Spec) -> Iterator[str]:
    known = {(gate.metric, gate.model) for gate in spec.gates}
    rows = [(each.metric, each.model) for each in spec.references]
    for each in spec.references:
        name = f"reference of {each.metric!r} and {each.model!r}"
        if rows.count((each.metric, each.model)) > 1:
            yield f"{name} is listed more than once"
        for metric in (each.metric, each.rests_on):
            if (metric, each.model) not in known:
                yield f"{name}: there is no gate of the metric {metric!r} for this model"
    quantities = [each.quantity for each in spec.conditions]
    yield from (
        f"condition {each!r} is listed more than once" for each in set(quantities) if quantities.count(each) > 1
    )


def _out_of_order(kind: str, numbers: Iterable[int]) -> Iterator[str]:
    last = 0
    for number in numbers:
        if number != last + 1:
            yield f"{kind}: number {number} after {last}, expected {last + 1}"
        last = number


def _wording_problems(spec: Spec) -> Iterator[str]:
    for criterion in spec.criteria:
        # names in code may contain any word
        prose = re.sub(r"`[^`]*`", "`x`", criterion.text)
        if not _EARS.fullmatch(prose) or prose.count("SHALL") != 1 or re.search(r"[.!?] \S", prose):
            yield f"criterion {criterion.id} is not one sentence 'WHEN ..., THE ... SHALL ...': {criterion.text}"
        if vague := _VAGUE.findall(prose):
            yield f"criterion {criterion.id} uses words that no test can decide: {', '.join(vague)}"
    for prop in spec.properties:
        if not prop.text.startswith("*For any*"):
            yield f"property {prop.number} does not begin with '*For any*': {prop.text}"
    texts = [(f"criterion {criterion.id}", criterion.text) for criterion in spec.criteria]
    texts += [(f"property {prop.number}", prop.text) for prop in spec.properties]
    texts += [(f"task {task.id}", task.title) for task in spec.tasks]
    for where, text in texts:
        if limit := _LIMIT.search(text):
            yield f"{where} writes the limit {limit[0]!r} outside the table Gates, expected the name of a gate: {text}"


def _citation_problems(spec: Spec) -> Iterator[str]:
    known, gates = {criterion.id for criterion in spec.criteria}, {gate.id for gate in spec.gates}
    proofs = [(f"property {prop.number}", prop.validates) for prop in spec.properties]
    proofs += [(f"task {task.id}", task.requirements) for task in spec.tasks]
    for where, references in [*proofs, *((f"gate {gate.id!r}", (gate.criterion,)) for gate in spec.gates)]:
        if not references:
            yield f"{where} cites no criterion"
        yield from (f"{where} cites criterion {each}, which does not exist" for each in references if each not in known)
    cited = set(chain.from_iterable(references for _, references in proofs))
    for criterion in spec.criteria:
        if criterion.id not in cited:
            yield f"criterion {criterion.id} is cited by no property and no task"
        for named in re.findall(r"`([^`]+)`", " ".join(_GATES_NAMED.findall(criterion.text))):
            if named not in gates:
                yield f"criterion {criterion.id} names the gate {named!r}, which does not exist"
