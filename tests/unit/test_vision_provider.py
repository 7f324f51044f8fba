"""The providers: this package's encoder and the transformers baseline behind one interface."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from llm_compression import (
    ArrowVisionProvider,
    CheckpointError,
    CLIPVisionProvider,
    ConfigError,
    EmbeddingProvider,
    ImageError,
    VisionEncoder,
    VisionProvider,
    convert_checkpoint,
)
from llm_compression.harness.clip.checkpoints import make_checkpoint
from llm_compression.harness.spec.parser import read_specs

LIMIT = read_specs(Path(__file__).parents[2])[0].gate("photo-float32-b16")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"), "tiny")


@pytest.fixture(scope="module")
def model(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert_checkpoint(checkpoint, tmp_path_factory.mktemp("model")).path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    paths = [folder / f"{mode}.png" for mode in ("RGB", "L", "RGBA", "P")]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (60, 45, 4), dtype=np.uint8)).convert("RGB").convert(path.stem).save(path)
    return paths


@pytest.mark.requirement("11.1")
def test_one_interface(checkpoint: Path, model: Path) -> None:
    """11.1: THE EmbeddingProvider SHALL declare `dimension` and `encode` as the interface that VisionEncoder,
    CLIPVisionProvider and ArrowVisionProvider satisfy."""
    arrow, baseline = ArrowVisionProvider(model), CLIPVisionProvider(checkpoint)
    assert isinstance(arrow, VisionProvider)
    assert isinstance(baseline, VisionProvider)
    for provider in (arrow, baseline, VisionEncoder(model)):
        assert isinstance(provider, EmbeddingProvider)
        assert provider.dimension == 16
        for images, rows in (([], 0), (np.zeros((40, 30, 3), np.uint8), 1), (np.zeros((3, 40, 30, 3), np.uint8), 3)):
            embeddings = provider.encode(images, batch_size=2, convert_to_tensor=True)
            assert embeddings.shape == (rows, 16)
            assert embeddings.dtype == torch.float32
            assert torch.allclose(embeddings.norm(dim=1), torch.ones(rows), atol=1e-5)
    assert not isinstance(object(), EmbeddingProvider)


@pytest.mark.requirement("11.2")
@pytest.mark.parametrize("normalize", [True, False])
def test_same_embeddings(checkpoint: Path, model: Path, photos: list[Path], normalize: bool) -> None:
    """11.2: WHEN given the images that a CLIPVisionProvider of the same checkpoint was given, THE ArrowVisionProvider
    SHALL return in float32 embeddings whose cosine to the other's is within the limit of gate `photo-float32-b16`."""
    found = ArrowVisionProvider(model, dtype="float32").encode(photos, normalize, batch_size=3, convert_to_tensor=True)
    expected = CLIPVisionProvider(checkpoint).encode(photos, normalize, batch_size=2, convert_to_tensor=True)
    cosine = torch.cosine_similarity(found.double(), expected.double())
    assert all(LIMIT.passes(value) for value in cosine.tolist())
    assert torch.allclose(found.norm(dim=1), expected.norm(dim=1), rtol=1e-4)
    assert bool((found.norm(dim=1) - 1).abs().max() < 1e-5) is normalize


@pytest.mark.requirement("11.3")
def test_transformers_is_imported_when_used() -> None:
    """11.3: THE CLIPVisionProvider SHALL import transformers only when one is constructed."""
    code = (
        "import sys; from llm_compression import CLIPVisionProvider; assert 'transformers' not in sys.modules\n"
        "try: CLIPVisionProvider('nowhere/at-all/here')\nexcept Exception: pass\nassert 'transformers' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"HF_HUB_OFFLINE": "1", "PATH": ""})


@pytest.mark.requirement("11.4")
def test_missing_transformers_names_the_extra(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """11.4: IF transformers is not installed, THEN THE CLIPVisionProvider SHALL raise an error that names the extra to
    install."""
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"llm-compression\[transformers\]"):
        CLIPVisionProvider(checkpoint)


@pytest.mark.requirement("11.5")
def test_unreadable_image_is_an_error(checkpoint: Path, model: Path, photos: list[Path], tmp_path: Path) -> None:
    """11.5: IF an image cannot be encoded, THEN THE ArrowVisionProvider SHALL raise ImageError in place of zeros,
    random vectors or a shorter result."""
    broken = tmp_path / "broken.png"
    broken.write_bytes(photos[0].read_bytes()[:100])
    for provider in (ArrowVisionProvider(model), CLIPVisionProvider(checkpoint)):
        with pytest.raises(ImageError, match=r"image 2 \(.*broken\.png\)") as caught:
            provider.encode([photos[0], photos[1], broken, photos[2]], batch_size=2, convert_to_tensor=True)
        assert (caught.value.position, caught.value.name) == (2, str(broken))


@pytest.mark.requirement("11.2")
def test_baseline_without_a_projection(tmp_path: Path, photos: list[Path]) -> None:
    """11.2: the baseline of a checkpoint without a projection is its class row too, not a projection made up."""
    source = make_checkpoint(tmp_path / "source", "tiny", layout="hf_vision_bare")
    convert_checkpoint(source, tmp_path / "model")
    arrow, baseline = ArrowVisionProvider(tmp_path / "model", dtype="float32"), CLIPVisionProvider(source)
    assert arrow.dimension == baseline.dimension == 32
    cosine = torch.cosine_similarity(
        arrow.encode(photos, convert_to_tensor=True).double(), baseline.encode(photos, convert_to_tensor=True).double()
    )
    assert all(LIMIT.passes(value) for value in cosine.tolist())


@pytest.mark.requirement("11.5")
def test_baseline_makes_nothing_up(checkpoint: Path, tmp_path: Path) -> None:
    """11.5: a tensor that the checkpoint lacks is an error, where transformers alone would fill it at random."""
    folder = tmp_path / "lacking"
    shutil.copytree(checkpoint, folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["vision_model.encoder.layers.1.mlp.fc1.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.fc1\.weight"):
        CLIPVisionProvider(folder)


@pytest.mark.requirement("12.6")
def test_baseline_refuses(checkpoint: Path, tmp_path: Path) -> None:
    """12.6: a directory that transformers cannot load is a CheckpointError, a batch size of zero a ConfigError."""
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        CLIPVisionProvider(tmp_path)
    with pytest.raises(ConfigError, match="batch_size: 0"):
        CLIPVisionProvider(checkpoint).encode([], batch_size=0, convert_to_tensor=True)
