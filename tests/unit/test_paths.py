"""Choices of a form: forced in one place, possible or not, and noted."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import torch

from llm_compression.errors import ConfigError
from llm_compression.inference.linear import Linear
from llm_compression.inference.paths import FORMS, PATHS_VARIABLE, choose, forced, ran

pytestmark = pytest.mark.requirement("29.1")


@pytest.mark.parametrize("choice", FORMS)
def test_a_forced_form_runs_where_it_is_possible(choice: str) -> None:
    """29.1: WHERE a form of a computation is forced, THE Package SHALL run it wherever it is possible, in every thread
    of the process."""
    one, other = FORMS[choice]
    with forced(**{choice: other}):
        assert choose(choice, one, (one, other)) == other
        assert choose(choice, one, (one,)) == one
        found: list[str] = []
        thread = threading.Thread(target=lambda: found.append(choose(choice, one, (one, other))))
        thread.start()
        thread.join()
        assert found == [other]
        with forced(**{choice: one}):
            assert choose(choice, other, (one, other)) == one
        assert choose(choice, one, (one, other)) == other
    assert {(choice, one), (choice, other)} <= ran()


def test_an_error_inside_takes_the_force_back() -> None:
    """29.1: only within the block."""
    before = choose("linear", "packed", ("packed", "plain"))
    with pytest.raises(ArithmeticError), forced(linear="plain"):
        raise ArithmeticError
    assert choose("linear", "packed", ("packed", "plain")) == before


@pytest.mark.parametrize("forms", [{"linear": "bmm"}, {"attention": ""}, {"graph": "eager"}])
def test_an_unknown_form(forms: dict[str, str]) -> None:
    """29.1: a form that does not exist is no form that quietly does not run."""
    with pytest.raises(ConfigError, match=r"expected of linear=packed\|plain, attention=fused\|bmm"), forced(**forms):
        pytest.fail("entered")


@pytest.mark.parametrize(
    ("setting", "expected"),
    [("linear=plain", "False"), (" linear=packed , attention=bmm", "True"), ("", "True"), ("linear=slow", "paths: ")],
)
def test_the_variable_forces_a_process(setting: str, expected: str) -> None:
    """29.1: `LLM_COMPRESSION_PATHS` forces the forms of a process, or is refused by name."""
    code = (
        "import torch\n"
        "from llm_compression.inference.linear import Linear\n"
        "layer = Linear(4, 4)\n"
        "layer.load(torch.zeros(4, 4), None, torch.device('cpu'), torch.float32)\n"
        "print(layer.packed_weight is not None)"
    )
    environment = {**os.environ, PATHS_VARIABLE: setting}
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert expected in run.stdout + run.stderr
    assert (run.returncode == 0) is (setting != "linear=slow")


def test_layers_differ_in_what_they_hold() -> None:
    """29.1: the form is that of the load; a layer keeps it."""
    layers = []
    for form in FORMS["linear"]:
        with forced(linear=form):
            layer = Linear(4, 4)
            layer.load(torch.eye(4), None, torch.device("cpu"), torch.float32)
            layers.append(layer)
    assert [layer.packed_weight is not None for layer in layers] == [torch.backends.mkldnn.is_available(), False]
    x = torch.arange(4.0).reshape(1, 4)
    assert all(torch.equal(layer(x), x) for layer in layers)
