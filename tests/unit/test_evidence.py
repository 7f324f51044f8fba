"""Files of evidence: what a tree is, how runs are merged and sessions joined, and what is no evidence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llm_compression.harness.git import commit_all, files, git, init
from llm_compression.harness.spec.evidence import (
    COLLECTED,
    NOT_RUN,
    EvidenceError,
    Part,
    Record,
    Source,
    join,
    machine_facts,
    merge,
    read_part,
    read_parts,
    source_files,
    source_of,
    write_joined,
    write_part,
)

ROOT = Path(__file__).parents[2]
TREE = Source("c0ffee", False, "a1")
PASSED = Record("test_a", ("1.1",), (), "passed", duration_s=0.5, examples=100, gate="kettle:heat", value=1.5)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with one committed file."""
    (tmp_path / "code.py").write_text("a = 1\n", encoding="utf-8")
    (tmp_path / ".gitignore").write_text("reports/\n", encoding="utf-8")
    init(tmp_path)
    commit_all(tmp_path, "First")
    return tmp_path


def write(path: Path, text: str = "made") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@pytest.mark.requirement("20.3", "20.5")
def test_the_tree_is_every_file_that_is_a_source(checkout: Path) -> None:
    """20.5: a changed, new, renamed or deleted file makes another tree, with or without a commit."""
    clean = source_of(checkout)
    assert (len(clean.commit), clean.dirty, clean.reason) == (40, False, "")
    write(checkout / "reports" / "tests.json", "{}")
    assert source_of(checkout) == clean
    assert not source_of(checkout).dirty
    trees = {clean.tree}
    for name, text in (("code.py", "a = 2\n"), ("new.py", ""), ("new.py", "b = 1\n"), ("new name.py", "b = 1\n")):
        (checkout / name).write_text(text, encoding="utf-8")
        assert source_of(checkout).dirty
        assert source_of(checkout) != clean
        trees.add(source_of(checkout).tree)
    (checkout / "code.py").rename(checkout / "coder.py")
    trees.add(source_of(checkout).tree)
    (checkout / "coder.py").unlink()
    assert source_of(checkout).dirty
    trees.add(source_of(checkout).tree)
    assert len(trees) == 7


@pytest.mark.requirement("20.5")
def test_a_tree_outside_git(tmp_path: Path) -> None:
    """20.5: without git it is the same files; none is hidden or made by a session."""
    write(tmp_path / ".kiro" / "tasks.md", "a")
    before = source_of(tmp_path)
    assert (before.commit, before.dirty) == ("", False)
    assert "not a git repository" in before.reason
    for made in (".nox", "reports", "__pycache__"):
        write(tmp_path / made / "file", "a")
    assert source_of(tmp_path) == before
    write(tmp_path / ".kiro" / "tasks.md", "b")
    assert source_of(tmp_path) != before


@pytest.mark.requirement("20.5")
def test_a_tree_that_another_repository_ignores(checkout: Path) -> None:
    """20.5: git lists nothing there, and still a change is one."""
    inner = checkout / "reports" / "unpacked"
    inner.mkdir(parents=True)
    (inner / "code.py").write_text("a = 1\n", encoding="utf-8")
    before = source_of(inner)
    (inner / "code.py").write_text("a = 2\n", encoding="utf-8")
    assert source_of(inner) != before


# what a user's commands and tools leave in a checkout, none of it ignored
LEFT = (
    *("demo.png", "photos.parquet", "embeddings.npy", "models/clip/weights.parquet", "models/clip/tokenizer.json"),
    *(".coverage", "htmlcov/index.html", "coverage.xml", "junit.xml", "prof/combined.prof", "nohup.out", "a.log"),
    *(".DS_Store", "tests/.DS_Store", "tests/unit/Thumbs.db", ".vscode/settings.json", ".idea/x.xml", ".env"),
    *("venv/pyvenv.cfg", "venv/lib/python3.11/site-packages/x.py", ".tox/x.py", "node_modules/x/x.js"),
    *("tests/unit/test_a.py.orig", "tests/unit/test_a.py.rej", "tests/unit/.test_a.py.swp", "tests/unit/test_a.py~"),
    *("tests/.ipynb_checkpoints/test_a.py", ".mypy_cache/x", ".pytest_cache/x", "tests/__pycache__/test_a.py"),
    *(".hypothesis/x.py", "reports/evidence/tests.json", ".nox/x.py", "dist/x.whl", "build/lib/x.py", "core.1234"),
    *(".python-version", "llm_compression.egg-info/PKG-INFO", "llm_compression/_x.so", "photos/cat.jpg", "data/x.json"),
)
# what another outcome of a test could come from
MEANT = (
    *("llm_compression/new.py", "llm_compression/models/shapes/new.json", "tests/unit/test_new.py", "tests/new.txt"),
    *("tests/conftest.py", "conftest.py", "pytest.ini", "tox.ini", "setup.cfg", "torch.py", "benchmarks/gates/new.py"),
    *(".kiro/specs/new/requirements.md", ".ci/new", ".github/workflows/new.yml", "docs/new.md", "README.md"),
    *("tests/compat/new/weights.parquet", "tests/compat/new/pixels.npy", "uv.toml"),
)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository that lists its sources as this one does."""
    root = tmp_path_factory.mktemp("project")
    for name in ("pyproject.toml", "llm_compression/__init__.py", "tests/unit/test_a.py", "README.md"):
        write(root / name, (ROOT / "pyproject.toml").read_text(encoding="utf-8") if name[0] == "p" else "a = 1\n")
    init(root)
    commit_all(root, "First")
    return root


@pytest.mark.requirement("25.1")
def test_every_file_of_this_project_is_listed() -> None:
    """25.1: THE Harness SHALL identify the source tree by the files that `tool.evidence.sources` lists: of this project
    everything that git keeps, and no pattern that matches nothing but what is to come."""
    listed = source_files(ROOT)
    kept = {name for name in files(ROOT) if (ROOT / name).is_file()}
    assert kept - set(listed) == set()
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["evidence"]["sources"]
    assert len(patterns) == len(set(patterns))


@pytest.mark.requirement("25.2")
@pytest.mark.parametrize("name", LEFT)
def test_what_is_no_source_makes_no_other_tree(project: Path, name: str) -> None:
    """25.2: WHEN a file that is not listed is written, changed or removed, THE Harness SHALL hold the source tree for
    the same: what the package's commands write, and tools leave."""
    before = source_of(project)
    try:
        for text in ("made", "changed"):
            write(project / name, text)
            after = source_of(project)
            assert after == before
            assert (after.commit, after.dirty) == (before.commit, before.dirty)
    finally:
        (project / name).unlink()
    assert source_of(project) == before


@pytest.mark.requirement("25.1")
@pytest.mark.parametrize("name", MEANT)
def test_what_is_a_source_makes_another_tree(project: Path, name: str) -> None:
    """25.1: ... by the names and contents of the files: an untracked one counts as a committed one does."""
    before, old = source_of(project), (project / name).read_bytes() if (project / name).exists() else None
    write(project / name, "new")
    after = source_of(project)
    assert after != before
    assert after.dirty
    write(project / name, "newer")
    assert source_of(project) not in (before, after)
    if old is None:
        (project / name).unlink()
    else:
        (project / name).write_bytes(old)
    assert source_of(project) == before


@pytest.mark.requirement("25.2")
def test_a_commit_of_the_same_content_makes_no_other_tree(checkout: Path) -> None:
    """25.2: ... or a commit of the same content is made."""
    (checkout / "code.py").write_text("a = 2\n", encoding="utf-8")
    before = source_of(checkout)
    said = {before.commit}
    changes: tuple[Callable[[], object], ...] = (
        lambda: commit_all(checkout, "what the tests ran on"),
        lambda: git(checkout, "commit", "-q", "--amend", "-m", "another message"),
        lambda: commit_all(checkout, "nothing"),
        lambda: (checkout / "code.py").chmod(0o755),
        lambda: os.utime(checkout / "code.py", (1, 1)),
        lambda: git(checkout, "checkout", "-q", "-b", "topic"),
    )
    for change in changes:
        change()
        assert source_of(checkout) == before
        said.add(source_of(checkout).commit)
    assert len(said) == 4
    path = checkout / "reports" / "tests.json"
    write_part(path, Part(before, {}, (PASSED,)))
    write_part(path, Part(source_of(checkout), {}, (replace(PASSED, node="test_b"),)))
    assert [record.node for record in read_part(path).records] == ["test_a", "test_b"]


@pytest.mark.requirement("25.1")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[tool", "cannot be read"),
        ("[tool.evidence]\nsources = []", r"tool\.evidence\.sources is \[\], expected"),
        ('[tool.evidence]\nsources = "*.py"', r"tool\.evidence\.sources is '\*\.py', expected"),
        ("[tool.evidence]\nversions = [1]", r"tool\.evidence\.versions is \[1\], expected texts"),
        ('[tool.evidence]\nsource = ["*.py"]', r"tool\.evidence\.source is .*, expected .* sources or versions"),
    ],
)
def test_a_list_that_cannot_be_read_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    """25.1: ... what is listed wrongly lists nothing, which must not look like a tree."""
    write(tmp_path / "pyproject.toml", text)
    with pytest.raises(EvidenceError, match=message):
        source_of(tmp_path)


@pytest.mark.requirement("25.1")
def test_names_and_kinds_of_files(tmp_path: Path) -> None:
    """25.1: a name of any bytes is a source; a pipe, which would be waited for, and a link to nothing are none."""
    before = source_of(tmp_path)
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "link.py").symlink_to("nothing")
    assert source_of(tmp_path) == before
    Path(os.fsdecode(bytes(tmp_path) + b"/\xff.py")).write_text("a", encoding="utf-8")
    assert source_of(tmp_path) != before


FACTS = """
import json, os, sys
from pathlib import Path
from llm_compression.harness.spec.evidence import machine_facts
print(json.dumps(machine_facts(Path(sys.argv[1]))))
"""


@pytest.mark.requirement("25.3")
def test_a_machine_is_what_does_not_change_while_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """25.3: THE Harness SHALL identify a machine by its processor, its system, its lack of devices and its versions,
    none of which depends on the load or on who asks: a process on one processor, with other variables and limits."""
    write(tmp_path / "pyproject.toml", '[tool.evidence]\nversions = ["torch", "pytest", "no-such-package"]')
    here = machine_facts(tmp_path)
    assert set(here["versions"]) == {"torch", "pytest"}
    assert here["processor"]
    for load in (0.0, 3.5):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, load, load))
        assert machine_facts(tmp_path) == here
    few = {min(os.sched_getaffinity(0))}
    variables = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "LLM_COMPRESSION_NUM_THREADS": "1", "COLUMNS": "9"}
    done = subprocess.run(
        [sys.executable, "-c", FACTS, str(tmp_path)],
        env={**os.environ, **variables, "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: os.sched_setaffinity(0, few),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == here


@pytest.mark.requirement("25.3")
def test_the_module_imports_no_encoder_and_no_library() -> None:
    """25.3: ... so that the record of a machine costs nothing, wherever pytest runs."""
    code = "import sys, llm_compression.harness.spec.evidence as e; e.machine_facts(e.Path()); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    own = {name for name in done.stdout.split() if name.startswith("llm_compression.")}
    parts = {f"llm_compression.harness{name}" for name in ("", ".git", ".spec", ".spec.evidence")}
    # the package itself, which is above every module of it, loads its table of old names
    assert own == {"llm_compression.errors", "llm_compression.moved", *parts}
    assert not {"torch", "numpy", "psutil", "pytest"} & set(done.stdout.split())


@pytest.mark.requirement("25.7")
def test_parts_that_are_written_at_once_are_all_kept(tmp_path: Path) -> None:
    """25.7: WHEN evidence is written, THE Harness SHALL keep what other runs of the same tree wrote meanwhile, and
    leave the file whole at any moment."""
    path, stop, seen = tmp_path / "tests.json", threading.Event(), list[int]()
    write_part(path, Part(TREE, {}, ()))
    code = (
        "import sys; from pathlib import Path; from llm_compression.harness.spec.evidence import *\n"
        "for n in range(20): write_part(Path(sys.argv[1]), "
        "Part(Source('c0ffee', False, 'a1'), {}, (Record(f'{sys.argv[2]}-{n}', outcome='passed'),)))"
    )

    def read() -> None:
        while not stop.is_set():
            seen.append(len(read_part(path).records))

    reader = threading.Thread(target=read)
    reader.start()
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(path), str(number)], env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        for number in range(4)
    ]
    assert [writer.wait() for writer in writers] == [0] * 4
    stop.set()
    reader.join()
    assert seen == sorted(seen)
    assert len(read_part(path).records) == 80
    assert {each.name for each in tmp_path.iterdir()} == {"tests.json", ".tests.json.lock"}


@pytest.mark.requirement("25.7")
def test_what_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    """25.7: ... also where the new one ends in an error."""
    path = tmp_path / "tests.json"
    write_part(path, Part(TREE, {}, (PASSED,)))
    before = path.read_bytes()
    wrong: dict[str, Any] = {"value": float("nan")}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_part(path, Part(TREE, {}, (replace(PASSED, **wrong),)))
    assert path.read_bytes() == before
    assert {each.name for each in tmp_path.iterdir()} == {"tests.json", ".tests.json.lock"}


@pytest.mark.requirement("20.4")
def test_merging_keeps_what_was_not_run_again() -> None:
    """20.4: an outcome is replaced by another outcome, and never by `not run`."""
    failed, other = replace(PASSED, outcome="failed"), replace(PASSED, node="test_b")
    assert merge([PASSED, other], [failed]) == (failed, other)
    assert merge([PASSED], [replace(PASSED, outcome=NOT_RUN)]) == (PASSED,)
    assert merge([replace(PASSED, outcome=NOT_RUN)], [PASSED]) == (PASSED,)


@pytest.mark.requirement("25.6")
def test_a_test_that_died_keeps_its_citations() -> None:
    """25.6: of what could not say any more what it cites, an earlier run or the collection says it."""
    died = Record("test_a", outcome="error", reason="worker 'gw0' crashed")
    expected = replace(died, requirements=("1.1",))
    assert merge([PASSED], [died]) == (expected,)
    collected = Record("test_a", ("1.1",))
    for parts in ([collected], [died]), ([died], [collected]):
        assert join([Part(TREE, {}, tuple(each)) for each in parts]) == (expected,)


@pytest.mark.requirement("20.4", "20.5")
def test_a_part_reads_back_and_is_replaced_by_one_of_another_tree(tmp_path: Path) -> None:
    """20.4, 20.5: what lies there of the same tree and machine stays, of another goes; a broken one is written anew."""
    path = tmp_path / "deep" / "tests.json"
    write_part(path, Part(TREE, {"python": "3.11"}, (PASSED,)))
    assert read_part(path) == Part(TREE, {"python": "3.11"}, (PASSED,))
    other = replace(PASSED, node="test_b")
    write_part(path, Part(TREE, {"python": "3.11"}, (other,)))
    assert read_part(path).records == (PASSED, other)
    write_part(path, Part(TREE, {"python": "3.12"}, (other,)))
    assert read_part(path) == Part(TREE, {"python": "3.12"}, (other,))
    another = replace(TREE, tree="b2")
    write_part(path, Part(another, {}, (other,)))
    assert read_part(path) == Part(another, {}, (other,))
    path.write_text("{", encoding="utf-8")
    write_part(path, Part(TREE, {}, (PASSED,)))
    assert read_part(path).records == (PASSED,)


@pytest.mark.requirement("20.4")
def test_sessions_are_joined_by_the_worst_outcome(tmp_path: Path) -> None:
    """20.4: no session hides a failure of another; a skip where a device is missing gives way to a run elsewhere."""
    outcomes = ["skipped", NOT_RUN, "passed", "failed", "passed"]
    parts = {str(n): Part(TREE, {}, (replace(PASSED, outcome=each),)) for n, each in enumerate(outcomes)}
    for upto, expected in ((1, "skipped"), (2, "skipped"), (3, "passed"), (5, "failed")):
        assert [record.outcome for record in join(list(parts.values())[:upto])] == [expected]
    write_joined(tmp_path / "evidence.json", TREE, parts)
    content = json.loads((tmp_path / "evidence.json").read_text(encoding="utf-8"))
    assert content["source"] == {"commit": "c0ffee", "dirty": False, "tree": "a1", "reason": ""}
    assert content["machines"].keys() == parts.keys()
    assert [record["outcome"] for record in content["records"]] == ["failed"]


UNKNOWN = json.dumps(
    {
        "source": {"commit": "", "dirty": False, "tree": ""},
        "machine": {},
        "records": [{"node": "a", "requirements": [], "properties": [], "outcome": "rerun"}],
    }
)


@pytest.mark.requirement("20.3", "12.6")
@pytest.mark.parametrize(
    "text", ["", "[]", '{"source": {}}', UNKNOWN, '{"source": {"tree": 1}, "machine": {}, "records": []}']
)
def test_what_is_no_evidence_is_named(tmp_path: Path, text: str) -> None:
    """12.6: a file that is something else, or cut short, is an error with its path, and no evidence."""
    path = tmp_path / f"{COLLECTED}.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(EvidenceError, match=r"collected\.json: no evidence here"):
        read_parts(tmp_path)
