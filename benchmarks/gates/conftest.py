"""What every gate's test uses: the rows of the table, seeded models, samples from fresh processes, and the record.

A test marked ``metric("load")`` runs once for each gate of that metric. What it kept becomes the rounds of
pytest-benchmark: its clock advances by each value that was measured in a process of its own, so that its table, its
JSON, its comparisons and its plots are those of the metric and not of starting Python.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Final, Protocol

import pytest
import torch

from llm_compression.harness.clip.checkpoints import VARIANTS
from llm_compression.harness.clip.gates import (
    CUDA_SESSION,
    SESSIONS,
    SLOW,
    Result,
    sessions_lacked,
    write_results,
)
from llm_compression.harness.clip.limit import model_gflop
from llm_compression.harness.clip.measure import CALLS, Bounds, Job, Sample, measure
from llm_compression.harness.clip.models import CACHE_DIRECTORY, Model, prepare_model
from llm_compression.harness.clip.series import DisturbedError, Series, Undisturbed
from llm_compression.harness.paired.waits import Waits
from llm_compression.harness.spec.evidence import INVALID
from llm_compression.harness.spec.parser import Gate, Reference, Spec, read_specs
from llm_compression.harness.spec.plugin import outcome_of, reason_of
from llm_compression.inference.linear import auto_dtype

# each with the name of its spec
GATES: Final = pytest.StashKey[tuple[tuple[str, Gate], ...]]()
RESULTS: Final = pytest.StashKey[dict[str, Result]]()
SPECS: Final = pytest.StashKey[tuple[Spec, ...]]()
LACKED: Final = pytest.StashKey[dict[str, str]]()
# how a group of pytest-benchmark is named whose values are no times, before their unit
AS_SECONDS: Final = ", a second stands for 1 "


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the gates."""
    group = parser.getgroup("gates")
    group.addoption("--gate-results", type=Path, metavar="PATH", help="write what the gates' tests left, as JSON")
    group.addoption("--gate-session", choices=tuple(SESSIONS), help="only gates of this session (default: all)")


def pytest_configure(config: pytest.Config) -> None:
    """Read the table of every spec in the checkout; refuse to measure several gates at once."""
    distributed = config.getoption("dist", "no") != "no" and not config.option.collectonly
    if distributed or hasattr(config, "workerinput"):
        raise pytest.UsageError(
            "gates: one is measured at a time, as each would slow the others down; run them without -n of pytest-xdist"
        )
    config.addinivalue_line("markers", "metric(name): the test measures the gates of this metric")
    wanted = config.getoption("gate_session")
    config.stash[SPECS], config.stash[LACKED] = read_specs(config.rootpath), sessions_lacked()
    gates = ((spec.name, gate) for spec in config.stash[SPECS] for gate in spec.gates)
    config.stash[GATES] = tuple((spec, gate) for spec, gate in gates if wanted in (None, gate.session))
    config.stash[RESULTS] = {}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each gate of the metric that its mark names; it proves the criterion of its row."""
    if marker := metafunc.definition.get_closest_marker("metric"):
        cases = [
            pytest.param(gate, id=gate.id, marks=pytest.mark.requirement(f"{spec}:{gate.criterion}"))
            for spec, gate in metafunc.config.stash[GATES]
            if gate.metric == marker.args[0]
        ]
        metafunc.parametrize("gate", cases)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a device or a processor of another kind."""
    gate = _gate_of(item)
    if gate is not None and gate.session not in SESSIONS:
        pytest.fail(f"{gate.id}: session {gate.session!r}, expected one of {', '.join(SESSIONS)}")
    if gate is not None and gate.session == CUDA_SESSION and not torch.cuda.is_available():
        pytest.skip(SESSIONS[CUDA_SESSION])
    if gate is not None and (reason := item.config.stash[LACKED].get(gate.session)):
        pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    """A gate whose samples were disturbed is neither a pass nor a miss."""
    try:
        return (yield)
    except DisturbedError as error:
        pyfuncitem.user_properties.append(("measured", {"detail": {"disturbed": error.parts}}))
        pytest.skip(f"{INVALID}: {error}")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Note the outcome of each phase of a gate's test; the worst one stays."""
    report: pytest.TestReport = yield  # type: ignore[assignment]  # what the hook's other implementations made
    gate = _gate_of(item)
    if gate is not None:
        measured: dict[str, Any] = {}
        for _, given in (each for each in item.user_properties if each[0] == "measured"):
            assert isinstance(given, dict)
            measured = given
        results = item.config.stash[RESULTS]
        before = results.get(item.nodeid, Result(gate.id, "passed"))
        if before.outcome == "passed":
            results[item.nodeid] = Result(gate.id, outcome_of(report), reason_of(report), **measured)
    return report  # type: ignore[return-value]


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write the results, also when there are none."""
    if path := session.config.getoption("gate_results"):
        write_results(path, list(session.config.stash[RESULTS].values()), int(exitstatus))


def _gate_of(item: pytest.Item) -> Gate | None:
    gate = item.callspec.params.get("gate") if isinstance(item, pytest.Function) and hasattr(item, "callspec") else None
    return gate if isinstance(gate, Gate) else None


class SampleClock:
    """A timer that stands at zero, but for the sample that has just passed: no sum of them takes digits from it."""

    __name__ = "SampleClock"

    def __init__(self) -> None:
        self._passed = 0.0

    def __call__(self) -> float:
        """What passed since it was read: seconds, of another metric its own unit."""
        passed, self._passed = self._passed, 0.0
        return passed

    def advance(self, value: float) -> None:
        """Let a value that was measured pass."""
        self._passed = value


CLOCK: Final = SampleClock()


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Give the gates' tests the samples' clock."""
    for item in items:
        if gate := _gate_of(item):
            # for the evidence
            name = next(f"{spec}:{gate.id}" for spec, each in item.config.stash[GATES] if each is gate)
            row = {"gate": name, "limit": f"{gate.comparison} {gate.limit:g}", "unit": gate.unit}
            absent = item.config.stash[LACKED].get(gate.session, "")
            item.user_properties.append(("gate", {**row, "device": gate.session, "absent": absent}))
            group = gate.metric if gate.unit == "ms" else f"{gate.metric}{AS_SECONDS}{gate.unit}"
            item.add_marker(pytest.mark.benchmark(timer=CLOCK, group=group))


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_scale_unit(benchmarks: Sequence[Any]) -> tuple[str, float] | None:
    """A table or plot of what is no time shows the values as they are."""
    return ("", 1.0) if all(AS_SECONDS in (each["group"] or "") for each in benchmarks) else None


@pytest.fixture(scope="session")
def say(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Shows a line of progress at once."""
    plugins = request.config.pluginmanager
    reporter, capture = plugins.getplugin("terminalreporter"), plugins.getplugin("capturemanager")

    def line(text: str) -> None:
        with capture.global_and_fixture_disabled():
            reporter.ensure_newline()
            reporter.write_line(text)

    return line


@pytest.fixture(scope="session")
def models(request: pytest.FixtureRequest, say: Callable[[str], None]) -> Callable[[str], Model]:
    """The seeded model of a variant, made on first use."""
    made: dict[str, Model] = {}

    def model(variant: str) -> Model:
        if variant not in made:
            made[variant] = prepare_model(variant, request.config.rootpath / CACHE_DIRECTORY, say)
        return made[variant]

    return model


class Benchmark(Protocol):
    """What is used of pytest-benchmark's fixture, which has no types."""

    extra_info: dict[str, object]

    def pedantic(self, target: Callable[[], object], *, rounds: int) -> None:
        """Run the target so many times."""


@pytest.fixture(scope="session")
def series(request: pytest.FixtureRequest, say: Callable[[str], None]) -> Series:
    """The samples that several gates are taken from."""
    conditions = [each for spec in request.config.stash[SPECS] for each in spec.conditions]
    return Series(Undisturbed.of(conditions), say)


@dataclass(frozen=True)
class GateRun:
    """What a test uses to measure its gate."""

    gate: Gate
    model: Model
    benchmark: Benchmark
    node: pytest.Item
    say: Callable[[str], None]
    gates: tuple[Gate, ...]
    references: tuple[Reference, ...]
    series: Series

    @property
    def device(self) -> str:
        """Where the gate's session runs."""
        return CUDA_SESSION if self.gate.session == CUDA_SESSION else "cpu"

    def job(self, dtype: str = "auto", weights: str | None = None, *, calls: int = CALLS, batches: int = 3) -> Job:
        """A job on this gate's model and device, from the weight file of the same dtype unless another is named."""
        path = str(self.model.weights[weights or ("bfloat16" if dtype == "auto" else dtype)])
        reference, image_size = str(self.model.reference), self.model.image_size
        return Job(path, reference, image_size, dtype, self.device, calls=calls, batches=batches)

    def resolved(self) -> Job:
        """A job from the bfloat16 file in the dtype that `auto` is here, by its name."""
        dtype = str(auto_dtype(torch.device(self.device))).removeprefix("torch.")
        return replace(self.job(batches=0), dtype=dtype)

    def bounds(self) -> Bounds:
        """What the answers of a timed call must meet: the limit of the precision gate of this model and device."""
        for gate in self.gates:
            if (gate.metric, gate.model, gate.session) == ("cosine", self.gate.model, self.device):
                return Bounds(min_cosine=gate.limit)
        raise LookupError(f"{self.gate.id}: the table has no gate of metric cosine for its model and device")

    def samples(
        self, jobs: Sequence[Job], within: Bounds | None, waits: Callable[[Sample], Waits] | None = None
    ) -> tuple[list[Sample], tuple[float, ...]]:
        """A sample for each job, from fresh processes; and the parts that others made those wait that were dropped.

        With ``waits``, what a sample waited, one that was disturbed is taken again.
        """
        if waits is None:
            return [self.take(job, number, len(jobs), within) for number, job in enumerate(jobs, 1)], ()
        return self.series.undisturbed.take(
            lambda number: self.take(jobs[number % len(jobs)], number + 1, len(jobs), within), len(jobs), waits
        )

    def take(self, job: Job, number: int, of: int, within: Bounds | None) -> Sample:
        """One sample."""
        self.say(f"{self.gate.id}: sample {number}, {of} needed")
        return measure(job, within=within)

    def keep(
        self,
        value: float,
        samples: Sequence[float],
        disturbed: Sequence[float] = (),
        *,
        rounds: Sequence[float] = (),
        **detail: object,
    ) -> None:
        """Keep what was measured for the report and for pytest-benchmark, then fail if it misses the limit.

        A limit of time that is missed on a machine slower than the reference machine is skipped with both rates; the
        report counts it as a miss all the same unless the gates that it rests on are passed.
        """
        kept = list(rounds or samples)
        waiting = iter([each / 1000 for each in kept] if self.gate.unit == "ms" else kept)
        # the values were measured in other processes: each round lets one of them pass
        self.benchmark.pedantic(lambda: CLOCK.advance(next(waiting)), rounds=len(kept))
        missed = not self.gate.passes(value)
        reference = next(
            (each for each in self.references if (each.metric, each.model) == (self.gate.metric, self.gate.model)), None
        )
        if missed and reference and self.device == "cpu":
            detail["rate"] = self.rate(reference)
        measured = {"value": value, "samples": tuple(samples), "detail": {**detail, "disturbed": tuple(disturbed)}}
        self.node.user_properties.append(("measured", measured))
        self.benchmark.extra_info |= {"gate": self.gate.id, **measured}
        allowed = f"{self.gate.comparison} {self.gate.limit:g}"
        if missed and reference and "rate" in detail and (rate := self.rate(reference)) < reference.rate:
            pytest.skip(f"{SLOW}: {value:.4g}, expected {allowed}; {rate:.4g} of {reference.rate:g} {reference.unit}")
        assert not missed, f"{self.gate.id}: {self.gate.metric} {value:g}, expected {allowed}"

    def rate(self, reference: Reference) -> float:
        """The rate of this machine, from the samples of the gates that the reference rests on."""
        if reference.unit == "GFLOP/s":
            pairs, _ = self.series.to_limit(self.model, self.resolved(), self.bounds())
            milliseconds = median(each for pair in pairs for each in pair.other_ms)
            return model_gflop(VARIANTS[self.model.variant]) / milliseconds * 1e3
        if reference.unit == "MB/s":
            loads, _ = self.series.loads(self.job(), self.bounds(), 7)
            return median(each.megabytes / each.reading_ms * 1e3 for each in loads)
        raise LookupError(f"{self.gate.id}: a reference in {reference.unit}, expected GFLOP/s or MB/s")


@pytest.fixture
def run(
    gate: Gate,
    models: Callable[[str], Model],
    benchmark: Benchmark,
    request: pytest.FixtureRequest,
    say: Callable[[str], None],
    series: Series,
) -> GateRun:
    """What the test of this gate uses."""
    gates = tuple(gate for _, gate in request.config.stash[GATES])
    references = tuple(each for spec in request.config.stash[SPECS] for each in spec.references)
    return GateRun(gate, models(gate.model), benchmark, request.node, say, gates, references, series)
