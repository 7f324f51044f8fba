"""The image encoders that can be measured, each behind the same few functions.

A system is an entry of `SYSTEMS`: what it imports, and how it loads a model. Nothing is imported before it is asked
for, since the cost of an import is measured too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Final

from llm_compression.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from llm_compression.harness.clip.accuracy import Array


# Of what is encoded from files; the default of `VisionEncoder.encode`.
BATCH_SIZE: Final = 32


@dataclass(frozen=True)
class Loaded:
    """A model that is ready to encode; embeddings are float32 (n, dimension) on the CPU and not normalised.

    Attributes:
        encode_pixels: Embeds preprocessed images, float32 (n, 3, S, S).
        encode_files: Embeds image files by their paths, with the system's own preprocessing.
        dtype: What it computes in, such as ``bfloat16``.
    """

    encode_pixels: Callable[[Array], Array]
    encode_files: Callable[[Sequence[str]], Array]
    dtype: str


@dataclass(frozen=True)
class System:
    """A way to run a CLIP image tower.

    Attributes:
        imports: Modules, in the order in which they are imported and timed.
        load: ``load(model_path, dtype, device)``, which returns once the model is where it runs.
    """

    imports: tuple[str, ...]
    load: Callable[[str, str, str], Loaded]


def _load_arrow(model_path: str, dtype: str, device: str, *, graphs: bool = True) -> Loaded:
    import torch

    from llm_compression.multimodal.vision_encoder import VisionEncoder

    encoder = VisionEncoder(model_path, device, dtype)
    if not graphs:
        encoder._graphed = None  # the same calls, launched kernel by kernel
    if encoder.device.type == "cuda":
        torch.cuda.synchronize(encoder.device)

    def encode_pixels(pixels: Array) -> Array:
        return encoder.encode_pixels(pixels, normalize=False)

    def encode_files(files: Sequence[str]) -> Array:
        return encoder.encode(list(files), normalize=False, batch_size=BATCH_SIZE)

    return Loaded(encode_pixels, encode_files, str(encoder.dtype).removeprefix("torch."))


def _load_transformers(model_path: str, dtype: str, device: str) -> Loaded:
    import torch
    from transformers.models.clip.modeling_clip import CLIPVisionModelWithProjection

    opened: Any = CLIPVisionModelWithProjection.from_pretrained(
        model_path, dtype=getattr(torch, dtype), output_loading_info=True
    )
    loaded, info = opened
    if info["missing_keys"] or info["mismatched_keys"]:
        raise CheckpointError(f"{model_path}: transformers would make these up: {sorted(info['missing_keys'])}")
    model = loaded.to(device).eval()
    if device.startswith("cuda"):
        torch.cuda.synchronize()

    @torch.inference_mode()
    def encode(pixels: torch.Tensor) -> Array:
        embeddings: torch.Tensor = model(pixel_values=pixels.to(model.device, model.dtype)).image_embeds
        return embeddings.float().cpu().numpy()

    def encode_pixels(pixels: Array) -> Array:
        return encode(torch.from_numpy(pixels))

    @cache
    def image_processor() -> Any:
        # not part of a load that is measured on pixels
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        return CLIPImageProcessorPil.from_pretrained(model_path)

    def encode_files(files: Sequence[str]) -> Array:
        import numpy as np
        from PIL import Image, ImageOps

        processor, rows = image_processor(), []
        for start in range(0, len(files), BATCH_SIZE):
            images = []
            for file in files[start : start + BATCH_SIZE]:
                # as a viewer shows it; transformers' own load_image would drop transparency here
                with Image.open(file) as image:
                    images.append(ImageOps.exif_transpose(image))
            rows.append(encode(processor(images, return_tensors="pt")["pixel_values"]))
        return np.concatenate(rows)

    return Loaded(encode_pixels, encode_files, dtype)


def _load_onnxruntime(model_path: str, dtype: str, device: str) -> Loaded:
    import onnxruntime

    from llm_compression.inference.threads import available_cpus

    _only_on_cpu("onnxruntime", dtype, device, ("float32",))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = available_cpus()
    session = onnxruntime.InferenceSession(model_path, options, providers=["CPUExecutionProvider"])

    def encode_pixels(pixels: Array) -> Array:
        embeddings: Array = session.run(None, {"pixels": pixels})[0]
        return embeddings

    return Loaded(encode_pixels, _no_files, dtype)


def _load_openvino(model_path: str, dtype: str, device: str) -> Loaded:
    import openvino

    from llm_compression.inference.threads import available_cpus

    _only_on_cpu("openvino", dtype, device, ("float32", "bfloat16"))
    properties = {
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[dtype],
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": available_cpus(),
    }
    compiled = openvino.Core().compile_model(model_path, "CPU", properties)

    def encode_pixels(pixels: Array) -> Array:
        embeddings: Array = compiled(pixels)[0]
        return embeddings

    return Loaded(encode_pixels, _no_files, dtype)


def _only_on_cpu(system: str, dtype: str, device: str, dtypes: tuple[str, ...]) -> None:
    if device != "cpu" or dtype not in dtypes:
        raise ConfigError(f"{system}: {dtype} on {device}, expected {' or '.join(dtypes)} on cpu")


def _no_files(files: Sequence[str]) -> Array:
    raise ConfigError(f"{len(files)} files: this system has no preprocessing of its own")


_ARROW_IMPORTS: Final = ("numpy", "torch", "pyarrow", "llm_compression.multimodal.vision_encoder")

SYSTEMS: Final[Mapping[str, System]] = {
    "arrow": System(_ARROW_IMPORTS, _load_arrow),
    "arrow_eager": System(_ARROW_IMPORTS, partial(_load_arrow, graphs=False)),
    "onnxruntime": System(("numpy", "onnxruntime"), _load_onnxruntime),
    "openvino": System(("numpy", "openvino"), _load_openvino),
    "transformers": System(("numpy", "torch", "transformers.models.clip.modeling_clip"), _load_transformers),
}
