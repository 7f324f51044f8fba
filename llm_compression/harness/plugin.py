"""A pytest plugin: marks by which a test cites what it proves, and ``--evidence PATH`` to write what became of it.

``@pytest.mark.requirement("1.5")`` cites a criterion and ``@pytest.mark.property(2)`` a property. Of another spec than
the project's own they are cited as ``"other-spec:1.5"`` and ``"other-spec:2"``; the ini option ``requirement_spec``
names the project's own where it has more than one. Without ``--evidence`` the plugin only registers the marks.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from llm_compression.harness.evidence import Record

EXAMPLES: Final = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--evidence`` and ``requirement_spec``."""
    group = parser.getgroup("evidence")
    group.addoption("--evidence", type=Path, metavar="PATH", help="write what became of the tests that cite a spec")
    parser.addini("requirement_spec", "the spec of citations that name none, where there are several", default="")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marks, and the recorder where it is asked for."""
    config.addinivalue_line("markers", 'requirement("N.k", ...): the test proves these criteria')
    config.addinivalue_line("markers", "property(N, ...): the test proves these properties, over random examples")
    if path := config.getoption("evidence"):
        config.pluginmanager.register(Recorder(config, path), "evidence-recorder")


def outcome_of(report: pytest.TestReport) -> str:
    """The outcome of a phase, with ``xfailed`` and ``xpassed`` for a test that is expected to fail."""
    if hasattr(report, "wasxfail"):
        return "xpassed" if report.outcome == "passed" else "xfailed"
    return report.outcome


def reason_of(report: pytest.TestReport) -> str:
    """Why a phase did not pass, or was expected to fail, in a line."""
    if hasattr(report, "wasxfail"):
        return str(report.wasxfail).removeprefix("reason: ")
    if report.outcome == "passed":
        return ""
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    return (str(crash.message if crash else report.longrepr).splitlines() or [""])[0]


def _properties(item: pytest.Item) -> dict[str, Any]:
    return dict(item.user_properties)


class Recorder:
    """Keeps a record of each test that cites a spec, and writes them when the session ends."""

    def __init__(self, config: pytest.Config, path: Path) -> None:
        # not imported where nothing is recorded
        from llm_compression.harness import evidence

        self._evidence, self._root = evidence, config.rootpath
        self._path = config.invocation_params.dir / path
        self._spec = config.getini("requirement_spec")
        self._source = evidence.source_of(self._root)
        self._machine = evidence.machine_facts()
        self._records: dict[str, Record] = {}
        self._changed = False

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Note the tests that are about to run."""
        for item in session.items:
            requirements, properties = self._cited(item, "requirement", str), self._cited(item, "property", int)
            if requirements or properties:
                # left by benchmarks/gates
                gate = _properties(item).get("gate", {})
                named = {name: gate[name] for name in ("gate", "limit", "unit") if name in gate}
                self._records[item.nodeid] = self._evidence.Record(item.nodeid, requirements, properties, **named)

    def _cited(self, item: pytest.Item, name: str, kind: type) -> tuple[str, ...]:
        found = []
        for each in (each for marker in item.iter_markers(name) for each in marker.args or (None,)):
            # 1.10 is not 1.1, as numbers would have it
            if type(each) not in (str, kind):
                raise pytest.UsageError(
                    f"{item.nodeid}: {name}({each!r}), expected {kind.__name__}, or str with a spec"
                )
            found.append(f"{self._spec}:{each}" if self._spec and ":" not in str(each) else str(each))
        return tuple(dict.fromkeys(found))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        """Count the examples that end without an error: hypothesis documents its inner test as replaceable."""
        handle: Any = getattr(getattr(item, "obj", None), "hypothesis", None)
        if item.nodeid not in self._records or not hasattr(handle, "inner_test"):
            return (yield)
        inner, item.stash[EXAMPLES] = handle.inner_test, 0

        @functools.wraps(inner)
        def counted(*arguments: Any, **named: Any) -> Any:
            result = inner(*arguments, **named)
            item.stash[EXAMPLES] += 1
            return result

        handle.inner_test = counted
        try:
            return (yield)
        finally:
            handle.inner_test = inner

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Iterator[None]:
        """Note the outcome of the call, and of a set-up or tear-down that did not pass."""
        report: pytest.TestReport = yield  # type: ignore[assignment]  # what the hook's other implementations made
        if record := self._records.get(item.nodeid):
            record = replace(record, duration_s=round(record.duration_s + report.duration, 6))
            if report.when == "call" or report.outcome != "passed":
                failed_around = report.when != "call" and report.outcome == "failed"
                outcome = "error" if failed_around else outcome_of(report)
                record = replace(record, outcome=outcome, reason=reason_of(report), **self._figures(item, report))
            self._records[item.nodeid] = record
        return report  # type: ignore[return-value]

    def _figures(self, item: pytest.Item, report: pytest.TestReport) -> dict[str, Any]:
        """The examples; of a gate, what it measured, or its device where that is missing."""
        figures: dict[str, Any] = {"examples": item.stash.get(EXAMPLES, None)}
        properties = _properties(item)
        if isinstance(measured := properties.get("measured"), dict) and math.isfinite(measured["value"]):
            figures["value"] = float(measured["value"])
        device = properties.get("gate", {}).get("device")
        if report.outcome == "skipped" and device in self._machine.get("lacks", ()):
            figures["lacks"] = device
        return figures

    def pytest_sessionfinish(self) -> None:
        """Write the records, unless the tree changed meanwhile: then they belong to none."""
        self._changed = self._evidence.source_of(self._root) != self._source
        records = () if self._changed else tuple(self._records.values())
        self._evidence.write_part(self._path, self._evidence.Part(self._source, self._machine, records))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say where the evidence is, or that there is none."""
        if self._changed:
            terminalreporter.write_line("evidence: files changed while the tests ran, so none of it is kept")
        else:
            terminalreporter.write_line(f"evidence: {len(self._records)} tests in {self._path}")
