"""Files and encoded bytes to pictures that are whole, upright and RGB, or an error that says why not."""

from __future__ import annotations

import errno
import io
import os
import stat
import threading
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from llm_compression.errors import ConfigError, ImagePrecisionWarning
from llm_compression.inference.memory import release_memory
from llm_compression.multimodal.avif_items import without_metadata
from llm_compression.multimodal.jpeg_segments import JpegPicture, read_jpeg
from llm_compression.multimodal.orientation import (
    ORIENTATION,
    exif_orientation,
    profile_orientation,
    upright,
    xmp_orientation,
)
from llm_compression.multimodal.pillow_readers import (
    FORMATS,
    Reader,
    check_size,
    known_formats,
    reader,
    whole_pictures_only,
)
from llm_compression.multimodal.png_chunks import DamageError, PngPicture, read_png

# Pixels that all threads of the process decode at a time; a larger picture is decoded alone.
DECODING_PIXELS: Final = 1 << 26
_TRIMMED_PIXELS: Final = 1 << 24
_BAND_PIXELS: Final = 1 << 22
_TRANSPARENT: Final = ("RGBA", "RGBa", "LA", "La", "PA")
_DEFLATE: Final = (8, 32946)  # TIFF's numbers of zlib, whose streams carry a checksum


class _Budget:
    """Pixels that may be in the decoders at once; who asks first is served first."""

    def __init__(self, pixels: int) -> None:
        self._free = self._all = pixels
        self._turn, self._changed = threading.Lock(), threading.Condition()

    @contextmanager
    def of(self, pixels: int) -> Iterator[None]:
        asked = min(pixels, self._all)
        with self._turn, self._changed:
            self._changed.wait_for(lambda: self._free >= asked)
            self._free -= asked
        try:
            yield
        finally:
            with self._changed:
                self._free += asked
                self._changed.notify_all()


_budget = _Budget(DECODING_PIXELS)


class MemoryFile(io.RawIOBase):
    """Encoded bytes in one or more pieces as a file, read in place.

    io.BytesIO would copy a memoryview whole; Pillow's TIFF reader trips over the ``fileno`` of pyarrow.BufferReader.
    """

    def __init__(self, pieces: Sequence[Any]) -> None:
        self._views = [memoryview(piece).cast("B") for piece in pieces]
        self._ends = np.cumsum([len(view) for view in self._views]).tolist()
        self._position = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Copy up to the end of a piece; 0 at the end of the last."""
        index = int(np.searchsorted(self._ends, self._position, "right"))
        if index >= len(self._views):
            return 0
        view = self._views[index]
        start = self._position - self._ends[index] + len(view)
        chunk = view[start : start + len(buffer)]
        buffer[: len(chunk)] = chunk
        self._position += len(chunk)
        return len(chunk)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As io.RawIOBase."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._ends[-1]}[whence]
        if start + offset < 0:
            raise ValueError(f"seek to {start + offset}, before the start")
        self._position = start + offset
        return self._position


def require_formats(formats: Sequence[str] | None) -> tuple[str, ...]:
    """The formats that may be decoded, in capital letters, in the order in which they are tried.

    Raises:
        ConfigError: One is unknown, or there is none.
    """
    if formats is None:
        return FORMATS
    if isinstance(formats, str) or not formats or not all(isinstance(name, str) for name in formats):
        raise ConfigError(f"formats: {formats!r}, expected a list of names such as {', '.join(FORMATS[:3])}")
    names = dict.fromkeys("JPEG" if name.upper() == "MPO" else name.upper() for name in formats)
    if not names.keys() <= set(FORMATS):
        unknown = sorted(names.keys() - known_formats())
        if unknown:
            raise ConfigError(f"formats: unknown {', '.join(unknown)}, expected some of {', '.join(FORMATS)}")
    return tuple(sorted(names, key="TGA".__eq__))


@contextmanager
def decoded(
    source: Any, formats: Sequence[str] = FORMATS, strict: bool = False, *, keep: bool = False
) -> Iterator[Image.Image]:
    """One picture out of a file or encoded bytes: whole and upright, in the mode that the file has.

    The picture counts against the pixels that all threads may decode at a time until the context is left.

    Args:
        source: A path, bytes, or any buffer.
        formats: Which formats may be decoded.
        strict: Whether a JPEG is decoded again for each scan without its last bytes, which finds scans that end late.
        keep: Whether the picture outlives the context; its memory is given back at the end of it otherwise.

    Raises:
        Exception: Whatever Pillow's decoders meet; `DamageError` for what is found here.
    """
    if isinstance(source, str | os.PathLike):
        mode = Path(source).stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise ValueError("not a regular file; read it and give its bytes")
        with Path(source).open("rb") as file:
            before = _state_of(file)
            with _decoded(file, formats, strict, keep) as image:
                # here the picture is decoded
                if _state_of(file) != before:
                    # as an error of the operating system: tried again, it may pass
                    raise OSError(errno.ESTALE, "the file changed while it was read")
                yield image
    else:
        with _decoded(io.BufferedReader(MemoryFile([source])), formats, strict, keep) as image:
            yield image


def _state_of(file: Any) -> tuple[int, int]:
    found = os.fstat(file.fileno())
    return found.st_size, found.st_mtime_ns


@contextmanager
def _decoded(file: Any, formats: Sequence[str], strict: bool, keep: bool) -> Iterator[Image.Image]:
    with whole_pictures_only():
        image, picture = _opened(file, formats)
        with image:
            check_size(image.size)
            pixels = image.width * image.height
            with _budget.of(pixels):
                orientation = _orientation(image) if picture is None else picture.orientation
                if image.format == "TIFF":
                    _check_deflate(image, file)
                image.load()
                if isinstance(picture, PngPicture):
                    picture.require_all_rows(_last_row(image))
                if isinstance(picture, JpegPicture) and (strict or not picture.is_single_scan):
                    _check_scans(image, picture, strict)
                turned = upright(image, orientation)
                yield turned
                if not keep:
                    turned.close()
                    image.close()
                    if pixels >= _TRIMMED_PIXELS:
                        # else each thread's heap keeps the memory of the largest picture that it has decoded
                        release_memory()


def _last_row(image: Image.Image) -> bytes:
    # Pillow's crop looks at its own limit of pixels
    row = Image.new(image.mode, (image.width, 1))
    row.paste(image, (0, 1 - image.height))
    return row.tobytes()


def _opened(file: Any, formats: Sequence[str]) -> tuple[Any, PngPicture | JpegPicture | None]:
    """The picture, opened and not yet decoded, of the first format that takes it."""
    prefix, reasons = file.read(16), []
    for name in formats:
        found = reader(name)
        accepted = found.accepts is None or found.accepts(prefix)
        if not accepted or isinstance(accepted, str):
            reasons += [accepted] if accepted else []
            continue
        file.seek(0)
        if name == "PNG":
            png = read_png(memoryview(file.read()))
            return found.open(io.BufferedReader(MemoryFile(png.parts))), png
        if name == "JPEG":
            jpeg = read_jpeg(memoryview(file.read()))
            return found.open(io.BufferedReader(MemoryFile(jpeg.stream()))), jpeg
        try:
            image = _open_avif(found, file) if name == "AVIF" else found.open(file)
        except (SyntaxError, IndexError, TypeError, KeyError, EOFError, zlib.error) as error:
            if found.accepts is not None:
                reasons.append(f"{name}: {error}")
            continue
        return image, None
    raise UnidentifiedImageError(
        "; ".join(reasons)
        or f"starts with {prefix!r}, which is none of the accepted formats; see ImageProcessor(formats=)"
    )


def _open_avif(avif: Reader, file: Any) -> Any:
    """Opened without metadata where libavif refuses the file for them."""
    try:
        return avif.open(file)
    except Exception as error:  # whichever class Pillow gives the decoder's codes
        file.seek(0)
        for data in without_metadata(file.read()):
            try:
                return avif.open(io.BytesIO(data))
            except Exception:  # the reason is that of the file as it is
                continue
        raise error from None


def _orientation(image: Any) -> int | None:
    info = image.info
    found = exif_orientation(info.get("exif"))
    if found is None and info.get("exif") is None:
        found = profile_orientation(info.get("Raw profile type exif"))
    if found is None and hasattr(image, "tag_v2"):
        try:
            value = image.tag_v2.get(ORIENTATION)
            found = int(value) if value is not None and value == int(value) else None
        # the tags of a TIFF are parsed when they are asked for, and raise what their parser meets
        except Exception:
            found = None
    return xmp_orientation(info.get("XML:com.adobe.xmp") or info.get("xmp")) if found is None else found


def _check_deflate(image: Any, file: Any) -> None:
    """Hold the zlib streams of a TIFF against their checksums, which libtiff does not read."""
    tags = image.tag_v2
    if tags.get(259) not in _DEFLATE:
        return
    offsets, counts = tags.get(324, tags.get(273)), tags.get(325, tags.get(279))
    if offsets is None or counts is None:
        return
    position = file.tell()
    for number, (offset, count) in enumerate(zip(_all(offsets), _all(counts), strict=False)):
        file.seek(offset)
        stream, rest = zlib.decompressobj(), file.read(count)
        try:
            while rest and not stream.eof:
                stream.decompress(rest, 1 << 20)
                rest = stream.unconsumed_tail
        except zlib.error as error:
            raise DamageError(f"TIFF: strip {number} is damaged: {error}") from error
    file.seek(position)


def _all(value: Any) -> Sequence[int]:
    return value if isinstance(value, tuple | list) else (value,)


def _check_scans(image: Image.Image, picture: JpegPicture, strict: bool) -> None:
    """Refuse a JPEG with a scan that ends early, by what other data behind it would change; late, where strict.

    A single sequential scan that ends early has been refused already, as the decoder asked for more.
    """
    found = image.tobytes()
    if not picture.is_single_scan and _decode_jpeg(picture.disturbed()) != found:
        raise DamageError("JPEG: a scan ends early, before its last blocks")
    if strict and any(_decode_jpeg(parts) == found for parts in picture.shortened()):
        raise DamageError("JPEG: a scan goes on after its last block")


def _decode_jpeg(parts: Sequence[Any]) -> bytes:
    with reader("JPEG").open(io.BufferedReader(MemoryFile(parts))) as image:
        image.load()
        pixels: bytes = image.tobytes()
        return pixels


def to_rgb(image: Image.Image) -> Image.Image:
    """To RGB, transparency on white; the picture itself where it is RGB and has none.

    Raises:
        ValueError: The picture has no pixel.
    """
    if min(image.size) < 1:
        raise ValueError(f"{image.size[0]} x {image.size[1]} pixels, expected at least 1 x 1")
    palette = image.palette.mode if image.mode == "P" and image.palette is not None else ""
    if image.mode in _TRANSPARENT and image.mode != "PA":
        return _on_white_in_bands(image)
    if image.mode == "PA" or image.info.get("transparency") is not None or palette in ("RGBA", "RGBa", "LA"):
        return _on_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA") if image.mode != "La" else image.convert("LA").convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba).convert("RGB")


def _on_white_in_bands(image: Image.Image) -> Image.Image:
    """A few rows at a time, as each step of the way is another picture of the same size."""
    width, height = image.size
    rows = max(1, _BAND_PIXELS // width)
    if rows >= height:
        return _on_white(image)
    out = Image.new("RGB", image.size)
    for top in range(0, height, rows):
        band = Image.new(image.mode, (width, min(rows, height - top)))
        band.paste(image, (0, -top))
        out.paste(_on_white(band), (0, top))
    return out


def scaled_to_bytes(image: Image.Image, bits: int = 16) -> Image.Image:
    """A picture of wide gray values as 8-bit gray that keeps their order: the full range becomes 0 to 255.

    Args:
        image: Of mode I;16 (in any byte order), I or F; any other is returned as it is.
        bits: Bits of the integer values, of which an I or I;16 picture has up to 16.

    Raises:
        ValueError: Values of F are outside 0 to 1, or those of I outside the range of ``bits``.
    """
    if not is_wide(image):
        return image
    values: npt.NDArray[Any] = np.asarray(image)
    if image.mode == "F":
        top = 1.0
    else:
        values, top = values.astype(np.int64), float((1 << bits) - 1)
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= top):
        raise ValueError(f"gray values from {low} to {high}, expected 0 to {top:g} for scale_16bit")
    return Image.fromarray(np.rint(values.astype(np.float64) * (255 / top)).astype(np.uint8))


def is_wide(image: Image.Image) -> bool:
    """Whether the gray values of a picture do not fit a byte."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def gray_bits(image: Any) -> int:
    """Bits of a picture's gray values: what a TIFF says, else 16."""
    try:
        bits = image.tag_v2.get(258) if hasattr(image, "tag_v2") else None
    # the tags of a TIFF are parsed when they are asked for, and raise what their parser meets
    except Exception:
        return 16
    value = _all(bits)[0] if bits else 16
    return int(value) if 8 < value <= 16 else 16


def lost_levels(image: Image.Image) -> str | None:
    """What is lost where the reference's conversion to bytes collapses wide gray values; None where nothing is."""
    if not is_wide(image):
        return None
    values: npt.NDArray[Any] = np.asarray(image)
    low, high = values.min(), values.max()
    whole = image.mode != "F" or bool((np.rint(values) == values).all())
    if low >= 0 and high <= 255 and whole:
        return None
    return (
        f"gray values from {low:g} to {high:g} of mode {image.mode} become bytes as in the reference, those above 255 "
        "white and fractions lost; ImageProcessor(scale_16bit=True) keeps the levels"
    )


def warn_of_lost_levels(image: Image.Image, name: str) -> None:
    """Say so where the reference's conversion to bytes collapses wide gray values."""
    lost = lost_levels(image)
    if lost is not None:
        warnings.warn(f"{name}: {lost}", ImagePrecisionWarning, stacklevel=2)
