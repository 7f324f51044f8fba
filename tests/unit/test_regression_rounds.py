"""Rounds: their order, when they end, what a failure becomes; and the probe on real worktrees with the tiny model."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from benchmarks.regression.project import METRICS, PROJECT, Shared, converted
from llm_compression.harness.clip.measure import Bounds
from llm_compression.harness.clip.models import Model, prepare_model
from llm_compression.harness.paired.child import MeasurementError
from llm_compression.harness.paired.compare import LOOKS, Outcome
from llm_compression.harness.paired.project import Key, Side, WrongAnswersError, keys_of
from llm_compression.harness.paired.rounds import (
    SIDES,
    Comparison,
    SideError,
    Take,
    Values,
    compare_rounds,
    take_sample,
    taker,
)
from llm_compression.harness.paired.worktrees import Revision
from llm_compression.harness.spec.parser import Floor, Spec

ROOT = Path(__file__).parents[2]
FLOORS = {name: Floor(name, 4, "%") for name in METRICS}
KEYS = keys_of(PROJECT, ["b16", "b32"])


def quiet(line: str) -> None:
    """Say nothing."""
    assert line


class Machine:
    """A machine with a clock: each process takes a second and gives seeded values; the head's may be slower."""

    def __init__(self, noise: float = 0.001, **changes: float) -> None:
        self.now, self.calls = 0.0, list[tuple[str, str]]()
        self.random, self.noise, self.changes = np.random.default_rng(0), noise, changes

    def clock(self) -> float:
        return self.now

    def take(self, side: str, model: str) -> Values:
        self.now += 1
        self.calls.append((side, model))
        slower = self.changes if side == "head" else {}
        return {name: 100 * slower.get(name, 1) * float(np.exp(self.random.normal(0, self.noise))) for name in METRICS}

    def compare(self, budget_s: float, keys: Sequence[Key] = tuple(KEYS), take: Take | None = None) -> Comparison:
        return compare_rounds(take or self.take, keys, METRICS, FLOORS, budget_s, quiet, self.clock)


@pytest.mark.requirement("21.6", "21.18")
def test_every_metric_has_a_floor_in_the_spec(spec: Spec) -> None:
    """21.6, 21.18: THE Harness SHALL read the floor of every metric from the table *Regression floors*."""
    assert {floor.metric for floor in spec.floors} == set(METRICS)
    wanted = {"load", "first_call", "latency", "throughput", "cold_start", "import", "peak_memory"}
    assert wanted | {"relative_error", "cosine"} == set(METRICS)


@pytest.mark.requirement("21.7")
def test_a_change_of_one_metric_is_found_and_no_other() -> None:
    """21.7: ... SHALL call it REGRESSED or IMPROVED, by its direction."""
    found = Machine(latency=1.1, load=0.8, throughput=0.8).compare(300)
    outcomes = {key: verdict.outcome for key, verdict in found.verdicts.items()}
    assert list(outcomes) == KEYS
    for key, outcome in outcomes.items():
        expected = {"latency": Outcome.REGRESSED, "load": Outcome.IMPROVED, "throughput": Outcome.REGRESSED}
        assert outcome is expected.get(key.metric, Outcome.SAME), key


@pytest.mark.requirement("21.4")
def test_sides_are_interleaved_and_the_order_is_reversed() -> None:
    """21.4: ... SHALL take base, head and a control of the base in a fresh process each, and in the next round in the
    reverse order."""
    machine = Machine(noise=0.2)
    machine.compare(72)
    sides = [side for side, model in machine.calls if model == "b16"]
    assert sides[:2] == ["base", "head"]
    rounds = [tuple(sides[start : start + 3]) for start in range(2, len(sides), 3)]
    assert len(rounds) >= 6
    assert all(sorted(each) == sorted(SIDES) for each in rounds)
    assert all(one == other[::-1] for one, other in zip(rounds[::2], rounds[1::2], strict=False))
    # over six rounds no side has a place of its own
    assert all(sorted(each) == sorted(SIDES * 2) for each in zip(*rounds[:6], strict=True))


@pytest.mark.requirement("21.11")
def test_rounds_are_added_until_all_is_decided_or_the_time_is_spent() -> None:
    """21.11: WHILE a metric is undecided and the time budget is not spent, THE Regression Session SHALL add rounds."""
    still = Machine()
    assert {len(rounds) for rounds in still.compare(300).rounds.values()} == {LOOKS[0]}
    noisy = Machine(noise=0.2)
    found = noisy.compare(72)
    assert noisy.now <= 72
    assert {verdict.outcome for verdict in found.verdicts.values()} == {Outcome.INCONCLUSIVE}
    assert {len(rounds) for rounds in found.rounds.values()} == {11}
    assert all((verdict.rounds_needed or 0) > 11 for verdict in found.verdicts.values())
    # a budget that is spent at once still pays for the first look
    assert {len(rounds) for rounds in Machine(noise=0.2).compare(0).rounds.values()} == {LOOKS[0]}
    endless = Machine(noise=0.2)
    assert {len(rounds) for rounds in endless.compare(1000).rounds.values()} == {LOOKS[-1]}


@pytest.mark.requirement("21.11")
def test_a_model_that_is_decided_is_not_measured_again() -> None:
    """21.11: WHILE a metric is undecided ... SHALL add rounds."""
    machine = Machine()

    def take(side: str, model: str) -> Values:
        machine.noise = 0.2 if model == "b32" else 0.001
        return machine.take(side, model)

    found = machine.compare(1000, take=take)
    lengths = {model: {len(found.rounds[key]) for key in KEYS if key.model == model} for model in ("b16", "b32")}
    assert lengths == {"b16": {LOOKS[0]}, "b32": {LOOKS[-1]}}


@pytest.mark.requirement("21.9")
@pytest.mark.parametrize("at", [1, 20])
def test_a_side_that_fails_cannot_be_compared(at: int) -> None:
    """21.9: IF a metric was not measured on one side, THEN THE Comparison SHALL call it NOT COMPARABLE with the
    reason."""
    machine = Machine(noise=0.2)

    def take(side: str, model: str) -> Values:
        if side == "head" and model == "b16" and len(machine.calls) >= at:
            raise SideError(side, MeasurementError("no module named numpy"))
        return machine.take(side, model)

    found = machine.compare(60, take=take)
    for key, verdict in found.verdicts.items():
        failed = key.model == "b16"
        assert (verdict.outcome is Outcome.NOT_COMPARABLE) == failed
        assert (verdict.reason == "head: no module named numpy") == failed


@pytest.mark.requirement("21.10")
@pytest.mark.parametrize(("side", "precision"), [("head", Outcome.REGRESSED), ("base", Outcome.NOT_COMPARABLE)])
def test_wrong_answers_are_a_regression_of_precision(side: str, precision: Outcome) -> None:
    """21.10: IF the answers of the head are out of bounds and those of the base are not, THEN THE Comparison SHALL call
    the precision of the head REGRESSED."""
    machine = Machine()

    def take(name: str, model: str) -> Values:
        if name == side:
            error = WrongAnswersError("wrong answers")
            raise SideError(name, error) from error
        return machine.take(name, model)

    found = machine.compare(60, take=take)
    for key, verdict in found.verdicts.items():
        expected = precision if key.metric in ("relative_error", "cosine") else Outcome.NOT_COMPARABLE
        assert verdict.outcome is expected
        assert "wrong answers" in verdict.reason


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The seeded model ``tiny``."""
    return prepare_model("tiny", tmp_path_factory.mktemp("models"), quiet)


@pytest.fixture
def make_side(tmp_path: Path) -> Callable[..., Side]:
    """``make_side(name, file="", text="")``: a copy of the package, with `text` at the end of one file."""

    def make(name: str, file: str = "", text: str = "") -> Side:
        worktree = tmp_path / name
        shutil.copytree(
            ROOT / "llm_compression", worktree / "llm_compression", ignore=shutil.ignore_patterns("__pycache__")
        )
        if file:
            with (worktree / "llm_compression" / file).open("a", encoding="utf-8") as opened:
                opened.write(text)
        return Side(Revision(name, name, "2026-01-01T00:00:00+00:00", name, f"tree-of-{name}"), worktree)

    return make


@pytest.mark.requirement("21.5", "21.6")
def test_the_probe_measures_the_worktree(model: Model, make_side: Callable[..., Side], tmp_path: Path) -> None:
    """21.5, 21.6: the same program with the same pixels on both sides; wrong answers of the head are seen; each side
    converts with its own converter."""
    base = make_side("base", "convert/__init__.py", "\nimport os\nos.environ['SIDE'] = 'base'\n")
    wrong = "\n_encode = VisionEncoder.encode_pixels\nVisionEncoder.encode_pixels = lambda *a, **k: -_encode(*a, **k)\n"
    head = make_side("head", "multimodal/vision_encoder.py", wrong)
    keep = (base.revision.tree, head.revision.tree)
    shared = Shared(model, Bounds(min_cosine=0.99), tmp_path / "weights", keep)
    take = taker(PROJECT, base, head, {"tiny": shared})
    values = take("base", "tiny")
    assert set(values) == set(METRICS)
    assert all(np.isfinite(value) and value > 0 for value in values.values())
    assert values["import"] < values["cold_start"]
    with pytest.raises(SideError, match="head: wrong answers") as caught:
        take("head", "tiny")
    assert isinstance(caught.value.__cause__, WrongAnswersError)
    homes = sorted(path.name for path in (tmp_path / "weights").iterdir())
    assert [home.split("-", 2)[2] for home in homes] == ["tree-of-base", "tree-of-head"]


@pytest.mark.requirement("21.5")
def test_the_probe_refuses_another_package(model: Model, make_side: Callable[..., Side], tmp_path: Path) -> None:
    """21.5: ... refuse a package that is imported from elsewhere than the worktree."""
    side = make_side("head")
    shared = Shared(model, Bounds(), tmp_path / "weights", (side.revision.tree,))
    converted(side, shared)
    shutil.rmtree(side.worktree / "llm_compression")
    # as an editable installation does, for a worktree without the package
    (side.worktree / "llm_compression").symlink_to(ROOT / "llm_compression")
    with pytest.raises(MeasurementError, match=r"llm_compression was imported from .*, expected from"):
        take_sample(PROJECT, side, "tiny", shared)


@pytest.mark.requirement("21.9")
def test_a_converter_that_fails_is_an_error_of_its_side(
    model: Model, make_side: Callable[..., Side], tmp_path: Path
) -> None:
    """21.9: ... with the reason; nothing half-made stays in the cache."""
    side = make_side("head", "convert/__init__.py", "\nraise RuntimeError('broken converter')\n")
    with pytest.raises(MeasurementError, match="broken converter"):
        converted(side, Shared(model, Bounds(), tmp_path / "weights", ()))
    assert not (tmp_path / "weights").exists() or not list((tmp_path / "weights").iterdir())
    empty = Side(Revision("old", "old", "", "", ""), tmp_path)
    with pytest.raises(MeasurementError, match="has no package"):
        take_sample(PROJECT, empty, "tiny", Shared(model, Bounds(), tmp_path / "weights", ()))


@pytest.mark.requirement("21.5")
def test_no_image_twice_in_a_row(model: Model, make_side: Callable[..., Side], tmp_path: Path) -> None:
    """21.5: ... give no image twice in a row and compare every answer with the Reference."""
    seen = tmp_path / "seen.txt"
    note = (
        "\n_encode = VisionEncoder.encode_pixels\n"
        "def _noting(self, pixels, normalize=True):\n"
        f"    with open({str(seen)!r}, 'a') as file:\n"
        "        file.writelines(f'{float(row.sum())}\\n' for row in pixels)\n"
        "    return _encode(self, pixels, normalize)\n"
        "VisionEncoder.encode_pixels = _noting\n"
    )
    side = make_side("head", "multimodal/vision_encoder.py", note)
    take_sample(PROJECT, side, "tiny", Shared(model, Bounds(), tmp_path / "weights", ()))
    sums = seen.read_text(encoding="utf-8").splitlines()
    assert len(sums) == 1 + 16 + 16 + 2 * 16
    assert all(one != other for one, other in pairwise(sums))
