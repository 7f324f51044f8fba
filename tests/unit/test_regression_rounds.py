"""Rounds: their order, when they end, what a failure becomes; and the probe on real worktrees with the tiny model."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from benchmarks.regression.project import BATCH_SIZE, METRICS, PROJECT, Shared, converted
from llm_compression.harness.clip.measure import Bounds
from llm_compression.harness.clip.models import Model, prepare_model
from llm_compression.harness.paired.child import MeasurementError
from llm_compression.harness.paired.compare import LOOKS, Outcome
from llm_compression.harness.paired.duets import SIDES, Duets, Level, Round, SideError
from llm_compression.harness.paired.project import SAMPLE, Key, Side, WrongAnswersError, keys_of
from llm_compression.harness.paired.rounds import Comparison, Taker, compare_rounds
from llm_compression.harness.paired.worktrees import Revision
from llm_compression.harness.spec.parser import Floor, Spec

ROOT = Path(__file__).parents[2]
FLOORS = {name: Floor(name, 4, "%") for name in METRICS}
KEYS = keys_of(PROJECT, ["b16", "b32"])


def quiet(line: str) -> None:
    """Say nothing."""
    assert line


class Machine:
    """A machine with a clock: a round takes ten seconds and gives seeded values; the head's may be slower."""

    def __init__(self, noise: float = 0.001, **changes: float) -> None:
        self.now, self.calls, self.warmed = 0.0, list[tuple[str, tuple[str, ...]]](), list[str]()
        self.random, self.noise, self.changes = np.random.default_rng(0), noise, changes

    def clock(self) -> float:
        return self.now

    def warm(self, model: str) -> None:
        self.now += 1000
        self.warmed.append(model)

    def take(self, model: str, metrics: Collection[str]) -> Round:
        self.now += 10
        self.calls.append((model, tuple(metrics)))
        levels = {}
        for name in metrics:
            base, head, control = 100 * np.exp(self.random.normal(0, self.noise, 3))
            levels[name] = Level(base, head * self.changes.get(name, 1), control)
        return Round(levels, 0.01)

    def compare(self, budget_s: float, keys: Sequence[Key] = tuple(KEYS), taker: Taker | None = None) -> Comparison:
        return compare_rounds(taker or self, keys, METRICS, FLOORS, budget_s, quiet, self.clock)


@pytest.mark.requirement("21.6", "21.18")
def test_every_metric_has_a_floor_in_the_spec(spec: Spec) -> None:
    """21.6, 21.18: THE Harness SHALL read the floor of every metric from the table *Regression floors*."""
    assert {floor.metric for floor in spec.floors} == set(METRICS)
    wanted = {"load", "first_call", "latency", "throughput", "cold_start", "import", "peak_memory"}
    counted = {"start_cpu", "page_faults", "bytes_read"}
    assert wanted | counted | {"relative_error", "cosine"} == set(METRICS)


@pytest.mark.requirement("21.7")
def test_a_change_of_one_metric_is_found_and_no_other() -> None:
    """21.7: ... SHALL call it REGRESSED or IMPROVED, by its direction."""
    found = Machine(latency=1.1, load=0.8, throughput=0.8).compare(300)
    outcomes = {key: verdict.outcome for key, verdict in found.verdicts.items()}
    assert list(outcomes) == KEYS
    for key, outcome in outcomes.items():
        expected = {"latency": Outcome.REGRESSED, "load": Outcome.IMPROVED, "throughput": Outcome.REGRESSED}
        assert outcome is expected.get(key.metric, Outcome.SAME), key


@pytest.mark.requirement("21.11")
def test_rounds_are_added_until_all_is_decided_or_the_time_is_spent() -> None:
    """21.11: WHILE a metric is undecided and the time budget is not spent, THE Regression Session SHALL add rounds."""
    still = Machine()
    assert {len(rounds) for rounds in still.compare(300).rounds.values()} == {LOOKS[0]}
    assert still.warmed == ["b16", "b32"]
    noisy = Machine(noise=0.2)
    found = noisy.compare(150)
    # what makes the models is not of the budget
    assert noisy.now <= 2000 + 150
    assert found.seconds <= 150
    assert {verdict.outcome for verdict in found.verdicts.values()} == {Outcome.INCONCLUSIVE}
    assert {len(rounds) for rounds in found.rounds.values()} == {7}
    # a budget that is spent at once still pays for the first look
    assert {len(rounds) for rounds in Machine(noise=0.2).compare(0).rounds.values()} == {LOOKS[0]}
    endless = Machine(noise=0.2)
    assert {len(rounds) for rounds in endless.compare(1000).rounds.values()} == {LOOKS[-1]}


@pytest.mark.requirement("21.8")
def test_what_a_decision_would_take_is_said_in_seconds() -> None:
    """21.8: ... INCONCLUSIVE with the time that a decision would take."""
    for verdict in Machine(noise=0.2).compare(150).verdicts.values():
        assert verdict.rounds_needed is not None
        assert verdict.rounds_needed > 7
        assert verdict.seconds_needed == pytest.approx(10 * verdict.rounds_needed)


@pytest.mark.requirement("21.11")
def test_what_is_decided_is_not_measured_again() -> None:
    """21.11: WHILE a metric is undecided ... SHALL add rounds."""
    machine = Machine()
    take = machine.take

    def one_noisy(model: str, metrics: Collection[str]) -> Round:
        machine.noise = 0.2 if model == "b32" and "latency" in metrics else 0.001
        if machine.noise > 0.1:
            levels = {**take(model, [name for name in metrics if name != "latency"]).levels}
            noisy = dict(take(model, ["latency"]).levels)
            machine.noise = 0.001
            return Round({**{name: Level(100, 100, 100) for name in levels}, **noisy})
        return take(model, metrics)

    machine.take = one_noisy  # type: ignore[method-assign]  # one metric of one model is noisy
    found = machine.compare(1000)
    lengths = {key: len(found.rounds[key]) for key in KEYS}
    assert {lengths[key] for key in KEYS if key != ("latency", "b32")} == {LOOKS[0]}
    assert lengths[Key("latency", "b32")] == LOOKS[-1]
    assert machine.calls[-1] == ("b32", ("latency",))


class Failing:
    """A machine of which a side of b16 fails in its round `at`, counted from 1; 0 is before the first."""

    def __init__(self, side: str, error: MeasurementError, at: int) -> None:
        self.machine, self.side, self.error, self.at, self.round = Machine(noise=0.2), side, error, at, 0

    def warm(self, model: str) -> None:
        if self.at == 0 and model == "b16":
            raise SideError(self.side, self.error) from self.error

    def take(self, model: str, metrics: Collection[str]) -> Round:
        self.round += model == "b16"
        if self.round == self.at and model == "b16":
            raise SideError(self.side, self.error) from self.error
        return self.machine.take(model, metrics)


@pytest.mark.requirement("21.9")
@pytest.mark.parametrize("at", [0, 1, 6])
def test_a_side_that_fails_cannot_be_compared(at: int) -> None:
    """21.9: IF a metric was not measured on one side, THEN THE Comparison SHALL call it NOT COMPARABLE with the
    reason."""
    failing = Failing("head", MeasurementError("no module named numpy"), at)
    for key, verdict in failing.machine.compare(160, taker=failing).verdicts.items():
        failed = key.model == "b16"
        assert (verdict.outcome is Outcome.NOT_COMPARABLE) == failed
        assert (verdict.reason == "head: no module named numpy") == failed


@pytest.mark.requirement("21.10")
@pytest.mark.parametrize(("side", "precision"), [("head", Outcome.REGRESSED), ("base", Outcome.NOT_COMPARABLE)])
def test_wrong_answers_are_a_regression_of_precision(side: str, precision: Outcome) -> None:
    """21.10: IF the answers of the head are out of bounds and those of the base are not, THEN THE Comparison SHALL call
    the precision of the head REGRESSED."""
    failing = Failing(side, WrongAnswersError("wrong answers"), 2)
    keys = [key for key in KEYS if key.model == "b16"]
    for key, verdict in failing.machine.compare(60, keys, failing).verdicts.items():
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

    def make(name: str, file: str = "", text: str = "", tree: str = "") -> Side:
        worktree = tmp_path / name
        shutil.copytree(
            ROOT / "llm_compression", worktree / "llm_compression", ignore=shutil.ignore_patterns("__pycache__")
        )
        if file:
            with (worktree / "llm_compression" / file).open("a", encoding="utf-8") as opened:
                opened.write(text)
        revision = Revision(name, name, "2026-01-01T00:00:00+00:00", name, tree or f"tree-of-{name}")
        return Side(revision, worktree, control=name == "control")

    return make


def duets(sides: Mapping[str, Side], shared: Shared, **changed: float) -> Duets:
    """Of the model ``tiny``, a set of processes and a turn or two in a round."""
    project = replace(PROJECT, **{"sample_s": 0.0, "turn_s": 0.05, **changed})  # type: ignore[arg-type]  # seconds
    return Duets(project, sides, {"tiny": shared}, seed=0)


WRONG = "\n_encode = VisionEncoder.encode_pixels\nVisionEncoder.encode_pixels = lambda *a, **k: -_encode(*a, **k)\n"


@pytest.mark.requirement("21.4", "21.5", "21.6", "21.21", "21.22")
def test_a_round_measures_three_worktrees(model: Model, make_side: Callable[..., Side], tmp_path: Path) -> None:
    """21.4: WHEN a round is measured, THE Regression Session SHALL take base, head and a control, a second checkout of
    the base with a conversion of its own; 21.22: ... a waiting process SHALL report what it used of a processor."""
    sides = {name: make_side(name, tree="same" if name != "head" else "") for name in SIDES}
    shared = Shared(model, Bounds(min_cosine=0.99), tmp_path / "weights", ("same", "tree-of-head"))
    taker = duets(sides, shared)
    taker.warm("tiny")
    homes = {path.name.split("-", 2)[2] for path in (tmp_path / "weights").iterdir()}
    assert homes == {"same", "same-control", "tree-of-head"}
    taken = taker.take("tiny", list(METRICS))
    assert set(taken.levels) == set(METRICS)
    for name, level in taken.levels.items():
        assert all(np.isfinite(value) and value > 0 for value in level[:3]), name
        assert bool(level.turns) == (METRICS[name].taken in ("one", "batch")), name
    assert taken.levels["import"].base < taken.levels["cold_start"].base
    assert taken.levels["bytes_read"].base == pytest.approx(taken.levels["bytes_read"].head, rel=0.05)
    assert taken.waiting is not None
    assert taken.waiting < 1


@pytest.mark.requirement("21.21")
def test_what_is_not_asked_for_starts_no_process(
    model: Model, make_side: Callable[..., Side], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """21.21: ... and no process for what is decided."""
    sides = {name: make_side(name, tree="same") for name in SIDES}
    taker = duets(sides, Shared(model, Bounds(min_cosine=0.99), tmp_path / "weights", ("same",)))
    of_samples = [name for name, metric in METRICS.items() if metric.taken == SAMPLE]
    started: list[str] = []
    monkeypatch.setattr(Duets, "_turns", lambda *_: started.append("turns"))
    assert set(taker.take("tiny", of_samples).levels) == set(of_samples)
    assert not started


@pytest.mark.requirement("21.5", "21.10")
def test_wrong_answers_of_a_side_are_seen(model: Model, make_side: Callable[..., Side], tmp_path: Path) -> None:
    """21.5: ... compare every answer with the Reference; each side converts with its own converter."""
    sides = {name: make_side(name, tree="same") for name in ("base", "control")}
    sides["head"] = make_side("head", "multimodal/vision_encoder.py", WRONG)
    taker = duets(sides, Shared(model, Bounds(min_cosine=0.99), tmp_path / "weights", ("same", "tree-of-head")))
    for metrics in (["load"], ["latency"]):
        with pytest.raises(SideError, match="head: wrong answers") as caught:
            taker.take("tiny", metrics)
        assert isinstance(caught.value.__cause__, WrongAnswersError)


@pytest.mark.requirement("21.5")
def test_the_probe_refuses_another_package(model: Model, make_side: Callable[..., Side], tmp_path: Path) -> None:
    """21.5: ... refuse a package that is imported from elsewhere than the worktree."""
    sides = {name: make_side(name) for name in SIDES}
    shared = Shared(model, Bounds(), tmp_path / "weights", tuple(f"tree-of-{name}" for name in SIDES))
    taker = duets(sides, shared)
    taker.warm("tiny")
    worktree = sides["head"].worktree
    shutil.rmtree(worktree / "llm_compression")
    # as an editable installation does, for a worktree without the package
    (worktree / "llm_compression").symlink_to(ROOT / "llm_compression")
    for metrics in (["load"], ["latency"]):
        with pytest.raises(SideError, match=r"(?s)head: .*llm_compression was imported from .*, expected from"):
            duets(sides, shared).take("tiny", metrics)


@pytest.mark.requirement("21.9")
def test_a_converter_that_fails_is_an_error_of_its_side(
    model: Model, make_side: Callable[..., Side], tmp_path: Path
) -> None:
    """21.9: ... with the reason; nothing half-made stays in the cache."""
    side = make_side("head", "convert/__init__.py", "\nraise RuntimeError('broken converter')\n")
    shared = Shared(model, Bounds(), tmp_path / "weights", ())
    with pytest.raises(MeasurementError, match="broken converter"):
        converted(side, shared)
    assert not (tmp_path / "weights").exists() or not list((tmp_path / "weights").iterdir())
    empty = Side(Revision("old", "old", "", "", ""), tmp_path)
    with pytest.raises(SideError, match="base: old has no package"):
        duets(dict.fromkeys(SIDES, empty), shared).warm("tiny")


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
    sides = {name: make_side(name, tree="same") for name in ("base", "control")}
    sides["head"] = make_side("head", "multimodal/vision_encoder.py", note)
    shared = Shared(model, Bounds(min_cosine=0.99), tmp_path / "weights", ("same", "tree-of-head"))
    taken = duets(sides, shared).take("tiny", ["latency", "throughput"])
    sums = seen.read_text(encoding="utf-8").splitlines()
    turns = {name: len(taken.levels[name].turns) for name in ("latency", "throughput")}
    # the first call and those that warm up
    assert len(sums) == 4 + turns["latency"] + BATCH_SIZE * turns["throughput"]
    assert all(one != other for one, other in pairwise(sums))
