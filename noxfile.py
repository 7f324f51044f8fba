"""The project's sessions: `python -m nox -l` lists them, `python -m nox -s NAME` runs one in its own environment."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2025.2"
nox.options.default_venv_backend = "venv"
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = True
nox.options.sessions = ["lint", "types", "tests", "parity", "spec", "gates"]

ROOT = Path(__file__).parent
CONSTRAINTS = ("-c", "constraints.txt")
CODE = ("llm_compression", "tests", "benchmarks", "noxfile.py")
# What the tests, the gates and the type checker import: the package with every extra, and the photos of scikit-image.
FULL = ("-e", ".[convert,hub,transformers,harness]", "scikit-image", "types-psutil")


def install(session: nox.Session, *packages: str) -> None:
    """Install pinned versions; pip is asked only once per environment and set of pins."""
    stamp = Path(session.virtualenv.location) / "installed.txt"
    wanted = "\n".join((*packages, (ROOT / "constraints.txt").read_text(), (ROOT / "pyproject.toml").read_text()))
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    session.install(*CONSTRAINTS, *packages)
    stamp.write_text(wanted)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting with ruff."""
    install(session, "ruff")
    session.run("ruff", "check", *CODE)
    session.run("ruff", "format", "--check", *CODE)


@nox.session
def types(session: nox.Session) -> None:
    """Check types with mypy, strictly."""
    install(session, *FULL, "mypy", "nox")
    session.run("mypy")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the unit, property and compatibility tests; arguments after -- go to pytest."""
    install(session, *FULL)
    session.run("python", "-m", "pytest", "tests/unit", "tests/property", "tests/compat", *session.posargs)


@nox.session
def parity(session: nox.Session) -> None:
    """Compare with transformers: configurations, images and checkpoints, none of them downloaded."""
    install(session, *FULL)
    session.run("python", "-m", "pytest", "tests/parity", *session.posargs)


@nox.session
def gates(session: nox.Session) -> None:
    """Encode real photos, measure every CPU gate of the spec, write reports/gates.md and .json; fails on a miss."""
    install(session, *FULL)
    session.run("python", "-m", "benchmarks.gates", "--session", "cpu", *session.posargs)


@nox.session
def gates_gpu(session: nox.Session) -> None:
    """Measure the CUDA gates of the spec; without a CUDA device they are NOT RUN and the session fails."""
    install(session, *FULL)
    session.run("python", "-m", "benchmarks.gates", "--session", "cuda", *session.posargs)


@nox.session
def spec(session: nox.Session) -> None:
    """Read .kiro/specs and fail on a malformed criterion, a broken citation or a limit outside the gates' table."""
    session.run("python", "-m", "llm_compression.harness.spec", *session.posargs, env={"PYTHONPATH": str(ROOT)})


@nox.session
def build(session: nox.Session) -> None:
    """Build the wheel and the sdist, and use the wheel in an empty environment with run-time dependencies only."""
    install(session, "build", "twine", "hatchling")
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    session.run("python", "-m", "build", "--no-isolation", "--outdir", str(dist))
    session.run("twine", "check", "--strict", *map(str, dist.iterdir()))
    empty = Path(session.create_tmp()).resolve() / "empty"
    session.run(sys.executable, "-m", "venv", "--clear", str(empty), external=True)
    scripts = empty / ("Scripts" if os.name == "nt" else "bin")
    wheel = next(dist.glob("*.whl"))
    session.run(str(scripts / "pip"), "install", "--quiet", *CONSTRAINTS, str(wheel), external=True)
    session.chdir(empty)  # away from the checkout, so that only the wheel can be imported
    session.run(str(scripts / "llm-compression"), "--help", external=True)
    session.run(str(scripts / "python"), str(ROOT / "tests" / "wheel" / "check_wheel.py"), external=True)
