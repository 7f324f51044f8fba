"""Modules under their old names."""

from __future__ import annotations

import importlib
import json
import re
import runpy
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

import llm_compression
from llm_compression import moved

ROOT = Path(__file__).parents[2]


@pytest.fixture
def unimported() -> Iterator[None]:
    """Old names that nothing has imported yet."""
    kept = {name: sys.modules.pop(name) for name in moved.MOVED if name in sys.modules}
    yield
    for name in moved.MOVED:
        sys.modules.pop(name, None)
    sys.modules.update(kept)


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.requirement("33.8")
@pytest.mark.usefixtures("unimported")
@pytest.mark.parametrize(("old", "new"), moved.MOVED.items())
def test_an_old_name_is_the_new_module(old: str, new: str) -> None:
    """33.8: WHEN a module is imported or run by the name that its README had for it before it was moved, THE Package
    SHALL give the module of the new name, with a DeprecationWarning that has both names."""
    with pytest.warns(DeprecationWarning, match=f"^{re.escape(old)} is now {re.escape(new)}; the old name") as caught:
        module = importlib.import_module(old)
    assert len(caught) == 1
    assert module is importlib.import_module(new)
    assert module.__name__ == new
    assert module.__spec__ is not None
    assert module.__spec__.name == new


@pytest.mark.requirement("33.8")
@pytest.mark.usefixtures("unimported")
def test_the_warning_is_at_the_line_that_imports(tmp_path: Path) -> None:
    """33.8: WHEN a module is imported or run by the name that its README had for it before it was moved, THE Package
    SHALL give the module of the new name, with a DeprecationWarning that has both names: and the line that is to be
    changed."""
    program = tmp_path / "program.py"
    program.write_text("x = 1\nfrom llm_compression.inference.text_config import TextConfig\n", encoding="utf-8")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        names = runpy.run_path(str(program))
    assert names["TextConfig"] is llm_compression.TextConfig
    assert [(Path(each.filename), each.lineno) for each in caught] == [(program, 2)]


@pytest.mark.requirement("33.8")
def test_an_old_command_runs_and_says_so() -> None:
    """33.8: WHEN a module is imported or run by the name that its README had for it before it was moved, THE Package
    SHALL give the module of the new name, with a DeprecationWarning that has both names: the command that the README
    had."""
    old, new = "llm_compression.harness.confirm", "llm_compression.harness.spec.confirm"
    before, now = run_python("-m", old, "--help"), run_python("-m", new, "--help")
    assert (before.returncode, before.stdout) == (now.returncode, now.stdout) == (0, now.stdout)
    assert f"DeprecationWarning: {old} is now {new}" in before.stderr
    assert now.stderr == ""


@pytest.mark.requirement("33.8")
def test_another_name_is_still_none() -> None:
    """33.8: WHEN a module is imported or run by the name that its README had for it before it was moved, THE Package
    SHALL give the module of the new name: and a name that never was one is not found."""
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'llm_compression\.inference\.arow_engine'"):
        importlib.import_module("llm_compression.inference.arow_engine")
    moved.install()
    assert sum(type(each).__module__ == moved.__name__ for each in sys.meta_path) == 1


@pytest.mark.requirement("33.9")
def test_importing_the_package_imports_no_harness() -> None:
    """33.9: WHEN `import llm_compression` is run, or a public name is taken from it, THE Package SHALL import no part
    of its harness."""
    program = (
        "import json, sys, llm_compression, llm_compression.cli\n"
        "taken = [getattr(llm_compression, name) for name in llm_compression.__all__]\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    run = run_python("-c", program)
    assert run.returncode == 0, run.stderr
    loaded = json.loads(run.stdout)
    assert "llm_compression.open_model" in loaded
    assert not [name for name in loaded if name.startswith(("llm_compression.harness", "pytest", "_pytest"))]


@pytest.mark.requirement("33.9")
def test_the_package_installs_no_pytest_plugin() -> None:
    """33.9: WHEN `import llm_compression` is run, or a public name is taken from it, THE Package SHALL import no part
    of its harness: nor does pytest where the package is installed and no option asks for its plugin."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "entry-points" not in project
