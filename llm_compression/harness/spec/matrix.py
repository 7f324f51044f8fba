"""The matrix of criteria, proofs and outcomes: on the terminal, as Markdown and as a page; and what fails the build."""

from __future__ import annotations

import argparse
import html
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import Final

from llm_compression.errors import LlmCompressionError
from llm_compression.harness.spec.evidence import EVIDENCE_DIRECTORY, Source, read_parts, source_of, write_joined
from llm_compression.harness.spec.parser import read_specs, summary
from llm_compression.harness.spec.proofs import Matrix, Row, State, build_matrix

COLUMNS: Final = ("criterion", "state", "proof", "outcome", "value", "text")
_STYLE: Final = """
:root { color-scheme: light dark; --line: #8884; --good: #1a7f37; --bad: #cf222e; --open: #9a6700 }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem }
table { border-collapse: collapse; width: 100% }
th, td { border-bottom: 1px solid var(--line); padding: .4rem .6rem; text-align: left; vertical-align: top }
th { position: sticky; top: 0; background: Canvas }
td:first-child, .state { white-space: nowrap }
.state { font-weight: 600; color: var(--open) } .PROVEN { color: var(--good) }
.FAILED, .UNCITED { color: var(--bad) }
code { font-size: 12px; overflow-wrap: anywhere } ul { margin: .3rem 0; padding-left: 1.2rem }
"""


def headline(matrix: Matrix, source: Source) -> str:
    """How many criteria and properties are in each state, and of which tree."""
    counts = ", ".join(f"{matrix.count(state)} {state}" for state in State if matrix.count(state))
    tree = f"{source.commit[:12] or 'no commit'}{', with changes' if source.dirty else ''}"
    nothing = "" if matrix.ran else "nothing was run on this tree; "
    return f"{nothing}{len(matrix.rows)} criteria and properties: {counts} ({tree}); problems: {len(matrix.problems)}"


def _functions(row: Row) -> Counter[str]:
    """The proofs with the cases of one test as one, and how many cases each has."""
    return Counter(proof.name.partition("[")[0] for proof in row.proofs)


def _outcomes(row: Row) -> str:
    return ", ".join(f"{count} {outcome}" for outcome, count in Counter(each.outcome for each in row.proofs).items())


def _values(row: Row) -> str:
    """Measured values; of examples the fewest."""
    measured = [proof.value for proof in row.proofs if "(" in proof.value]
    examples = [int(proof.value.split()[0]) for proof in row.proofs if proof.value.endswith("examples")]
    return "; ".join(measured + ([f"{min(examples)} examples"] if examples else []))


def _cells(row: Row) -> tuple[str, ...]:
    functions = list(_functions(row))
    proof = (functions[0] + (f" and {len(functions) - 1} more" if functions[1:] else "")) if functions else ""
    return row.id, row.state, proof, _outcomes(row), _values(row), shorten(row.text, 80, placeholder=" ...")


def to_text(matrix: Matrix) -> str:
    """What is printed: a line for each criterion and property, its text cut short, then the problems."""
    lines = []
    for spec in dict.fromkeys(row.spec for row in matrix.rows):
        table = [COLUMNS, *(_cells(row) for row in matrix.rows if row.spec == spec)]
        widths = [max(map(len, column)) for column in list(zip(*table, strict=True))[:-1]]
        lines += [f"{spec}:", *("  ".join((*map(str.ljust, row, widths), row[-1])).rstrip() for row in table), ""]
    return "\n".join([*lines, *matrix.problems])


def to_markdown(matrix: Matrix, source: Source) -> str:
    """The content of ``spec.md``."""
    parts = ["# Spec", f"**{headline(matrix, source)}**"]
    if matrix.problems:
        parts.append("\n".join(f"- {problem}" for problem in matrix.problems))
    for spec in dict.fromkeys(row.spec for row in matrix.rows):
        lines = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
        for row in (row for row in matrix.rows if row.spec == spec):
            proofs = "<br>".join(f"`{name}`{f' x{n}' if n > 1 else ''}" for name, n in _functions(row).items())
            state = row.state if row.state is State.PROVEN else f"**{row.state}**"
            cells = (row.id, state, proofs, _outcomes(row), _values(row), row.text)
            lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
        parts += [f"## {spec}", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def to_html(matrix: Matrix, source: Source) -> str:
    """The content of ``spec.html``: a page that loads nothing, each proof folded below its criterion."""
    title = html.escape(headline(matrix, source))
    body = [f"<h1>Spec</h1><p><b>{title}</b></p>"]
    body += ["<ul>", *(f"<li>{html.escape(problem)}</li>" for problem in matrix.problems), "</ul>"]
    for spec in dict.fromkeys(row.spec for row in matrix.rows):
        head = "".join(f"<th>{name}</th>" for name in ("criterion", "state", "text and proofs", "outcome", "value"))
        body.append(f"<h2>{html.escape(spec)}</h2><table><tr>{head}</tr>")
        body += [_html_row(row) for row in matrix.rows if row.spec == spec]
        body.append("</table>")
    start = '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Spec</title>'
    return f"{start}<style>{_STYLE}</style></head><body>{''.join(body)}</body></html>\n"


def _html_row(row: Row) -> str:
    proofs = ""
    for proof in row.proofs:
        said = ", ".join(filter(None, (proof.outcome, proof.value, proof.reason)))
        proofs += f"<li><code>{html.escape(proof.name)}</code> {html.escape(said)}</li>"
    folded = f"<details><summary>{len(row.proofs)} proofs</summary><ul>{proofs}</ul></details>" if row.proofs else ""
    state = f'<td class="state {row.state.split()[0]}">{row.state}</td>'
    rest = f"<td>{html.escape(_outcomes(row))}</td><td>{html.escape(_values(row))}</td>"
    return f"<tr><td>{html.escape(row.id)}</td>{state}<td>{html.escape(row.text)}{folded}</td>{rest}</tr>"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the specs and the matrix, and write ``reports/evidence.json``; 0 without a problem, else 1."""
    parser = argparse.ArgumentParser(
        prog="python -m llm_compression.harness.spec.matrix",
        description="Join the specs of a checkout with the evidence that its sessions left in reports/evidence. "
        "Evidence of another source tree does not count. Exits 1 when something is wrong.",
        epilog="example: python -m llm_compression.harness.spec.matrix --strict --write",
    )
    parser.add_argument("root", nargs="?", type=Path, default=Path(), metavar="ROOT", help="the checkout (default: .)")
    parser.add_argument("--strict", action="store_true", help="fail on what was not run, too")
    parser.add_argument("--write", action="store_true", help="write reports/spec.md and reports/spec.html")
    options = parser.parse_args(arguments)
    root, reports = options.root, options.root / EVIDENCE_DIRECTORY.parent
    try:
        source, specs = source_of(root), read_specs(root)
        found = read_parts(root / EVIDENCE_DIRECTORY)
        parts = {name: part for name, part in found.items() if part.source == source}
        matrix = build_matrix(root, specs, parts, strict=options.strict)
    except LlmCompressionError as error:
        print(error, file=sys.stderr)
        return 1
    write_joined(reports / "evidence.json", source, parts)
    notes = [f"git knows no commit: {source.reason}"] if source.reason else []
    if others := sorted(found.keys() - parts.keys()):
        notes.append(f"of another source tree, and not counted: the evidence of {', '.join(others)}")
    print(*map(summary, specs), to_text(matrix), *notes, headline(matrix, source), sep="\n\n")
    if options.write:
        (reports / "spec.md").write_text(to_markdown(matrix, source), encoding="utf-8")
        (reports / "spec.html").write_text(to_html(matrix, source), encoding="utf-8")
        print(f"wrote spec.md and spec.html in {reports}")
    return 1 if matrix.problems else 0


if __name__ == "__main__":
    sys.exit(main())
