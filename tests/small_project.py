"""A project with a spec, tests and gates of its own, small enough to be run within a test."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

import pytest

from llm_compression.harness.clip import measure, models, this_machine

# imported here, so that the runs inside a test do not import them anew each time
from llm_compression.harness.spec import confirm, matrix
from llm_compression.harness.spec.evidence import EVIDENCE_DIRECTORY

ROOT: Final = Path(__file__).parents[1]
PLUGIN: Final = "llm_compression.harness.spec.plugin"
LOADED: Final = (measure, models, this_machine)

REQUIREMENTS: Final = """\
# Requirements: kettle

### Requirement 1: Heat

**User Story:** As a cook, I want hot water, so that I can make tea.

#### Acceptance Criteria

1. WHEN the switch is pressed, THE Kettle SHALL heat within the limit of gate `heat`.
2. IF there is no water, THEN THE Kettle SHALL stay off.
3. THE Kettle SHALL be quiet.
4. WHERE a CUDA device is present, THE Kettle SHALL heat within the limit of gate `heat-cuda`.

## Gates

| id | metric | limit | unit | model | session | criterion |
|---|---|---|---|---|---|---|
| heat | heat | < 500 | ms | small | cpu | 1.1 |
| heat-cuda | heat | < 500 | ms | small | cuda | 1.4 |
"""
DESIGN: Final = """\
# Design: kettle

### Property 1: Dry

*For any* position of the switch, a dry kettle stays off.

**Validates: Requirements 1.2**
"""
TASKS: Final = """\
# Tasks: kettle

- [x] 1.1 Build it
  - _Requirements: 1.1, 1.2, 1.3, 1.4_
"""
TESTS: Final = """\
import pytest
from hypothesis import given, settings, strategies as st

@pytest.fixture
def kettle():
    yield 1

@pytest.mark.property(1)
@settings(max_examples=120, database=None)
@given(st.integers())
def test_dry(position):
    pass

@pytest.mark.requirement("1.3")
def test_quiet(kettle):
    pass

def test_unmarked():
    assert False
"""
GATES: Final = """\
import pytest

@pytest.mark.metric("heat")
def test_heat(gate, request):
    request.node.user_properties.append(("measured", {"value": 412.5}))
"""
OTHER: Final = """\
# Requirements: teapot

### Requirement 1: Tea

**User Story:** As a cook, I want tea, so that I can drink it.

#### Acceptance Criteria

1. THE Teapot SHALL hold tea.
"""
OTHER_TASKS: Final = """\
# Tasks: teapot

- [ ] 1.1 Build it
  - _Requirements: 1.1_
"""


class Project:
    """The project in a directory; `pytester` runs it."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.pytester, self.root = pytester, pytester.path
        self.spec = self.root / ".kiro" / "specs" / "kettle"
        self.files = {
            "requirements": self.spec / "requirements.md",
            "design": self.spec / "design.md",
            "tasks": self.spec / "tasks.md",
            "tests": self.root / "tests" / "test_kettle.py",
            "gates": self.root / "gates" / "test_heat.py",
            "ini": self.root / "pytest.ini",
        }
        for name, text in zip(self.files, (REQUIREMENTS, DESIGN, TASKS, TESTS, GATES, "[pytest]\n"), strict=True):
            self.files[name].parent.mkdir(parents=True, exist_ok=True)
            self.files[name].write_text(text, encoding="utf-8")
        shutil.copy(ROOT / "benchmarks" / "gates" / "conftest.py", self.root / "gates")
        assert confirm.main([str(self.root)]) == 0

    def change(self, file: str, old: str, new: str) -> None:
        """Replace the one passage of a file."""
        text = self.files[file].read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{old!r} occurs {text.count(old)} times in {file}"
        self.files[file].write_text(text.replace(old, new), encoding="utf-8")

    def add_teapot(self) -> None:
        """Write a second spec, confirmed."""
        directory = self.spec.parent / "teapot"
        directory.mkdir()
        for name, text in (("requirements", OTHER), ("design", "# Design\n"), ("tasks", OTHER_TASKS)):
            (directory / f"{name}.md").write_text(text, encoding="utf-8")
        assert confirm.main([str(self.root)]) == 0

    def run(self, session: str, *arguments: str) -> pytest.RunResult:
        """Run pytest with the evidence of a session."""
        path = self.root / EVIDENCE_DIRECTORY / f"{session}.json"
        return self.pytester.runpytest_inprocess("-p", PLUGIN, "--evidence", path, *arguments)

    def judge(self, *arguments: str) -> int:
        """Join spec and evidence, as `nox -s spec` does."""
        return matrix.main([str(self.root), *arguments])
