"""Converting: the same bits from every layout, and nothing half done."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from llm_compression.convert import ConversionReport, convert_checkpoint
from llm_compression.errors import CheckpointError, ConfigError
from llm_compression.harness.clip.checkpoint_weights import make_weights
from llm_compression.harness.clip.checkpoints import LAYOUTS, VARIANTS, Layout, make_checkpoint
from llm_compression.inference.weight_loader import WeightLoader
from llm_compression.multimodal.image_processor import ImageProcessor
from llm_compression.multimodal.vision_config import VisionConfig
from tests.strategies import SEEDS, vision_configs

TINY = VARIANTS["tiny"]
Tensors = dict[str, torch.Tensor]
# Long enough to be caught in the middle: 12 blocks, 150 MB.
MEDIUM = VisionConfig(hidden_size=512, num_heads=8, intermediate_size=2048)

CONVERT = "import sys; from llm_compression.convert import convert_checkpoint as c; c(sys.argv[1], sys.argv[2])"


def assert_same_bits(found: Tensors, expected: Tensors) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        assert torch.equal(found[name].view(torch.uint8), tensor.contiguous().view(torch.uint8)), name


def expected_weights(config: VisionConfig, layout: Layout, dtype: torch.dtype, seed: int = 0) -> Tensors:
    weights = make_weights(config, seed)
    if layout in ("hf_vision", "hf_vision_bare"):
        weights.pop("visual_projection.weight", None)
    if layout == "openai":
        single = ("class_embedding", "position_embedding", "norm")
        return {n: t if any(part in n for part in single) else t.half() for n, t in weights.items()}
    return {name: tensor.to(dtype) for name, tensor in weights.items()}


def rewrite(directory: Path, edit: Callable[[Tensors], object]) -> Path:
    file = next(directory.glob("*.safetensors"))
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file)
    return directory


@pytest.mark.requirement("9.1", "9.2", "9.3", "9.4")
@pytest.mark.parametrize(
    ("layout", "dtype"),
    # an OpenAI archive has its own mixture of dtypes
    [(one, dtype) for one in LAYOUTS for dtype in ("float32", "float16", "bfloat16") if one != "openai"]
    + [("openai", "float32")],
)
def test_every_layout_gives_the_same_bits(tmp_path: Path, layout: Layout, dtype: str) -> None:
    """Lossless by default: the file keeps the source's dtype, and reading it back gives the same bits."""
    source = make_checkpoint(tmp_path / "source", "tiny", layout=layout, dtype=dtype)
    overrides = {"num_heads": 4} if layout == "openai" else None
    report = convert_checkpoint(source, tmp_path, overrides=overrides, vision_only=True)
    loader = WeightLoader(tmp_path)
    assert_same_bits(loader.load_weights(), expected_weights(TINY, layout, getattr(torch, dtype)))
    assert report.num_tensors == len(loader.names)


@pytest.mark.property(10)
@given(config=vision_configs(), layout=st.sampled_from([one for one in LAYOUTS if one != "openai"]), seed=SEEDS)
def test_any_sizes_in_any_layout_give_the_same_bits(config: VisionConfig, layout: Layout, seed: int) -> None:
    """Whatever the sizes: what is read back from the weight file is what the checkpoint was made of."""
    if config.projection_dim is None and layout in ("hf_clip_model", "open_clip"):
        layout = "hf"
    with tempfile.TemporaryDirectory() as directory:
        source = make_checkpoint(Path(directory, "source"), config, layout=layout, seed=seed)
        convert_checkpoint(source, directory, vision_only=True)
        loader = WeightLoader(directory)
        assert_same_bits(loader.load_weights(), expected_weights(config, layout, torch.float32, seed))
        projection = None if layout in ("hf_vision", "hf_vision_bare") else config.projection_dim
        assert loader.config == {**config.to_dict(), "projection_dim": projection}


@pytest.mark.requirement("9.5")
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_cast_is_made_on_request(tmp_path: Path, dtype: str) -> None:
    """``dtype`` casts every tensor, as PyTorch does."""
    source = make_checkpoint(tmp_path / "source", "tiny", layout="open_clip")
    convert_checkpoint(source, tmp_path, dtype=dtype)
    assert_same_bits(WeightLoader(tmp_path).load_weights(), expected_weights(TINY, "open_clip", getattr(torch, dtype)))


@pytest.mark.requirement("3.5", "10.1")
def test_the_report_and_the_metadata_say_where_it_came_from(tmp_path: Path) -> None:
    """Tensors, parameters, bytes in and out, both hashes, what was left out; config, preprocessing and source."""
    source = make_checkpoint(tmp_path / "tiny-clip", "tiny", layout="hf_clip_model")
    report = convert_checkpoint(source, tmp_path / "out", revision="v1", vision_only=True)
    file, loader = source / "model.safetensors", WeightLoader(tmp_path / "out")
    assert loader.metadata is not None
    assert report == ConversionReport(
        path=tmp_path / "out" / "weights.parquet",
        format="huggingface",
        num_tensors=40,
        num_params=24448,
        bytes_in=file.stat().st_size,
        bytes_out=(tmp_path / "out" / "weights.parquet").stat().st_size,
        source_sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        tensors_sha256=loader.metadata.tensors_sha256,
        left_out={"logit scale": 1, "text tower": 21},
    )
    assert loader.metadata.config == TINY.to_dict()
    assert loader.metadata.preprocessing == ImageProcessor(32).to_dict()
    assert loader.metadata.source == {
        "name": "tiny-clip",
        "revision": "v1",
        "sha256": report.source_sha256,
        "format": "huggingface",
    }


@pytest.mark.requirement("3.5")
def test_the_hash_of_shards_is_over_all_of_them(tmp_path: Path) -> None:
    """For a sharded source the recorded sha256 is over the shards sorted by name, and the bytes in are their sum."""
    source = make_checkpoint(tmp_path / "source", "tiny", layout="hf_sharded")
    shards = [file.read_bytes() for file in sorted(source.glob("*.safetensors"))]
    report = convert_checkpoint(source, tmp_path)
    assert report.source_sha256 == hashlib.sha256(b"".join(shards)).hexdigest()
    assert report.bytes_in == sum(map(len, shards))


def test_out_is_a_directory_or_a_parquet_file(tmp_path: Path) -> None:
    """A directory will hold weights.parquet; a path ending in .parquet is the file; any other file is an error."""
    source = make_checkpoint(tmp_path / "source", "tiny")
    assert convert_checkpoint(source, tmp_path / "a" / "b").path == tmp_path / "a" / "b" / "weights.parquet"
    assert convert_checkpoint(source, tmp_path / "c" / "x.parquet").path == tmp_path / "c" / "x.parquet"
    (tmp_path / "file").write_text("kept")
    with pytest.raises(ConfigError, match=r"file is a file, expected a directory or a path ending in \.parquet"):
        convert_checkpoint(source, tmp_path / "file")
    (tmp_path / "d.parquet").mkdir()
    with pytest.raises(ConfigError, match=r"d\.parquet is a directory, expected a file"):
        convert_checkpoint(source, tmp_path / "d.parquet")
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.requirement("12.6")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": "int8"}, r"dtype: 'int8', expected None \(as in the source\) or one of float32, bfloat16, float16"),
        ({"compression": "rar"}, "compression: 'rar', expected one of none, zstd, lz4, snappy, gzip"),
    ],
)
def test_an_unknown_argument_is_named(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    """An unknown dtype or codec is an error before the source is touched."""
    with pytest.raises(ConfigError, match=message):
        convert_checkpoint(tmp_path / "missing", tmp_path, **arguments)


@pytest.mark.requirement("3.6")
@pytest.mark.parametrize("compression", ["none", "zstd", "lz4", "snappy", "gzip"])
def test_compression_changes_no_bit(tmp_path: Path, compression: str) -> None:
    """Every codec gives back what was written."""
    source = make_checkpoint(tmp_path / "source", "tiny")
    convert_checkpoint(source, tmp_path, compression=compression)
    assert_same_bits(WeightLoader(tmp_path).load_weights(), make_weights(TINY))


@pytest.mark.requirement("9.8")
def test_every_tensor_that_does_not_fit_is_in_one_message(tmp_path: Path) -> None:
    """Missing, unexpected and mis-shaped tensors, and a dtype that is no weight's, are reported together."""
    source = make_checkpoint(tmp_path / "source", "tiny")

    def damage(tensors: Tensors) -> None:
        del tensors["vision_model.pre_layrnorm.bias"]
        del tensors["vision_model.encoder.layers.1.mlp.fc2.weight"]
        tensors["vision_model.surprise"] = torch.ones(1)
        tensors["vision_model.encoder.layers.2.layer_norm1.weight"] = torch.ones(32)
        tensors["visual_projection.weight"] = torch.ones(17, 32)
        tensors["vision_model.post_layernorm.bias"] = torch.ones(32, dtype=torch.int8)

    with pytest.raises(CheckpointError) as caught:
        convert_checkpoint(rewrite(source, damage), tmp_path / "out")
    assert str(caught.value) == (
        f"{source}: 6 tensors do not fit the configuration: "
        "missing vision_model.encoder.layers.1.mlp.fc2.weight, expected shape [32, 64]; "
        "missing vision_model.pre_layrnorm.bias, expected shape [32]; "
        "unexpected vision_model.encoder.layers.2.layer_norm1.weight; "
        "unexpected vision_model.surprise; "
        "vision_model.post_layernorm.bias has dtype int8, expected one of float32, float16, bfloat16, float64; "
        "visual_projection.weight has shape [17, 32], expected [16, 32]"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.requirement("9.8")
def test_a_fused_tensor_that_does_not_fit_is_named_once_with_its_own_shape(tmp_path: Path) -> None:
    """Messages speak of the source's tensors: the fused one, and the projection as it is stored."""
    source = make_checkpoint(tmp_path / "source", "tiny", layout="open_clip")
    fused = "visual.transformer.resblocks.0.attn.in_proj_weight"
    rewrite(source, lambda tensors: tensors.update({fused: torch.ones(64, 32), "visual.proj": torch.ones(16, 32)}))
    message = rf"2 tensors .*: visual\.proj has .*\[16, 32\], expected \[32, 16\]; {fused} has .*expected \[96, 32\]$"
    with pytest.raises(CheckpointError, match=message):
        convert_checkpoint(source, tmp_path)


@pytest.mark.requirement("9.8")
def test_a_clip_model_without_its_projection_is_incomplete(tmp_path: Path) -> None:
    """The class says that there is a projection: its absence is an error, not an encoder without one."""
    source = make_checkpoint(tmp_path / "source", "tiny")
    rewrite(source, lambda tensors: tensors.pop("visual_projection.weight"))
    with pytest.raises(CheckpointError, match=r"missing visual_projection\.weight, expected shape \[16, 32\]"):
        convert_checkpoint(source, tmp_path)


@pytest.mark.requirement("9.8")
def test_layers_that_the_configuration_does_not_count_are_an_error(tmp_path: Path) -> None:
    """A configuration with fewer layers than the checkpoint does not cut the model short."""
    source = make_checkpoint(tmp_path / "source", "tiny")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    with pytest.raises(CheckpointError, match=r"16 tensors .*unexpected vision_model\.encoder\.layers\.1\."):
        convert_checkpoint(source, tmp_path)


@pytest.mark.requirement("9.6", "9.8")
@pytest.mark.parametrize("layout", ["hf", "open_clip"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_named_and_leave_no_file(tmp_path: Path, layout: Layout, value: float) -> None:
    """NaN and Inf: a CheckpointError with every such tensor; no file appears, and one that was there stays."""
    source = make_checkpoint(tmp_path / "source", "tiny", layout=layout)
    out = tmp_path / "out"
    convert_checkpoint(source, out)
    before = (out / "weights.parquet").read_bytes()

    def damage(tensors: Tensors) -> None:
        for name in tensors:
            if name.endswith(("class_embedding", "post_layernorm.weight", "visual.ln_post.weight")):
                tensors[name][-1] = value

    with pytest.raises(CheckpointError, match=r"2 tensors hold NaN or infinite weights: .*class_embedding.*; .*post_l"):
        convert_checkpoint(rewrite(source, damage), out)
    assert [file.name for file in out.iterdir()] == ["weights.parquet"]
    assert (out / "weights.parquet").read_bytes() == before
    with pytest.raises(CheckpointError):
        convert_checkpoint(source, tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.requirement("9.8")
def test_a_cast_that_overflows_is_named(tmp_path: Path) -> None:
    """A finite weight that float16 cannot hold is not written as infinity."""
    source = make_checkpoint(tmp_path / "source", "tiny")
    rewrite(source, lambda tensors: tensors["vision_model.pre_layrnorm.weight"].fill_(1e6))
    with pytest.raises(CheckpointError, match=r"1 tensors .*pre_layrnorm\.weight .*finite there, but too large for fl"):
        convert_checkpoint(source, tmp_path, dtype="float16")
    convert_checkpoint(source, tmp_path, dtype="bfloat16")


@pytest.fixture(scope="module")
def medium(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 150 MB."""
    return make_checkpoint(tmp_path_factory.mktemp("medium") / "source", MEDIUM)


# converts, and waits for its end in the middle of a file of which a part is written
CONVERT_HALF = """
import signal, sys
import llm_compression.convert.converter as converter

# what runs in the background of a shell inherits an interrupt that is ignored
signal.signal(signal.SIGINT, signal.default_int_handler)
write = converter.write_weights


def half(tensors):
    for number, pair in enumerate(tensors):
        if number == 30:
            print("waiting", flush=True)
            sys.stdin.read()
        yield pair


converter.write_weights = lambda target, tensors, *given, **named: write(target, half(tensors), *given, **named)
converter.convert_checkpoint(sys.argv[1], sys.argv[2])
"""


@pytest.mark.requirement("9.6", "26.8")
@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize(
    ("number", "inherited"),
    [
        (signal.SIGKILL, signal.SIG_DFL),
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGINT, signal.SIG_IGN),
    ],
)
def test_a_killed_conversion_leaves_no_half_file(
    tmp_path: Path, number: signal.Signals, inherited: Any, existing: bool
) -> None:
    """A real process, killed while it writes: no target appears, an existing one is unchanged, the next try works."""
    target, source = tmp_path / "weights.parquet", make_checkpoint(tmp_path / "tiny", "tiny")
    if existing:
        convert_checkpoint(source, tmp_path)
    before = target.read_bytes() if existing else None
    found = signal.signal(signal.SIGINT, inherited)
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", CONVERT_HALF, str(source), str(tmp_path)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    finally:
        signal.signal(signal.SIGINT, found)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"waiting\n"
        (partial,) = tmp_path.glob(".*.partial")
        assert partial.stat().st_size > len(b"PAR1"), "nothing was written yet"
        process.send_signal(number)
    # leaving the block has closed what it read from, so it went on had it not been killed
    assert process.returncode != 0
    assert (target.read_bytes() if target.exists() else None) == before
    if number == signal.SIGINT:
        assert list(tmp_path.glob(".*.partial")) == []
    assert convert_checkpoint(source, tmp_path).path == target


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_the_model_is_never_in_memory_whole(medium: Path, tmp_path: Path) -> None:
    """Tensors are read and written one block at a time: the process never holds half of the model."""
    program = (
        "import re, sys, threading, pathlib\n"
        "import safetensors\n"
        "from llm_compression.convert import convert_checkpoint\n"
        "def anonymous():\n"
        "    text = pathlib.Path('/proc/self/status').read_text()\n"
        "    return int(re.search(r'RssAnon:\\s+(\\d+)', text).group(1)) * 1024\n"
        "before, peak, done = anonymous(), [0], threading.Event()\n"
        "def watch():\n"
        "    while not done.wait(0.002):\n"
        "        peak[0] = max(peak[0], anonymous())\n"
        "thread = threading.Thread(target=watch, daemon=True)\n"
        "thread.start()\n"
        "report = convert_checkpoint(sys.argv[1], sys.argv[2])\n"
        "done.set()\n"
        "thread.join()\n"
        "print((peak[0] - before) / report.bytes_in)\n"
    )
    # allocators that give memory back at once, so that what is measured is what is held
    allocators = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program, str(medium), str(tmp_path)],
        env={**os.environ, **allocators, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout) < 0.5


@pytest.mark.requirement("10.2")
def test_a_progress_bar_is_shown_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A bar on stderr on request, counting tensors; silence otherwise."""
    source = make_checkpoint(tmp_path / "source", "tiny")
    convert_checkpoint(source, tmp_path, progress=True)
    assert "converting source" in (err := capsys.readouterr().err)
    assert "40/40" in err
    convert_checkpoint(source, tmp_path)
    assert capsys.readouterr() == ("", "")


@pytest.mark.requirement("12.3")
def test_a_local_conversion_opens_no_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path is read from disk and from nowhere else."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    source = make_checkpoint(tmp_path / "source", "tiny")
    monkeypatch.setattr(socket, "socket", refuse)
    convert_checkpoint(source, tmp_path)


def test_the_command_line_of_a_runtime_install_says_what_is_missing(tmp_path: Path) -> None:
    """With torch, pyarrow, numpy and pillow alone, importing works and converting names the extra to install."""
    source = make_checkpoint(tmp_path / "source", "tiny")
    extras = ["safetensors", "tqdm", "huggingface_hub", "transformers"]
    blocked = f"import sys; sys.modules.update(dict.fromkeys({extras}))"
    done = subprocess.run(
        [sys.executable, "-c", f"{blocked}; {CONVERT}", str(source), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "CheckpointError" in done.stderr
    assert "pip install 'llm-compression[convert]'" in done.stderr
