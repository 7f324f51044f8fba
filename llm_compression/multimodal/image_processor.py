"""ImageProcessor: any accepted image to the pixels that CLIP was trained on, bit for bit.

The reference is the PIL path of transformers' CLIPImageProcessor: to RGB, resize the short edge with Pillow's bicubic
on uint8, centre crop, ``float32(float64(x) * (1 / 255))``, then ``(x - mean) / std`` in float32, channels first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from PIL import Image

from llm_compression.errors import ConfigError, ImageError
from llm_compression.inference.threads import available_cpus
from llm_compression.multimodal.decoding import (
    decoded,
    gray_bits,
    require_formats,
    scaled_to_bytes,
    to_rgb,
    warn_of_lost_levels,
)
from llm_compression.multimodal.image_inputs import (
    ImageLike,
    Images,
    held_image,
    image_sources,
    list_images,
    name_of,
    plain_image,
)
from llm_compression.multimodal.pillow_readers import switch_held_off
from llm_compression.multimodal.resampling import resized_part

CLIP_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Final = (0.26862954, 0.26130258, 0.27577711)
CROP_OFFSETS: Final = ("floor", "round")
# A resize to more pixels than this, and than the picture has, makes only those that are cut out.
_WHOLE_RESIZE_PIXELS: Final = 1 << 22


class ImageProcessor:
    """Turns images into the float32 tensor (n, 3, S, S) that the encoder multiplies.

    An image is a path, encoded bytes, an open file, a PIL image, or a uint8 array (H, W, 3), (H, W, 4) or (H, W);
    several are any iterable of these, a uint8 array (n, H, W, 3), an Arrow array of paths (string) or encoded images
    (binary), or a Series. `image_inputs` has the whole list.

    Files and encoded bytes get their EXIF orientation applied, as transformers' ``load_image`` does; a PIL image and
    an array are taken as they stand. Transparency is composited on white, as transformers 5 does.

    Args:
        image_size: Height and width of the result, S.
        resize_size: Short edge after the resize; ``image_size`` unless given.
        mean: Mean of each channel, after scaling to 0..1.
        std: Standard deviation of each channel.
        crop_offset: ``floor``: the crop starts at ``(H - S) // 2``, as in transformers; ``round``: at
            ``int(round((H - S) / 2))``, as in OpenAI's and torchvision's code, one pixel later when
            ``(H - S) % 4 == 3``.
        formats: Names of the file formats that may be decoded, as Pillow calls them; those of
            `pillow_readers.FORMATS` unless given.
        strict: Whether a JPEG is decoded once more for each of its scans, without the scan's last bytes: finds a scan
            that was overwritten and goes on after its last block.
        scale_16bit: Whether gray values wider than a byte are scaled to one (integers from their full range, floats
            from 0..1) in place of the reference's conversion, which cuts them off at 255 and warns.

    Attributes:
        formats: As given; may be set on the processor of an encoder, as may the next two.
        strict: As given.
        scale_16bit: As given.

    Raises:
        ConfigError: A value is out of range.
    """

    def __init__(
        self,
        image_size: int = 224,
        resize_size: int | None = None,
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
        crop_offset: str = "floor",
        *,
        formats: Sequence[str] | None = None,
        strict: bool = False,
        scale_16bit: bool = False,
    ) -> None:
        self.image_size = image_size
        self.resize_size = image_size if resize_size is None else resize_size
        self.mean, self.std, self.crop_offset = tuple(mean), tuple(std), crop_offset
        for name in ("image_size", "resize_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name}: {value!r}, expected a positive whole number")
        for name, channel in (("mean", self.mean), ("std", self.std)):
            if len(channel) != 3 or not np.isfinite(channel).all() or (name == "std" and min(channel) <= 0):
                raise ConfigError(f"{name}: {channel!r}, expected three finite numbers (std: positive)")
        if crop_offset not in CROP_OFFSETS:
            raise ConfigError(f"crop_offset: {crop_offset!r}, expected one of {', '.join(CROP_OFFSETS)}")
        self._formats = require_formats(formats)
        self.strict, self.scale_16bit = strict, scale_16bit
        self._table = _value_table(self.mean, self.std)

    @property
    def formats(self) -> tuple[str, ...]:
        """The file formats that may be decoded, in the order in which they are tried."""
        return self._formats

    @formats.setter
    def formats(self, names: Sequence[str] | None) -> None:
        self._formats = require_formats(names)

    def to_dict(self) -> dict[str, Any]:
        """The constants as a JSON-ready dictionary; `from_dict` reads it back."""
        return {
            "image_size": self.image_size,
            "resize_size": self.resize_size,
            "mean": list(self.mean),
            "std": list(self.std),
            "crop_offset": self.crop_offset,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ImageProcessor:
        """Read what `to_dict` wrote.

        Raises:
            ConfigError: A constant is missing, unknown or invalid.
        """
        names = {"image_size", "resize_size", "mean", "std", "crop_offset"}
        if set(values) != names:
            raise ConfigError(
                f"preprocessing: missing {sorted(names - set(values))}, unknown {sorted(set(values) - names)}"
            )
        return cls(**values)

    def __call__(self, images: Images) -> torch.Tensor:
        """Preprocess images.

        Returns:
            float32 (n, 3, S, S).

        Raises:
            ImageError: An image cannot be read; carries its position and name.
        """
        sources = list_images(images)
        pixels = _empty((len(sources), 3, self.image_size, self.image_size))
        for position, source in enumerate(sources):
            self._write(source, position, pixels[position])
        return pixels

    def batches(
        self, images: Images, batch_size: int, *, pin_memory: bool = False, errors: list[ImageError] | None = None
    ) -> Iterator[torch.Tensor]:
        """Preprocess images batch by batch, the next batch while the caller works on this one.

        Args:
            images: As `__call__`; a generator's are taken two batches at a time.
            batch_size: Images in a batch.
            pin_memory: Whether batches lie in page-locked memory, from which CUDA copies without a stop on the way.
            errors: A list that takes what is wrong with each unreadable image; it has no row in its batch then.

        Yields:
            float32 (k, 3, S, S) with k at most ``batch_size``; valid until the next one is taken, as its memory is
            used again.

        Raises:
            ImageError: As `__call__`, where no list takes it; images before the unreadable one may have been yielded.
        """
        sources = enumerate(image_sources(images).items)
        first = list(islice(sources, batch_size))
        ahead = list(islice(sources, 1)) if len(first) == 1 else []
        if not first:
            return
        if len(first) == 1 and not ahead:
            batch = _empty((1, 3, self.image_size, self.image_size))
            yield batch[_readable([lambda: self._write(first[0][1], 0, batch[0])], errors)]
            return
        shape = (len(first), 3, self.image_size, self.image_size)
        buffers = [_empty(shape, pin_memory) for _ in range(2)]
        with ThreadPoolExecutor(available_cpus(), thread_name_prefix="image") as pool:

            def submit(chunk: Sequence[tuple[int, Any]], buffer: torch.Tensor) -> list[Callable[[], None]]:
                return [self._submit(pool, each, out) for each, out in zip(chunk, buffer, strict=False)]

            try:
                batch, tasks = buffers[0], submit(first, buffers[0])
                first = []  # holds no image longer than its batch
                following = chain(ahead, sources)
                while tasks:
                    rows = _readable(tasks, errors)
                    chunk = list(islice(following, batch_size))
                    spare = buffers[1] if batch is buffers[0] else buffers[0]
                    tasks = submit(chunk, spare)
                    yield batch[rows]
                    batch = spare
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _submit(self, pool: ThreadPoolExecutor, given: tuple[int, Any], out: torch.Tensor) -> Callable[[], None]:
        """Have an image preprocessed by another thread; what waits for that, and raises what went wrong."""
        position, source = given
        try:
            source = held_image(source, position)
            if isinstance(source, Image.Image):
                # decoded here: two threads must not decode one lazily opened image
                read_image(source, position)
        except ImageError as error:
            refused: Future[None] = Future()
            refused.set_exception(error)
            return refused.result
        return pool.submit(self._write, source, position, out).result

    def _write(self, source: ImageLike, position: int, out: torch.Tensor) -> None:
        """Preprocess one image into ``out``, float32 (3, S, S)."""
        with (
            _image_errors(source, position),
            _picture(source, position, self.formats, self.strict) as image,
        ):
            if self.scale_16bit:
                image = scaled_to_bytes(image, gray_bits(image))
            else:
                warn_of_lost_levels(image, f"image {position} ({name_of(source)})")
            cropped = self._resize_and_crop(to_rgb(image))
        values = pa.array(cropped).flatten().to_numpy(zero_copy_only=True)  # a view of Pillow's own RGBX memory
        rgbx = values.reshape(self.image_size, self.image_size, 4)
        target = out.numpy()
        for channel in range(3):
            # clip cannot change a uint8 index; without it numpy buffers the output
            np.take(self._table[channel], rgbx[:, :, channel], out=target[channel], mode="clip")

    def _resize_and_crop(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        short, size = self.resize_size, self.image_size
        long = int(short * max(width, height) / min(width, height))
        new_width, new_height = (short, long) if width <= height else (long, short)
        left, top = self._offset(new_width), self._offset(new_height)
        # past the edge of the picture the crop stays zero, as the reference pads
        cropped = Image.new("RGB", (size, size))
        if short * long > max(_WHOLE_RESIZE_PIXELS, width * height):
            box = (max(left, 0), max(top, 0), min(left + size, new_width), min(top + size, new_height))
            part = Image.fromarray(resized_part(image, (new_width, new_height), box))
            cropped.paste(part, (box[0] - left, box[1] - top))
            return cropped
        if (new_width, new_height) != image.size:
            image = image.resize((new_width, new_height), Image.Resampling.BICUBIC)
        cropped.paste(image, (-left, -top))
        return cropped

    def _offset(self, length: int) -> int:
        spare = length - self.image_size
        return spare // 2 if self.crop_offset == "floor" else round(spare / 2)


def _readable(tasks: Sequence[Callable[[], None]], errors: list[ImageError] | None) -> slice | list[int]:
    """Wait for the images of a batch: which of its rows are images, a slice where all are."""
    rows = []
    for row, wait in enumerate(tasks):
        try:
            wait()
        except ImageError as error:
            if errors is None:
                raise
            errors.append(without_frames(error))
        else:
            rows.append(row)
    return slice(len(rows)) if len(rows) == len(tasks) else rows


def without_frames(error: ImageError) -> ImageError:
    """The error without the frames that it passed, which hold its image in memory."""
    cause = error.__cause__
    if cause is not None:
        cause.__traceback__ = cause.__context__ = None
    error.__context__ = None
    return error.with_traceback(None)


def read_image(
    source: Any, position: int = 0, *, formats: Sequence[str] | None = None, strict: bool = False
) -> Image.Image:
    """One image, decoded and, where it is a file or encoded bytes, turned as its EXIF orientation says.

    Args:
        source: A path, encoded bytes, an open file, a PIL image, a uint8 array (H, W, 3), (H, W, 4) or (H, W), or a
            mapping of ``bytes`` and ``path``.
        position: Its index in the call, for the error.
        formats: As `ImageProcessor`.
        strict: As `ImageProcessor`.

    Raises:
        ImageError: It cannot be read.
    """
    with (
        _image_errors(source, position),
        _picture(source, position, require_formats(formats), strict, keep=True) as image,
    ):
        return image


@contextmanager
def _picture(
    source: Any, position: int, formats: Sequence[str], strict: bool, *, keep: bool = False
) -> Iterator[Image.Image]:
    plain = plain_image(source, position)
    if isinstance(plain, Image.Image):
        with switch_held_off():  # Pillow decodes here what the caller opened
            plain.load()
        yield plain
    else:
        with decoded(plain, formats, strict, keep=keep) as image:
            yield image


@contextmanager
def _image_errors(source: Any, position: int) -> Iterator[None]:
    try:
        yield
    # a warning that the caller has made an error is the caller's
    except (MemoryError, ImageError, Warning):
        raise
    # Pillow's decoders raise whatever their parser meets: OSError, SyntaxError, ValueError, struct.error, ...
    except Exception as error:
        reason = f"cannot be read: {str(error) or type(error).__name__}"
        raise ImageError(reason, position=position, name=name_of(source)) from error


def _empty(shape: tuple[int, ...], pin_memory: bool = False) -> torch.Tensor:
    """float32 on the CPU, whatever the caller has made PyTorch's defaults."""
    return torch.empty(shape, dtype=torch.float32, device="cpu", pin_memory=pin_memory)


def _value_table(mean: Sequence[float], std: Sequence[float]) -> npt.NDArray[np.float32]:
    """The 256 values that a byte can become, per channel: float32 (3, 256), with the reference's own rounding steps."""
    scaled = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
    return np.stack([(scaled - np.float32(m)) / np.float32(s) for m, s in zip(mean, std, strict=True)])
