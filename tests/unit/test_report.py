"""The judgement of the gates' results against the table, and the report: nothing but a measured pass is a pass."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llm_compression.harness import photos
from llm_compression.harness.gates import (
    NO_CUDA,
    Judgement,
    Result,
    ResultsError,
    Status,
    judge,
    read_results,
    write_results,
)
from llm_compression.harness.machine import MachineInfo
from llm_compression.harness.photos import PHOTOS, Neighbour, PhotoError, neighbours, photo_paths, write_variants
from llm_compression.harness.report import Report, headline, main, to_json, to_markdown, to_text
from llm_compression.harness.spec import Gate

LOAD = Gate("load-tiny", "load", 500.0, "<", "ms", "tiny", "cpu", "1.1")
COSINE = Gate("cosine-tiny", "cosine", 0.999, ">=", "1", "tiny", "cpu", "1.1")
CUDA = replace(LOAD, id="load-tiny-cuda", session="cuda")
TABLE = (LOAD, COSINE, CUDA)
PASSED = Result("load-tiny", "passed", value=120.0, samples=(110.0, 120.0, 130.0))
GOOD = (PASSED, Result("cosine-tiny", "passed", value=0.9999), Result("load-tiny-cuda", "skipped", NO_CUDA))
MACHINE = MachineInfo("A processor", 2, ("avx2",), 8000, 0.5, (), "Linux", "3.11.7", {"torch": "2.13.0"})
REQUIREMENTS = """# Requirements

### Requirement 1: Load

**User Story:** As a tester, I want a table, so that it is read.

#### Acceptance Criteria

1. THE Encoder SHALL load.

## Gates

| id | metric | limit | unit | model | session | criterion |
|---|---|---|---|---|---|---|
| load-tiny | load | < 500 | ms | tiny | cpu | 1.1 |
| cosine-tiny | cosine | >= 0.999 | 1 | tiny | cpu | 1.1 |
| load-tiny-cuda | load | < 500 | ms | tiny | cuda | 1.1 |
"""


def judged(*results: Result, status: int = 0, excuse_cuda: bool = True) -> Judgement:
    return judge(TABLE, results, status, excuse_cuda=excuse_cuda)


def statuses(judgement: Judgement) -> list[Status]:
    return [verdict.status for verdict in judgement.verdicts]


@pytest.mark.requirement("13.8", "13.9")
def test_measured_passes_and_a_missing_device_are_a_pass() -> None:
    """13.8, 13.9: the gates that did not run are exactly those of a device that the machine lacks, and are listed."""
    judgement = judged(*GOOD)
    assert statuses(judgement) == [Status.PASS, Status.PASS, Status.NOT_RUN]
    assert judgement.passed
    assert headline(judgement) == "PASS: 2 of 3 gates within their limits, 1 NOT RUN for want of a CUDA device."


@pytest.mark.requirement("13.7", "13.8", "13.9")
@pytest.mark.parametrize(
    ("result", "status"),
    [
        (replace(PASSED, outcome="failed", value=500.0, reason="assert"), Status.MISS),
        (replace(PASSED, value=501.0), Status.MISS),
        (replace(PASSED, outcome="failed", value=math.nan), Status.MISS),
        (replace(PASSED, value=math.nan), Status.MISS),
        (replace(PASSED, value=None), Status.ERROR),
        (replace(PASSED, outcome="failed", value=None, reason="MeasurementError: wrong answers"), Status.ERROR),
        (replace(PASSED, outcome="failed", reason="teardown"), Status.ERROR),
        (replace(PASSED, outcome="xfailed"), Status.ERROR),
        (replace(PASSED, outcome="xpassed"), Status.ERROR),
        (replace(PASSED, outcome="skipped", reason="slow today"), Status.NOT_RUN),
        (replace(PASSED, outcome="skipped", reason=NO_CUDA), Status.NOT_RUN),
        (None, Status.NOT_RUN),
    ],
    ids=str,
)
def test_whatever_is_not_a_measured_pass_fails_the_session(result: Result | None, status: Status) -> None:
    """13.7, 13.8, 13.9: a miss, NaN, an error, an expected failure, a skip, a deleted or deselected test."""
    results = [each for each in (result, *GOOD[1:]) if each]
    judgement = judged(*results)
    assert statuses(judgement)[0] is status
    assert not judgement.passed
    assert headline(judgement).startswith("FAIL")


@pytest.mark.requirement("13.9")
def test_a_gate_of_cuda_is_excused_only_where_the_device_is_missing_and_its_test_says_so() -> None:
    """13.9: IF the gates that did not run are not exactly those of a device that the machine lacks, it fails."""
    assert not judged(*GOOD, excuse_cuda=False).passed
    assert not judged(*GOOD[:2]).passed
    assert not judged(*GOOD[:2], replace(GOOD[2], reason="slow")).passed
    assert not judged(replace(GOOD[2])).passed


@pytest.mark.requirement("13.8")
def test_nothing_measured_is_not_a_pass() -> None:
    """13.8: a table whose every gate lacks its device has proved nothing."""
    assert not judge([CUDA], [GOOD[2]], 0, excuse_cuda=True).passed
    assert not judge([], [], 0, excuse_cuda=True).passed


def test_a_second_test_an_unknown_gate_and_an_unexplained_exit_status_are_seen() -> None:
    """One test for each gate, and pytest's own status, whatever the verdicts say."""
    assert statuses(judged(PASSED, *GOOD))[0] is Status.ERROR
    unknown = judged(*GOOD, Result("load-huge", "passed", value=1.0))
    assert unknown.problems == ("a test names the gate 'load-huge', which is not in the table",)
    assert not unknown.passed
    for status in (1, 2, 3, 4, 5):
        assert not judged(*GOOD, status=status).passed


def test_results_are_read_back_and_anything_else_is_refused(tmp_path: Path) -> None:
    """NaN included; a file that is missing or cut short is no result."""
    file = tmp_path / "results.json"
    write_results(file, [PASSED, replace(GOOD[1], value=math.nan)], 3)
    results, status = read_results(file)
    assert (results[0], status) == (PASSED, 3)
    assert results[1].value is not None
    assert math.isnan(results[1].value)
    file.write_text(file.read_text(encoding="utf-8")[:-30], encoding="utf-8")
    for damaged in (file, tmp_path / "missing.json"):
        with pytest.raises(ResultsError, match="no results of gates here"):
            read_results(damaged)


@pytest.mark.requirement("13.6")
def test_markdown_has_the_verdict_first_and_the_machine_folded() -> None:
    """13.6: each measured value against its limit, with its spread."""
    detail = {"files": {"a.png": 0.99995, "b.png": 0.9999}, "summary": {"first_call_ms": 12.34}}
    results = (PASSED, replace(GOOD[1], outcome="failed", value=0.5, detail=detail), GOOD[2])
    neighbour = Neighbour("a.png", "b.png", 0.75)
    text = to_markdown(Report(judged(*results, status=1), MACHINE, "abc+", "2026-01-01", (neighbour,)))
    lines = [line for line in text.splitlines() if line]
    assert lines[1] == "**FAIL: 1 of 3 gates within their limits, 1 MISS, 1 NOT RUN for want of a CUDA device.**"
    assert "| load-tiny | load | tiny | < 500 | 120.0 | ms | 110.0 to 130.0, n=3 | PASS |" in lines
    assert "| cosine-tiny | cosine | tiny | >= 0.999 | 0.5000000 |  |  | **MISS** |" in lines
    assert "| load-tiny-cuda | load | tiny | < 500 |  | ms |  | **NOT RUN** |" in lines
    assert "cosine-tiny: 2 files, lowest cosine 0.9999000 (b.png)." in lines
    assert "| first call, ms | 12.3 |" in lines
    assert "| a.png | b.png | 0.750 |" in lines
    assert lines.index("<details>") < lines.index("| processor | A processor |") < lines.index("</details>")


def test_reasons_are_shown_once_and_json_holds_no_nan() -> None:
    """A program reads the same verdict; a value that is not a number is null there."""
    results = [Result(gate.id, "skipped", "slow") for gate in TABLE]
    report = Report(judged(*results), MACHINE, "", "2026-01-01")
    assert to_text(report).count("slow") == 1
    damaged = Report(judged(replace(PASSED, value=math.nan, samples=(math.nan,))), MACHINE, "", "2026-01-01")
    content = json.loads(json.dumps(to_json(damaged), allow_nan=False))
    assert (content["verdict"], content["gates"][0]["status"]) == ("FAIL", "MISS")
    assert (content["gates"][0]["value"], content["gates"][0]["samples"]) == (None, [None])


@pytest.mark.requirement("13.6", "13.7", "14.7")
def test_the_command_writes_both_reports_and_its_status_is_the_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """13.6, 13.7, 14.7: limits from the table of the specs in the checkout; status 1 unless every gate holds."""
    spec = tmp_path / ".kiro" / "specs" / "tiny"
    spec.mkdir(parents=True)
    (spec / "requirements.md").write_text(REQUIREMENTS, encoding="utf-8")
    (spec / "design.md").write_text("# Design\n", encoding="utf-8")
    (spec / "tasks.md").write_text("# Tasks\n", encoding="utf-8")
    results = tmp_path / "results.json"
    command = [str(results), "--root", str(tmp_path)]
    assert main(command) == 1
    assert "no results of gates here" in capsys.readouterr().err
    write_results(results, GOOD, 0)
    assert main(command) == 0
    assert "load-tiny" in capsys.readouterr().out
    assert json.loads((tmp_path / "reports" / "gates.json").read_text(encoding="utf-8"))["verdict"] == "PASS"
    assert (tmp_path / "reports" / "gates.md").read_text(encoding="utf-8").startswith("# Gates\n\n**PASS")
    # where no gate was measured there is nothing to pass
    assert main([*command, "--session", "cuda"]) == 1
    assert (tmp_path / "reports" / "gates-cuda.md").is_file()
    assert (tmp_path / "reports" / "gates.md").read_text(encoding="utf-8").startswith("# Gates\n\n**PASS")
    (spec / "requirements.md").write_text(REQUIREMENTS.replace("< 500", "< 100"), encoding="utf-8")
    assert main(command) == 1


@pytest.mark.requirement("13.5")
def test_the_photos_are_those_of_the_installed_scikit_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """13.5: the photos that scikit-image ships; one that is not there is named."""
    assert [path.name for path in photo_paths()] == list(PHOTOS)
    monkeypatch.setattr(photos, "PHOTOS", (*PHOTOS, "unicorn.png"))
    with pytest.raises(PhotoError, match=r"missing unicorn\.png"):
        photo_paths()


@pytest.mark.requirement("7.4")
def test_the_files_made_from_photos_have_the_modes_and_shapes_of_the_criterion(tmp_path: Path) -> None:
    """7.4: colour, grayscale, palette, RGBA, 16-bit, CMYK, portrait, landscape and tiny image files."""
    modes = set()
    sizes = []
    for path in (*photo_paths(), *write_variants(tmp_path)):
        with Image.open(path) as image:
            modes.add(image.mode)
            sizes.append(image.size)
    assert {"RGB", "L", "P", "RGBA", "LA", "I;16", "CMYK", "1"} <= modes
    assert min(sizes) == (1, 1)
    assert any(height > 3 * width for width, height in sizes)
    assert any(width > 3 * height for width, height in sizes)
    with Image.open(tmp_path / "turned.jpg") as turned:
        assert turned.getexif()[0x0112] == 6


def test_the_nearest_photo_is_another_one() -> None:
    """The neighbour of a photo is the one with the highest cosine, whatever the lengths."""
    found = neighbours(("a", "b", "c"), np.array([[1.0, 0.0], [5.0, 5.0], [0.0, 1.0]], np.float32))
    assert [(each.name, each.nearest) for each in found] == [("a", "b"), ("b", "a"), ("c", "b")]
    assert found[0].cosine == pytest.approx(math.sqrt(0.5))
