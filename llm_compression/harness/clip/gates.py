"""What the gates' tests left, judged against the table *Gates* of the spec.

The table says which gates there are; the results only say what became of them. So a gate whose test was deleted,
deselected, skipped or expected to fail is seen, and so is a test that passed with a value that misses its limit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from llm_compression.errors import LlmCompressionError
from llm_compression.harness.spec.evidence import INVALID, NO_CUDA, NVIDIA_DRIVER
from llm_compression.harness.spec.parser import Gate, Reference

CUDA_SESSION: Final = "cuda"
# session of a gate -> why it is not run where the machine is not of its kind
SESSIONS: Final[Mapping[str, str]] = {
    "cpu": "",
    "cpu-float32": "this processor multiplies bfloat16",
    "cpu-bfloat16": "this processor does not multiply bfloat16 without AMX",
    "cpu-amx": "this processor has no AMX",
    CUDA_SESSION: NO_CUDA,
}
# how the reason begins of a limit that was missed on a machine slower than the reference
SLOW: Final = "slower than the reference machine"


class ResultsError(LlmCompressionError):
    """The file of results cannot be read."""


class Status(StrEnum):
    """What became of a gate."""

    PASS = "PASS"
    MISS = "MISS"
    NOT_MEASURABLE = "NOT MEASURABLE HERE"
    INVALID = "INVALID"
    NOT_RUN = "NOT RUN"
    ERROR = "ERROR"


@dataclass(frozen=True)
class Result:
    """What the test of a gate left.

    Attributes:
        gate: The gate's id.
        outcome: ``passed``, ``failed``, ``skipped``, ``xfailed`` or ``xpassed``.
        reason: Why it was skipped or failed; empty where it passed.
        value: What was measured, in the unit of the gate; None where nothing was.
        samples: The values that it was taken from, such as one for each process.
        detail: Other figures, for the report.
    """

    gate: str
    outcome: str
    reason: str = ""
    value: float | None = None
    samples: tuple[float, ...] = ()
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """A gate and what became of it.

    Attributes:
        gate: The row of the table.
        status: What became of it.
        value: What was measured, or None.
        samples: The values that it was taken from.
        reason: Why it is not a pass.
        excused: Whether it needs a device or a processor that this machine lacks, and is NOT RUN for that reason.
        detail: Other figures.
    """

    gate: Gate
    status: Status
    value: float | None = None
    samples: tuple[float, ...] = ()
    reason: str = ""
    excused: bool = False
    detail: Mapping[str, Any] = field(default_factory=dict)

    @property
    def holds_up(self) -> bool:
        """Whether this gate lets the session succeed."""
        return self.status in (Status.PASS, Status.NOT_MEASURABLE) or self.excused


@dataclass(frozen=True)
class Judgement:
    """Every gate of the table, in its order, and whatever else is wrong."""

    verdicts: tuple[Verdict, ...]
    problems: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether every gate passed, is not measurable here or is excused, one passed, and nothing else is wrong."""
        return self._sound and all(verdict.holds_up for verdict in self.verdicts)

    @property
    def invalid(self) -> bool:
        """Whether it would have passed but for samples that other processes disturbed."""
        rest = [verdict for verdict in self.verdicts if verdict.status is not Status.INVALID]
        return self._sound and not self.passed and all(verdict.holds_up for verdict in rest)

    @property
    def _sound(self) -> bool:
        return not self.problems and any(verdict.status is Status.PASS for verdict in self.verdicts)


def sessions_lacked() -> dict[str, str]:
    """The sessions whose gates this machine cannot run, and why."""
    import torch

    from llm_compression.inference.linear import auto_dtype
    from llm_compression.inference.processor import has_amx

    own = "cpu-float32"
    if auto_dtype(torch.device("cpu")) == torch.bfloat16:
        own = "cpu-amx" if has_amx() else "cpu-bfloat16"
    lacked = {name: SESSIONS[name] for name in ("cpu-float32", "cpu-bfloat16", "cpu-amx") if name != own}
    # a device that PyTorch cannot use is no device that the machine lacks
    if not torch.cuda.is_available() and not NVIDIA_DRIVER.exists():
        lacked[CUDA_SESSION] = SESSIONS[CUDA_SESSION]
    return lacked


def judge(
    gates: Sequence[Gate],
    results: Sequence[Result],
    pytest_status: int,
    *,
    lacked: Mapping[str, str],
    references: Sequence[Reference] = (),
) -> Judgement:
    """Compare results with the table.

    Args:
        gates: The rows that had to be measured.
        results: What the tests left.
        pytest_status: The exit status of pytest.
        lacked: The sessions that this machine cannot run, and the reason with which their gates are skipped.
        references: The table *Reference machine*.
    """
    by_gate: dict[str, list[Result]] = {}
    for result in results:
        by_gate.setdefault(result.gate, []).append(result)
    verdicts = [_judge_one(gate, by_gate.get(gate.id, []), lacked) for gate in gates]
    verdicts = [_on_this_machine(verdict, verdicts, references) for verdict in verdicts]
    unknown = sorted(by_gate.keys() - {gate.id for gate in gates})
    problems = [f"a test names the gate {name!r}, which is not in the table" for name in unknown]
    if not gates:
        problems.append("the table has no gate to measure")
    # 1 is a failed test, which a verdict already shows; any other status, or one that no verdict explains, is its own
    if pytest_status not in (0, 1) or (pytest_status == 1 and all(verdict.holds_up for verdict in verdicts)):
        problems.append(f"pytest ended with exit status {pytest_status}")
    return Judgement(tuple(verdicts), tuple(problems))


def _judge_one(gate: Gate, results: Sequence[Result], lacked: Mapping[str, str]) -> Verdict:
    if not results:
        return Verdict(gate, Status.NOT_RUN, reason="no result: its test is deleted, deselected or was not reached")
    if len(results) > 1:
        return Verdict(gate, Status.ERROR, reason=f"{len(results)} tests for one gate")
    result = results[0]
    measured = result.value is not None
    within = result.value is not None and gate.passes(result.value)
    if result.outcome == "skipped" and not (measured and result.reason.startswith(SLOW)):
        if result.reason.startswith(INVALID) and result.detail.get("disturbed"):
            return Verdict(gate, Status.INVALID, reason=_without(INVALID, result.reason), detail=result.detail)
        excused = result.reason != "" and lacked.get(gate.session) == result.reason
        return Verdict(gate, Status.NOT_RUN, reason=result.reason or "skipped", excused=excused)
    if result.outcome == "passed" and within:
        status, reason = Status.PASS, ""
    elif result.outcome in ("passed", "failed", "skipped") and measured and not within:
        status, reason = Status.MISS, "its test passed all the same" if result.outcome == "passed" else ""
    else:
        status, reason = Status.ERROR, result.reason or f"{result.outcome}, and nothing was measured"
    return Verdict(gate, status, result.value, result.samples, reason, detail=result.detail)


def _on_this_machine(verdict: Verdict, verdicts: Sequence[Verdict], references: Sequence[Reference]) -> Verdict:
    """A miss on a machine slower than the reference, where the gates that hold on any machine are passed."""
    rate = verdict.detail.get("rate")
    found = [each for each in references if (each.metric, each.model) == (verdict.gate.metric, verdict.gate.model)]
    if verdict.status is not Status.MISS or rate is None or not found or not rate < found[0].rate:
        return verdict
    reference = found[0]
    rates = f"{rate:.4g} of {reference.rate:g} {reference.unit}"
    rests_on = [
        each
        for each in verdicts
        if (each.gate.metric, each.gate.model) == (reference.rests_on, reference.model) and not each.excused
    ]
    if rests_on and all(each.status is Status.PASS for each in rests_on):
        return replace(verdict, status=Status.NOT_MEASURABLE, reason=f"{SLOW}, {rates}")
    states = ", ".join(f"{each.gate.id} {each.status}" for each in rests_on) or f"no gate of {reference.rests_on}"
    if rests_on and all(each.status in (Status.PASS, Status.INVALID) for each in rests_on):
        return replace(verdict, status=Status.INVALID, reason=f"{SLOW}, {rates}, and what it rests on is {states}")
    return replace(verdict, reason=f"{SLOW}, {rates}, which does not excuse it: {states}")


def _without(prefix: str, reason: str) -> str:
    return reason.removeprefix(prefix).lstrip(": ")


def write_results(path: Path, results: Sequence[Result], pytest_status: int) -> None:
    """Write what the tests left, as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"pytest_status": pytest_status, "results": [asdict(result) for result in results]}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_results(path: Path) -> tuple[list[Result], int]:
    """Read what `write_results` wrote: the results, and pytest's exit status.

    Raises:
        ResultsError: The file is missing or is something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        results = [Result(**{**values, "samples": tuple(values["samples"])}) for values in content["results"]]
        return results, int(content["pytest_status"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResultsError(f"{path}: no results of gates here: {error!r}") from error
