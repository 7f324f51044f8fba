"""A pytest plugin: marks by which a test cites what it proves, and ``--evidence PATH`` to write what became of it.

``@pytest.mark.requirement("1.5")`` cites a criterion and ``@pytest.mark.property(2)`` a property. Of another spec than
the project's own they are cited as ``"other-spec:1.5"`` and ``"other-spec:2"``; the ini option ``requirement_spec``
names the project's own where it has more than one. Without ``--evidence`` the plugin only registers the marks.

A `Witness` is where the tests run and puts into each report what its test cites and measured; the `Recorder` reads the
reports and writes the file. Where pytest-xdist distributes the tests, each worker has a witness and the controller the
recorder.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from llm_compression.harness.spec.evidence import Record

EXAMPLES: Final = pytest.StashKey[int]()
# the name of a test before pytest-xdist adds its group to it
NODE: Final = pytest.StashKey[str]()
# of the reports of one test, those of its subtests among them, the outcome that stands further to the left counts
_WORST: Final = ("failed", "error", "xfailed", "xpassed", "skipped", "passed", "not run")


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
        witness = Witness(config)
        config.pluginmanager.register(witness, "evidence-witness")
        if not hasattr(config, "workerinput"):
            config.pluginmanager.register(Recorder(config, path, witness), "evidence-recorder")


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


class Witness:
    """Says in the reports of each test that cites a spec what it cites and what it measured.

    Attributes:
        told: The tests that cite, by node id: what stands in each of their reports.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._spec = config.getini("requirement_spec")
        self.told: dict[str, dict[str, Any]] = {}

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        """Keep the test's own name."""
        item.stash[NODE] = item.nodeid

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Note the tests that are about to run; only texts and numbers, as they may go to another process."""
        for item in session.items:
            requirements, properties = self._cited(item, "requirement", str), self._cited(item, "property", int)
            if requirements or properties:
                # left by benchmarks/gates
                gate = _properties(item).get("gate", {})
                named = {name: gate[name] for name in ("gate", "limit", "unit") if name in gate}
                cited = {"requirements": requirements, "properties": properties, **named}
                self.told[item.nodeid] = {"node": item.stash.get(NODE, item.nodeid), **cited}

    def _cited(self, item: pytest.Item, name: str, kind: type) -> list[str]:
        found = []
        for each in (each for marker in item.iter_markers(name) for each in marker.args or (None,)):
            # 1.10 is not 1.1, as numbers would have it
            if type(each) not in (str, kind):
                raise pytest.UsageError(
                    f"{item.nodeid}: {name}({each!r}), expected {kind.__name__}, or str with a spec"
                )
            found.append(f"{self._spec}:{each}" if self._spec and ":" not in str(each) else str(each))
        return list(dict.fromkeys(found))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        """Count the examples that end without an error: hypothesis documents its inner test as replaceable."""
        handle: Any = getattr(getattr(item, "obj", None), "hypothesis", None)
        if item.nodeid not in self.told or not hasattr(handle, "inner_test"):
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
        """Put what is known of the test into the report of a phase or subtest, which travels with it."""
        report: Any = yield  # what the hook's other implementations made
        if told := self.told.get(item.nodeid):
            report.evidence = {**told, **_figures(item)}
        return report  # type: ignore[no-any-return]

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Tell the controller of pytest-xdist which tests cite: also those that were not reached."""
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput["evidence"] = self.told


def _figures(item: pytest.Item) -> dict[str, Any]:
    """The examples; of a gate, what it measured, and the machine that it needs."""
    figures: dict[str, Any] = {"examples": item.stash.get(EXAMPLES, None)}
    properties = _properties(item)
    if isinstance(measured := properties.get("measured"), dict):
        detail = measured.get("detail", {})
        figures["disturbed"] = len(detail.get("disturbed", ()))
        for name, value in (("value", measured.get("value")), ("rate", detail.get("rate"))):
            if value is not None and math.isfinite(value):
                figures[name] = float(value)
    gate = properties.get("gate", {})
    return figures | {name: gate[name] for name in ("device", "absent") if gate.get(name)}


class Recorder:
    """Keeps a record of each test that cites a spec, from the reports, and writes them when the session ends."""

    def __init__(self, config: pytest.Config, path: Path, witness: Witness) -> None:
        # not imported where nothing is recorded
        from llm_compression.harness.spec import evidence

        self._evidence, self._root, self._told = evidence, config.rootpath, witness.told
        self._path = config.invocation_params.dir / path
        try:
            self._files = evidence.source_files(self._root)
            self._source = evidence.describe(self._root, self._files)
            self._machine = evidence.machine_facts(self._root)
        except evidence.EvidenceError as error:
            raise pytest.UsageError(f"--evidence: {error}") from error
        self._records: dict[str, Record] = {}
        self._lost: dict[str, str] = {}
        self._changed: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note the worst of the reports of a test: of its phases, of its subtests, of every process that ran it."""
        told: Mapping[str, Any] | None = getattr(report, "evidence", None)
        # what pytest-xdist reports of a worker that died has no phase
        phase = report.when in ("setup", "call", "teardown")
        if told is None and not phase:
            self._lost[report.nodeid] = reason_of(report)
        if told is None:
            return
        record = self._record_of(told)
        # a subtest has a context; its time is a part of its test's, and a test is not done when a subtest has passed
        part = hasattr(report, "context")
        if not part:
            record = replace(record, duration_s=round(record.duration_s + report.duration, 6))
        if report.outcome != "passed" or (report.when == "call" and not part):
            outcome = "error" if report.when != "call" and report.outcome == "failed" else outcome_of(report)
            record = self._worse(record, outcome, reason_of(report))
            if report.outcome == "skipped" and (told.get("absent") or told.get("device") in self._machine["lacks"]):
                record = replace(record, lacks=told["device"], absent=told.get("absent", record.absent))
        kept = ("examples", "value", "rate", "disturbed")
        figures = {name: told[name] for name in kept if told.get(name) is not None}
        self._records[record.node] = replace(record, **figures)

    def _record_of(self, told: Mapping[str, Any]) -> Record:
        if found := self._records.get(told["node"]):
            return found
        gate = {name: told[name] for name in ("gate", "limit", "unit") if name in told}
        return self._evidence.Record(told["node"], tuple(told["requirements"]), tuple(told["properties"]), **gate)

    @staticmethod
    def _worse(record: Record, outcome: str, reason: str) -> Record:
        # another plugin's word, such as that a test is run again, is no pass
        outcome = outcome if outcome in _WORST else "failed"
        if _WORST.index(outcome) < _WORST.index(record.outcome):
            return replace(record, outcome=outcome, reason=reason)
        return record

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Take what a worker of pytest-xdist told of its tests."""
        self._told |= getattr(node, "workeroutput", {}).get("evidence", {})

    def pytest_sessionfinish(self) -> None:
        """Write the records, unless the tree changed meanwhile: then they belong to none."""
        for told in self._told.values():
            self._records.setdefault(told["node"], self._record_of(told))
        for node, reason in self._lost.items():
            # where no worker lived to tell what it cites, it is taken for a test that does
            dead: dict[str, Any] = {} if self._told else {"node": node, "requirements": (), "properties": ()}
            if last := self._told.get(node, dead):
                self._records[last["node"]] = self._worse(self._record_of(last), "error", reason)
        after = self._evidence.source_files(self._root)
        self._changed = sorted(name for name, _ in self._files.items() ^ after.items())
        if not self._changed:
            part = self._evidence.Part(self._source, self._machine, tuple(self._records.values()))
            self._evidence.write_part(self._path, part)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say where the evidence is, or that there is none."""
        if self._changed:
            names = ", ".join(dict.fromkeys(self._changed))
            terminalreporter.write_line(f"evidence: none is kept, as files changed while the tests ran: {names}")
        else:
            terminalreporter.write_line(f"evidence: {len(self._records)} tests in {self._path}")
        if self._source.reason:
            terminalreporter.write_line(f"evidence: git knows no commit: {self._source.reason}")
