"""The runner of the cells: what counts as passed, what a machine lacks, and that every form has its cells."""

from __future__ import annotations

import pytest

from llm_compression.inference.paths import FORMS
from tests.processors.cells import CELLS, Cell
from tests.processors.check import judge, lacking, main, run, to_markdown

CELL = Cell("some", forces=("attention=bmm",))


@pytest.mark.requirement("29.6")
@pytest.mark.parametrize(
    ("status", "output", "ran", "outcome"),
    [
        (0, "12 passed in 3.1s", ["attention=bmm"], "passed"),
        (0, "12 passed, 1 skipped in 3.1s", ["attention=bmm", "batch=whole"], "passed"),
        (0, "12 passed in 3.1s", ["attention=fused"], "failed"),
        (1, "1 failed, 12 passed in 3.1s", ["attention=bmm"], "failed"),
        (0, "1 skipped in 0.1s", ["attention=bmm"], "failed"),
        (5, "no tests ran in 0.1s", ["attention=bmm"], "failed"),
        (139, "", ["attention=bmm"], "failed"),
    ],
)
def test_what_counts_as_passed(status: int, output: str, ran: list[str], outcome: str) -> None:
    """29.6: IF a test of a cell fails or a form that was forced did not run, THEN THE Processors Session SHALL exit
    with a status other than 0."""
    assert judge(CELL, status, output, ran, 1.0).outcome == outcome


@pytest.mark.requirement("29.5")
def test_a_cell_of_another_processor_is_listed() -> None:
    """29.5: IF a cell needs what the machine does not have, THEN THE Processors Session SHALL list it with the reason
    and not as passed."""
    assert lacking(Cell("x", needs=("avx2", "avx512_f")), frozenset({"avx2"})) == "the processor has no avx512_f"
    outcome = run(Cell("another processor", needs=("no_such_set",)))
    assert (outcome.outcome, outcome.tests) == ("not here", "the processor has no no_such_set")
    facts = {"processor": "P", "cores": 2, "flags": ("avx2",)}
    text = to_markdown([outcome, judge(CELL, 0, "3 passed in 1s", ["attention=bmm"], 2.0)], facts)
    assert "**PASS: 2 cells, 1 passed, 0 failed, 1 not here.**" in text
    assert "| another processor | not here | the processor has no no_such_set |" in text


@pytest.mark.requirement("29.4")
def test_every_form_and_instruction_set_has_a_cell() -> None:
    """29.4: WHEN `nox -s processors` is run, THE Processors Session SHALL run the tests that compare numbers under each
    instruction set, thread count and forced form of a committed list, in a process each, and write each cell with its
    outcome and the forms that ran."""
    forced = {form for cell in CELLS for form in cell.forces}
    assert forced == {f"{choice}={form}" for choice, forms in FORMS.items() for form in forms}
    held = {cell.environment.get("ONEDNN_MAX_CPU_ISA") for cell in CELLS}
    assert {"AVX2", "AVX512_CORE", "AVX512_CORE_BF16", None} <= held
    assert {cell.environment.get("LLM_COMPRESSION_TEST_THREADS") for cell in CELLS} >= {"2", "4", None}
    assert len({cell.name for cell in CELLS}) == len(CELLS)
    assert any(cell.in_commit for cell in CELLS)


@pytest.mark.requirement("29.4")
def test_a_cell_runs_in_a_process_under_its_environment() -> None:
    """29.4: a cell's process is held and forced as the cell says, and leaves the forms that ran."""
    environment = {"LLM_COMPRESSION_PATHS": "linear=plain,attention=bmm", "ONEDNN_MAX_CPU_ISA": "SSE41"}
    tests = ("tests/unit/test_inference_core.py",)
    outcome = run(Cell("small", environment, forces=("linear=plain", "attention=bmm"), tests=tests))
    assert outcome.outcome == "passed", outcome
    assert {"linear=plain", "attention=bmm"} <= set(outcome.ran)
    assert "linear=packed" not in outcome.ran


@pytest.mark.requirement("29.4")
def test_the_list_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """29.4: the committed list can be seen without running it."""
    assert main(["--list", "--only", "AVX2|SSE41"]) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("held to SSE41, default: ")
    with pytest.raises(SystemExit):
        main(["--only", "no such cell"])
