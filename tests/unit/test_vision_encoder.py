"""VisionEncoder: every kind of input, its steps, its views, loading without random weights, and threads at once."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from llm_compression.harness.clip.checkpoint_weights import make_weights
from llm_compression.harness.clip.checkpoints import VARIANTS
from llm_compression.inference.inference_core import InferenceCore
from llm_compression.inference.linear import Linear, auto_dtype
from llm_compression.inference.placement import Slot
from llm_compression.inference.weight_format import WeightMetadata, write_weights
from llm_compression.inference.weight_loader import WeightLoader
from llm_compression.multimodal.image_processor import ImageProcessor
from llm_compression.multimodal.vision_config import VisionConfig
from llm_compression.multimodal.vision_encoder import PatchEmbedding, VisionEncoder
from tests.strategies import encode_image, random_array, random_pixels

if TYPE_CHECKING:
    from tests.conftest import AssertWithin, BuildEncoder

TINY = VARIANTS["tiny"]
ARRAYS = np.stack([random_array(40, 50, seed) for seed in range(3)])
PNGS = [encode_image(Image.fromarray(array), "PNG") for array in ARRAYS]


def forms(directory: Path) -> dict[str, Any]:
    """The same three images in every form that several may have."""
    paths = [directory / f"{index}.png" for index in range(3)]
    for path, data in zip(paths, PNGS, strict=True):
        path.write_bytes(data)
    texts = [str(path) for path in paths]
    return {
        "paths": paths,
        "texts": tuple(texts),
        "bytes": PNGS,
        "PIL images": [Image.fromarray(array) for array in ARRAYS],
        "list of arrays": list(ARRAYS),
        "one array": ARRAYS,
        "mixed": [paths[0], PNGS[1], ARRAYS[2]],
        "Arrow binary": pa.array(PNGS, pa.binary()),
        "Arrow large binary": pa.array(PNGS, pa.large_binary()),
        "Arrow string": pa.array(texts),
        "chunked": pa.chunked_array([PNGS[:2], PNGS[2:]], pa.binary()),
    }


@pytest.mark.requirement("5.1")
@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_every_form_of_images(tiny_encoder: VisionEncoder, tmp_path: Path, batch_size: int) -> None:
    """5.1: WHEN `encode` is given n images as a path, encoded bytes, a PIL image, a uint8 array (H, W, 3) or (n, H, W,
    3), a list of these or an Arrow array of encoded images, one image and n = 0 included, THE VisionEncoder SHALL
    return a numpy float32 array of shape (n, dimension)."""
    expected = tiny_encoder.encode_pixels(ImageProcessor(32)(ARRAYS))
    assert (expected.shape, expected.dtype.name) == ((3, 16), "float32")
    for form, given in forms(tmp_path).items():
        found = tiny_encoder.encode(given, batch_size=batch_size)
        assert (type(found), found.shape, found.dtype.name) == (np.ndarray, (3, 16), "float32"), form
        np.testing.assert_allclose(found, expected, 1.3e-6, 1e-5)
        # one image alone: two dimensions, one row
        if not isinstance(given, pa.Array | pa.ChunkedArray):
            np.testing.assert_allclose(
                tiny_encoder.encode(given[1], batch_size=batch_size), expected[1:2], 1.3e-6, 1e-5
            )


@pytest.mark.requirement("5.1")
def test_a_progress_bar_changes_nothing(tiny_encoder: VisionEncoder, capsys: pytest.CaptureFixture[str]) -> None:
    """5.1: WHEN `encode` is given n images, THE VisionEncoder SHALL return a numpy float32 array of shape (n,
    dimension): and shows how far it is, where that is asked for."""
    shown = tiny_encoder.encode(ARRAYS, batch_size=1, show_progress=True, convert_to_tensor=True)
    assert "3/3" in capsys.readouterr().err
    assert torch.equal(shown, tiny_encoder.encode(ARRAYS, batch_size=1, convert_to_tensor=True))
    assert capsys.readouterr().err == ""


@pytest.mark.requirement("5.2")
@pytest.mark.parametrize("n", [0, 1, 4])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_pixels(tiny_model: Path, n: int, dtype: str) -> None:
    """5.2: WHEN `encode_pixels` is given float32 pixels of shape (n, 3, S, S), n = 0 included, THE VisionEncoder SHALL
    return a numpy float32 array of shape (n, dimension)."""
    encoder = VisionEncoder(tiny_model, dtype=dtype)
    assert encoder.dtype == getattr(torch, dtype)
    pixels = random_pixels(n, 32, 1)
    for given in (pixels, pixels.transpose(2, 3).contiguous().transpose(2, 3), torch.cat((pixels, pixels))[:n]):
        rows = encoder.encode_pixels(given, convert_to_tensor=True)
        assert (rows.shape, rows.dtype) == ((n, 16), torch.float32)
        assert not rows.requires_grad
        torch.testing.assert_close(rows, encoder.encode_pixels(pixels, convert_to_tensor=True))
    assert rows.data_ptr() != encoder.encode_pixels(pixels, convert_to_tensor=True).data_ptr() or n == 0


@pytest.mark.requirement("5.4")
@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.string(), pa.large_string()])
@pytest.mark.parametrize("n", [0, 1, 3])
def test_a_column(tiny_encoder: VisionEncoder, tmp_path: Path, kind: pa.DataType, n: int) -> None:
    """5.4: WHEN `encode_arrow` is given a binary or string column, THE VisionEncoder SHALL return a FixedSizeListArray
    that has one row for each row of the column and wraps the memory of the embedding matrix."""
    given = forms(tmp_path)["texts" if "string" in str(kind) else "bytes"][:n]
    for normalize in (True, False):
        expected = tiny_encoder.encode(list(given), normalize, convert_to_tensor=True)
        for column in (
            pa.array(given, kind),
            pa.chunked_array([given], kind),
            pa.table({"x": pa.array(given, kind)})["x"],
        ):
            found = tiny_encoder.encode_arrow(column, normalize, batch_size=2)
            assert isinstance(found, pa.FixedSizeListArray)
            assert found.type == pa.list_(pa.float32(), 16)
            assert (len(found), found.null_count) == (n, 0)
            rows = torch.from_numpy(np.array(found.to_pylist(), np.float32).reshape(n, 16))
            torch.testing.assert_close(rows, expected)


@pytest.mark.requirement("5.4")
def test_a_column_wraps_the_embedding_matrix(tiny_encoder: VisionEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """5.4: WHEN `encode_arrow` is given a binary or string column, THE VisionEncoder SHALL return a FixedSizeListArray
    that has one row for each row of the column and wraps the memory of the embedding matrix."""
    matrices: list[torch.Tensor] = []
    real = VisionEncoder._encode

    def recording(self: VisionEncoder, *given: Any) -> Any:
        found = real(self, *given)
        matrices.append(found.rows)
        return found

    monkeypatch.setattr(VisionEncoder, "_encode", recording)
    found = tiny_encoder.encode_arrow(pa.array(PNGS))
    (matrix,) = matrices
    assert found.values.buffers()[1].address == matrix.data_ptr()
    assert found.values.buffers()[1].size == matrix.nbytes
    before = found.to_pylist()
    # the array keeps the memory when the matrix is gone
    del matrix
    matrices.clear()
    gc.collect()
    _ = [torch.full((3, 16), 9.0) for _ in range(100)]
    assert found.to_pylist() == before


@pytest.mark.requirement("5.5")
@pytest.mark.parametrize("projection", [16, None])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_steps_by_name(build_encoder: BuildEncoder, projection: int | None, dtype: str) -> None:
    """5.5: WHEN `forward` is called with `intermediates=True`, THE VisionEncoder SHALL return the tensor of each of its
    steps by name: patches, class token in front, positions added, pre-layernorm, core, class row, post-layernorm and
    projection."""
    encoder, pixels = build_encoder(replace(TINY, projection_dim=projection), dtype=dtype), random_pixels(2, 32, 3)
    with torch.inference_mode():
        steps = encoder(pixels, intermediates=True)
        embedding = encoder(pixels)
    compute = getattr(torch, dtype)
    assert {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in steps.items()} == {
        "patch_embedding": ((2, 16, 32), compute),
        "position_embedding": ((2, 17, 32), compute),
        "pre_layernorm": ((2, 17, 32), compute),
        "transformer.0": ((2, 17, 32), compute),
        "transformer.1": ((2, 17, 32), compute),
        "post_layernorm": ((2, 32), torch.float32),
        "embedding": ((2, projection or 32), torch.float32),
    }
    with torch.inference_mode():
        assert torch.equal(steps["patch_embedding"], encoder.patch_embedding(pixels))
        first = steps["position_embedding"] - encoder.position_embedding
        torch.testing.assert_close(first[:, 0], encoder.cls_token.expand(2, -1), rtol=0.02, atol=0.02)
        torch.testing.assert_close(first[:, 1:], steps["patch_embedding"], rtol=0.02, atol=0.05)
        assert torch.equal(steps["pre_layernorm"], encoder.pre_layernorm(steps["position_embedding"]))
        assert torch.equal(steps["transformer.1"], encoder.transformer(steps["pre_layernorm"]))
        assert torch.equal(steps["post_layernorm"], encoder.post_layernorm(steps["transformer.1"][:, 0].float()))
    tolerance: dict[str, Any] = {} if dtype == "float32" else {"rtol": 0.02, "atol": 0.02}
    torch.testing.assert_close(steps["embedding"], embedding, **tolerance)


@pytest.mark.requirement("5.5")
def test_the_parts_have_their_names(tiny_encoder: VisionEncoder, tiny_model: Path) -> None:
    """5.5: WHEN `forward` is called with `intermediates=True`, THE VisionEncoder SHALL return the tensor of each of its
    steps by name: the steps of parts that the design names."""
    assert isinstance(tiny_encoder.weight_loader, WeightLoader)
    assert tiny_encoder.weight_loader.path == tiny_model / "weights.parquet"
    assert isinstance(tiny_encoder.patch_embedding, PatchEmbedding)
    assert isinstance(tiny_encoder.transformer, InferenceCore)
    assert isinstance(tiny_encoder.visual_projection, Linear)
    assert (tiny_encoder.cls_token.shape, tiny_encoder.position_embedding.shape) == ((32,), (17, 32))
    assert isinstance(tiny_encoder.pre_layernorm, torch.nn.LayerNorm)
    assert isinstance(tiny_encoder.post_layernorm, torch.nn.LayerNorm)
    assert tiny_encoder.config == TINY
    assert (tiny_encoder.device, tiny_encoder.dimension) == (torch.device("cpu"), 16)
    assert not any(module.training for part in parts_of(tiny_encoder) for module in part.modules())


@pytest.mark.requirement("5.6")
def test_without_a_projection(build_encoder: BuildEncoder) -> None:
    """5.6: WHERE the checkpoint has no visual projection, THE VisionEncoder SHALL return the class row after the
    post-layernorm, with `dimension` equal to `hidden_size`."""
    config, pixels = replace(TINY, projection_dim=None), random_pixels(2, 32, 4)
    weights = make_weights(TINY, 4)
    projection = weights.pop("visual_projection.weight")
    bare, whole = build_encoder(config, tensors=weights), build_encoder(TINY, 4)
    assert (bare.visual_projection, bare.dimension) == (None, 32)
    row = bare.encode_pixels(pixels, normalize=False, convert_to_tensor=True)
    with torch.inference_mode():
        torch.testing.assert_close(row, bare(pixels, intermediates=True)["post_layernorm"])
    torch.testing.assert_close(
        row @ projection.T, whole.encode_pixels(pixels, normalize=False, convert_to_tensor=True), rtol=1e-5, atol=1e-5
    )


@pytest.mark.requirement("5.7")
def test_unit_length(tiny_encoder: VisionEncoder) -> None:
    """5.7: WHERE `normalize` is true, THE VisionEncoder SHALL return rows of Euclidean norm one."""
    pixels = random_pixels(5, 32, 5)
    torch.testing.assert_close(tiny_encoder.encode_pixels(pixels, convert_to_tensor=True).norm(dim=1), torch.ones(5))
    raw = tiny_encoder.encode_pixels(pixels, normalize=False, convert_to_tensor=True)
    assert bool(((raw.norm(dim=1) - 1).abs() > 0.01).all())
    torch.testing.assert_close(tiny_encoder.encode(ARRAYS, convert_to_tensor=True).norm(dim=1), torch.ones(3))
    torch.testing.assert_close(
        torch.nn.functional.normalize(tiny_encoder.encode(ARRAYS, normalize=False, convert_to_tensor=True)),
        tiny_encoder.encode(ARRAYS, convert_to_tensor=True),
    )


@pytest.mark.requirement("5.8")
def test_auto_is_the_rule_of_this_machine(tiny_model: Path) -> None:
    """5.8: WHERE `dtype` is `auto`, THE VisionEncoder SHALL compute in bfloat16 on a processor that multiplies bfloat16
    natively, in float32 on other processors, and in float16 or bfloat16 on CUDA."""
    encoder = VisionEncoder(tiny_model)
    assert encoder.dtype == auto_dtype(torch.device("cpu"))
    assert VisionEncoder(tiny_model, "cpu", torch.float32).dtype == torch.float32
    assert encoder.cls_token.dtype == encoder.dtype


PREPROCESSING = ImageProcessor(32, 40, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "round").to_dict()


@pytest.mark.requirement("5.9")
def test_preprocessing_of_the_file(tmp_path: Path, tiny_encoder: VisionEncoder) -> None:
    """5.9: WHERE a Weight File carries preprocessing constants, THE VisionEncoder SHALL preprocess images with them."""
    metadata = WeightMetadata(config=TINY.to_dict(), preprocessing=PREPROCESSING)
    write_weights(tmp_path / "weights.parquet", make_weights(TINY).items(), metadata)
    encoder = VisionEncoder(tmp_path, dtype="float32")
    assert encoder.processor.to_dict() == PREPROCESSING
    pixels = ImageProcessor.from_dict(PREPROCESSING)(ARRAYS)
    torch.testing.assert_close(
        encoder.encode(ARRAYS, convert_to_tensor=True), tiny_encoder.encode_pixels(pixels, convert_to_tensor=True)
    )
    assert not torch.allclose(
        encoder.encode(ARRAYS, convert_to_tensor=True), tiny_encoder.encode(ARRAYS, convert_to_tensor=True)
    )
    assert tiny_encoder.processor.to_dict() == ImageProcessor(32).to_dict()


def parts_of(encoder: VisionEncoder) -> list[torch.nn.Module]:
    """The parts of an encoder that are modules."""
    return [part for part in vars(encoder).values() if isinstance(part, torch.nn.Module)]


def tensors_of(encoder: VisionEncoder) -> list[torch.Tensor]:
    """Every tensor that an encoder holds."""
    modules = [tensor for part in parts_of(encoder) for tensor in (*part.parameters(), *part.buffers())]
    return [*modules, *(part for part in vars(encoder).values() if isinstance(part, torch.Tensor))]


class Loading:
    """What a load looked like from inside: the devices of the parameters when streaming began."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.devices: list[set[str]] = []
        self.encoder: VisionEncoder | None = None
        real_slots, real_groups = VisionEncoder._slots, WeightLoader.by_row_group

        def slots(encoder: VisionEncoder) -> Iterator[Slot]:
            self.encoder = encoder
            return real_slots(encoder)

        def by_row_group(loader: WeightLoader, names: Iterable[str]) -> list[list[str]]:
            assert self.encoder is not None
            self.devices.append({tensor.device.type for tensor in tensors_of(self.encoder)})
            return real_groups(loader, names)

        patch.setattr(VisionEncoder, "_slots", slots)
        patch.setattr(WeightLoader, "by_row_group", by_row_group)


@pytest.mark.requirement("4.8")
def test_modules_start_without_memory(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """4.8: THE VisionEncoder SHALL start its modules on the meta device, without random weights."""
    loading, before = Loading(monkeypatch), torch.get_rng_state()
    encoder = VisionEncoder(tiny_model, dtype="float32")
    assert loading.devices == [{"meta"}]
    assert torch.equal(torch.get_rng_state(), before)
    assert {tensor.device.type for tensor in tensors_of(encoder)} == {"cpu"}
    assert not any(tensor.requires_grad for tensor in tensors_of(encoder))


@pytest.mark.requirement("4.7")
def test_not_two_copies_of_the_model(tmp_path: Path) -> None:
    """4.7: WHILE weights are loaded, THE VisionEncoder SHALL hold at most one whole copy of the model: what Arrow reads
    is a tensor at a time for each thread, and its memory goes once the tensor is where it is used."""
    config = VisionConfig(16, 8, 128, 10, 4, 512, 16)
    weights = make_weights(config)
    write_weights(tmp_path / "weights.parquet", weights.items(), WeightMetadata(config=config.to_dict()))
    whole = sum(tensor.nbytes for tensor in weights.values())
    largest = max(tensor.nbytes for tensor in weights.values())
    before = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)
    pa.set_memory_pool(pool)
    try:
        # another dtype than the file's, so that what stays is not Arrow's
        encoder = VisionEncoder(tmp_path, dtype="bfloat16")
        assert largest <= pool.max_memory() <= 2 * torch.get_num_threads() * largest < whole / 3
        assert pool.bytes_allocated() == 0
    finally:
        pa.set_memory_pool(before)
    assert encoder.dimension == 16


@pytest.mark.requirement("7.8")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_threads_at_once_get_the_bits_of_one(tiny_model: Path, dtype: str) -> None:
    """7.8: IF an image of a call cannot be encoded, THEN THE VisionEncoder SHALL raise an error in place of zeros,
    random vectors or a shorter result: calls that run at once do not mix."""
    encoder = VisionEncoder(tiny_model, dtype=dtype)
    calls = [[random_array(30 + seed, 40, 100 * seed + index) for index in range(5)] for seed in range(8)]
    expected = [encoder.encode(images, batch_size=2, convert_to_tensor=True) for images in calls]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            found = list(pool.map(lambda images: encoder.encode(images, batch_size=2, convert_to_tensor=True), calls))
            assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert not torch.equal(expected[0], expected[1])


@pytest.mark.requirement("7.6")
def test_any_batch_size_gives_the_same_rows(tiny_encoder: VisionEncoder, assert_within: AssertWithin) -> None:
    """7.6: WHEN two lists of images are encoded as one, THE VisionEncoder SHALL return the rows of the first followed
    by the rows of the second, in float32 with a relative error within the limit of gate `precision-float32-b16`."""
    images = [random_array(20 + index, 33, index) for index in range(9)]
    alone = torch.cat([tiny_encoder.encode(image, convert_to_tensor=True) for image in images])
    for batch_size in range(1, 11):
        assert_within(
            "precision-float32-b16", tiny_encoder.encode(images, batch_size=batch_size, convert_to_tensor=True), alone
        )
    assert_within("precision-float32-b16", tiny_encoder.encode(images[::-1], convert_to_tensor=True).flip(0), alone)


@pytest.mark.requirement("5.10")
def test_a_repeated_input_is_computed_again(tiny_encoder: VisionEncoder) -> None:
    """5.10: WHEN the same pixels are given again, THE VisionEncoder SHALL compute their embedding again: the core runs
    for each call, and pixels that changed in place get another embedding."""
    pixels, runs = random_pixels(2, 32, 0), []
    handle = tiny_encoder.transformer.register_forward_hook(lambda *_given: runs.append(1))
    try:
        first = tiny_encoder.encode_pixels(pixels, convert_to_tensor=True)
        assert torch.equal(tiny_encoder.encode_pixels(pixels, convert_to_tensor=True), first)
        assert len(runs) == 2
        pixels[0] = pixels[1]
        changed = tiny_encoder.encode_pixels(pixels, convert_to_tensor=True)
    finally:
        handle.remove()
    assert len(runs) == 3
    assert not torch.equal(changed[0], first[0])
    torch.testing.assert_close(changed[1], first[1])


@pytest.mark.requirement("5.2")
@pytest.mark.parametrize("n", [0, 1, 4, 5, 9])
def test_many_images_go_through_in_even_passes(
    tiny_encoder: VisionEncoder, monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    """5.2: a batch of any size gives its rows in order; no pass is larger than what its activations have room for."""
    monkeypatch.setattr(VisionEncoder, "_images_per_pass", 4)
    pixels, passes = random_pixels(n, 32, 0), list[int]()
    handle = tiny_encoder.transformer.register_forward_pre_hook(lambda _core, given: passes.append(len(given[0])))
    try:
        found = tiny_encoder.encode_pixels(pixels, convert_to_tensor=True)
    finally:
        handle.remove()
    assert passes == {0: [0], 1: [1], 4: [4], 5: [3, 2], 9: [3, 3, 3]}[n]
    alone = [tiny_encoder.encode_pixels(pixels[i : i + 1], convert_to_tensor=True) for i in range(n)]
    torch.testing.assert_close(found, torch.cat([torch.empty(0, tiny_encoder.dimension), *alone]))


@pytest.mark.requirement("5.2")
def test_a_pass_has_room_for_its_activations(build_encoder: BuildEncoder) -> None:
    """5.2: the widest activation of a pass is well within the 32 MB that the C library keeps; one image always goes."""
    for width, expected in ((1 << 12, 2 * (32 << 20) // 3 // (17 * 4096 * 4)), (1 << 21, 1)):
        encoder = build_encoder(replace(TINY, intermediate_size=64), dtype="float32")
        encoder.config = replace(encoder.config, intermediate_size=width)
        assert encoder._images_per_pass == expected
