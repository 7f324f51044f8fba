"""The gates' verdict in words: what fails or was not measured first, then what is close to its limit, then the rest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from llm_compression.harness.clip.gates import Judgement, Status, Verdict

COLUMNS: Final = ("gate", "criterion", "measured", "limit", "unit", "to the limit", "spread", "result")
_CLOSE: Final = 0.2
# the gravest first
_ORDER: Final = (Status.MISS, Status.ERROR, Status.NOT_RUN, Status.INVALID, Status.NOT_MEASURABLE)


def headline(judgement: Judgement) -> str:
    """The verdict in a sentence: what fails, what could not be measured and why, and how many are within."""
    found = {status: [each for each in judgement.verdicts if each.status is status] for status in Status}
    found[Status.NOT_RUN] = [each for each in found[Status.NOT_RUN] if not each.excused]
    parts = [f"{len(each)} {status} ({_some(each)})" for status, each in ((_, found[_]) for _ in _ORDER[:3]) if each]
    if invalid := found[Status.INVALID]:
        parts.append(f"{len(invalid)} not measured, as other processes had the processors ({_some(invalid)})")
    if slow := found[Status.NOT_MEASURABLE]:
        rates = "; ".join(f"{each.gate.id}: {each.reason.rpartition(', ')[2]}" for each in slow)
        parts.append(f"{len(slow)} not measurable on this machine ({rates})")
    parts.append(f"{len(found[Status.PASS])} of {len(judgement.verdicts)} gates within their limits")
    if excused := [each for each in judgement.verdicts if each.excused]:
        parts.append(f"{len(excused)} of devices or processors that are not here")
    verdict = "PASS" if judgement.passed else "INVALID" if judgement.invalid else "FAIL"
    return f"{verdict}: {', '.join(parts)}."


def _some(verdicts: Sequence[Verdict]) -> str:
    names = [verdict.gate.id for verdict in verdicts[:3]]
    return ", ".join(names) + (f" and {len(verdicts) - 3} more" if len(verdicts) > 3 else "")


def sections(judgement: Judgement) -> Iterator[tuple[str, list[Verdict]]]:
    """Title and verdicts of each part of the table, without those whose device is not here."""
    shown = [each for each in judgement.verdicts if not each.excused]
    open_ones = [each for status in _ORDER for each in shown if each.status is status]
    passed = [each for each in shown if each.status is Status.PASS]
    close = [each for each in passed if used(each) > 1 - _CLOSE]
    yield "Missed, or not measured", open_ones
    yield f"Within {_CLOSE:.0%} of the limit", sorted(close, key=used, reverse=True)
    yield "Within the limit", [each for each in passed if each not in close]


def used(verdict: Verdict) -> float:
    """How much of its limit a value uses: 1 at the limit, more beyond it; NaN without a value.

    Of a lower limit, such as that of a cosine, the part of what may be missing from 1.
    """
    gate, value = verdict.gate, verdict.value
    if value is None:
        return float("nan")
    if gate.comparison.startswith("<"):
        return value / gate.limit if gate.limit else float(value > 0)
    return (1 - value) / (1 - gate.limit) if gate.limit < 1 else gate.limit / value


def remarks(judgement: Judgement) -> list[str]:
    """Why a gate is missed or not measured, what was taken again, and whatever else is wrong."""
    by_reason: dict[str, list[str]] = {}
    for verdict in judgement.verdicts:
        if verdict.reason and not verdict.excused:
            by_reason.setdefault(verdict.reason, []).append(f"{verdict.gate.id} {verdict.status}")
    lines = [f"{', '.join(who)}: {reason}" for reason, who in by_reason.items()]
    for verdict in judgement.verdicts:
        if (parts := verdict.detail.get("disturbed")) and verdict.status is not Status.INVALID:
            waited = ", ".join(f"{part:.0%}" for part in parts)
            lines.append(f"{verdict.gate.id}: {len(parts)} samples taken again, as they waited {waited} of their time")
    return lines + list(judgement.problems)


def excused_line(judgement: Judgement) -> str:
    """The gates of devices and processors that are not here, in a line; empty where there is none."""
    by_reason: dict[str, list[str]] = {}
    for verdict in judgement.verdicts:
        if verdict.excused:
            by_reason.setdefault(verdict.reason, []).append(verdict.gate.id)
    parts = [f"{reason} ({len(who)}: {', '.join(who)})" for reason, who in by_reason.items()]
    return f"Not run here: {'; '.join(parts)}." if parts else ""


def cells(verdict: Verdict) -> tuple[str, ...]:
    """A row of the table."""
    gate, measured = verdict.gate, verdict.value is not None
    return (
        gate.id,
        gate.criterion,
        figure(verdict.value) if verdict.value is not None else "",
        f"{gate.comparison} {gate.limit:g}",
        "" if gate.unit == "1" else gate.unit,
        _distance(verdict) if measured else "",
        _spread(verdict),
        verdict.status,
    )


def _distance(verdict: Verdict) -> str:
    part = used(verdict)
    # of a lower limit beside 1 only what is missing is a measure
    return f"over by {part - 1:.1%}" if part > 1 else f"{1 - part:.1%} left"


def figure(value: float) -> str:
    """Four significant digits; of what is close to 1, four of what is missing."""
    if 0.99 < abs(value) < 1:
        return f"{value:.7f}"
    return f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"


def _spread(verdict: Verdict) -> str:
    if len(verdict.samples) < 2:
        return ""
    return f"{figure(min(verdict.samples))} to {figure(max(verdict.samples))}, n={len(verdict.samples)}"


def table_lines(judgement: Judgement) -> list[str]:
    """The whole table as lines of a terminal."""
    parts = [(title, list(map(cells, verdicts))) for title, verdicts in sections(judgement) if verdicts]
    rows = [COLUMNS, *(row for _, part in parts for row in part)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(row: Iterable[str]) -> str:
        return "  ".join(map(str.ljust, row, widths)).rstrip()

    lines = [line(COLUMNS)]
    for title, part in parts:
        lines += ["", f"{title}:", *map(line, part)]
    return lines


def table_markdown(judgement: Judgement) -> list[str]:
    """The whole table as Markdown, a part each."""
    parts = []
    for title, verdicts in sections(judgement):
        if verdicts:
            marked = [
                (*row[:-1], row[-1] if row[-1] == Status.PASS else f"**{row[-1]}**") for row in map(cells, verdicts)
            ]
            parts += [f"## {title}", markdown_table(COLUMNS, marked, right=(2, 3))]
    return parts


def markdown_table(head: Sequence[str], table: Iterable[Sequence[str]], right: Iterable[int] = ()) -> str:
    """A table in Markdown, the columns of these numbers to the right."""
    aligned = set(right)
    rule = ["---:" if index in aligned else "---" for index in range(len(head))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *table))


def also_measured(verdicts: Iterable[Verdict], titles: Mapping[str, str]) -> str:
    """One column for each gate that left a summary; empty where none did."""
    columns: dict[str, Mapping[str, Any]] = {
        f"{each.gate.model} {each.gate.session}": each.detail["summary"]
        for each in verdicts
        if "summary" in each.detail
    }
    if not columns:
        return ""
    table = [
        (title, *(figure(summary[key]) if key in summary else "" for summary in columns.values()))
        for key, title in titles.items()
    ]
    return markdown_table(("median over processes", *columns), table, right=range(1, len(columns) + 1))
