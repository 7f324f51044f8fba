"""Run by `nox -s build` with the wheel and nothing but its run-time dependencies installed."""

import subprocess
import sys
import tempfile
from importlib.metadata import distribution, distributions
from importlib.util import find_spec
from pathlib import Path

import llm_compression

assert "site-packages" in str(Path(llm_compression.__file__)), llm_compression.__file__
assert not {"torch", "transformers"} & set(sys.modules), "importing the package imported torch or transformers"
assert not [name for name in sys.modules if name.startswith("llm_compression.harness")], "and the harness"
groups = {each.group for each in distribution("llm-compression").entry_points}
assert groups == {"console_scripts"}, f"{groups}: the wheel registers more than commands"
for name in ("transformers", "safetensors", "huggingface_hub", "pytest", "psutil", "tqdm"):
    assert find_spec(name) is None, f"{name} is installed, so this proves nothing"

import torch  # noqa: E402  # after the check above
from PIL import Image  # noqa: E402

from llm_compression import ImageProcessor, VisionConfig, VisionEncoder  # noqa: E402
from llm_compression.inference.weight_format import WeightMetadata, write_weights  # noqa: E402

config = VisionConfig(32, 8, 32, 2, 4, 64, 16)
generator = torch.Generator().manual_seed(0)
tensors = [(name, torch.randn(shape, generator=generator)) for name, shape in config.expected_shapes().items()]
with tempfile.TemporaryDirectory() as folder:
    metadata = WeightMetadata(config.to_dict(), ImageProcessor(config.image_size).to_dict())
    write_weights(Path(folder, "weights.parquet"), tensors, metadata)
    photo = Path(folder, "photo.png")
    Image.new("RGB", (40, 30), (200, 30, 30)).save(photo)
    assert VisionEncoder(folder).encode(photo).shape == (1, 16)
    command = Path(sys.executable).with_name("llm-compression")
    output = Path(folder, "photo.npy")
    subprocess.run([command, "encode", folder, photo, "-o", output], check=True)
    subprocess.run([command, "inspect", folder, "--verify"], check=True, stdout=subprocess.DEVNULL)
    assert output.is_file()
print("the wheel works with", ", ".join(sorted(d.metadata["Name"] for d in distributions())))
