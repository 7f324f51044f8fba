"""ImageProcessor: any accepted image to the pixels that CLIP was trained on, bit for bit.

The reference is the PIL path of transformers' CLIPImageProcessor: to RGB, resize the short edge with Pillow's bicubic
on uint8, centre crop, ``float32(float64(x) * (1 / 255))``, then ``(x - mean) / std`` in float32, channels first.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from PIL import Image, ImageOps

from llm_compression.errors import ConfigError, ImageError
from llm_compression.inference.threads import available_cpus
from llm_compression.multimodal.image_inputs import (
    ImageLike,
    Images,
    held_image,
    image_sources,
    list_images,
    name_of,
    plain_image,
)

CLIP_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Final = (0.26862954, 0.26130258, 0.27577711)
CROP_OFFSETS: Final = ("floor", "round")


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
        self._table = _value_table(self.mean, self.std)

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
        pixels = torch.empty(len(sources), 3, self.image_size, self.image_size)
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
            batch = torch.empty(1, 3, self.image_size, self.image_size)
            yield batch[_readable([lambda: self._write(first[0][1], 0, batch[0])], errors)]
            return
        shape = (len(first), 3, self.image_size, self.image_size)
        buffers = [torch.empty(shape, pin_memory=pin_memory) for _ in range(2)]
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
        image = read_image(source, position)
        with _image_errors(source, position):
            image = _to_rgb(image)
        cropped = self._resize_and_crop(image, position, source)
        values = pa.array(cropped).flatten().to_numpy(zero_copy_only=True)  # a view of Pillow's own RGBX memory
        rgbx = values.reshape(self.image_size, self.image_size, 4)
        target = out.numpy()
        for channel in range(3):
            # clip cannot change a uint8 index; without it numpy buffers the output
            np.take(self._table[channel], rgbx[:, :, channel], out=target[channel], mode="clip")

    def _resize_and_crop(self, image: Image.Image, position: int, source: object) -> Image.Image:
        width, height = image.size
        short, size = self.resize_size, self.image_size
        long = int(short * max(width, height) / min(width, height))
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and short * long > 2 * limit:
            raise ImageError(
                f"{width} x {height} pixels: resizing the short edge to {short} would make {short * long} pixels, "
                f"the limit is {2 * limit}",
                position=position,
                name=name_of(source),
            )
        new_width, new_height = (short, long) if width <= height else (long, short)
        if (new_width, new_height) != image.size:
            image = image.resize((new_width, new_height), Image.Resampling.BICUBIC)
        left, top = self._offset(new_width), self._offset(new_height)
        # a box past the edge is filled with zeros, as the reference pads
        return image.crop((left, top, left + size, top + size))

    def _offset(self, length: int) -> int:
        spare = length - self.image_size
        return spare // 2 if self.crop_offset == "floor" else round(spare / 2)


class _MemoryFile(io.RawIOBase):
    """Encoded bytes as a file, read in place.

    io.BytesIO would copy a memoryview whole; Pillow's TIFF reader trips over the ``fileno`` of pyarrow.BufferReader.
    """

    def __init__(self, data: bytes | bytearray | memoryview | pa.Buffer) -> None:
        self._view = memoryview(data).cast("B")
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        chunk = self._view[self._position : self._position + len(buffer)]
        buffer[: len(chunk)] = chunk
        self._position += len(chunk)
        return len(chunk)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: len(self._view)}[whence]
        if start + offset < 0:
            raise ValueError(f"seek to {start + offset}, before the start")
        self._position = start + offset
        return self._position


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


def read_image(source: Any, position: int = 0) -> Image.Image:
    """One image, decoded and, where it is a file or encoded bytes, turned as its EXIF orientation says.

    Args:
        source: A path, encoded bytes, an open file, a PIL image, a uint8 array (H, W, 3), (H, W, 4) or (H, W), or a
            mapping of ``bytes`` and ``path``.
        position: Its index in the call, for the error.

    Raises:
        ImageError: It cannot be read.
    """
    plain = plain_image(source, position)
    with _image_errors(source, position):
        if isinstance(plain, Image.Image):
            plain.load()
            return plain
        if isinstance(plain, str | os.PathLike):
            return _decode(plain)
        return _decode(io.BufferedReader(_MemoryFile(plain)))


def _decode(file: Any) -> Image.Image:
    with Image.open(file) as image:
        return ImageOps.exif_transpose(image)  # a copy, whole before the file is closed


def _to_rgb(image: Image.Image) -> Image.Image:
    if min(image.size) < 1:
        raise ValueError(f"{image.size[0]} x {image.size[1]} pixels, expected at least 1 x 1")
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba).convert("RGB")
    return image.convert("RGB")


@contextmanager
def _image_errors(source: Any, position: int) -> Iterator[None]:
    try:
        yield
    except (MemoryError, ImageError):
        raise
    # Pillow's decoders raise whatever their parser meets: OSError, SyntaxError, ValueError, struct.error, ...
    except Exception as error:
        reason = f"cannot be read: {str(error) or type(error).__name__}"
        raise ImageError(reason, position=position, name=name_of(source)) from error


def _value_table(mean: Sequence[float], std: Sequence[float]) -> npt.NDArray[np.float32]:
    """The 256 values that a byte can become, per channel: float32 (3, 256), with the reference's own rounding steps."""
    scaled = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
    return np.stack([(scaled - np.float32(m)) / np.float32(s) for m, s in zip(mean, std, strict=True)])
