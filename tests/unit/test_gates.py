"""The gates themselves, on a table of a tiny model: what is measured, and what a gate that was tampered with becomes.

Each run is pytest in a process of its own, on a copy of ``benchmarks/gates``, judged as `nox -s gates` does.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llm_compression.harness.clip.gates import CUDA_SESSION, SESSIONS, Judgement, Status, Verdict, judge, read_results
from llm_compression.harness.clip.models import CACHE_DIRECTORY, prepare_model
from llm_compression.harness.spec.parser import read_specs

ROOT = Path(__file__).parents[2]
HEAD = """# Requirements

### Requirement 1: Gates

**User Story:** As a tester, I want a table, so that it is read.

#### Acceptance Criteria

1. THE Encoder SHALL encode.

## Gates

| id | metric | limit | unit | model | session | criterion |
|---|---|---|---|---|---|---|
"""
COSINE = "| cosine | cosine | >= 0.99 | 1 | tiny | cpu | 1.1 |"
TAMPERED = """
import pytest

@pytest.mark.metric("load")
def test_load(gate, request):
    if gate.id == "skipped":
        pytest.skip("slow today")
    if gate.id == "expected-to-fail":
        request.node.add_marker(pytest.mark.xfail(reason="known"))
        request.node.user_properties.append(("measured", {"value": 1.0}))
        raise ValueError
    if gate.id == "broken":
        raise ValueError("no such thing")
"""
# a sum of these on one clock would lose digits
FIXED = """
import pytest

@pytest.mark.metric("fixed")
def test_fixed(run):
    run.keep(123.4, [0.1, 0.7, 123.4, 1e-7])
"""


class Checkout:
    """A directory with a spec of these gates and a copy of their tests."""

    def __init__(self, root: Path) -> None:
        self.root = root
        shutil.copytree(ROOT / "benchmarks" / "gates", root / "gates", ignore=shutil.ignore_patterns("__pycache__"))

    def run(self, *rows: str, arguments: tuple[str, ...] = ()) -> tuple[Judgement, str]:
        """Measure the gates of this table, then judge: what came of it, and what pytest printed."""
        spec = self.root / ".kiro" / "specs" / "tiny"
        spec.mkdir(parents=True, exist_ok=True)
        (spec / "requirements.md").write_text("\n".join((HEAD + rows[0], *rows[1:])) + "\n", encoding="utf-8")
        for name in ("design.md", "tasks.md"):
            (spec / name).write_text("# Nothing\n", encoding="utf-8")
        results = self.root / "results.json"
        results.unlink(missing_ok=True)
        command = [sys.executable, "-m", "pytest", str(self.root / "gates"), "-p", "no:cacheprovider"]
        command += ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(self.root), "--gate-results", str(results)]
        done = subprocess.run([*command, *arguments], cwd=self.root, capture_output=True, text=True, check=False)
        gates = [gate for each in read_specs(self.root) for gate in each.gates]
        found, status = read_results(results)
        assert status == done.returncode, done.stdout
        return judge(gates, found, status, lacked={CUDA_SESSION: SESSIONS[CUDA_SESSION]}), done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A copy whose seeded model is made once for all tests."""
    return Checkout(tmp_path_factory.mktemp("checkout"))


def by_id(judgement: Judgement) -> dict[str, Verdict]:
    return {verdict.gate.id: verdict for verdict in judgement.verdicts}


@pytest.mark.requirement("13.7", "13.8", "14.7")
def test_gates_are_measured_against_the_table_and_a_miss_fails(checkout: Checkout) -> None:
    """13.7, 13.8, 14.7: limits from the table; a value that misses one fails; a gate without its device is NOT RUN."""
    judgement, output = checkout.run(
        COSINE,
        "| memory | peak_memory | < 100000 | MB | tiny | cpu | 1.1 |",
        "| missed | relative_error | <= 1e-12 | 1 | tiny | cpu | 1.1 |",
        "| elsewhere | load | < 500 | ms | tiny | cuda | 1.1 |",
        "| nowhere | load | < 500 | ms | tiny | abacus | 1.1 |",
    )
    found = by_id(judgement)
    assert {name: verdict.status for name, verdict in found.items()} == {
        "cosine": Status.PASS,
        "memory": Status.PASS,
        "missed": Status.MISS,
        "elsewhere": Status.NOT_RUN,
        "nowhere": Status.ERROR,
    }, output
    assert not judgement.passed
    assert (len(found["cosine"].samples), len(found["memory"].samples)) == (2, 3)
    assert found["memory"].value == max(found["memory"].samples) > 100
    value = found["missed"].value
    assert value is not None
    assert 0 < value < 1e-4
    assert (found["elsewhere"].reason, found["elsewhere"].excused) == (SESSIONS[CUDA_SESSION], True)
    assert "memory: sample 3, 3 needed" in output


@pytest.mark.requirement("13.8", "13.9")
def test_a_skipped_deselected_deleted_or_broken_gate_is_never_a_pass(tmp_path: Path) -> None:
    """13.8, 13.9: IF a gate did not run, THEN THE Gates Session SHALL list it as NOT RUN and not as passed."""
    tampered = Checkout(tmp_path)
    (tmp_path / "gates" / "test_load.py").write_text(TAMPERED, encoding="utf-8")
    (tmp_path / "gates" / "test_memory.py").unlink()
    kinds = ("skipped", "expected-to-fail", "broken", "never-measured", "leftout")
    rows = [f"| {kind} | load | < 500 | ms | tiny | cpu | 1.1 |" for kind in kinds]
    rows.append("| deleted | peak_memory | < 500 | MB | tiny | cpu | 1.1 |")
    judgement, output = tampered.run(*rows, arguments=("-k", "not leftout"))
    assert {name: verdict.status for name, verdict in by_id(judgement).items()} == {
        "skipped": Status.NOT_RUN,
        "expected-to-fail": Status.ERROR,
        "broken": Status.ERROR,
        "never-measured": Status.ERROR,
        "leftout": Status.NOT_RUN,
        "deleted": Status.NOT_RUN,
    }, output
    assert not any(verdict.holds_up for verdict in judgement.verdicts)
    assert by_id(judgement)["skipped"].reason == "slow today"
    assert "no such thing" in by_id(judgement)["broken"].reason


@pytest.mark.requirement("13.3")
def test_a_wrong_answer_is_an_error_and_not_a_time(checkout: Checkout) -> None:
    """13.3: WHEN a call is timed, THE Harness SHALL compare its embeddings with those of the Reference."""
    model = prepare_model("tiny", checkout.root / CACHE_DIRECTORY)
    right = np.load(model.reference)
    try:
        np.save(model.reference, np.roll(right, 1, axis=0))
        judgement, output = checkout.run(
            COSINE, "| load | load | < 500 | ms | tiny | cpu | 1.1 |", arguments=("-k", "test_load")
        )
    finally:
        np.save(model.reference, right)
    verdict = by_id(judgement)["load"]
    assert (verdict.status, verdict.value) == (Status.ERROR, None), output
    assert "wrong answers" in verdict.reason


@pytest.mark.requirement("13.9")
def test_every_gate_of_the_spec_has_exactly_one_test() -> None:
    """13.9: each row of the table *Gates* is collected once, whatever its session."""
    command = [sys.executable, "-m", "pytest", "benchmarks/gates", "--collect-only", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    collected = [line.partition("[")[2].rstrip("]") for line in done.stdout.splitlines() if "::" in line]
    gates = [gate for spec in read_specs(ROOT) for gate in spec.gates]
    assert sorted(collected) == sorted(gate.id for gate in gates)
    assert any(gate.session == CUDA_SESSION for gate in gates)


@pytest.mark.requirement("34.6", "34.7")
def test_pytest_benchmark_holds_every_sample(checkout: Checkout, tmp_path: Path) -> None:
    """34.6: WHEN a gate is measured, THE Harness SHALL give each sample that its value was taken from to
    pytest-benchmark as one round, a time in seconds and another value in the unit of its gate.

    34.7: WHERE `--benchmark-compare` is given, THE Harness SHALL show each gate beside the same gate of the earlier
    run.
    """
    (checkout.root / "gates" / "test_fixed.py").write_text(FIXED, encoding="utf-8")
    rows = (COSINE, "| fixed | fixed | < 500 | ms | tiny | cpu | 1.1 |")
    saved = (f"--benchmark-storage={tmp_path / 'saved'}", "--benchmark-autosave")
    judgement, output = checkout.run(*rows, arguments=(*saved, f"--benchmark-json={tmp_path / 'first.json'}"))
    assert judgement.passed, output
    content = json.loads((tmp_path / "first.json").read_text(encoding="utf-8"))
    found = {each["extra_info"]["gate"]: each for each in content["benchmarks"]}
    for name, verdict in by_id(judgement).items():
        seconds = 1000 if verdict.gate.unit == "ms" else 1
        # bit for bit: one division and no sum
        assert found[name]["stats"]["data"] == [each / seconds for each in verdict.samples]
        assert found[name]["stats"]["rounds"] == len(verdict.samples) > 1
        assert found[name]["extra_info"]["value"] == verdict.value
    assert {name: each["group"] for name, each in found.items()} == {
        "cosine": "cosine, a second stands for 1 1",
        "fixed": "fixed",
    }
    assert found["fixed"]["stats"]["data"] == [each / 1000 for each in (0.1, 0.7, 123.4, 1e-7)]
    assert "benchmark 'cosine, a second stands for 1 1': 1 tests" in output
    assert "Name (time in s)" in output
    _, again = checkout.run(*rows, arguments=(*saved, "--benchmark-compare", "-k", "test_bfloat16"))
    compared = [line.split()[:2] for line in again.splitlines() if line.startswith("test_bfloat16[cosine] (")]
    assert [each[1] for each in compared] == ["(0001_unversi)", "(NOW)"], again
