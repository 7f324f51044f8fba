"""Plots as SVG text: all metrics, the rounds of one, a series over commits. Written by hand: they ask no other host."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from html import escape
from typing import Final

from llm_compression.harness.paired.compare import Outcome, Verdict

COLORS: Final = {"base": "#475569", "head": "#c2410c", "control": "#94a3b8"}
DASHES: Final = ' stroke-dasharray="4 3"'
_WIDTH: Final = 720
_LEFT: Final = 150
_RIGHT: Final = 20


def forest_plot(named: Sequence[tuple[str, Verdict]]) -> str:
    """A row for each metric: its change, the interval, the noise band and the floor, all in percent of the base."""
    shown = [(name, verdict) for name, verdict in named if verdict.change is not None]
    if not shown:
        return ""
    reach = _reach([verdict for _, verdict in shown])
    bottom = 22 * len(shown) + 8
    parts = [_line(_percent_place(0, reach), 4, _percent_place(0, reach), bottom, "#94a3b8")]
    for row, (name, verdict) in enumerate(shown):
        middle = 16 + 22 * row
        parts += [_text(_LEFT - 8, middle + 4, name, "end"), *_limits(verdict, reach, middle - 8, middle + 8)]
        parts += _interval(verdict, reach, middle)
    parts += _percent_axis(reach, bottom + 14)
    return _svg(bottom + 20, parts)


def rounds_plot(verdict: Verdict) -> str:
    """Each round of a metric: its turns and their median, the control's in grey; floor, band and interval with them."""
    rounds = verdict.rounds
    if verdict.change is None or not len(rounds):
        return ""
    turns = rounds.turns or tuple(zip(zip(rounds.base, rounds.head, rounds.control, strict=True), strict=True))
    reach = _reach([verdict], [_changes(turn) for each in turns for turn in each])
    bottom = 26 * (len(turns) + 1) + 8
    zero = _percent_place(0, reach)
    parts = [*_limits(verdict, reach, 4, bottom), _line(zero, 4, zero, bottom, "#94a3b8")]
    of_rounds = [_changes(values) for values in zip(rounds.base, rounds.head, rounds.control, strict=True)]
    for number, (each, (change, noise)) in enumerate(zip(turns, of_rounds, strict=True)):
        middle = 18 + 26 * number
        parts.append(_text(_LEFT - 8, middle + 4, f"round {number + 1}", "end"))
        for place, turn in enumerate(each):
            # apart by their turn, so that equal values do not hide each other
            y, (of_head, of_control) = middle + (place % 5 - 2) * 1.5, _changes(turn)
            title = f"control {_said(of_control)}"
            parts.append(_dot(_percent_place(of_control, reach), y + 5, COLORS["control"], title, 2))
            parts.append(_dot(_percent_place(of_head, reach), y - 5, COLORS["head"], f"head {_said(of_head)}", 2))
        for value, y, color in ((change, middle - 5, "black"), (noise, middle + 5, "#64748b")):
            x = _percent_place(value, reach)
            parts.append(_line(x, y - 5, x, y + 5, color, 2))
    middle = 18 + 26 * len(turns)
    parts += [_text(_LEFT - 8, middle + 4, "all", "end"), *_interval(verdict, reach, middle)]
    parts += _percent_axis(reach, bottom + 14)
    return _svg(bottom + 20, parts)


def _changes(turn: Sequence[float]) -> tuple[float, float]:
    """Log ratios of head to base and control, and of control to base."""
    base, head, control = map(math.log, turn)
    return head - (base + control) / 2, control - base


def _reach(verdicts: Sequence[Verdict], turns: Sequence[tuple[float, float]] = ()) -> float:
    """Where the axis ends, as a log ratio: all of the limits, and turns but for the widest."""
    found = [0.01]
    for verdict in verdicts:
        found.append(math.log(min(verdict.floor, 4)) * 1.5)
        if verdict.change is not None:
            found += [
                abs(math.log(ratio))
                for ratio in (verdict.change.ratio, verdict.change.low, verdict.change.high)
                if 0.2 < ratio < 5
            ]
    if turns:
        widest = sorted(max(abs(change), abs(noise)) for change, noise in turns)
        found.append(widest[int(0.9 * (len(widest) - 1))])
    return min(max(found) * 1.05, 1.7)


def _limits(verdict: Verdict, reach: float, top: float, bottom: float) -> list[str]:
    """The floor as a shade, the noise band as dashed lines."""
    parts = []
    if math.isfinite(verdict.floor):
        left, right = (_percent_place(sign * math.log(verdict.floor), reach) for sign in (-1, 1))
        title = f"<title>floor {_said(math.log(verdict.floor))}</title>"
        size = f'width="{right - left:.1f}" height="{bottom - top:.1f}"'
        parts.append(f'<rect x="{left:.1f}" y="{top:.1f}" {size} fill="#e2e8f0">{title}</rect>')
    if math.isfinite(verdict.band):
        for sign in (-1, 1):
            x = _percent_place(sign * math.log(verdict.band), reach)
            parts.append(_line(x, top, x, bottom, "#64748b", dashed=True))
    return parts


def _interval(verdict: Verdict, reach: float, y: float) -> list[str]:
    change = verdict.change
    assert change is not None
    color = COLORS["head"] if verdict.outcome in (Outcome.REGRESSED, Outcome.IMPROVED) else COLORS["base"]
    low, middle, high = (_percent_place(_log(ratio), reach) for ratio in (change.low, change.ratio, change.high))
    title = f"{verdict.outcome}: {_said(_log(change.ratio))}, {_said(_log(change.low))} to {_said(_log(change.high))}"
    return [_line(low, y, high, y, color, 2), _dot(middle, y, color, title)]


def _log(ratio: float) -> float:
    return -math.inf if ratio <= 0 else math.log(ratio)


def _percent_place(log_ratio: float, reach: float) -> float:
    """Where a log ratio stands; what is beyond the axis at its end."""
    return _place(max(-reach, min(reach, log_ratio)), -reach, reach)


def _percent_axis(reach: float, y: float) -> list[str]:
    return [
        _text(_LEFT, y, _said(-reach)),
        _text(_percent_place(0, reach), y, "no change", "middle"),
        _text(_WIDTH - _RIGHT, y, _said(reach), "end"),
    ]


def _said(log_ratio: float) -> str:
    return f"{100 * math.expm1(log_ratio):+.3g} %" if abs(log_ratio) < 700 else "any"


def trend_plot(labels: Sequence[str], values: Sequence[float], changes: Collection[int]) -> str:
    """A dot for each commit, oldest first, and a dashed line before each commit at which the series changed."""
    if not values:
        return ""
    low, high = _range(values)

    def x(index: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (index + 0.5) / len(values)

    def y(value: float) -> float:
        return 90 - 76 * (value - low) / (high - low)

    points = " ".join(f"{x(index):.1f},{y(value):.1f}" for index, value in enumerate(values))
    parts = [f'<polyline points="{points}" fill="none" stroke="#94a3b8"/>']
    for index in sorted(changes):
        place = f"{x(index - 0.5):.1f}"
        line = f'x1="{place}" y1="8" x2="{place}" y2="94" stroke="{COLORS["head"]}" stroke-dasharray="4 3"'
        parts.append(f"<line {line}><title>changes at {escape(labels[index])}</title></line>")
    parts += [
        _dot(x(index), y(value), COLORS["base"], f"{label}: {value:.6g}")
        for index, (label, value) in enumerate(zip(labels, values, strict=True))
    ]
    parts += [_text(_LEFT - 8, 94, f"{low:.4g}", "end"), _text(_LEFT - 8, 18, f"{high:.4g}", "end")]
    parts += [_text(_LEFT, 112, labels[0]), _text(_WIDTH - _RIGHT, 112, labels[-1], "end")]
    return _svg(118, parts)


def sparkline(values: Sequence[float]) -> str:
    """The series in a line of text, lowest to highest."""
    low, high = min(values), max(values)
    # less than a tenth does not fill the line: noise must not look like a cliff
    span = max(high - low, 0.1 * high)
    return "".join("▁▂▃▄▅▆▇█"[int((value - low) / span * 7)] for value in values)


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Where an axis begins and ends; never the same place."""
    low, high = min(values), max(values)
    return (low, high) if high > low else (low * 0.99, high * 1.01)


def _place(value: float, low: float, high: float) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (value - low) / (high - low)


def _line(x1: float, y1: float, x2: float, y2: float, color: str, width: float = 1, *, dashed: bool = False) -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{color}" stroke-width="{width:g}"{DASHES if dashed else ""}/>'


def _dot(x: float, y: float, color: str, title: str, radius: float = 3.5) -> str:
    circle = f'cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" fill="{color}" fill-opacity="0.7"'
    return f"<circle {circle}><title>{escape(title)}</title></circle>"


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(height: int, parts: Sequence[str]) -> str:
    style = 'font-family="sans-serif" font-size="11"'
    return f'<svg viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" role="img" {style}>{"".join(parts)}</svg>'
