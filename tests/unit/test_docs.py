"""The pages of the documentation: their code runs, their links lead somewhere, their commands exist."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import pkgutil
import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch

import llm_compression
from llm_compression import KeptRows, errors
from llm_compression.cli import _parser
from llm_compression.convert import ConversionReport
from llm_compression.harness.clip.checkpoint_weights import make_weights
from llm_compression.harness.clip.checkpoints import VARIANTS
from llm_compression.harness.clip.gates import Result, judge
from llm_compression.harness.clip.report import Report, write_report
from llm_compression.harness.paired.machine import MachineInfo
from llm_compression.harness.spec.parser import Gate
from llm_compression.inference.weight_format import DTYPES, WeightMetadata, write_weights
from llm_compression.inference.weight_loader import TensorInfo, WeightLoader
from llm_compression.models import shapes_model
from llm_compression.multimodal.clip_engine import SearchResult
from tests.pages import PAGES, ROOT, anchors, blocks_and_prose, links, prepare
from tests.weight_rows import rewrite

DOCS: Final = ROOT / "docs"
GUIDES: Final = {
    "quickstart",
    "convert",
    "encode",
    "classify",
    "find",
    "prove-a-spec",
    "reports",
    "weight-format",
    "api",
}
# page and first line of each Python block that is not run, with the reason that stands above it
NOT_RUN: Final[dict[str, str]] = {
    f"docs/compare-revisions.md: {first}": f"tests/unit/{test}.py runs it in a repository of its own"
    for first, test in (
        ("# probe.py", "test_paired_project"),
        ("# turns.py", "test_duets"),
        ("# gate.py", "test_paired_project"),
    )
} | {
    "docs/embed.md: from llm_compression.embed.spark import NEW_COLUMNS, map_in_arrow": (
        "tests/engines/test_spark.py runs it in a Spark of its own"
    )
}
SHELLS: Final = ("sh",)
LANGUAGES: Final = {"python", "markdown", "{eval-rst}", "{toctree}", *SHELLS}
READER: Final = "weight-format.md"

Tensors = dict[str, Any]
Reader = Callable[[Path], tuple[Tensors, Tensors, Tensors]]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that holds what the pages take for granted."""
    directory = tmp_path_factory.mktemp("pages")
    prepare(directory)
    gates = [Gate(name, name, 500.0, "<", "ms", "tiny", "cpu", "1.1") for name in ("load", "latency")]
    results = [Result("load", "passed", value=120.0, samples=(120.0,)), Result("latency", "failed", value=501.0)]
    info = MachineInfo("A processor", 2, ("avx2",), 8000, 0.5, (), "Linux", "3.11.7", {"torch": "2.13.0"})
    write_report(Report(judge(gates, results, 1, lacked={}), info, "abc", "now"), directory / "reports")
    return directory


@pytest.fixture
def desk(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config) -> Path:
    """A directory of one page's own, in which its blocks run."""
    # a block that is the test of a gate runs here too
    pytestconfig.addinivalue_line("markers", "metric(name): the test measures the gates of this metric")
    for found in prepared.iterdir():
        # what a page writes is its own
        if found.is_file():
            shutil.copy(found, tmp_path / found.name)
        elif found.name in ("models", "reports"):
            shutil.copytree(found, tmp_path / found.name)
        else:
            (tmp_path / found.name).symlink_to(found)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    for variable in [name for name in os.environ if name.startswith("PYTEST_")]:
        monkeypatch.delenv(variable)
    return tmp_path


def run_page(page: Path, directory: Path) -> dict[str, Any]:
    """Write the files of a page and run its Python blocks, in their order and in one namespace."""
    blocks, _ = blocks_and_prose(read(page))
    namespace: dict[str, Any] = {"__name__": "page"}
    for block in blocks:
        if block.file is not None:
            (directory / block.file).parent.mkdir(parents=True, exist_ok=True)
            (directory / block.file).write_text(block.text, encoding="utf-8")
        if block.language == "python" and block.not_run is None:
            # at its own line, so that a traceback points into the page
            code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
            exec(code, namespace)
    return namespace


@pytest.mark.requirement("31.2")
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_python_block_runs(page: Path, desk: Path) -> None:
    """31.2: WHEN the tests are run, THE Package SHALL run every Python block of the README and of the pages below
    `docs`, those of a page in their order in one directory that holds what the page takes for granted."""
    blocks, _ = blocks_and_prose(read(page))
    assert {block.language for block in blocks} <= LANGUAGES, "a block of a language that nothing here checks"
    namespace = run_page(page, desk)
    run = [block for block in blocks if block.language == "python" and block.not_run is None]
    defined = {name for block in run for name in assigned(block.text)}
    assert defined <= set(namespace)


def assigned(text: str) -> set[str]:
    """The names that a block binds at its outermost level."""
    return {
        target.id
        for node in ast.parse(text).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


@pytest.mark.requirement("31.3")
def test_what_is_not_run_has_a_reason_and_is_listed_here() -> None:
    """31.3: WHERE a comment above a Python block says why the block is not run, THE Package SHALL list the block with
    that reason in its tests."""
    found = {
        f"{name_of(page)}: {block.text.splitlines()[0]}": block.not_run
        for page in PAGES
        for block in blocks_and_prose(read(page))[0]
        if block.language == "python" and block.not_run is not None
    }
    assert found == NOT_RUN


@pytest.mark.requirement("31.2", "31.3")
@pytest.mark.parametrize(
    ("page", "match"),
    [
        ("```python\nx = 1\n", "line 1: a fence that is not closed"),
        ("<!-- not run: no device -->\nwords\n```python\n1\n```\n", "line 2: .* stands above no block"),
    ],
)
def test_a_block_cannot_be_lost(page: str, match: str) -> None:
    """31.2: every Python block is run: one that is not closed, and a reason that belongs to none, are errors."""
    with pytest.raises(ValueError, match=match):
        blocks_and_prose(page)


@pytest.mark.requirement("31.2")
def test_a_page_that_is_wrong_fails_at_its_line(tmp_path: Path) -> None:
    """31.2: every Python block of a page is run in order: a wrong one fails, at the line of the page."""
    page = tmp_path / "page.md"
    page.write_text("# A\n\n```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n", encoding="utf-8")
    with pytest.raises(AssertionError) as caught:
        run_page(page, tmp_path)
    assert caught.traceback[-1].lineno + 1 == 8


@pytest.mark.requirement("31.4")
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    """31.4: WHEN the tests are run, THE Package SHALL find the target of every relative link and the heading of every
    anchor of the README and of the pages below `docs`."""
    assert broken(page) == []


def broken(page: Path) -> list[str]:
    """The links of a page that lead nowhere."""
    wrong = []
    for link in links(blocks_and_prose(read(page))[1]):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        is_there = target.exists() and (not anchor or anchor in anchors(blocks_and_prose(read(target))[1]))
        wrong += [] if is_there else [link]
    return wrong


@pytest.mark.requirement("31.4")
def test_a_broken_link_is_seen(tmp_path: Path) -> None:
    """31.4: the target of every relative link and the heading of every anchor is found."""
    page = tmp_path / "page.md"
    page.write_text("# One\n## The same\n## The same\n[a](#one) [b](#two) [c](page.md#the-same-1) [d](gone.md)\n")
    assert broken(page) == ["#two", "gone.md"]


def shell_lines() -> list[str]:
    """Each command of the shell blocks, without its comment."""
    blocks = [block for page in PAGES for block in blocks_and_prose(read(page))[0] if block.language in SHELLS]
    return [line for block in blocks for line in block.text.splitlines() if line and not line.startswith("#")]


@pytest.mark.requirement("31.5")
@pytest.mark.parametrize("line", [line for line in shell_lines() if line.startswith("llm-compression ")])
def test_every_command_is_one(line: str) -> None:
    """31.5: WHEN the tests are run, THE Package SHALL parse every `llm-compression` command of these pages and find
    every nox session that they name."""
    assert callable(_parser().parse_args(shlex.split(line, comments=True)[1:]).run)


@pytest.mark.requirement("31.5")
def test_every_session_that_is_named_exists() -> None:
    """31.5: WHEN the tests are run, THE Package SHALL parse every `llm-compression` command of these pages and find
    every nox session that they name."""
    named = {name for page in PAGES for name in re.findall(r"nox -s (\w+)", read(page))}
    functions = [node for node in ast.parse(read(ROOT / "noxfile.py")).body if isinstance(node, ast.FunctionDef)]
    sessions = {node.name for node in functions if any("nox.session" in ast.unparse(d) for d in node.decorator_list)}
    assert {"gates", "tests"} <= named
    assert named <= sessions


def test_the_page_for_contributors_has_what_a_commit_must_pass() -> None:
    """Its table has the sessions that `.ci/run` runs, in their order."""
    commands = re.findall(r"nox -s ([\w ]+)", re.sub(r"^#.*", "", read(ROOT / ".ci" / "run"), flags=re.MULTILINE))
    wanted = [name for command in commands for name in command.split()]
    table = read(DOCS / "work-on-this-project.md").partition("## What a commit must pass")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    assert [name for cell in cells for name in re.findall(r"`(\w+)", cell)] == wanted
    assert wanted[0] == "tests"


@pytest.mark.requirement("31.1")
def test_the_pages_are_there_and_in_the_navigation() -> None:
    """31.1: THE Package SHALL have below `docs` a quickstart, a guide for each of conversion, encoding, classification,
    search, gating a project and reading a report, the Weight File as a specification, and every public name with its
    docstring."""
    blocks, prose = blocks_and_prose(read(DOCS / "index.md"))
    trees = [block.text.splitlines() for block in blocks if block.language == "{toctree}"]
    listed = {line for tree in trees for line in tree if line and not line.startswith(":")}
    assert listed == {page.stem for page in DOCS.glob("*.md")} - {"index"}
    assert listed >= GUIDES
    # pages that Sphinx makes, which would take the place of ours
    assert not listed & {"search", "genindex", "modindex"}
    assert {f"{name}.md" for name in listed} <= set(links(prose))


def documented() -> dict[str, Any]:
    """What the page of the API has, by the name that it stands under."""
    names = re.findall(r"^\.\. auto\w+:: (\S+)$", read(DOCS / "api.md"), re.MULTILINE)
    assert len(names) == len(set(names))
    return {name: getattr(importlib.import_module(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in names}


def exported() -> dict[str, Any]:
    """What a user may import: the names of the package and of each part that lists its own, every error and warning,
    and what the pages import from its modules."""
    package = llm_compression.__name__
    parts = [found.name for found in pkgutil.iter_modules(llm_compression.__path__, f"{package}.") if found.ispkg]
    homes = [importlib.import_module(name) for name in (package, *parts)]
    found = {f"{home.__name__}.{name}": getattr(home, name) for home in homes for name in getattr(home, "__all__", ())}
    found |= {f"{errors.__name__}.{name}": each for name, each in vars(errors).items() if is_public(each)}
    blocks = [block for page in PAGES for block in blocks_and_prose(read(page))[0] if block.language == "python"]
    for node in (node for block in blocks for node in ast.walk(ast.parse(block.text))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(package):
            home = importlib.import_module(node.module or "")
            found |= {f"{home.__name__}.{alias.name}": getattr(home, alias.name) for alias in node.names}
    return {name: each for name, each in found.items() if callable(each)}


def is_public(found: Any) -> bool:
    """Whether it is a class of the package, with a name for users."""
    return inspect.isclass(found) and found.__module__.startswith("llm_compression.") and found.__name__[0] != "_"


def given_by(found: Any) -> set[Any]:
    """The public classes that a function returns; of a class, that its methods return and its attributes are."""
    members = [found]
    if inspect.isclass(found):
        members += [each for kind in found.__mro__ for name, each in vars(kind).items() if name[0] != "_"]
    classes = list[Any]()
    for member in members:
        # of a property, and of a method of the class, the function
        function = getattr(member, "fget", None) or getattr(member, "__func__", member)
        if getattr(function, "__module__", None) not in sys.modules:
            continue
        hints, home = getattr(function, "__annotations__", {}), vars(sys.modules[function.__module__])
        said = list(hints.values()) if inspect.isclass(function) else [hints.get("return", "")]
        said += re.findall(r"(?<!`)`(\w+)`(?!`)", inspect.getdoc(function) or "")
        classes += [home.get(name) for hint in said for name in re.findall(r"\w+", str(hint))]
    return {each for each in classes if is_public(each)}


@pytest.mark.requirement("31.1")
def test_every_public_name_is_in_the_api() -> None:
    """31.1: every public name stands among the pages with its docstring: what a user imports, and what that returns,
    raises and warns of."""
    on_the_page, wanted = documented(), exported()
    assert {"llm_compression.VisionEncoder", "llm_compression.convert.ConversionReport"} <= set(wanted)
    assert {name: each for name, each in wanted.items() if each not in on_the_page.values()} == {}
    # of the harness, the guides of a project's own gates have the rest
    encoders = {name: found for name, found in on_the_page.items() if ".harness." not in name}
    returned = {(name, each) for name, found in encoders.items() for each in given_by(found)}
    assert {SearchResult, ConversionReport, KeptRows, TensorInfo} <= {each for _, each in returned}
    assert {(name, each) for name, each in returned if each not in on_the_page.values()} == set()
    assert [name for name, each in on_the_page.items() if not each.__doc__] == []
    # the shortest name under which it can be imported
    short = {f"llm_compression.{name}" for name in llm_compression.__all__ if name != "__version__"}
    assert short <= set(on_the_page)


@pytest.fixture(scope="module")
def reader() -> Reader:
    """The reader that the specification prints, which uses nothing of the package."""
    block = next(block for block in blocks_and_prose(read(DOCS / READER))[0] if "def read_weights" in block.text)
    assert "llm_compression import" not in block.text
    namespace: dict[str, Any] = {}
    exec(compile("\n" * (block.line - 1) + block.text, READER, "exec"), namespace)
    found: Reader = namespace["read_weights"]
    return found


@pytest.mark.requirement("31.6")
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_the_reader_of_the_specification_gives_the_same_bits(reader: Reader, tmp_path: Path, compression: str) -> None:
    """31.6: WHEN the reader that the specification of the Weight File prints is given a file that `write_weights`
    wrote, THE Package SHALL get from it the bits that WeightLoader gives: of each dtype, scalars, and names beyond
    ASCII included."""
    config = VARIANTS["tiny"]
    tensors = make_weights(config)
    first = next(iter(tensors.values())).flatten()
    tensors |= {f"größe.{name}": (first[:7] * 90).abs().to(dtype) for name, dtype in DTYPES.items()}
    tensors |= {"scalar": first[0].clone(), "empty": first[:0].reshape(0, 3).clone()}
    file = tmp_path / "weights.parquet"
    metadata = WeightMetadata(config.to_dict(), source={"name": "Ω"})
    write_weights(file, tensors.items(), metadata, compression=compression)
    found_config, preprocessing, found = reader(file)
    loaded = WeightLoader(file).load_weights()
    assert (found_config, preprocessing, list(found)) == (config.to_dict(), {}, list(loaded))
    for name, tensor in loaded.items():
        expected = (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()
        assert found[name].dtype == expected.dtype
        assert np.array_equal(found[name], expected), name


@pytest.mark.requirement("31.6", "39.3")
def test_the_reader_of_the_specification_takes_version_1(reader: Reader) -> None:
    """31.6, 39.3: files of version 1 give the bits that WeightLoader gives, too."""
    file = ROOT / "tests" / "compat" / "format_1" / "weights.parquet"
    loader = WeightLoader(file)
    assert loader.metadata is not None
    assert loader.metadata.format_version == 1
    _, _, found = reader(file)
    assert all(np.array_equal(found[name], tensor.numpy()) for name, tensor in loader.stream())
    assert list(found) == loader.names


@pytest.mark.requirement("39.2")
def test_the_reader_of_the_specification_sees_words_that_change_places(reader: Reader, tmp_path: Path) -> None:
    """39.2: IF words of a tensor are exchanged and the page checksums are made anew, THEN the reader that the
    specification prints refuses the file, too."""
    file = tmp_path / "weights.parquet"
    write_weights(file, [("a", torch.arange(3000.0))], WeightMetadata({}))
    assert reader(file)[2]["a"].tolist() == list(range(3000))

    def exchange(rows: list[dict[str, Any]]) -> None:
        data = rows[0]["data"]
        rows[0]["data"] = data[8:16] + data[:8] + data[16:]

    rewrite(file, exchange)
    with pytest.raises(ValueError, match="fingerprint"):
        reader(file)


@pytest.mark.requirement("31.7")
def test_the_reader_of_the_specification_never_gives_other_numbers(reader: Reader, tmp_path: Path) -> None:
    """31.7: IF a byte of such a file is changed, THEN THE Package SHALL get from this reader an error or the same
    tensors."""
    original = (shapes_model() / "weights.parquet").read_bytes()
    _, _, expected = reader(shapes_model() / "weights.parquet")
    file, refused = tmp_path / "weights.parquet", 0
    positions = np.random.default_rng(0).choice(len(original), 60, replace=False).tolist()
    for position in positions:
        changed = bytearray(original)
        changed[position] ^= 0x10
        file.write_bytes(changed)
        try:
            _, _, found = reader(file)
        # Arrow's complaints are ValueErrors and OSErrors
        except (ValueError, OSError, KeyError, ArithmeticError, MemoryError):
            refused += 1
            continue
        assert list(found) == list(expected)
        assert all(np.array_equal(found[name], expected[name]) for name in expected)
    assert refused > len(positions) // 2


@pytest.mark.requirement("31.9")
def test_the_readme_opens_with_an_installation_and_three_lines() -> None:
    """31.9: THE Package SHALL open its README with the command that installs it and a Python block of three lines."""
    first, second = blocks_and_prose(read(ROOT / "README.md"))[0][:2]
    assert (first.language, first.text) == ("sh", "pip install llm-compression\n")
    assert second.language == "python"
    assert len([line for line in second.text.splitlines() if line]) == 3


@pytest.mark.requirement("31.10")
def test_the_pages_travel_and_count() -> None:
    """31.10: THE Package SHALL ship `docs` in its source distribution and count it as part of the source tree of
    evidence."""
    tool = tomllib.loads(read(ROOT / "pyproject.toml"))["tool"]
    assert "docs" in tool["hatch"]["build"]["targets"]["sdist"]["include"]
    kinds = {found.suffix for found in DOCS.iterdir() if found.is_file()}
    assert {f"docs/*{kind}" for kind in kinds} <= set(tool["evidence"]["sources"])
