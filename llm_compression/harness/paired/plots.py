"""Plots as SVG text: every sample of a metric, and a series over commits. Written by hand: they ask no other host."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from html import escape
from statistics import median
from typing import Final

from llm_compression.harness.paired.compare import Rounds

COLORS: Final = {"base": "#475569", "head": "#c2410c", "control": "#94a3b8"}
_WIDTH: Final = 640
_LEFT: Final = 70
_RIGHT: Final = 20


def strip_plot(rounds: Rounds, unit: str) -> str:
    """A dot for each process, a row for each side, a line at its median; empty where nothing was measured."""
    sides = {"base": rounds.base, "head": rounds.head, "control": rounds.control}
    values = [value for side in sides.values() for value in side]
    if not values:
        return ""
    low, high = _range(values)
    suffix = "" if unit == "1" else f" {unit}"
    parts = []
    for row, (name, side) in enumerate(sides.items()):
        middle = 16 + 24 * row
        parts.append(_text(_LEFT - 8, middle + 4, name, "end"))
        parts.append(f'<line x1="{_LEFT}" y1="{middle}" x2="{_WIDTH - _RIGHT}" y2="{middle}" stroke="#e2e8f0"/>')
        for number, value in enumerate(side, 1):
            # apart by their round, so that equal values do not hide each other
            y = middle + (number % 5 - 2) * 2.5
            parts.append(_dot(_place(value, low, high), y, COLORS[name], f"round {number}: {value:.6g}{suffix}"))
        if side:
            x = _place(median(side), low, high)
            parts.append(f'<line x1="{x:.1f}" y1="{middle - 9}" x2="{x:.1f}" y2="{middle + 9}" stroke="black"/>')
    parts.append(_text(_LEFT, 90, f"{low:.6g}"))
    parts.append(_text(_WIDTH - _RIGHT, 90, f"{high:.6g}{suffix}", "end"))
    return _svg(96, parts)


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


def _dot(x: float, y: float, color: str, title: str) -> str:
    circle = f'cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{color}" fill-opacity="0.7"'
    return f"<circle {circle}><title>{escape(title)}</title></circle>"


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(height: int, parts: Sequence[str]) -> str:
    style = 'font-family="sans-serif" font-size="11"'
    return f'<svg viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" role="img" {style}>{"".join(parts)}</svg>'
