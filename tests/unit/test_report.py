"""The judgement of the gates' results against the table, and the report: nothing but a measured pass is a pass."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llm_compression.harness.clip import photos
from llm_compression.harness.clip.gates import (
    SESSIONS,
    SLOW,
    Judgement,
    Result,
    ResultsError,
    Status,
    judge,
    read_results,
    write_results,
)
from llm_compression.harness.clip.gates_text import figure, headline, sections
from llm_compression.harness.clip.photos import PHOTOS, Neighbour, PhotoError, neighbours, photo_paths, write_variants
from llm_compression.harness.clip.report import Report, main, to_json, to_markdown, to_text
from llm_compression.harness.paired.machine import MachineInfo
from llm_compression.harness.spec.evidence import INVALID
from llm_compression.harness.spec.parser import Gate, Reference

NO_CUDA = SESSIONS["cuda"]
LACKED = {"cuda": NO_CUDA}
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


def judged(*results: Result, status: int = 0, lacked: Mapping[str, str] = LACKED) -> Judgement:
    return judge(TABLE, results, status, lacked=lacked)


def statuses(judgement: Judgement) -> list[Status]:
    return [verdict.status for verdict in judgement.verdicts]


@pytest.mark.requirement("13.8", "13.9")
def test_measured_passes_and_a_missing_device_are_a_pass() -> None:
    """13.8, 13.9: the gates that did not run are exactly those of a device that the machine lacks, and are listed."""
    judgement = judged(*GOOD)
    assert statuses(judgement) == [Status.PASS, Status.PASS, Status.NOT_RUN]
    assert judgement.passed
    assert (
        headline(judgement) == "PASS: 2 of 3 gates within their limits, 1 of devices or processors that are not here."
    )


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
    assert not judged(*GOOD, lacked={}).passed
    assert not judged(*GOOD[:2]).passed
    assert not judged(*GOOD[:2], replace(GOOD[2], reason="slow")).passed
    assert not judged(replace(GOOD[2])).passed


@pytest.mark.requirement("13.8")
def test_nothing_measured_is_not_a_pass() -> None:
    """13.8: a table whose every gate lacks its device has proved nothing."""
    assert not judge([CUDA], [GOOD[2]], 0, lacked=LACKED).passed
    assert not judge([], [], 0, lacked=LACKED).passed


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
    assert lines[1] == (
        "**FAIL: 1 MISS (cosine-tiny), 1 of 3 gates within their limits, "
        "1 of devices or processors that are not here.**"
    )
    passed = "| load-tiny | 1.1 | 120 | < 500 | ms | 76.0% left | 110 to 130, n=3 | PASS |"
    missed = "| cosine-tiny | 1.1 | 0.5 | >= 0.999 |  | over by 49900.0% |  | **MISS** |"
    # what is missed stands first
    assert lines.index(missed) < lines.index(passed)
    assert "Not run here: no CUDA device (1: load-tiny-cuda)." in lines
    assert "cosine-tiny: 2 files, lowest cosine 0.9999000 (b.png)." in lines
    assert "| first call, ms | 12.34 |" in lines
    assert "| a.png | b.png | 0.750 |" in lines
    assert lines.index("<details>") < lines.index("| processor | A processor |") < lines.index("</details>")


RATIO = Gate("ratio-tiny", "load_to_limit", 6.0, "<=", "1", "tiny", "cpu", "1.1")
REFERENCE = Reference("load", "tiny", 1400.0, "MB/s", "load_to_limit")
SLOWER = replace(
    PASSED,
    outcome="skipped",
    value=650.0,
    reason=f"{SLOW}: 650, expected < 500; 900 of 1400 MB/s",
    detail={"rate": 900.0},
)
RATIO_PASSED = Result("ratio-tiny", "passed", value=3.0)
RATIO_MISSED = Result("ratio-tiny", "failed", value=7.0)
DISTURBED = Result("ratio-tiny", "skipped", f"{INVALID}: 9 of 9 samples waited", detail={"disturbed": (0.3, 0.4)})


@pytest.mark.requirement("30.2", "30.3", "30.4")
@pytest.mark.parametrize(
    ("load", "ratio", "status", "passed"),
    [
        (SLOWER, RATIO_PASSED, Status.NOT_MEASURABLE, True),
        # a test that fails in place of skipping changes nothing
        (replace(SLOWER, outcome="failed"), RATIO_PASSED, Status.NOT_MEASURABLE, True),
        (SLOWER, RATIO_MISSED, Status.MISS, False),
        (SLOWER, None, Status.MISS, False),
        (SLOWER, replace(RATIO_PASSED, outcome="skipped", value=None, reason="later"), Status.MISS, False),
        (SLOWER, DISTURBED, Status.INVALID, False),
        # as fast as the reference, or faster; or nobody measured how fast
        (replace(SLOWER, detail={"rate": 1400.0}), RATIO_PASSED, Status.MISS, False),
        (replace(SLOWER, detail={"rate": math.nan}), RATIO_PASSED, Status.MISS, False),
        (replace(SLOWER, detail={}), RATIO_PASSED, Status.MISS, False),
        # met on a slow machine, and met beside a ratio that is not
        (replace(PASSED, detail={"rate": 900.0}), RATIO_PASSED, Status.PASS, True),
        (PASSED, RATIO_MISSED, Status.PASS, False),
        # a skip that calls itself slow and measured nothing
        (replace(SLOWER, value=None), RATIO_PASSED, Status.NOT_RUN, False),
    ],
)
def test_a_slower_machine_excuses_a_miss_only_beside_the_ratio(
    load: Result, ratio: Result | None, status: Status, passed: bool
) -> None:
    """30.2: IF a limit of time is missed on a machine whose rate is below that of the table *Reference machine* and
    every gate that the row rests on is within its limit, THEN THE Gates Session SHALL report it as NOT MEASURABLE HERE
    with both rates, which is no pass and no miss; 30.3: a miss where such a gate is missed; 30.4: what is met is a
    pass."""
    results = [load, *([ratio] if ratio else [])]
    judgement = judge([LOAD, RATIO, COSINE], [*results, GOOD[1]], 0, lacked={}, references=[REFERENCE])
    assert judgement.verdicts[0].status is status
    assert (judgement.passed, judgement.invalid) == (passed, status is Status.INVALID)
    if status is Status.NOT_MEASURABLE:
        assert "900 of 1400 MB/s" in judgement.verdicts[0].reason
        assert headline(judgement).startswith(
            "PASS: 1 not measurable on this machine (load-tiny: 900 of 1400 MB/s), 2 of"
        )


@pytest.mark.requirement("30.7")
def test_disturbed_samples_are_neither_a_pass_nor_a_miss() -> None:
    """30.7: IF fewer undisturbed samples of a gate are left than it needs, THEN THE Gates Session SHALL report it as
    INVALID with what they waited, and exit with a status of its own where nothing else is wrong."""
    table = [LOAD, RATIO, COSINE]
    judgement = judge(table, [PASSED, DISTURBED, GOOD[1]], 0, lacked={})
    assert statuses(judgement) == [Status.PASS, Status.INVALID, Status.PASS]
    assert (judgement.passed, judgement.invalid) == (False, True)
    assert headline(judgement).startswith("INVALID: 1 not measured, as other processes had the processors (ratio-tiny)")
    missed = judge(table, [replace(PASSED, outcome="failed", value=501.0), DISTURBED, GOOD[1]], 1, lacked={})
    assert (missed.passed, missed.invalid) == (False, False)
    # a word is not enough
    said = judge(table, [PASSED, replace(DISTURBED, detail={}), GOOD[1]], 0, lacked={})
    assert statuses(said)[1] is Status.NOT_RUN
    assert not said.invalid


@pytest.mark.requirement("30.5", "30.8")
def test_the_report_says_first_what_is_wrong() -> None:
    """30.8: WHEN the gates have run, THE Gates Session SHALL show first what was missed or not measured, each with its
    criterion, distance to the limit and reason, then what is close to its limit, then the rest, and the gates of absent
    devices in one line; 30.5: and what was taken again."""
    close = replace(PASSED, value=450.0, detail={"disturbed": (0.25,)})
    judgement = judge(
        [COSINE, LOAD, RATIO, CUDA], [GOOD[1], close, RATIO_MISSED, GOOD[2]], 1, lacked=LACKED, references=[REFERENCE]
    )
    shown = [[verdict.gate.id for verdict in verdicts] for _, verdicts in sections(judgement)]
    assert shown == [["ratio-tiny"], ["load-tiny"], ["cosine-tiny"]]
    text = to_text(Report(judgement, MACHINE, "", "2026-01-01"))
    order = (
        "ratio-tiny",
        "Within 20% of the limit",
        "load-tiny",
        "cosine-tiny",
        "Not run here",
        "taken again",
        "FAIL:",
    )
    places = [text.index(each) for each in order]
    assert places == sorted(places)
    assert "ratio-tiny   1.1" in text
    assert "over by 16.7%" in text
    assert "load-tiny: 1 samples taken again, as they waited 25% of their time" in text


def test_figures_have_four_digits() -> None:
    """A figure is read at a glance; what is close to 1 keeps the digits that differ."""
    assert [figure(each) for each in (101.3789, 0.36312, 1.7e-6, 0.99981234, 12345.6)] == [
        *("101.4", "0.3631", "1.7e-06", "0.9998123", "12,346")
    ]


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
