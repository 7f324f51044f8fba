"""A table in Markdown and in HTML, and a page that asks no other host for anything."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

_STYLE: Final = (
    "body{font:15px/1.5 sans-serif;max-width:960px;margin:2em auto;padding:0 1em;color:#0f172a;background:#fff}"
    "table{border-collapse:collapse;font-size:13px}td,th{border:1px solid #cbd5e1;padding:3px 8px;text-align:left}"
    "svg{max-width:100%;height:auto;display:block}.bad{color:#b91c1c;font-weight:bold}"
)


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose cells may hold any text."""
    cleaned = [[" ".join(cell.replace("|", "\\|").split()) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *cleaned))


def html_table(head: Sequence[str], rows: Iterable[Sequence[str]], bad: Sequence[str] = ()) -> str:
    """The same; cells that are among `bad` stand out."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td{' class=bad' if cell in bad else ''}>{escape(cell)}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def html_page(title: str, body: str) -> str:
    """A whole document; its policy forbids every request, whatever a commit's subject holds."""
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    head = f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}<title>{escape(title)}</title><style>{_STYLE}</style></head>'
        f"<body>{body}</body></html>\n"
    )
