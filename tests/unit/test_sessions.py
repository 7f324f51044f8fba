"""The sessions and the pins that a newcomer and the CI rely on."""

from __future__ import annotations

import ast
import itertools
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from nox.command import CommandFailed
from packaging.version import Version

ROOT = Path(__file__).parents[2]
SESSIONS = (
    *("lint", "types", "tests", "parity", "engines", "lowest", "gates", "gates_gpu", "spec", "build", "docs"),
    *("peers", "regression", "trend", "mutants", "processors"),
)


@pytest.mark.requirement("12.8")
@pytest.mark.parametrize("name", SESSIONS)
def test_sessions_say_what_they_do(name: str) -> None:
    """12.8: THE Package SHALL provide the nox sessions `lint`, `types`, `tests`, `parity`, `engines`, `lowest`,
    `gates`, `gates_gpu`, `spec`, `build`, `docs`, `peers`, `regression`, `trend`, `mutants` and `processors`, each
    with a docstring of one line."""
    functions = {
        node.name: node
        for node in ast.parse((ROOT / "noxfile.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
    }
    assert any("session" in ast.unparse(decorator) for decorator in functions[name].decorator_list)
    docstring = ast.get_docstring(functions[name])
    assert docstring
    assert "\n" not in docstring


@pytest.mark.requirement("12.7")
def test_every_version_is_pinned() -> None:
    """12.7: THE Package SHALL pin in a committed constraints file every version behind a reported number."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert all(re.fullmatch(r"[0-9][0-9a-z.]*", version) for version in pins.values())
    assert pins["torch"] == "2.13.0"
    behind_a_number = {"torch", "pyarrow", "numpy", "pillow", "transformers", "safetensors", "scikit-image", "psutil"}
    assert behind_a_number <= set(pins)


@pytest.mark.requirement("12.9", "26.1")
def test_the_readme_gives_two_commands_that_exist() -> None:
    """26.1: THE Package SHALL give in its README for each of the two a command of one line that installs into an
    environment of its own, as a system's Python that forbids another installation allows."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    command = r"^(python3 -m venv \.venv && \.venv/bin/pip install nox && \.venv/bin/nox -s (\w+))"
    commands = re.findall(command, readme, re.MULTILINE)
    assert [session for _, session in commands] == ["gates", "tests"]
    assert commands[1][0] in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    # no other command of the project installs into the system's Python
    outside = re.findall(r"^python[\d.]* -m pip install .*", readme + (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert outside == []


@pytest.mark.requirement("26.2")
def test_whatever_installs_pytorch_takes_the_cpu_build_first() -> None:
    """26.2: WHERE a Linux machine has no NVIDIA device, THE Package SHALL install PyTorch in its sessions from
    PyTorch's index of CPU builds, and from the package index only after that has failed."""
    tree = ast.parse((ROOT / "noxfile.py").read_text(encoding="utf-8"))
    # what asks for PyTorch: the package itself, by its extras or as a wheel
    asks = {
        node.name: ast.unparse(node)
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and re.search(r"'\.\[|wheel\b.*external", ast.unparse(node))
    }
    assert set(asks) == {"environment", "engines", "lowest", "peers", "build"}
    for name, text in asks.items():
        assert "torch=True" in text or text.index("install_torch(") < text.index("wheel, external=True"), name


class Session:
    """As much of nox's session as installs: it keeps what is run, and each run fails."""

    def __init__(self) -> None:
        self.ran: list[tuple[str, ...]] = []
        self.warned: list[str] = []

    def run(self, *command: str, external: bool) -> None:
        assert external
        self.ran.append(command)
        raise CommandFailed

    def warn(self, message: str) -> None:
        self.warned.append(message)


@pytest.mark.requirement("26.2")
@pytest.mark.parametrize(
    ("platform", "device", "asked"),
    [("linux", None, True), ("linux", "nvidiactl", False), ("linux", "dxg", False), ("darwin", None, False)],
)
def test_the_cpu_build_is_for_linux_without_a_device(
    monkeypatch: pytest.MonkeyPatch, sessions: ModuleType, platform: str, device: str | None, asked: bool
) -> None:
    """26.2: where PyTorch's index does not answer, the session says what follows and goes on."""
    session = Session()
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(Path, "exists", lambda path: path.name == device)
    sessions.install_torch(session, "python", ("-c", "pins.txt"))
    assert len(session.ran) == len(session.warned) == asked
    if asked:
        command = " ".join(session.ran[0])
        assert command.startswith("python -m pip install --no-deps --index-url https://download.pytorch.org/whl/cpu ")
        assert command.endswith(" -c pins.txt torch")
        assert "the package index's follows" in session.warned[0]


@pytest.mark.requirement("26.7")
def test_the_lowest_versions_are_those_of_the_metadata(sessions: ModuleType) -> None:
    """26.7: WHEN `nox -s lowest` is run, THE Package SHALL run its tests with the lowest versions that its metadata
    claims: each of them, one for a package, none above what the constraints file pins."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    claimed = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    packages = {re.split(r"\[|>=", each)[0] for each in claimed if "llm-compression[" not in each}
    pins = [pin.split("==") for pin in sessions.lowest_versions()]
    lowest = dict(pins)
    assert packages <= set(lowest)
    assert len(lowest) == len(pins), "a package has two lower bounds"
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    highest = dict(line.lower().split("==") for line in lines if line and not line.startswith("#"))
    for name, version in lowest.items():
        assert Version(version) <= Version(highest[name.lower()]), name


class DocsSession:
    """As much of nox's session as builds the pages."""

    posargs: tuple[str, ...] = ()

    def __init__(self, directory: Path) -> None:
        self.env_dir = directory / "docs"
        self.ran: list[tuple[str, ...]] = []

    def run(self, *command: str, success_codes: tuple[int, ...]) -> None:
        assert success_codes == (0,)
        self.ran.append(command[1:])


@pytest.mark.requirement("31.8")
def test_the_pages_are_built_strictly(sessions: ModuleType, tmp_path: Path) -> None:
    """31.8: WHEN `nox -s docs` is run, THE Package SHALL build the pages without a network connection, and fail on a
    warning: nothing in the configuration asks another host, and the builder is told that a warning is an error."""
    session = DocsSession(tmp_path)
    sessions.docs(session)
    (command,) = session.ran
    assert command[:2] == ("-m", "sphinx")
    assert {"--fail-on-warning", "--keep-going", "--fresh-env", "docs"} <= set(command)
    configuration = (ROOT / "docs" / "conf.py").read_text(encoding="utf-8")
    assert "http" not in configuration
    assert "intersphinx" not in configuration
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert any(line.startswith("python -m nox -s ") and "docs" in line.split() for line in lines)


@pytest.mark.requirement("20.12")
def test_what_the_sessions_leave_is_judged_behind_them() -> None:
    """20.12: every session that runs a proof leaves evidence, which a commit must pass, all of it run."""
    sessions = ast.parse((ROOT / "noxfile.py").read_text(encoding="utf-8")).body
    calls = [node for node in ast.walk(ast.Module(sessions, [])) if isinstance(node, ast.Call)]
    named = {ast.unparse(call.args[0]).strip("'") for call in calls if ast.unparse(call.func) == "evidence"}
    assert named == {"tests", "parity", "gates", "gates_gpu", "collected"}
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    sessions_run = [line for line in lines if "nox -s" in line]
    judged = sessions_run.index("python -m nox -s spec -- --strict --write")
    assert {"tests", "parity", "gates"} <= set(" ".join(sessions_run[:judged]).split())
    assert any(line.startswith("python -m nox -s mutants") for line in sessions_run)
    # its status of its own would hide what comes after it
    assert "nox -s regression -- --base HEAD~1 --confirm" in sessions_run[-1]


@pytest.mark.requirement("12.8")
def test_what_a_commit_does_not_wait_for_is_run_by_the_workflow() -> None:
    """12.8: sessions that take long, or need what a machine may lack, are jobs of their own."""
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    (listed,) = re.findall(r"^ +session: \[(.*)\]$", workflow, re.MULTILINE)
    beside = set(listed.split(", "))
    assert beside == {"mutants", "processors", "lowest", "engines"}
    assert beside <= set(SESSIONS)
    for_a_commit = re.findall(r"nox -s ([^-\n&|]*)", (ROOT / ".ci" / "run").read_text(encoding="utf-8"))
    assert {"engines", "lowest"}.isdisjoint(" ".join(for_a_commit).split())
