"""The sessions and the pins that a newcomer and the CI rely on."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SESSIONS = (
    *("lint", "types", "tests", "parity", "gates", "gates_gpu", "spec", "build"),
    *("peers", "regression", "trend", "mutants"),
)


@pytest.mark.requirement("12.8")
@pytest.mark.parametrize("name", SESSIONS)
def test_sessions_say_what_they_do(name: str) -> None:
    """12.8: THE Package SHALL provide the nox sessions `lint`, `types`, `tests`, `parity`, `gates`, `gates_gpu`,
    `spec`, `build`, `peers`, `regression`, `trend` and `mutants`, each with a docstring of one line."""
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


@pytest.mark.requirement("12.9")
def test_the_readme_gives_two_commands_that_exist() -> None:
    """12.9: WHERE a machine has Python 3.11 and nothing else of the Package's needs, THE Package SHALL run its main job
    and its tests by the command that its README gives for each."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"^(python -m pip install nox && python -m nox -s (\w+))", readme, re.MULTILINE)
    assert [session for _, session in commands] == ["gates", "tests"]
    assert commands[1][0] in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


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
