"""Markdown as a spec is written in it: blocks with the lines that they begin at, sections, and tables."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from llm_compression.harness.spec.model import SpecError

# a line that begins one of these is never the continuation of the line above
_STARTS_BLOCK = re.compile(r"#{1,6} |[-*] |\d+[.)] |\||\*\*Validates:")


class Block(NamedTuple):
    """A heading, list item, table row or paragraph, its wrapped lines joined; and where it begins."""

    line: int
    text: str


def read_blocks(path: Path) -> list[Block]:
    """The blocks of a file, code blocks left out.

    Raises:
        SpecError: It cannot be read, or a code block is never closed.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(path, 0, f"cannot be read: {error}") from error
    blocks: list[Block] = []
    fence, open_paragraph = 0, False
    for number, line in enumerate(map(str.strip, lines), 1):
        if line.startswith("```"):
            fence, open_paragraph = (0 if fence else number), False
        elif fence or not line:
            open_paragraph = False
        elif open_paragraph and not _STARTS_BLOCK.match(line):
            blocks[-1] = blocks[-1]._replace(text=f"{blocks[-1].text} {' '.join(line.split())}")
        else:
            blocks.append(Block(number, " ".join(line.split())))
            open_paragraph = not line.startswith(("#", "|"))
    if fence:
        raise SpecError(path, fence, "this code block is never closed")
    return blocks


def read_sections(path: Path) -> list[tuple[Block, list[Block]]]:
    """Each heading with the blocks below it, acceptance criteria with their requirement; any preamble is dropped."""
    sections: list[tuple[Block, list[Block]]] = []
    for block in read_blocks(path):
        if block.text.startswith("#") and block.text != "#### Acceptance Criteria":
            sections.append((block, []))
        elif sections:
            sections[-1][1].append(block)
    return sections


def numbered_sections(path: Path, kind: str) -> Iterator[tuple[int, int, str, list[Block]]]:
    """Line, number, title and body of each section ``### kind N: Title``."""
    for heading, body in read_sections(path):
        if re.match(rf"#+ *{kind}\b", heading.text, re.IGNORECASE):
            match = re.fullmatch(rf"### {kind} ([1-9]\d*): (\S.*)", heading.text)
            if not match:
                raise SpecError(path, heading.line, f"{heading.text!r}, expected '### {kind} N: Title'")
            yield heading.line, int(match[1]), match[2], body


def read_table(
    path: Path, title: str, like: str, row: str, columns: tuple[str, ...]
) -> list[tuple[int, tuple[str, ...]]]:
    """Lines and cells of the only table below ``## title``; none where no heading is like it.

    Raises:
        SpecError: Several headings are like it, or what is below is no table of these columns.
    """
    sections = [each for each in read_sections(path) if re.match(rf"#+ *{like}", each[0].text, re.IGNORECASE)]
    if not sections:
        return []
    heading, body = sections[0]
    if len(sections) > 1 or heading.text != f"## {title}":
        raise SpecError(path, sections[-1][0].line, f"{sections[-1][0].text!r}, expected one section '## {title}'")
    lines = [block for block in body if block.text.startswith("|")]
    rows = [(line, tuple(cell.strip(" `") for cell in text.strip("|").split("|"))) for line, text in lines]
    if len(rows) < 3 or not all(re.fullmatch(r":?-+:?", cell) for cell in rows[1][1]):
        raise SpecError(path, heading.line, f"expected a table: a header, a line of dashes, a row for each {row}")
    if rows[0][1] != columns:
        raise SpecError(path, rows[0][0], f"columns {list(rows[0][1])}, expected {list(columns)}")
    return rows[2:]
