"""A pytest plugin for gates of any project: a test for each row of the table *Gates*, measured by a program.

A test marked ``metric("size")`` that asks for the fixture `gate` runs once for each gate of this metric, and cites the
criterion of its row. `measure_gate` runs a command that prints a JSON object and holds its number against the limit::

    @pytest.mark.metric("size")
    def test_size(gate, measure_gate):
        measure_gate([sys.executable, "probe.py", gate.model])

A project whose gates need a machine of a certain kind says so in its ``conftest.py``: ``pytest_gate_absent(session)``
returns why the gates of a session cannot be measured here, or nothing. ``-p llm_compression.harness.spec.gating`` loads
it, beside ``-p llm_compression.harness.spec.plugin``, whose evidence holds what was measured.
"""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Callable, Sequence
from typing import Final

import pytest

from llm_compression.errors import LlmCompressionError
from llm_compression.harness.spec.parser import Gate, read_specs

GATES: Final = pytest.StashKey[tuple[tuple[str, Gate], ...]]()
Measure = Callable[..., float]


class ProbeError(LlmCompressionError, ValueError):
    """A command that measures a gate failed, or printed no number for it."""


class Hooks:
    """What a project may say of its machines."""

    @pytest.hookspec(firstresult=True)
    def pytest_gate_absent(self, session: str) -> str | None:
        """Why the gates of a session cannot be measured on this machine; nothing where they can."""


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Add ``pytest_gate_absent``."""
    pluginmanager.add_hookspecs(Hooks)


def pytest_configure(config: pytest.Config) -> None:
    """Read the tables of every spec in the checkout."""
    config.addinivalue_line("markers", "metric(name): the test measures the gates of this metric")
    config.stash[GATES] = tuple((spec.name, gate) for spec in read_specs(config.rootpath) for gate in spec.gates)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each gate of the metric that its mark names."""
    if marker := metafunc.definition.get_closest_marker("metric"):
        cases = [
            pytest.param(gate, id=gate.id, marks=pytest.mark.requirement(f"{spec}:{gate.criterion}"))
            for spec, gate in metafunc.config.stash[GATES]
            if gate.metric == marker.args[0]
        ]
        metafunc.parametrize("gate", cases)


def _gate_of(item: pytest.Item) -> Gate | None:
    gate = item.callspec.params.get("gate") if isinstance(item, pytest.Function) and hasattr(item, "callspec") else None
    return gate if isinstance(gate, Gate) else None


def _absent(item: pytest.Item, gate: Gate) -> str:
    return item.config.hook.pytest_gate_absent(session=gate.session) or ""


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Leave each gate's row on its test, for the evidence."""
    for item in items:
        if gate := _gate_of(item):
            name = next(f"{spec}:{gate.id}" for spec, each in item.config.stash[GATES] if each is gate)
            row = {"gate": name, "limit": f"{gate.comparison} {gate.limit:g}", "unit": gate.unit}
            item.user_properties.append(("gate", {**row, "device": gate.session, "absent": _absent(item, gate)}))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a machine of another kind."""
    if (gate := _gate_of(item)) and (reason := _absent(item, gate)):
        pytest.skip(reason)


@pytest.fixture
def measure_gate(gate: Gate, request: pytest.FixtureRequest) -> Measure:
    """Measures the gate: ``measure_gate(command, samples=1, of=max)`` returns its value, within its limit.

    The command is run `samples` times in the root of the checkout, each time in a fresh process; the last line that it
    prints is a JSON object that holds a number by the name of the gate's metric. `of` makes one value of the samples.

    Raises:
        ProbeError: The command failed, or printed no such number.
    """

    def measure(command: Sequence[str], *, samples: int = 1, of: Callable[[Sequence[float]], float] = max) -> float:
        taken = [_number(command, gate.metric, request.config) for _ in range(samples)]
        value = of(taken)
        measured = {"value": value, "samples": tuple(taken), "detail": {}}
        request.node.user_properties.append(("measured", measured))
        allowed = f"{gate.comparison} {gate.limit:g}"
        assert gate.passes(value), f"{gate.id}: {gate.metric} {value:g}, expected {allowed}"
        return value

    return measure


def _number(command: Sequence[str], metric: str, config: pytest.Config) -> float:
    said = " ".join(map(str, command))
    try:
        done = subprocess.run(command, cwd=config.rootpath, capture_output=True, text=True, check=False)
    except OSError as error:
        raise ProbeError(f"{said}: cannot be run: {error}") from error
    if done.returncode:
        raise ProbeError(f"{said}: exit status {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
    last = (done.stdout.strip().splitlines() or [""])[-1]
    try:
        value = json.loads(last)[metric]
    except (ValueError, KeyError, TypeError) as error:
        raise ProbeError(f"{said}: printed {last!r}, expected a JSON object with {metric!r}") from error
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ProbeError(f"{said}: {metric} is {value!r}, expected a finite number")
    return float(value)
