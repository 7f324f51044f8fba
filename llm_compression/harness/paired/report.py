"""`reports/regression.md`, `.html` and `.json`: the verdict and the next step first, the machine folded away last."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from statistics import median
from typing import Any, Final

from llm_compression.harness.paired.compare import Interval, Outcome, Rounds, Verdict, overall
from llm_compression.harness.paired.machine import MachineInfo
from llm_compression.harness.paired.page import html_page, html_table, markdown_table
from llm_compression.harness.paired.plots import forest_plot, rounds_plot
from llm_compression.harness.paired.project import Key, Metric, Project
from llm_compression.harness.paired.rounds import Comparison
from llm_compression.harness.paired.worktrees import Revision

COLUMNS: Final = ("metric", "model", "base", "head", "change", "interval", "noise band", "rounds", "verdict")
FILES: Final = ("regression.md", "regression.html", "regression.json")
BAD: Final = (Outcome.REGRESSED, Outcome.NOT_COMPARABLE)
_STATUS: Final = {Outcome.REGRESSED: 1, Outcome.NOT_COMPARABLE: 3, Outcome.INCONCLUSIVE: 3}
_LEGEND: Final = (
    "A dot is the change of the head to the base, its line the interval; the shade is the floor, dashed lines are the "
    "noise band. The gravest come first."
)
_ROUNDS_LEGEND: Final = (
    "A small dot is a turn, a bar the median of its round: of the head in colour, of the control, the base once more, "
    "in grey. What is beyond the axis stands at its end."
)
_COMMENT: Final = 60_000  # a comment of GitHub holds 65,536 characters


@dataclass(frozen=True)
class Run:
    """Everything that the files show.

    Attributes:
        project: Whose revisions they are.
        base: What was compared with.
        head: What was measured.
        found: The verdicts and every value.
        machine: Where.
        measured_at: Date and time, UTC.
        notes: What a reader must know, such as what was not measured.
        confirm: Whether only a confirmed regression fails.
        identical: Whether the package is the same on both sides and was not measured for that reason.
        seed: What orders and places were drawn from.
    """

    project: Project
    base: Revision
    head: Revision
    found: Comparison
    machine: MachineInfo
    measured_at: str
    notes: tuple[str, ...] = ()
    confirm: bool = False
    identical: bool = False
    seed: int | None = None

    @property
    def verdict(self) -> Outcome:
        """The gravest of all metrics."""
        return Outcome.SAME if self.identical else overall([each.outcome for each in self.found.verdicts.values()])

    @property
    def exit_status(self) -> int:
        """0 no regression, 1 regression, 3 inconclusive or not comparable; to confirm, an inconclusive one passes."""
        passes = self.confirm and self.verdict is Outcome.INCONCLUSIVE
        return 0 if passes else _STATUS.get(self.verdict, 0)


def headline(run: Run) -> str:
    """The verdict in a sentence."""
    if run.identical:
        return "SAME: the package is the same in both revisions, nothing was measured."
    named = [
        f"{key.metric} {key.model}{_by(verdict)}"
        for key, verdict in run.found.verdicts.items()
        if verdict.outcome is run.verdict
    ]
    what = f"all {len(named)} metrics" if len(named) == len(run.found.verdicts) else ", ".join(named)
    return f"{run.verdict}: {what or 'nothing was measured'}."


def next_step(run: Run) -> str:
    """What to do now."""
    between = f"{run.base.short}..{run.head.short}"
    package = run.project.package
    again = f"`{run.project.command} --base {run.base.short} --head {run.head.short}`"
    needed = max((each.seconds_needed or 0 for each in run.found.verdicts.values()), default=0)
    return {
        Outcome.REGRESSED: f"`git log -p {between} -- {package}` shows what changed; {again} measures again.",
        Outcome.NOT_COMPARABLE: "mend the side that failed; its error is below the table.",
        Outcome.INCONCLUSIVE: "measure on a quieter machine, or longer: "
        f"{again} with a larger `--budget` (about {_seconds(needed)}).",
        Outcome.IMPROVED: "none; the history has the new level.",
        Outcome.SAME: "none.",
    }[run.verdict]


def rows(run: Run) -> list[tuple[str, ...]]:
    """The table: a row for each metric and model."""
    found: list[tuple[str, ...]] = []
    for key, verdict in run.found.verdicts.items():
        rounds, unit = verdict.rounds, run.project.metrics[key.metric].unit
        change = verdict.change
        found.append(
            (
                key.metric,
                key.model,
                _figure((*rounds.base, *rounds.control), unit),
                _figure(rounds.head, unit),
                _percent(change.ratio) if change else "",
                f"{_percent(change.low)} to {_percent(change.high)}" if change else "",
                f"±{100 * (verdict.band - 1):.3g} %" if math.isfinite(verdict.band) else "",
                str(len(rounds)),
                verdict.outcome.value,
            )
        )
    return found


def remarks(run: Run) -> list[str]:
    """Reasons, the same one once; what an inconclusive metric would take; then the notes of the run."""
    by_reason: dict[str, list[str]] = {}
    for key, verdict in run.found.verdicts.items():
        reason = verdict.reason
        if verdict.outcome is Outcome.INCONCLUSIVE and verdict.rounds_needed:
            seen = f"{100 * (verdict.detectable - 1):.3g} %, floor {100 * (verdict.floor - 1):.3g} %"
            needed = _seconds(verdict.seconds_needed or 0)
            reason = f"{reason} smallest change seen {seen}: a decision takes about {needed} of its model".strip()
        if reason:
            by_reason.setdefault(reason, []).append(f"{key.metric} {key.model}")
    return [f"{', '.join(who)}: {reason}" for reason, who in by_reason.items()] + list(run.notes)


def to_markdown(run: Run, trend: Sequence[tuple[str, str, str]] = ()) -> str:
    """The content of ``regression.md``, short enough for a comment; the plots are in ``regression.html``."""
    marked = [(*row[:-1], f"**{row[-1]}**" if row[-1] in BAD else row[-1]) for row in rows(run)]
    parts = ["# Regression report", f"**{_plain(headline(run))}**", f"Next: {next_step(run)}"]
    parts.append("\n".join(f"- {_plain(line)}" for line in _about(run)))
    if marked:
        parts.append(markdown_table(COLUMNS, marked))
    if notes := remarks(run):
        parts.append("\n".join(f"- {_plain(_shortened(note))}" for note in notes))
    if trend:
        parts.append(_fold("Trend", markdown_table(("series", "oldest to newest"), [each[:2] for each in trend])))
    parts.append(_fold("Machine and versions", markdown_table(("", ""), _machine(run))))
    text = "\n\n".join(parts) + "\n"
    return text if len(text) <= _COMMENT else text[:_COMMENT] + "\n\n(cut; the whole report is in regression.html)\n"


def to_html(run: Run, trend: Sequence[tuple[str, str, str]] = ()) -> str:
    """The content of ``regression.html``: the same with plots, and no request to another host."""
    bad = [outcome.value for outcome in BAD]
    parts = ["<h1>Regression report</h1>", f"<p><strong>{escape(headline(run))}</strong></p>"]
    parts.append(f"<p>Next: {escape(next_step(run).replace('`', ''))}</p>")
    parts += ["<ul>", *(f"<li>{escape(line)}</li>" for line in _about(run)), "</ul>"]
    parts.append(html_table(COLUMNS, rows(run), bad))
    parts += ["<ul>", *(f"<li>{escape(note)}</li>" for note in remarks(run)), "</ul>"]
    gravest = sorted(run.found.verdicts.items(), key=lambda each: list(Outcome).index(each[1].outcome))
    named = [(f"{key.metric} {key.model}", verdict) for key, verdict in gravest]
    if plot := forest_plot(named):
        parts += ["<h2>All metrics</h2>", f"<p>{_LEGEND}</p>", plot]
    plots = [(name, rounds_plot(verdict)) for name, verdict in named if verdict.outcome is not Outcome.SAME]
    if any(plot for _, plot in plots):
        parts += ["<h2>Round by round</h2>", f"<p>{_ROUNDS_LEGEND}</p>"]
        parts += [f"<h3>{escape(name)}</h3>{plot}" for name, plot in plots if plot]
    if trend:
        parts.append("<h2>Trend</h2>")
        parts += [f"<h3>{escape(title)}</h3><p>{escape(line)}</p>{plot}" for title, line, plot in trend]
    machine = html_table(("", ""), _machine(run))
    parts.append(f"<details><summary>Machine and versions</summary>{machine}</details>")
    return html_page("Regression report", "\n".join(parts))


def to_json(run: Run) -> dict[str, Any]:
    """The content of ``regression.json``; NaN and infinity, which JSON cannot hold, are null."""
    return {
        "verdict": run.verdict.value,
        "exit_status": run.exit_status,
        "summary": headline(run),
        "next": next_step(run),
        "base": asdict(run.base),
        "head": asdict(run.head),
        "metrics": [
            _metric(run.project.metrics[key.metric], key, verdict, run.found.rounds.get(key, verdict.rounds))
            for key, verdict in run.found.verdicts.items()
        ],
        "notes": list(run.notes),
        "confirm": run.confirm,
        "identical": run.identical,
        "seconds": run.found.seconds,
        "waiting": run.found.waiting,
        "seed": run.seed,
        "measured_at": run.measured_at,
        "machine": asdict(run.machine),
    }


def write_report(out: Path, run: Run, trend: Sequence[tuple[str, str, str]], summary: str = "") -> str:
    """Write the three files, append the Markdown to the job summary if there is one, and return the Markdown."""
    out.mkdir(parents=True, exist_ok=True)
    text = to_markdown(run, trend)
    contents = (text, to_html(run, trend), json.dumps(to_json(run), indent=1, allow_nan=False) + "\n")
    for name, content in zip(FILES, contents, strict=True):
        (out / name).write_text(content, encoding="utf-8")
    if summary:
        with Path(summary).open("a", encoding="utf-8") as file:
            file.write(text)
    return text


def _metric(metric: Metric, key: Key, verdict: Verdict, rounds: Rounds) -> dict[str, Any]:
    def interval(found: Interval | None) -> dict[str, float | None] | None:
        return None if found is None else {name: _finite(value) for name, value in asdict(found).items()}

    return {
        "metric": key.metric,
        "model": key.model,
        "unit": metric.unit,
        "verdict": verdict.outcome.value,
        "change": interval(verdict.change),
        "noise": interval(verdict.noise),
        **{name: _finite(getattr(verdict, name)) for name in ("floor", "band", "detectable")},
        "rounds": len(verdict.rounds),
        "rounds_needed": verdict.rounds_needed,
        "seconds_needed": verdict.seconds_needed,
        "reason": verdict.reason,
        "samples": {side: [_finite(value) for value in values] for side, values in rounds.sides.items()},
        "turns": [[[_finite(value) for value in turn] for turn in turns] for turns in rounds.turns],
    }


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 3600 else f"{seconds / 3600:.0f} h"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _about(run: Run) -> list[str]:
    sides = [f"{name}: {side.short} {side.subject}" for name, side in (("base", run.base), ("head", run.head))]
    lines = [*sides, f"{run.found.seconds:.0f} s of rounds; a change is head / base"]
    if run.found.waiting:
        lines.append(f"a process that waited for its turn used {max(run.found.waiting):.1%} of a processor at most")
    return lines


def _machine(run: Run) -> list[tuple[str, str]]:
    info: Mapping[str, object] = asdict(run.machine)
    facts = [(name, str(value)) for name, value in info.items() if name != "versions"]
    return [*facts, *run.machine.versions.items(), ("measured at", run.measured_at)]


def _fold(title: str, text: str) -> str:
    return f"<details>\n<summary>{title}</summary>\n\n{text}\n\n</details>"


def _plain(text: str) -> str:
    """Text of commits and processes: no markup, no mention, one line."""
    return " ".join(text.replace("<", "&lt;").replace("@", "&#64;").replace("`", "'").split())


def _shortened(note: str) -> str:
    """Its beginning and its end: the last line of a process says why it failed."""
    return note if len(note) <= 700 else f"{note[:200]} ... {note[-480:]}"


def _by(verdict: Verdict) -> str:
    return f" {_percent(verdict.change.ratio)}" if verdict.change and verdict.outcome is not Outcome.SAME else ""


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f} %" if math.isfinite(ratio) else "any"


def _figure(values: Sequence[float], unit: str) -> str:
    if not values:
        return ""
    return f"{median(values):.6f}" if unit == "1" else f"{median(values):.4g} {unit}"
