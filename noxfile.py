"""The project's sessions: `python -m nox -l` lists them, `python -m nox -s NAME` runs one.

Plain virtual environments with pip, reused, every version pinned by ``constraints.txt``. PyTorch is large, so the
sessions that import it share the one environment that the session ``environment`` makes. On Linux without an NVIDIA
device they take its CPU build, from PyTorch's own index; where that does not answer, what the package index has.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "venv"
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = True
nox.options.sessions = ["lint", "types", "tests", "parity", "gates", "spec"]

ROOT: Final = Path(__file__).parent
BIN: Final = "Scripts" if os.name == "nt" else "bin"
PROJECT: Final = nox.project.load_toml(ROOT / "pyproject.toml")
CONSTRAINTS: Final = ("-c", str(ROOT / "constraints.txt"))
CPU_BUILDS: Final = "https://download.pytorch.org/whl/cpu"
RESULTS: Final = ROOT / ".cache" / "gate-results.json"
# each computes on one thread
WORKERS: Final = ("-n", "logical", "--dist", "loadfile", "-p", "no:benchmark")
EVIDENCE: Final = ROOT / "reports" / "evidence"


def install(session: nox.Session, *packages: str, torch: bool = False, pins: tuple[str, ...] = CONSTRAINTS) -> None:
    """Install pinned versions; pip is asked only once per environment and set of pins."""
    stamp = session.env_dir / "installed.txt"
    wanted = "\n".join((*packages, Path(pins[1]).read_text(), (ROOT / "pyproject.toml").read_text()))
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    if torch:
        install_torch(session, "python", pins)
    session.install(*pins, *packages)
    stamp.write_text(wanted)


def install_torch(session: nox.Session, python: str, pins: tuple[str, ...]) -> None:
    """Install PyTorch's CPU build where the package index may have a CUDA build of several GB, for no device."""
    if sys.platform != "linux" or any(Path("/dev", name).exists() for name in ("nvidiactl", "dxg")):
        return
    where = ("--index-url", CPU_BUILDS, "--retries", "0", "--timeout", "15")
    try:
        # its own dependencies come with the packages, from the package index
        session.run(python, "-m", "pip", "install", "--no-deps", *where, *pins, "torch", external=True)
    except nox.command.CommandFailed:
        session.warn(f"no CPU build of PyTorch from {CPU_BUILDS}: the package index's follows, perhaps of several GB")


def lowest_versions() -> list[str]:
    """Each lower bound of the metadata, as the pin of that version."""
    project = PROJECT["project"]
    stated = [
        *project["dependencies"],
        *(each for extra in project["optional-dependencies"].values() for each in extra),
    ]
    stated += nox.project.dependency_groups(PROJECT, "types")
    found = {re.fullmatch(r"([\w-]+)(?:\[.*\])?>=([\w.]+)(?:,.*)?", requirement) for requirement in stated}
    return sorted({f"{bound[1]}=={bound[2]}" for bound in found if bound})


def run_python(session: nox.Session, *arguments: str, success_codes: Iterable[int] = (0,)) -> None:
    """Run the interpreter of the shared environment."""
    python = session.env_dir.parent / "environment" / BIN / "python"
    session.run(str(python), *arguments, success_codes=success_codes)


def evidence(name: str) -> tuple[str, str]:
    """The option by which a session's tests leave what the session `spec` joins."""
    return "--evidence", str(EVIDENCE / f"{name}.json")


@nox.session(default=False)
def environment(session: nox.Session) -> None:
    """Install what the sessions that import PyTorch share: the package, editable, with its harness."""
    packages = ("-e", ".[harness,regression]", *nox.project.dependency_groups(PROJECT, "types", "docs"))
    install(session, *packages, torch=True)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting with ruff."""
    install(session, *nox.project.dependency_groups(PROJECT, "lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session(venv_backend="none", requires=["environment"])
def types(session: nox.Session) -> None:
    """Check types with mypy, strictly."""
    run_python(session, "-m", "mypy", *session.posargs)


@nox.session(venv_backend="none", requires=["environment"])
def tests(session: nox.Session) -> None:
    """Run the unit, property and compatibility tests; arguments after -- go to pytest."""
    run_python(
        session, "-m", "pytest", "tests", "--ignore=tests/parity", *WORKERS, *evidence("tests"), *session.posargs
    )


@nox.session(venv_backend="none", requires=["environment"])
def parity(session: nox.Session) -> None:
    """Compare with transformers: configurations, images and checkpoints, none of them downloaded."""
    run_python(session, "-m", "pytest", "tests/parity", *WORKERS, *evidence("parity"), *session.posargs)


@nox.session(default=False)
def engines(session: nox.Session) -> None:
    """Embed by Ray and by Spark on this machine, with one actor killed; needs Java 17 or newer."""
    install(session, "-e", ".[engines]", torch=True)
    session.run("python", "-m", "pytest", *(session.posargs or ("tests/engines",)))


@nox.session(default=False)
def lowest(session: nox.Session) -> None:
    """Run the tests with the lowest versions that the metadata claims; arguments after -- go to pytest."""
    pins = session.env_dir / "lowest.txt"
    pins.write_text("\n".join(lowest_versions()))
    packages = ("-e", ".[harness,regression]", *nox.project.dependency_groups(PROJECT, "types"))
    install(session, *packages, torch=True, pins=("-c", str(pins)))
    session.run("python", "-m", "pytest", *(session.posargs or ("tests",)))


@nox.session(venv_backend="none", requires=["environment"])
def gates(session: nox.Session) -> None:
    """Encode real photos, measure every gate of the spec, write reports/gates.md and .json; fails on a miss."""
    run_python(session, "-m", "llm_compression.harness.clip.models", "b16", "b32")
    measure(session, evidence("gates"), ("--photos", "b16"))


@nox.session(venv_backend="none", requires=["environment"], default=False)
def gates_gpu(session: nox.Session) -> None:
    """Measure the CUDA gates of the spec; without a CUDA device they are NOT RUN and the session fails."""
    measure(session, ("--gate-session", "cuda", *evidence("gates_gpu")), ("--session", "cuda"))


def measure(session: nox.Session, measured: tuple[str, ...], judged: tuple[str, ...]) -> None:
    """Measure, then judge: a gate without a result fails the session, however pytest ended."""
    RESULTS.unlink(missing_ok=True)
    gates = ("benchmarks/gates", "--gate-results", str(RESULTS), "--benchmark-columns=min,median,max,rounds")
    run_python(session, "-m", "pytest", *gates, *measured, *session.posargs, success_codes=range(256))
    # the status is taken from the report: nox has one status for every failed session
    run_python(session, "-m", "llm_compression.harness.clip.report", str(RESULTS), *judged, success_codes=(0, 1, 4))
    report = ROOT / "reports" / ("gates-cuda.json" if "cuda" in judged else "gates.json")
    verdict = json.loads(report.read_text(encoding="utf-8"))["verdict"] if report.is_file() else "FAIL"
    if verdict != "PASS":
        raise SystemExit(4 if verdict == "INVALID" else 1)


@nox.session(default=False)
def peers(session: nox.Session) -> None:
    """Measure beside transformers, ONNX Runtime and OpenVINO in one interleaved run; writes reports/peers.md."""
    install(session, "-e", ".[peers]", torch=True)
    session.run("python", "-m", "benchmarks.peers.run", *session.posargs)


@nox.session(venv_backend="none", requires=["environment"], default=False)
def regression(session: nox.Session) -> None:
    """Measure a commit beside its base and write reports/regression.md, .html and .json; exits with the verdict."""
    report = ROOT / "reports" / "regression.json"
    report.unlink(missing_ok=True)
    # the status is taken from the report: nox has one status for every failed session
    run_python(session, "-m", "benchmarks.regression.run", *session.posargs, success_codes=(0, 1, 2, 3))
    if not report.is_file():
        # help was asked for, the usage was wrong or the program crashed; the latter has told why
        raise SystemExit(0 if {"-h", "--help"} & set(session.posargs) else 2)
    if status := json.loads(report.read_text(encoding="utf-8"))["exit_status"]:
        raise SystemExit(status)


@nox.session(venv_backend="none", requires=["environment"], default=False)
def mutants(session: nox.Session) -> None:
    """Sabotage a copy of the project, one way at a time; fails on a sabotage that no test or gate sees."""
    run_python(session, "-m", "llm_compression.harness.clip.models", "b16", "b32")
    run_python(session, "-m", "tests.mutants.check", *session.posargs)


@nox.session(venv_backend="none", requires=["environment"], default=False)
def processors(session: nox.Session) -> None:
    """Run the tests that compare numbers under each instruction set, thread count and forced form; a process each."""
    run_python(session, "-m", "tests.processors.check", *session.posargs)


@nox.session(venv_backend="none", requires=["environment"], default=False)
def trend(session: nox.Session) -> None:
    """Draw reports/history over the commits, a series for each machine, and mark its change points."""
    run_python(session, "-m", "benchmarks.regression.trend", *session.posargs)


@nox.session(venv_backend="none", requires=["environment"], default=False)
def train_shapes(session: nox.Session) -> None:
    """Train the small CLIP that ships with the package anew, seeded, on pictures drawn by Pillow."""
    run_python(session, "-m", "llm_compression.models.train_shapes", *session.posargs)


@nox.session(venv_backend="none", requires=["environment"])
def spec(session: nox.Session) -> None:
    """Join .kiro/specs with the evidence of this tree; fails on an unproven claim; -- --strict also on one not run."""
    (EVIDENCE / "collected.json").unlink(missing_ok=True)
    # which tests there are; what they cite is checked also where none was run
    run_python(session, "-m", "pytest", "tests", "benchmarks/gates", "--collect-only", "-qqq", *evidence("collected"))
    run_python(session, "-m", "llm_compression.harness.spec.matrix", *session.posargs)


@nox.session(venv_backend="none", requires=["environment"], default=False)
def docs(session: nox.Session) -> None:
    """Build the pages of docs/ into reports/docs, offline; a warning, such as a broken link, fails the session."""
    strict = ("--fail-on-warning", "--keep-going", "--fresh-env")
    run_python(session, "-m", "sphinx", *strict, "--builder", "html", "docs", "reports/docs", *session.posargs)


@nox.session(default=False)
def build(session: nox.Session) -> None:
    """Build the wheel and the sdist, and use the wheel in an empty environment with run-time dependencies only."""
    install(session, *nox.project.dependency_groups(PROJECT, "build"))
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    session.run("python", "-m", "build", "--no-isolation", "--outdir", str(dist))
    session.run("twine", "check", "--strict", *map(str, dist.iterdir()))
    # away from the checkout, so that only the wheel can be imported
    with tempfile.TemporaryDirectory() as scratch, session.chdir(scratch):
        programs = Path(scratch, "empty", BIN)
        session.run(sys.executable, "-m", "venv", "empty", external=True)
        wheel = str(next(dist.glob("*.whl")))
        install_torch(session, str(programs / "python"), CONSTRAINTS)
        session.run(str(programs / "python"), "-m", "pip", "install", "--quiet", *CONSTRAINTS, wheel, external=True)
        session.run(str(programs / "llm-compression"), "--help", external=True)
        session.run(str(programs / "python"), str(ROOT / "tests" / "wheel" / "check_wheel.py"), external=True)
