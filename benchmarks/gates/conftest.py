"""What every gate's test uses: the rows of the table, seeded models, samples from fresh processes, and the record.

A test marked ``metric("load")`` runs once for each gate of that metric. Each round of pytest-benchmark is a sample from
a process of its own. Where the metric is a time, pytest-benchmark's clock advances by what that process measured, so
that its statistics are those of the metric and not of starting Python.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import pytest
import torch

from llm_compression.harness.gates import CUDA_SESSION, NO_CUDA, Result, write_results
from llm_compression.harness.measure import CALLS, Bounds, Job, Sample, measure
from llm_compression.harness.models import CACHE_DIRECTORY, Model, prepare_model
from llm_compression.harness.plugin import outcome_of, reason_of
from llm_compression.harness.spec import Gate, read_specs

SESSIONS: Final = ("cpu", CUDA_SESSION)
# each with the name of its spec
GATES: Final = pytest.StashKey[tuple[tuple[str, Gate], ...]]()
RESULTS: Final = pytest.StashKey[dict[str, Result]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the gates."""
    group = parser.getgroup("gates")
    group.addoption("--gate-results", type=Path, metavar="PATH", help="write what the gates' tests left, as JSON")
    group.addoption("--gate-session", choices=SESSIONS, help="only gates of this session (default: all)")


def pytest_configure(config: pytest.Config) -> None:
    """Read the table of every spec in the checkout; refuse to measure several gates at once."""
    distributed = config.getoption("dist", "no") != "no" and not config.option.collectonly
    if distributed or hasattr(config, "workerinput"):
        raise pytest.UsageError(
            "gates: one is measured at a time, as each would slow the others down; run them without -n of pytest-xdist"
        )
    config.addinivalue_line("markers", "metric(name): the test measures the gates of this metric")
    wanted = config.getoption("gate_session")
    gates = ((spec.name, gate) for spec in read_specs(config.rootpath) for gate in spec.gates)
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
    """Skip what needs a device that is not there."""
    gate = _gate_of(item)
    if gate is not None and gate.session == CUDA_SESSION and not torch.cuda.is_available():
        pytest.skip(NO_CUDA)
    if gate is not None and gate.session not in SESSIONS:
        pytest.fail(f"{gate.id}: session {gate.session!r}, expected one of {', '.join(SESSIONS)}")


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
    """A timer that stands still, but for what a sample's own process measured."""

    __name__ = "SampleClock"

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        """Seconds."""
        return self.now_s

    def advance(self, milliseconds: float) -> None:
        """Let a measured time pass."""
        self.now_s += milliseconds / 1000


CLOCK: Final = SampleClock()


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Give the tests of times the samples' clock; the rest show how long a sample's process took."""
    for item in items:
        if gate := _gate_of(item):
            # for the evidence
            name = next(f"{spec}:{gate.id}" for spec, each in item.config.stash[GATES] if each is gate)
            row = {"gate": name, "limit": f"{gate.comparison} {gate.limit:g}", "unit": gate.unit}
            item.user_properties.append(("gate", {**row, "device": gate.session}))
            if gate.unit == "ms":
                item.add_marker(pytest.mark.benchmark(timer=CLOCK, group=gate.metric))
            else:
                item.add_marker(pytest.mark.benchmark(group=f"{gate.metric}: duration of a sample"))


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


@dataclass(frozen=True)
class GateRun:
    """What a test uses to measure its gate."""

    gate: Gate
    model: Model
    benchmark: Benchmark
    node: pytest.Item
    say: Callable[[str], None]
    gates: tuple[Gate, ...]

    def job(self, dtype: str = "bfloat16", weights: str | None = None, *, calls: int = CALLS, batches: int = 3) -> Job:
        """A job on this gate's model and device, from the weight file of the same dtype unless another is named."""
        path = str(self.model.weights[weights or dtype])
        device = self.gate.session
        reference, image_size = str(self.model.reference), self.model.image_size
        return Job(path, reference, image_size, dtype, device, calls=calls, batches=batches)

    def bounds(self) -> Bounds:
        """What the answers of a timed call must meet: the limit of the precision gate of this model and session."""
        for gate in self.gates:
            if (gate.metric, gate.model, gate.session) == ("cosine", self.gate.model, self.gate.session):
                return Bounds(min_cosine=gate.limit)
        raise LookupError(f"{self.gate.id}: the table has no gate of metric cosine for its model and session")

    def samples(self, jobs: Sequence[Job], within: Bounds | None) -> list[Sample]:
        """A sample for each job; each is a round of pytest-benchmark."""
        taken: list[Sample] = []

        def round_() -> None:
            taken.append(self.take(jobs[len(taken)], len(taken) + 1, len(jobs), within))
            CLOCK.advance(taken[-1].load_ms)

        self.benchmark.pedantic(round_, rounds=len(jobs))
        return taken

    def calls(self, jobs: Sequence[Job], within: Bounds) -> list[Sample]:
        """A sample for each job; each call of one image is a round of pytest-benchmark."""
        taken: list[Sample] = []
        waiting: list[float] = []

        def round_() -> None:
            if not waiting:
                taken.append(self.take(jobs[len(taken)], len(taken) + 1, len(jobs), within))
                waiting.extend(reversed(taken[-1].latency_ms))
            CLOCK.advance(waiting.pop())

        self.benchmark.pedantic(round_, rounds=sum(job.calls for job in jobs))
        return taken

    def take(self, job: Job, number: int, of: int, within: Bounds | None) -> Sample:
        """One sample."""
        self.say(f"{self.gate.id}: sample {number} of {of}")
        return measure(job, within=within)

    def record(self, value: float, samples: Sequence[float], **detail: object) -> None:
        """Keep what was measured for the report, then fail if it misses the limit."""
        measured = {"value": value, "samples": tuple(samples), "detail": detail}
        self.node.user_properties.append(("measured", measured))
        self.benchmark.extra_info |= {"gate": self.gate.id, **measured}
        allowed = f"{self.gate.comparison} {self.gate.limit:g}"
        assert self.gate.passes(value), f"{self.gate.id}: {self.gate.metric} {value:g}, expected {allowed}"


@pytest.fixture
def run(
    gate: Gate,
    models: Callable[[str], Model],
    benchmark: Benchmark,
    request: pytest.FixtureRequest,
    say: Callable[[str], None],
) -> GateRun:
    """What the test of this gate uses."""
    gates = tuple(gate for _, gate in request.config.stash[GATES])
    return GateRun(gate, models(gate.model), benchmark, request.node, say, gates)
