"""Which part of the package may import which, held against every import that stands in it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

import pytest

ROOT: Final = Path(__file__).parents[2]
PACKAGE: Final = "llm_compression"
MAX_LINES: Final = 400

STRUCTURE: Final = ROOT / ".kiro" / "steering" / "structure.md"

Arrows = Mapping[str, frozenset[str]]


def read_arrows(text: str) -> Arrows:
    """The table below *Arrows*, closed: what each part may import, and what that may import in turn.

    A part is a file or folder of the package by the longest name that fits; `llm_compression` is the package itself.
    """
    rows = dict[str, set[str]]()
    for line in text.partition("\n## Arrows\n")[2].partition("\n## ")[0].splitlines():
        if line.startswith("|"):
            parts, _, below = line.strip("| ").partition("|")
            for part in _names(parts):
                assert part not in rows, f"{part}: two rows"
                rows[part] = set(_names(below))
    closed = {part: set(imports) for part, imports in rows.items()}
    for _ in rows:
        for imports in closed.values():
            imports.update(*(closed[name] for name in list(imports)))
    return {part: frozenset(imports) for part, imports in closed.items()}


def _names(cell: str) -> list[str]:
    return re.findall(r"`([\w.]+)`", cell)


class Import(NamedTuple):
    """An import that stands in a file: anywhere in it, also in a function or for types alone."""

    file: Path
    line: int
    source: str
    target: str


def imports_of(root: Path) -> list[Import]:
    """Every import of the package by its own files, by the name of the module, or of what is no module of it."""
    files = {_module(file, root): file for file in sorted((root / PACKAGE).rglob("*.py"))}
    found = []
    for source, file in files.items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            for target in _targets(node, source, file.stem == "__init__"):
                if target.partition(".")[0] == PACKAGE:
                    # of `from a.b import c` it is a.b.c where that is a module, else a.b
                    name = target if target in files else target.rpartition(".")[0]
                    name = name if name in files else target
                    found.append(Import(file.relative_to(root), getattr(node, "lineno", 0), source, name))
    return found


def _module(file: Path, root: Path) -> str:
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _targets(node: ast.AST, source: str, is_package: bool) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (f"{alias.name}.*" for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            parts = source.split(".")
            above = parts[: len(parts) - node.level + is_package]
            base = ".".join([*above, *([node.module] if node.module else [])])
        yield from (f"{base}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
            yield f"{node.args[0].value}.*"


def part_of(module: str, arrows: Arrows) -> str | None:
    """The part that a module belongs to, None where the table has none for it."""
    if module == PACKAGE:
        return module
    name = module.removeprefix(f"{PACKAGE}.")
    while name and name not in arrows:
        name = name.rpartition(".")[0]
    return name or None


def wrong_arrows(root: Path, arrows: Arrows) -> list[str]:
    """Each import that the table does not have, by file and line."""
    wrong = []
    for file, line, source, target in imports_of(root):
        start, end = part_of(source, arrows), part_of(target, arrows)
        if start is None or end is None:
            wrong.append(f"{file}:{line}: {source if start is None else target} is in no part of the table")
        elif start != end and end not in arrows[start]:
            wrong.append(f"{file}:{line}: {source} imports {target}: {start} may not import {end}")
    return wrong


def cycles(root: Path) -> list[str]:
    """Files that import each other, round once, with the file and line of each arrow."""
    arrows: dict[str, dict[str, str]] = {}
    for file, line, source, target in imports_of(root):
        if source != target:
            arrows.setdefault(source, {}).setdefault(target, f"{file}:{line}")
    found, done = list[str](), set[str]()

    def visit(module: str, path: list[str]) -> None:
        if module in path:
            round_ = [*path[path.index(module) :], module]
            found.append(", ".join(f"{arrows[one][other]}: {one} imports {other}" for one, other in pairwise(round_)))
        elif module not in done:
            for target in arrows.get(module, {}):
                visit(target, [*path, module])
            done.add(module)

    for module in sorted(arrows):
        visit(module, [])
    return found


def long_files(root: Path) -> list[str]:
    """Files of the package and of the benchmarks that are longer than a reader keeps in mind."""
    files = [file for folder in (PACKAGE, "benchmarks") for file in sorted((root / folder).rglob("*.py"))]
    lines = {file.relative_to(root): len(file.read_text(encoding="utf-8").splitlines()) for file in files}
    return [
        f"{file}: {count} lines, expected at most {MAX_LINES}" for file, count in lines.items() if count > MAX_LINES
    ]


@pytest.mark.requirement("33.5")
def test_every_import_is_an_arrow_of_the_table() -> None:
    """33.5: THE Package SHALL import its own modules along the arrows of the table in `structure.md` only, in functions
    and for types too."""
    found = imports_of(ROOT)
    assert {"llm_compression.cli", "llm_compression.harness.clip.models"} <= {each.source for each in found}
    assert wrong_arrows(ROOT, read_arrows(STRUCTURE.read_text(encoding="utf-8"))) == []


@pytest.mark.requirement("33.5")
def test_the_table_has_every_part_and_its_arrows_point_one_way() -> None:
    """33.5: THE Package SHALL import its own modules along the arrows of the table in `structure.md` only: no part of
    it is missing, and none is below itself."""
    arrows = read_arrows(STRUCTURE.read_text(encoding="utf-8"))
    assert {part_of(_module(file, ROOT), arrows) for file in (ROOT / PACKAGE).rglob("*.py")} == set(arrows)
    assert [part for part, below in arrows.items() if part in below] == []
    assert {"inference", "errors"} < arrows["text"] < arrows["multimodal"] < arrows["commands"]
    assert not [part for part, below in arrows.items() if "harness.clip" in below]
    assert arrows["harness.spec"] == arrows["harness.paired"] == {"errors", "harness.git"}


def test_the_tree_names_what_is_there() -> None:
    """The tree of `structure.md` has every folder of the package and of the tests, and every file beside them."""
    tree = STRUCTURE.read_text(encoding="utf-8").split("```")[1]
    named = {part for name in re.findall(r"[\w./]+", tree) for part in name.split("/")}
    rooms = [ROOT / PACKAGE, ROOT / "tests", ROOT / "benchmarks"]
    found = {each.name for room in rooms for each in room.iterdir() if each.suffix in (".py", ".txt")}
    found |= {each.name for room in rooms for each in room.iterdir() if each.is_dir() and any(each.glob("*.py"))}
    found |= {each.name for each in ROOT.iterdir() if each.suffix in (".py", ".toml", ".txt", ".md")}
    assert {"conftest.py", "unit", "constraints.txt", "README.md", "errors.py", "gates"} <= found
    assert found - named == set()
    assert {".ci", ".github", "workflows"} <= named


def test_what_the_lists_of_new_things_name_is_there() -> None:
    """Each file that `structure.md` names for something new is there, by a path of the checkout or of the package."""
    lists = STRUCTURE.read_text(encoding="utf-8").partition("\n## Where does it go\n")[2]
    paths = set(re.findall(r"`([\w./-]+/[\w.-]+\.(?:py|md))`", lists)) - {
        # of something new
        *(".kiro/specs/NAME/requirements.md", "docs/NAME.md", "benchmarks/gates/test_FAMILY.py"),
    }
    assert {"multimodal/image_inputs.py", "benchmarks/regression/probe.py", "tests/unit/test_providers.py"} <= paths
    assert [
        path for path in sorted(paths) if not (ROOT / path).is_file() and not (ROOT / PACKAGE / path).is_file()
    ] == []
    capitals = set(re.findall(r"`([A-Z][A-Z_]{4,})`", lists))
    files = [*(ROOT / PACKAGE).rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    code = "\n".join(file.read_text(encoding="utf-8") for file in files)
    assert [name for name in sorted(capitals) if not re.search(rf"^{name}\b", code, re.MULTILINE)] == []


@pytest.mark.requirement("33.6")
def test_no_files_import_each_other() -> None:
    """33.6: THE Package SHALL have no cycle among the imports of its files."""
    assert cycles(ROOT) == []


@pytest.mark.requirement("33.7")
def test_no_file_is_too_long() -> None:
    """33.7: THE Package SHALL have no file of more than 400 lines in the package or its benchmarks."""
    assert long_files(ROOT) == []


def _write(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        file = root / PACKAGE / name
        for folder in (file.parent, *file.parent.parents):
            if folder == root:
                break
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "__init__.py").touch()
        file.write_text(text, encoding="utf-8")
    return root


_TABLE: Final = read_arrows(
    """
## Arrows

| part | imports |
|---|---|
| `errors`, `llm_compression`, `high.cellar` | |
| `low` | `errors` |
| `high` | `low` |

## Other

| `low` | `high` |
"""
)


@pytest.mark.requirement("33.5")
@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        (
            "low/a.py",
            "import llm_compression.high.b\n",
            "low/a.py:1: llm_compression.low.a imports llm_compression.high.b",
        ),
        ("low/a.py", "import llm_compression.high.b as b\n", "may not import high"),
        ("low/a.py", "from llm_compression.high.b import thing\n", "imports llm_compression.high.b: low may not"),
        ("low/a.py", "from llm_compression.high import b\n", "imports llm_compression.high.b: low may not"),
        ("low/a.py", "from llm_compression import high\n", "imports llm_compression.high: low may not"),
        ("low/a.py", "from ..high import b\n", "imports llm_compression.high.b: low may not"),
        ("low/a.py", "from .. import high\n", "imports llm_compression.high: low may not"),
        ("low/__init__.py", "from ..high.b import thing\n", "low/__init__.py:1: llm_compression.low imports"),
        ("low/a.py", "def f():\n\n    from llm_compression.high import b\n", "low/a.py:3:"),
        ("low/a.py", "if TYPE_CHECKING:\n    from llm_compression.high import b\n", "low/a.py:2:"),
        ("low/a.py", "x = importlib.import_module('llm_compression.high.b')\n", "low/a.py:1:"),
        ("low/a.py", "x = __import__('llm_compression.high.b')\n", "low/a.py:1:"),
        ("high/b.py", "from llm_compression.high.cellar import c\n", "high may not import high.cellar"),
        ("high/cellar/c.py", "from llm_compression.high import b\n", "high.cellar may not import high"),
        ("low/a.py", "from llm_compression import __version__\n", "imports llm_compression: low may not import"),
        ("stray.py", "import llm_compression.errors\n", "stray.py:1: llm_compression.stray is in no part"),
        ("low/a.py", "import llm_compression.gone\n", "low/a.py:1:"),
    ],
)
def test_an_arrow_that_is_not_there_is_named(tmp_path: Path, name: str, text: str, says: str) -> None:
    """33.5: THE Package SHALL import its own modules along the arrows of the table in `structure.md` only: a made-up
    package that does not is told, by file and line."""
    sound = {"errors.py": "import os\n", "high/b.py": "from llm_compression.low import a\nthing = 1\n"}
    sound |= {"low/a.py": "from llm_compression.errors import x\n", "high/cellar/c.py": "from . import c\n"}
    root = _write(tmp_path, sound)
    assert wrong_arrows(root, _TABLE) == []
    (wrong,) = wrong_arrows(_write(tmp_path, {name: text}), _TABLE)
    assert wrong.startswith(f"{PACKAGE}/")
    assert says in wrong


@pytest.mark.requirement("33.6")
def test_a_cycle_is_named(tmp_path: Path) -> None:
    """33.6: THE Package SHALL have no cycle among the imports of its files: of a made-up package it is told."""
    files = {
        "a.py": "from llm_compression import b\n",
        "b.py": "\nfrom llm_compression.c import x\n",
        "c.py": "x = 1\n",
    }
    assert cycles(_write(tmp_path, files)) == []
    _write(tmp_path, {"c.py": "def f():\n    if x:\n        from llm_compression.a import y\n"})
    (found,) = cycles(tmp_path)
    assert {f"{PACKAGE}/{place}" for place in ("a.py:1", "b.py:2", "c.py:3")} <= set(found.replace(": ", " ").split())


@pytest.mark.requirement("33.7")
def test_a_long_file_is_named(tmp_path: Path) -> None:
    """33.7: THE Package SHALL have no file of more than 400 lines in the package or its benchmarks."""
    _write(tmp_path, {"long.py": "x = 1\n" * (MAX_LINES + 1), "right.py": "x = 1\n" * MAX_LINES})
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "long.py").write_text("\n" * 500, encoding="utf-8")
    assert long_files(tmp_path) == [
        "llm_compression/long.py: 401 lines, expected at most 400",
        "benchmarks/long.py: 500 lines, expected at most 400",
    ]
