"""What an image can be given as: one, or several in any order that Python, numpy, Arrow, pandas or polars keeps."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import IO, Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from PIL import Image

from llm_compression.columns import NamedBytes, arrow_values, series_values
from llm_compression.errors import ImageError
from llm_compression.text.text_inputs import Text

ImageLike: TypeAlias = (
    str
    | os.PathLike[str]
    | bytes
    | bytearray
    | memoryview
    | Image.Image
    | npt.NDArray[np.uint8]
    | pa.Buffer
    | IO[bytes]
    | Mapping[str, Any]
    | Text  # words, where the encoder takes them
)
Images: TypeAlias = ImageLike | Iterable[ImageLike] | pa.Array | pa.ChunkedArray

# Gray, RGB, RGBA.
_CHANNELS: Final = (1, 3, 4)
_ONE: Final = "a path, encoded bytes, an open file, a PIL image or a uint8 array (H, W, 3)"


class ImageSources(NamedTuple):
    """The single images of a call.

    Attributes:
        items: Each as it was given, None for a null; taken once, and no earlier than it is asked for.
        number: How many, or None where only taking them tells.
    """

    items: Iterator[Any]
    number: int | None


class Refused(NamedTuple):
    """In place of an image: the error that its holder raised when it was asked for it, and what it is called."""

    error: Exception
    name: str | None = None


_SINGLE: Final = (
    str,
    os.PathLike,
    bytes,
    bytearray,
    memoryview,
    Image.Image,
    pa.Buffer,
    pa.Scalar,
    NamedBytes,
    Refused,
    Text,
)


def image_sources(images: Images) -> ImageSources:
    """The single images in whatever an encoder accepts, a generator's one by one.

    Raises:
        ImageError: The argument is none of the accepted kinds, or an array of a dtype or a layout that is none.
    """
    if images is None:
        raise ImageError(f"got NoneType, expected {_ONE}, a list of these or an Arrow array")
    if isinstance(images, _SINGLE) or _is_file(images) or _is_record(images):
        return ImageSources(iter((images,)), 1)
    if isinstance(images, pa.Array | pa.ChunkedArray):
        return ImageSources(_arrow_images(images), len(images))
    if isinstance(images, np.ndarray):
        return _array_images(images)
    if (series := series_values(images)) is not None:
        return image_sources(series)
    if isinstance(images, AbstractSet):
        raise ImageError(f"got {type(images).__name__}, which has no order, expected a list")
    if hasattr(type(images), "columns") or hasattr(type(images), "column_names"):
        raise ImageError(f"got {type(images).__name__}, a table, expected one column of it")
    if isinstance(images, list | tuple):
        return ImageSources(iter(images), len(images))
    if isinstance(images, Sequence):
        return ImageSources(_taken(images), len(images))
    if isinstance(images, Iterable) and not isinstance(images, Mapping | torch.Tensor):
        return ImageSources(iter(images), None)
    return ImageSources(iter((images,)), 1)  # what it is will be said with its position


def list_images(images: Images) -> list[Any]:
    """The single images in whatever an encoder accepts, all at once, None for a null.

    Raises:
        ImageError: As `image_sources`.
    """
    return list(image_sources(images).items)


def plain_image(source: Any, position: int = 0) -> Any:
    """One image as a path, encoded bytes or a PIL image, whatever holds it.

    Raises:
        ImageError: It is none, or an array of a dtype or a layout that is none.
    """
    if isinstance(source, str | os.PathLike | bytes | bytearray | memoryview | Image.Image | pa.Buffer):
        return source
    if isinstance(source, np.ndarray):
        return _image_of_array(source, position)
    if isinstance(source, NamedBytes):
        return source.data
    if isinstance(source, Refused):
        reason = f"cannot be read: {_said(source.error)}"
        raise ImageError(reason, position=position, name=source.name) from source.error
    if isinstance(source, pa.Scalar):
        return plain_image(next(_arrow_images(pa.array([source.as_py()], source.type), position)), position)
    if _is_record(source):
        data, path = source.get("bytes"), source.get("path")
        return plain_image(path if data is None else data, position)
    if _is_file(source):
        return _content(source, position)
    raise ImageError(_reason(source), position=position)


def held_image(source: Any, position: int) -> Any:
    """The image as another thread may read it: an open file has one place at a time, so its content is taken here.

    Raises:
        ImageError: The file cannot be read.
    """
    return NamedBytes(_content(source, position), name_of(source)) if _is_file(source) else source


def name_of(source: Any) -> str | None:
    """What an error calls an image: its path, or a description."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    if isinstance(source, Image.Image):
        return f"PIL image, mode {source.mode}"
    if isinstance(source, bytes | bytearray | memoryview | pa.Buffer):
        return f"{memoryview(source).nbytes} bytes"
    if isinstance(source, NamedBytes):
        return source.name or name_of(source.data)
    if _is_record(source):
        return name_of(source.get("path") or source.get("bytes"))
    if _is_file(source):
        name = getattr(source, "name", None)
        return name if isinstance(name, str) else f"an open {type(source).__name__}"
    return None


def _is_file(given: Any) -> bool:
    """Whether this has content to read, as an open file and a path into an archive have."""
    readable = callable(getattr(given, "read", None)) or callable(getattr(given, "read_bytes", None))
    return readable and not isinstance(given, os.PathLike | pa.Buffer)


def _is_record(given: Any) -> bool:
    """Whether this is one image of a Hugging Face dataset that decodes none: ``{"bytes": ..., "path": ...}``."""
    return isinstance(given, Mapping) and bool(given) and set(given) <= {"bytes", "path"}


def _taken(images: Sequence[Any]) -> Iterator[Any]:
    """The items of a sequence that may read or decode them as they are asked for."""
    for index in range(len(images)):
        try:
            item = images[index]
        except MemoryError:
            raise
        except Exception as error:  # whatever the sequence's own decoder raises
            item = Refused(error)
        yield item


def _arrow_images(array: pa.Array | pa.ChunkedArray, position: int | None = None) -> Iterator[Any]:
    values = arrow_values(array, ("string", "binary", "struct", "null"))
    if values is None:
        raise ImageError(
            f"an Arrow array of {array.type}, expected string (paths), binary (encoded images) or "
            "struct<bytes: binary, path: string>",
            position=position,
        )
    return values


def _array_images(array: npt.NDArray[Any]) -> ImageSources:
    if array.dtype.kind in "OU" and array.ndim == 1:
        return image_sources(array.tolist())
    if array.ndim != 4:
        return ImageSources(iter((array,)), 1)
    shape = array.shape[1:] if len(array) else tuple(max(1, side) for side in array.shape[1:])
    if (reason := _array_reason(array, shape)) is not None:
        raise ImageError(reason)
    return ImageSources(iter(array), len(array))


def _image_of_array(array: npt.NDArray[Any], position: int) -> Image.Image:
    if (reason := _array_reason(array, array.shape)) is not None:
        raise ImageError(reason, position=position)
    pixels = array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array
    return Image.fromarray(np.ascontiguousarray(pixels))


def _array_reason(array: npt.NDArray[Any], shape: tuple[int, ...]) -> str | None:
    """Why an array whose images have a shape is none, with what to do; None where it is one."""
    found = f"an array of {array.dtype} with shape {array.shape}"
    expected = "expected uint8 (H, W, 3) with RGB channels, (H, W, 4) with RGBA, or (H, W)"
    if isinstance(array, np.ma.MaskedArray):
        return f"a masked array, {expected}: fill what is masked, .filled(...)"
    if len(shape) == 3 and shape[2] not in _CHANNELS and shape[0] in _CHANNELS:
        axes = "0, 2, 3, 1" if array.ndim == 4 else "1, 2, 0"
        return f"{found}, {expected}: these have their channels first, .transpose({axes})"
    if array.dtype.kind == "f":
        return (
            f"{found}, {expected}: (255 * x).round().astype(numpy.uint8) of values from 0 to 1; encode_pixels takes "
            "pixels that are resized and normalised"
        )
    fits = len(shape) == 2 or (len(shape) == 3 and shape[2] in _CHANNELS)
    return None if array.dtype == np.uint8 and fits and 0 not in shape else f"{found}, {expected}"


def _content(file: Any, position: int) -> Any:
    """The encoded bytes of an open file, from its start where it can go there, as Pillow reads one."""
    try:
        whole: Callable[[], Any] | None = getattr(file, "getbuffer", None)
        if whole is not None:
            return whole()  # of a BytesIO, a view of its memory
        if not hasattr(file, "read"):
            return file.read_bytes()
        if not hasattr(file, "seekable") or file.seekable():
            file.seek(0)
        data = file.read()
    except MemoryError:
        raise
    except Exception as error:  # closed, not open for reading, or what another library's file raises
        raise ImageError(f"cannot be read: {_said(error)}", position=position, name=name_of(file)) from error
    if isinstance(data, str):
        reason = "a file that is open as text, expected one that is open as bytes: open(path, 'rb')"
        raise ImageError(reason, position=position, name=name_of(file))
    return data


def _reason(source: Any) -> str:
    if source is None:
        return f"null, expected an image: {_ONE}"
    if isinstance(source, Text):
        return f"a text, expected {_ONE}: words go to encode_text of a CLIPEngine or to an ArrowEngine"
    if isinstance(source, torch.Tensor):
        return (
            f"a tensor of {source.dtype} with shape {tuple(source.shape)}, expected {_ONE}: .numpy() of a uint8 "
            "picture; encode_pixels takes pixels that are resized and normalised"
        )
    return f"got {type(source).__name__}, expected {_ONE}"


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__
