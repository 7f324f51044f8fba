"""The package as a whole: what importing it costs, its public names, its dependencies, and no network."""

from __future__ import annotations

import importlib
import json
import pkgutil
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

import llm_compression

ROOT = Path(__file__).parents[2]
EXTRAS = ("transformers", "safetensors", "tqdm", "psutil", "huggingface_hub", "pytest", "hypothesis", "tokenizers")

# runs code where the packages named first cannot be imported, and prints the modules that were
ISOLATED = """
import json, sys
for name in sys.argv[1].split(","):
    sys.modules[name] = None
exec(sys.argv[2])
print(json.dumps(sorted(name for name, module in sys.modules.items() if module is not None)))
"""


def modules_after(code: str, *, without: tuple[str, ...] = ()) -> list[str]:
    """Modules that a fresh process has imported once it ran the code."""
    run = subprocess.run(
        [sys.executable, "-c", ISOLATED, ",".join(without) or "no_such_module", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    names: list[str] = json.loads(run.stdout.splitlines()[-1])
    return names


def all_modules() -> list[str]:
    """Every module of the package."""
    return [found.name for found in pkgutil.walk_packages(llm_compression.__path__, "llm_compression.")]


@pytest.mark.requirement("12.1")
def test_importing_the_package_is_light() -> None:
    """12.1: WHEN `import llm_compression` is run, THE Package SHALL import neither torch nor transformers."""
    loaded = modules_after("import llm_compression; dir(llm_compression); llm_compression.__version__")
    assert "llm_compression" in loaded
    heavy = {"torch", "transformers", "numpy", "pyarrow", "PIL"}
    assert not heavy & set(loaded)


@pytest.mark.requirement("12.1")
def test_errors_and_configurations_come_without_torch() -> None:
    """12.1: WHEN `import llm_compression` is run, THE Package SHALL import neither torch nor transformers: nor for the
    names that need neither."""
    names = "ConfigError, EmbeddingProvider, ImageError, VisionConfig"
    loaded = modules_after(f"import llm_compression.cli; from llm_compression import {names}")
    assert not {"torch", "transformers"} & set(loaded)


@pytest.mark.requirement("12.2")
def test_encoding_needs_no_extra(tiny_model: Path) -> None:
    """12.2: THE Package SHALL require no run-time dependency other than torch, pyarrow, numpy and pillow."""
    code = (
        "import numpy as np\n"
        "from llm_compression import VisionEncoder, ArrowVisionProvider, CLIPVisionProvider, convert_checkpoint\n"
        f"rows = VisionEncoder({str(tiny_model)!r}).encode(np.zeros((9, 9, 3), np.uint8))\n"
        "assert rows.shape == (1, 16)"
    )
    loaded = modules_after(code, without=EXTRAS)
    assert "torch" in loaded
    assert not set(EXTRAS) & {name.partition(".")[0] for name in loaded}


@pytest.mark.requirement("12.2")
def test_declared_dependencies() -> None:
    """12.2: THE Package SHALL require no run-time dependency other than torch, pyarrow, numpy and pillow."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {requirement.partition(">=")[0] for requirement in project["dependencies"]} == {
        "torch",
        "pyarrow",
        "numpy",
        "pillow",
    }


@pytest.mark.requirement("12.1")
def test_every_public_name_resolves() -> None:
    """12.1: WHEN `import llm_compression` is run, THE Package SHALL import neither torch nor transformers: its names
    come when they are asked for."""
    assert dir(llm_compression) == sorted(llm_compression.__all__)
    for name in set(llm_compression.__all__) - {"__version__"}:
        value = getattr(llm_compression, name)
        assert value.__name__ == name
        assert value.__module__.startswith("llm_compression.")
        assert value.__doc__
    with pytest.raises(AttributeError, match="'llm_compression' has no attribute 'VisonEncoder'"):
        _ = llm_compression.VisonEncoder


@pytest.mark.requirement("12.6")
def test_the_public_names() -> None:
    """12.6: IF the Package refuses an input or a file, THEN THE Package SHALL raise a subclass of `LlmCompressionError`
    whose message has the value found and what was expected: code that catches them, and the rest, finds them here."""
    promised = {"VisionConfig", "PatchEmbedding", "InferenceCore", "WeightLoader", "ImageProcessor", "VisionEncoder"}
    promised |= {
        "ArrowVisionProvider",
        "CLIPVisionProvider",
        "VisionProvider",
        "EmbeddingProvider",
        "convert_checkpoint",
    }
    promised |= {"LlmCompressionError", "ConfigError", "WeightFormatError", "CheckpointError", "ImageError"}
    assert promised <= set(llm_compression.__all__)


@pytest.mark.requirement("12.5")
@pytest.mark.parametrize("name", [name for name in all_modules() if not name.endswith("__main__")])
def test_every_module_imports(name: str) -> None:
    """12.5: WHEN plain `python -m pytest` is run in a checkout with the dependencies of the tests, THE Package SHALL
    pass its tests."""
    assert importlib.import_module(name).__doc__


@pytest.mark.requirement("12.2")
def test_nothing_in_the_package_imports_the_harness() -> None:
    """12.2: THE Package SHALL require no run-time dependency other than torch, pyarrow, numpy and pillow: the harness,
    which needs more, is imported by tests, benchmarks and sessions only."""
    outside = [name for name in all_modules() if ".harness" not in name and not name.endswith("__main__")]
    loaded = modules_after("\n".join(f"import {name}" for name in outside), without=EXTRAS)
    assert set(outside) <= set(loaded)
    assert not [name for name in loaded if name.startswith("llm_compression.harness")]


@pytest.mark.requirement("34.8")
def test_the_package_registers_no_plugin() -> None:
    """34.8: THE Package SHALL register no plugin of pytest: its metadata have commands and no other entry point, and
    what builds the wheel adds none. The session build asks the wheel itself."""
    content = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project = content["project"]
    assert set(project["scripts"]) == {"llm-compression"}
    assert not {"entry-points", "gui-scripts", "dynamic"} & set(project)
    assert "hooks" not in str(content["tool"]["hatch"])


@pytest.mark.requirement("34.8")
def test_a_public_name_imports_no_harness() -> None:
    """34.8: THE Package SHALL register no plugin of pytest: what a user imports has nothing of the harness either."""
    loaded = modules_after(
        "import llm_compression\nfor name in llm_compression.__all__: getattr(llm_compression, name)"
    )
    assert not [name for name in loaded if name.startswith(("llm_compression.harness", "pytest", "_pytest"))]


@pytest.fixture
def server() -> Iterator[tuple[str, int]]:
    """A port of this machine that accepts connections."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()


@pytest.mark.requirement("12.3")
def test_the_tests_open_no_connection(server: tuple[str, int]) -> None:
    """12.3: WHERE no hub id is given, THE Package SHALL open no network connection: while the tests run, whatever opens
    one fails."""
    for method in ("connect", "connect_ex"):
        with socket.socket() as client, pytest.raises(pytest.fail.Exception, match="a network connection"):
            getattr(client, method)(server)


@pytest.mark.requirement("12.3")
@pytest.mark.usefixtures("network")
def test_a_test_may_ask_for_the_network(server: tuple[str, int]) -> None:
    """12.3: WHERE no hub id is given, THE Package SHALL open no network connection: a test of what does asks for it."""
    socket.create_connection(server).close()


@pytest.mark.requirement("12.3")
def test_loading_and_encoding_open_no_connection(tiny_model: Path) -> None:
    """12.3: WHERE no hub id is given, THE Package SHALL open no network connection: in a fresh process whose audit hook
    sees every name that is looked up and every connection."""
    code = (
        "import sys\n"
        "def refuse(event, arguments):\n"
        "    assert event not in ('socket.connect', 'socket.getaddrinfo', 'socket.sendto'), (event, arguments)\n"
        "sys.addaudithook(refuse)\n"
        "import numpy as np\n"
        "from llm_compression import VisionEncoder\n"
        f"VisionEncoder({str(tiny_model)!r}).encode(np.zeros((2, 9, 9, 3), np.uint8))"
    )
    assert "llm_compression.multimodal.vision_encoder" in modules_after(code)


@pytest.mark.requirement("14.9")
def test_properties_run_at_full_depth() -> None:
    """14.9: WHEN the tests are run, THE Harness SHALL run at least 100 examples of each property below *Correctness
    properties* in `design.md`."""
    current = settings()
    assert current.max_examples >= 100
    assert current.deadline is None
    files = sorted((ROOT / "tests" / "property").glob("*.py"))
    assert files
    assert not [file for file in files if "max_examples" in file.read_text(encoding="utf-8")]
