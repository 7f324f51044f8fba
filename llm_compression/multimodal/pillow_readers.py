"""Pillow's readers of files, apart from the switches that any library may set for the whole process.

``ImageFile.LOAD_TRUNCATED_IMAGES``, ``Image.MAX_IMAGE_PIXELS`` and the filters of warnings are read by Pillow's methods
as globals of their modules. A reader here is a subclass whose methods are the same code over other globals, in which
these have fixed values; nothing of Pillow is changed, and no other thread sees a difference. This file alone relies on
how Pillow is written inside; where it is written otherwise, `ISOLATED` is False and the readers are Pillow's own, the
switch being held at False while one decodes.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cache
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any, Final, NamedTuple

from PIL import Image, ImageFile

from llm_compression.multimodal.orientation import exif_orientation

# Pixels of a picture; twice Pillow's own MAX_IMAGE_PIXELS, from where Pillow raises DecompressionBombError.
MAX_PIXELS: Final = 2 * (1024 * 1024 * 1024 // 4 // 3)

# What each format is called in Pillow: module and class. Every one decodes in this process and starts no program.
_READERS: Final[Mapping[str, tuple[str, str]]] = {
    "PNG": ("PngImagePlugin", "PngImageFile"),
    "JPEG": ("JpegImagePlugin", "JpegImageFile"),
    "WEBP": ("WebPImagePlugin", "WebPImageFile"),
    "GIF": ("GifImagePlugin", "GifImageFile"),
    "TIFF": ("TiffImagePlugin", "TiffImageFile"),
    "BMP": ("BmpImagePlugin", "BmpImageFile"),
    "PPM": ("PpmImagePlugin", "PpmImageFile"),
    "JPEG2000": ("Jpeg2KImagePlugin", "Jpeg2KImageFile"),
    "AVIF": ("AvifImagePlugin", "AvifImageFile"),
    "QOI": ("QoiImagePlugin", "QoiImageFile"),
    "SGI": ("SgiImagePlugin", "SgiImageFile"),
    "PCX": ("PcxImagePlugin", "PcxImageFile"),
    # has no signature, so it is tried last
    "TGA": ("TgaImagePlugin", "TgaImageFile"),
}
FORMATS: Final = tuple(_READERS)

_loading = threading.RLock()


class Reader(NamedTuple):
    """How a format is read: whether the first 16 bytes may be of it, and what opens a file."""

    accepts: Callable[[bytes], Any] | None
    open: Callable[..., Any]


def known_formats() -> set[str]:
    """Every format that Pillow can be asked for, `FORMATS` among them; loads all of its plug-ins."""
    with _loading:
        Image.init()
        return set(Image.OPEN)


def reader(name: str) -> Reader:
    """The reader of a format; its plug-in is loaded once, whichever thread asks first."""
    with _loading:
        return _reader(name)


@cache
def _reader(name: str) -> Reader:
    if name not in _READERS:
        Image.init()
        factory, accepts = Image.OPEN[name]
        return Reader(accepts, factory)
    module = importlib.import_module(f"PIL.{_READERS[name][0]}")
    cls = getattr(module, _READERS[name][1])
    return Reader(Image.OPEN[name][1] if name in Image.OPEN else None, _isolated(module, cls) if ISOLATED else cls)


def _check_size(size: tuple[int, int], *, error_only: bool = False) -> None:  # noqa: ARG001  # Pillow's signature
    pixels = size[0] * size[1]
    if pixels > MAX_PIXELS:
        raise Image.DecompressionBombError(
            f"decompression bomb: {size[0]} x {size[1]} pixels, the limit is {MAX_PIXELS} pixels"
        )


def check_size(size: tuple[int, int]) -> None:
    """Refuse a picture of more than `MAX_PIXELS`.

    Raises:
        DecompressionBombError: Pillow's own.
    """
    _check_size(size)


class _TolerantExif(Image.Exif):
    """What Pillow's AVIF reader asks of an EXIF block while it opens a file: the orientation, and no error."""

    def load(self, data: bytes) -> None:
        orientation = exif_orientation(data)
        if orientation is not None:
            self[0x0112] = orientation


def _over(function: Any, changed: Mapping[str, Any]) -> Any:
    """The same code with some of its globals replaced."""
    copy = FunctionType(
        function.__code__,
        {**function.__globals__, **changed},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def _copies(cls: type, changed: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _over(value, changed) for name, value in vars(cls).items() if isinstance(value, FunctionType)}


_IMAGE: Final = SimpleNamespace(**{**vars(Image), "_decompression_bomb_check": _check_size, "Exif": _TolerantExif})
_QUIET: Final = SimpleNamespace(warn=lambda *_args, **_options: None)
_IMAGE_FILE: Final = SimpleNamespace(**{**vars(ImageFile), "LOAD_TRUNCATED_IMAGES": False})
_SWITCHES: Final = {"Image": _IMAGE, "ImageFile": _IMAGE_FILE, "warnings": _QUIET, "LOAD_TRUNCATED_IMAGES": False}


class _IsolatedFile(ImageFile.ImageFile):
    """The base of all readers, with a `load` that never takes a part for the whole."""

    load = _over(ImageFile.ImageFile.load, _SWITCHES)


# what plug-ins call by name instead of through super()
_IMAGE_FILE.ImageFile = _IsolatedFile


def _isolated(module: ModuleType, cls: Any) -> Any:
    changed = dict(_SWITCHES)
    if hasattr(module, "ImageFileDirectory_v2"):  # the tags of a TIFF, which warns of odd ones
        tags = module.ImageFileDirectory_v2
        changed["ImageFileDirectory_v2"] = type(tags.__name__, (tags,), _copies(tags, changed))
    own: dict[str, Any] = {}
    for base in reversed(cls.__mro__[: cls.__mro__.index(ImageFile.ImageFile)]):
        own |= _copies(base, changed)
    if cls.format == "TIFF":
        # Pillow's reads every tag of the EXIF block and turns the picture; it is turned by whoever decodes instead
        own["load_end"] = lambda _self: None
    return type(cls.__name__, (cls, _IsolatedFile), own)


def _probe() -> bool:
    """Whether Pillow's `load` still reads the switch as a global, so that a copy of it has its own."""
    code = ImageFile.ImageFile.load.__code__
    return "LOAD_TRUNCATED_IMAGES" in code.co_names and not code.co_freevars


ISOLATED: Final = _probe()

_decoding = threading.Lock()
_decoders, _before = 0, False


@contextmanager
def switch_held_off() -> Iterator[None]:
    """Hold Pillow's switch for truncated images at False, for what Pillow's own readers decode meanwhile."""
    global _decoders, _before  # the switch is one for the process, and so is its count
    with _decoding:
        if _decoders == 0:
            _before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
        _decoders += 1
    try:
        yield
    finally:
        with _decoding:
            _decoders -= 1
            if _decoders == 0:
                ImageFile.LOAD_TRUNCATED_IMAGES = _before


@contextmanager
def whole_pictures_only() -> Iterator[None]:
    """Nothing where the readers are isolated, else `switch_held_off`."""
    with nullcontext() if ISOLATED else switch_held_off():
        yield
