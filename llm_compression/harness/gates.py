"""What the gates' tests left, judged against the table *Gates* of the spec.

The table says which gates there are; the results only say what became of them. So a gate whose test was deleted,
deselected, skipped or expected to fail is seen, and so is a test that passed with a value that misses its limit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from llm_compression.errors import LlmCompressionError
from llm_compression.harness.evidence import NO_CUDA as NO_CUDA
from llm_compression.harness.evidence import NVIDIA_DRIVER as NVIDIA_DRIVER
from llm_compression.harness.spec import Gate

CUDA_SESSION: Final = "cuda"


class ResultsError(LlmCompressionError):
    """The file of results cannot be read."""


class Status(StrEnum):
    """What became of a gate."""

    PASS = "PASS"
    MISS = "MISS"
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
        excused: Whether it needs a device that this machine lacks, and is NOT RUN for that reason.
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
        return self.status is Status.PASS or self.excused


@dataclass(frozen=True)
class Judgement:
    """Every gate of the table, in its order, and whatever else is wrong."""

    verdicts: tuple[Verdict, ...]
    problems: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether every gate passed or is excused, at least one passed, and nothing else is wrong."""
        some_ran = any(verdict.status is Status.PASS for verdict in self.verdicts)
        return some_ran and not self.problems and all(verdict.holds_up for verdict in self.verdicts)


def judge(gates: Sequence[Gate], results: Sequence[Result], pytest_status: int, *, excuse_cuda: bool) -> Judgement:
    """Compare results with the table.

    Args:
        gates: The rows that had to be measured.
        results: What the tests left.
        pytest_status: The exit status of pytest.
        excuse_cuda: Whether gates that were skipped for want of a CUDA device are excused: this machine has none.
    """
    by_gate: dict[str, list[Result]] = {}
    for result in results:
        by_gate.setdefault(result.gate, []).append(result)
    verdicts = tuple(_judge_one(gate, by_gate.get(gate.id, []), excuse_cuda) for gate in gates)
    unknown = sorted(by_gate.keys() - {gate.id for gate in gates})
    problems = [f"a test names the gate {name!r}, which is not in the table" for name in unknown]
    if not gates:
        problems.append("the table has no gate to measure")
    # 1 is a failed test, which a verdict already shows; any other status, or one that no verdict explains, is its own
    if pytest_status not in (0, 1) or (pytest_status == 1 and all(verdict.holds_up for verdict in verdicts)):
        problems.append(f"pytest ended with exit status {pytest_status}")
    return Judgement(verdicts, tuple(problems))


def _judge_one(gate: Gate, results: Sequence[Result], excuse_cuda: bool) -> Verdict:
    if not results:
        return Verdict(gate, Status.NOT_RUN, reason="no result: its test is deleted, deselected or was not reached")
    if len(results) > 1:
        return Verdict(gate, Status.ERROR, reason=f"{len(results)} tests for one gate")
    result = results[0]
    if result.outcome == "skipped":
        excused = excuse_cuda and gate.session == CUDA_SESSION and result.reason == NO_CUDA
        return Verdict(gate, Status.NOT_RUN, reason=result.reason or "skipped", excused=excused)
    measured = result.value is not None
    within = result.value is not None and gate.passes(result.value)
    if result.outcome == "passed" and within:
        status, reason = Status.PASS, ""
    elif result.outcome in ("passed", "failed") and measured and not within:
        status, reason = Status.MISS, "its test passed all the same" if result.outcome == "passed" else ""
    else:
        status, reason = Status.ERROR, result.reason or f"{result.outcome}, and nothing was measured"
    return Verdict(gate, status, result.value, result.samples, reason, detail=result.detail)


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
