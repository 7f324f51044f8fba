"""VisionEncoder: images to embeddings, a CLIP image tower whose weights are read from Parquet."""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, Literal, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from llm_compression.embeddings import Array
from llm_compression.errors import ConfigError, ImageError
from llm_compression.inference.clip_file import OUTSIDE_VISION, is_clip, tower_config
from llm_compression.inference.cuda_graph import GraphedForward
from llm_compression.inference.encoder import Encoder
from llm_compression.inference.layer_weights import CLIP_LAYER_NAMES, core_slots, norm_slot
from llm_compression.inference.linear import PatchConv2d, frozen, kept
from llm_compression.inference.memory import REUSABLE_BYTES
from llm_compression.inference.packed_module import Network
from llm_compression.inference.placement import Slot
from llm_compression.inference.threads import require_unforked
from llm_compression.inference.weight_loader import WeightLoader
from llm_compression.multimodal.image_encoding import ImageEncoding
from llm_compression.multimodal.image_processor import ImageProcessor
from llm_compression.multimodal.vision_config import VisionConfig
from llm_compression.settings import own_settings, undisturbed

_LAYER_PREFIX: Final = "vision_model.encoder.layers."
_MAX_IMAGES_PER_PASS: Final = 1024


class PatchEmbedding(Network):
    """Cuts pixels into patches and projects each: (n, 3, S, S) to (n, num_patches, hidden)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.projection = PatchConv2d(config.hidden_size, config.patch_size)

    def forward(self, pixels: Tensor) -> Tensor:
        """(n, 3, S, S) to (n, num_patches, hidden), patches row by row.

        Raises:
            ImageError: The pixels have another shape, or are whole numbers.
        """
        self.check(pixels)
        grid: Tensor = self.projection(pixels)  # (n, hidden, rows, columns)
        return grid.flatten(2).transpose(1, 2)

    def check(self, pixels: Tensor) -> None:
        """Refuse pixels of another shape than (n, 3, S, S), or that are whole numbers.

        Raises:
            ImageError: They are.
        """
        size = self.config.image_size
        if pixels.dim() != 4 or pixels.shape[1:] != (3, size, size):
            raise ImageError(f"pixels of shape {tuple(pixels.shape)}, expected (n, 3, {size}, {size})")
        if not pixels.is_floating_point():
            raise ImageError(f"pixels of {pixels.dtype}, expected floating point, as ImageProcessor makes them")


class VisionEncoder(Encoder[VisionConfig], ImageEncoding):
    """A CLIP image tower.

    Args:
        model_path: A directory that holds ``weights.parquet``, or the file.
        device: Where it runs; the CPU unless given.
        dtype: What it computes in: ``float32``, ``bfloat16``, ``float16``, or ``auto``: bfloat16 where the processor
            multiplies it natively, float32 elsewhere; bfloat16 or float16 on CUDA.
        config: For a weight file of the earlier layout, which carries none; one that says its own must agree.

    Attributes:
        config: Sizes of the tower.
        dimension: Width of an embedding.
        device: Where it runs.
        dtype: What it computes in.
        processor: The `ImageProcessor` with the constants of the weight file.

    Raises:
        MissingFileError: There is no weight file; where a checkpoint lies there, the message says how to convert it.
        WeightFormatError: The file is damaged, or its tensors do not fit the model: every missing, unexpected and
            mis-shaped one is named.
        ConfigError: The file has no configuration or an unsupported one, or the dtype is unknown.
    """

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "auto",
        *,
        config: VisionConfig | None = None,
    ) -> None:
        loader = WeightLoader(model_path)
        config = _config_of(loader, config)
        self.processor = _processor_of(loader, config)
        super().__init__(loader, config, device, dtype, OUTSIDE_VISION)
        self._graphed = GraphedForward(weakref.proxy(self)) if self.device.type == "cuda" else None

    def _build(self) -> None:
        """The parts of the tower, by the names of the founding spec."""
        config = self.config
        self.patch_embedding = PatchEmbedding(config)
        self.cls_token = frozen(torch.empty(config.hidden_size))
        self.position_embedding = frozen(torch.empty(config.num_positions, config.hidden_size))
        self.pre_layernorm, self.post_layernorm = self._norm(), self._norm()
        self.transformer = self._core()
        self.visual_projection = self._projection()

    @overload
    def forward(self, pixels: Tensor, intermediates: Literal[False] = False) -> Tensor: ...

    @overload
    def forward(self, pixels: Tensor, intermediates: Literal[True]) -> dict[str, Tensor]: ...

    @undisturbed
    def forward(self, pixels: Tensor, intermediates: bool = False) -> Tensor | dict[str, Tensor]:
        """One pass: float32 (n, 3, S, S) on the CPU or the encoder's device, to float32 (n, dimension), not normalised.

        Args:
            pixels: As `ImageProcessor` makes them.
            intermediates: Whether to return every step's tensor by name instead, ``embedding`` being the last.

        Raises:
            LlmCompressionError: As `require_unforked`.
        """
        require_unforked(self.device, self._process)
        steps: dict[str, Tensor] = {}
        x = steps["patch_embedding"] = self.patch_embedding(pixels.to(self.device))  # (n, patches, hidden)
        x = torch.cat((self.cls_token.expand(len(x), 1, -1), x), 1)  # (n, 1 + patches, hidden)
        x = steps["position_embedding"] = x + self.position_embedding
        x = steps["pre_layernorm"] = self.pre_layernorm(x)
        record = (lambda index, x: steps.update({f"transformer.{index}": x})) if intermediates else None
        x = self.transformer(x, first_token_only=not intermediates, on_layer=record)
        # one row costs nothing, so it is float32 from here
        x = steps["post_layernorm"] = self.post_layernorm(x[:, 0].float())  # (n, hidden)
        if self.visual_projection is not None:
            x = self.visual_projection(x)  # (n, projection)
        steps["embedding"] = x
        return steps if intermediates else x

    @overload
    def encode_pixels(
        self,
        pixels: npt.NDArray[np.float32] | Tensor,
        normalize: bool = True,
        *,
        convert_to_tensor: Literal[False] = False,
    ) -> Array: ...

    @overload
    def encode_pixels(
        self, pixels: npt.NDArray[np.float32] | Tensor, normalize: bool = True, *, convert_to_tensor: Literal[True]
    ) -> Tensor: ...

    def encode_pixels(
        self, pixels: npt.NDArray[np.float32] | Tensor, normalize: bool = True, *, convert_to_tensor: bool = False
    ) -> Array | Tensor:
        """Embed preprocessed images.

        Args:
            pixels: An array or a tensor, float32 (n, 3, S, S), as `ImageProcessor` makes them.
            normalize: Whether each embedding gets unit length.
            convert_to_tensor: Whether to return a tensor, on the CPU, in place of an array.

        Returns:
            numpy float32 (n, dimension).

        Raises:
            ImageError: The pixels have another type, dtype or shape, or an embedding comes out NaN or infinite;
                carries its position.
        """
        rows = self._embed_batch(self._tensor_of(pixels), normalize)
        return rows if convert_to_tensor else rows.numpy()

    def _tensor_of(self, pixels: object) -> Tensor:
        size = self.config.image_size
        found = getattr(pixels, "dtype", type(pixels).__name__)
        if isinstance(pixels, np.ndarray) and pixels.dtype == np.float32:
            # torch takes neither negative strides nor, without a warning, memory that is not to be written
            sound = pixels.flags.writeable and min(pixels.strides, default=0) >= 0
            pixels = torch.from_numpy(pixels if sound else pixels.copy())
        if not isinstance(pixels, Tensor) or pixels.dtype != torch.float32:
            raise ImageError(f"pixels: {found}, expected a float32 array or tensor (n, 3, {size}, {size})")
        return pixels

    def _read_batches(self, images: Iterator[Any], batch_size: int, errors: list[ImageError]) -> Iterator[Tensor]:
        return self.processor.batches(images, batch_size, pin_memory=self.device.type == "cuda", errors=errors)

    def _embed_batch(self, batch: Tensor, normalize: bool) -> Tensor:
        """As `encode_pixels`, to a tensor."""
        pixels = batch
        self.patch_embedding.check(pixels)
        out = torch.empty(len(pixels), self.dimension, dtype=torch.float32, device="cpu")
        with own_settings(), torch.inference_mode():
            done = 0
            for part in pixels.chunk(max(1, math.ceil(len(pixels) / self._images_per_pass))):
                embeddings = self._embed(part)
                out[done : done + len(part)] = self._rows(embeddings, normalize, partial(_refused, done))
                done += len(part)
        return out

    def _embed(self, pixels: Tensor) -> Tensor:
        """`forward`, from a CUDA graph where one pays."""
        if self._graphed is None:
            embeddings: Tensor = self(pixels)
            return embeddings
        # the caller waits for the embeddings, so pinned pixels are not written again before they are copied
        return self._graphed(pixels.to(self.device, non_blocking=True))

    @property
    def _images_per_pass(self) -> int:
        """How many images go through the core at once.

        On a CPU, as many as keep the widest activation well within what the C library keeps for reuse: more make no
        product faster.
        """
        if self.device.type != "cpu":
            return _MAX_IMAGES_PER_PASS
        image = self.config.num_positions * self.config.intermediate_size * self.dtype.itemsize
        return max(1, min(REUSABLE_BYTES * 2 // 3 // image, _MAX_IMAGES_PER_PASS))

    def _slots(self) -> Iterator[Slot]:
        """What takes the tensors of the tower."""
        device, dtype, embeddings = self.device, self.dtype, "vision_model.embeddings."

        def take_class(tensor: Tensor) -> None:
            self.cls_token = kept(tensor, device, dtype)

        def take_positions(tensor: Tensor) -> None:
            self.position_embedding = kept(tensor, device, dtype)

        projection = self.patch_embedding.projection
        yield Slot((f"{embeddings}patch_embedding.weight",), lambda weight: projection.load(weight, device, dtype))
        yield Slot((f"{embeddings}class_embedding",), take_class)
        yield Slot((f"{embeddings}position_embedding.weight",), take_positions)
        for norm, name, its_dtype in (
            (self.pre_layernorm, "vision_model.pre_layrnorm", dtype),
            (self.post_layernorm, "vision_model.post_layernorm", torch.float32),
        ):
            yield norm_slot(norm, (f"{name}.weight", f"{name}.bias"), device, its_dtype)
        yield from core_slots(self.transformer, _LAYER_PREFIX, CLIP_LAYER_NAMES, device, dtype)
        yield from self._projection_slots(self.visual_projection, "visual_projection.weight")

    def _options(self) -> dict[str, Any]:
        return {"config": self.config}

    def __reduce__(self) -> tuple[Any, ...]:
        # a processor that was set since goes along: other pixels would give other rows without a word
        return (*super().__reduce__(), {"processor": self.processor.to_dict()})

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.processor = ImageProcessor.from_dict(state["processor"])


def _refused(before: int, index: int, reason: str) -> ImageError:
    return ImageError(reason, position=before + index)


@contextmanager
def _naming(loader: WeightLoader) -> Iterator[None]:
    """Put the file's name before what is wrong with its metadata."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{loader.path}: {error}") from error


def _config_of(loader: WeightLoader, given: VisionConfig | None) -> VisionConfig:
    if loader.config is None:
        if given is None:
            raise ConfigError(
                f"{loader.path}: a weight file of the earlier layout says no config: expected a config.json in "
                f"{loader.path.parent}, or VisionEncoder(..., config=VisionConfig(...))"
            )
        return given
    with _naming(loader):
        found = VisionConfig.from_dict(tower_config(loader.config, "vision", loader.path))
    if given is not None and given != found:
        raise ConfigError(f"{loader.path}: config {given}, the file says {found}")
    return found


def _processor_of(loader: WeightLoader, config: VisionConfig) -> ImageProcessor:
    if loader.metadata is None or not loader.metadata.preprocessing:
        return ImageProcessor(image_size=config.image_size)
    constants = loader.metadata.preprocessing
    with _naming(loader):
        processor = ImageProcessor.from_dict(constants.get("vision", {}) if is_clip(loader.config) else constants)
    if processor.image_size != config.image_size:
        raise ConfigError(
            f"{loader.path}: preprocessing makes {processor.image_size} pixels, the model takes {config.image_size}"
        )
    return processor
