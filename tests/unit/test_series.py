"""Turns of live processes, undisturbed samples, and rates by a program that knows nothing of this package."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from llm_compression.harness.clip.accuracy import seeded_pixels
from llm_compression.harness.clip.checkpoints import VARIANTS
from llm_compression.harness.clip.limit import PROGRAM, product_rounds, reading_rounds
from llm_compression.harness.clip.live import encoder
from llm_compression.harness.clip.measure import Bounds, Job
from llm_compression.harness.clip.series import TURNS, DisturbedError, Series, Undisturbed, _pair
from llm_compression.harness.paired.child import MeasurementError
from llm_compression.harness.paired.turns import Live, take_turns
from llm_compression.harness.paired.waits import Waits
from llm_compression.harness.spec.parser import Condition
from llm_compression.inference.weight_format import WEIGHTS_FILE
from llm_compression.multimodal.vision_encoder import VisionEncoder

ECHO = """
import json, sys
print(json.dumps({{}}), flush=True)
for line in sys.stdin:
    print(json.dumps({answer}), flush=True)
print("{{}}")
"""


@pytest.fixture(scope="module")
def job(tiny_model: Path, tiny_encoder: VisionEncoder, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A job on the variant ``tiny`` in float32; its reference is the encoder's own answers."""
    file = tmp_path_factory.mktemp("reference") / "reference.npy"
    pixels = torch.from_numpy(np.stack([seeded_pixels(0, index, 32) for index in range(8)]))
    np.save(file, np.asarray(tiny_encoder.encode_pixels(pixels, normalize=False)))
    return Job(str(tiny_model), str(file), 32, "float32")


def echo(answer: str, timeout_s: float = 60) -> Live:
    return Live("echo", ("-c", ECHO.format(answer=answer)), timeout_s)


def waited(part: float) -> Waits:
    return Waits(1000, 1000 * part, 1000 * part, 0, 0)


@pytest.mark.requirement("30.5", "30.7")
def test_samples_are_taken_again_until_enough_were_undisturbed() -> None:
    """30.5: WHEN a sample waited for other processes during more of its time than the table *Undisturbed samples*
    allows, THE Gates Session SHALL take it again, as often as that table allows, and show it in the report; 30.7: IF
    fewer undisturbed samples of a gate are left than it needs, THEN THE Gates Session SHALL report it as INVALID with
    what they waited, and exit with a status of its own where nothing else is wrong."""
    rule = Undisturbed.of([Condition("wait", 10, "%"), Condition("retakes", 2, "1")])
    assert rule == Undisturbed(0.1, 2)
    parts = [0.0, 0.5, 0.1, 0.11, 0.02]
    kept, dropped = rule.take(lambda number: parts[number], 3, waited)
    assert (kept, dropped) == ([0.0, 0.1, 0.02], (0.5, 0.11))
    with pytest.raises(
        DisturbedError, match=r"5 of 6 samples waited .* more than 10% of their time \(median 90%\)"
    ) as e:
        rule.take(lambda number: 0.0 if number == 3 else 0.9, 2, waited)
    assert e.value.parts == (0.9,) * 5
    # without a table every sample counts
    assert Undisturbed.of([]).take(lambda _number: 0.9, 2, waited)[1] == ()


@pytest.mark.requirement("8.7", "8.8")
def test_turns_are_of_both_in_random_order(tmp_path: Path) -> None:
    """8.7, 8.8: taken by Turns: a call of each, again and again, in an order that is drawn."""
    log = tmp_path / "log"
    answer = "[open({log!r}, 'a').write({name!r}), {{'ms': {ms}}}][1]"
    one, other = (echo(answer.format(log=str(log), name=name, ms=ms)) for name, ms in (("a", 1.0), ("b", 2.0)))
    with one, other:
        assert take_turns((one, other), random.Random(0), turns=40) == [(1.0, 2.0)] * 40
        assert (one.last(), other.last()) == ({}, {})
    order = log.read_text(encoding="utf-8")
    pairs = [order[start : start + 2] for start in range(0, len(order), 2)]
    assert set(pairs) == {"ab", "ba"}
    assert 5 < pairs.count("ab") < 35


@pytest.mark.requirement("13.3")
def test_a_wrong_answer_in_a_turn_is_an_error(job: Job, tmp_path: Path) -> None:
    """13.3: WHEN a call is timed, THE Harness SHALL compare its embeddings with those of the Reference."""
    pair = _pair(job, Bounds(min_cosine=0.9999), encoder(job), 0)
    assert len(pair.ours_ms) == len(pair.other_ms) == TURNS
    assert min(*pair.ours_ms, *pair.other_ms, pair.ratio) > 0
    assert pair.waits.wall_ms >= sum(pair.ours_ms)
    wrong = tmp_path / "wrong.npy"
    np.save(wrong, np.roll(np.load(job.reference), 1, axis=0))
    with pytest.raises(MeasurementError, match="wrong answers"):
        _pair(replace(job, reference=str(wrong)), Bounds(min_cosine=0.9999), encoder(job), 0)


@pytest.mark.requirement("13.1")
@pytest.mark.parametrize(
    ("answer", "said"),
    [("1 / 0", "ZeroDivisionError"), ("[sys.exit(3)]", "exit status 3"), ("'text'", "expected a JSON object")],
)
def test_a_live_process_that_ends_says_why(answer: str, said: str) -> None:
    """13.1: a process that fails in the middle is an error with its last lines, and never a hang."""
    with echo(answer) as live, pytest.raises(MeasurementError, match=said):
        live.ask()


@pytest.mark.requirement("13.1")
def test_a_live_process_that_hangs_or_never_starts() -> None:
    """13.1: no answer in time, or none at all, is an error."""
    with echo("[sys.stdin.read(1 << 30)]", 0.5) as live, pytest.raises(MeasurementError, match=r"no answer in 0\.5 s"):
        live.ask()
    with pytest.raises(MeasurementError, match="no_such_module"), Live("none", ("-m", "no_such_module")):
        pytest.fail("entered")


@pytest.mark.requirement("30.1")
def test_rates_come_from_a_program_that_imports_nothing_of_the_package(tiny_model: Path) -> None:
    """30.1: THE Gates Session SHALL measure the rates of the machine in the same run by a program that imports nothing
    of the Package, matrix products by the fastest of the ways that PyTorch has for their shapes and dtype."""
    request = json.dumps({"tokens": 5, "shapes": [[8, 4]], "dtype": "float32", "threads": 1})
    code = (
        "import runpy, sys, io\n"
        f"sys.argv = ['products', {request!r}]\n"
        "sys.stdin = io.StringIO('\\n')\n"
        f"runpy.run_path({str(PROGRAM)!r}, run_name='__main__')\n"
        "print([name for name in sys.modules if name.startswith('llm_compression')])"
    )
    lines = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert lines[-1] == "[]"
    chosen = json.loads(lines[0])
    assert chosen["trials_s"][chosen["way"]] == min(chosen["trials_s"].values())
    assert {"linear", "addmm"} <= set(chosen["trials_s"])
    with product_rounds(VARIANTS["tiny"], "float32") as rounds:
        assert rounds.ask()["ms"] > 0
        assert ("packed" in rounds.ready["trials_s"]) is torch.backends.mkldnn.is_available()
    file = tiny_model / WEIGHTS_FILE
    with reading_rounds(file, "float32", "bfloat16") as rounds:
        assert rounds.ready["bytes"] == file.stat().st_size // 4 * 4
        assert rounds.ask()["ms"] > 0


def test_a_series_is_taken_once() -> None:
    """Several gates rest on the same samples; an error is theirs too."""
    said: list[str] = []
    series = Series(Undisturbed(1.0, 0), said.append)

    def taking() -> tuple[list[float], tuple[float, ...]]:
        said.append("taken")
        return [1.0], ()

    def failing() -> tuple[list[float], tuple[float, ...]]:
        said.append("failed")
        raise DisturbedError("busy", (0.5,))

    for _ in range(2):
        assert series._once("key", taking) == ([1.0], ())
        with pytest.raises(DisturbedError, match="busy"):
            series._once("other", failing)
    assert said == ["taken", "failed"]
