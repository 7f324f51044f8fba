"""Decoding: metadata, switches of other libraries, damage, wide gray values, formats, memory."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, features

from llm_compression.cli import main
from llm_compression.errors import ConfigError, ImageError, ImagePrecisionWarning
from llm_compression.multimodal import decoding, pillow_readers
from llm_compression.multimodal.image_processor import ImageProcessor
from llm_compression.multimodal.resampling import resized_part
from tests.strategies import SEEDS, encode_image, random_image

PROCESSOR = ImageProcessor(32)
ROWS, COLUMNS = np.mgrid[:96, :120]
PICTURE = Image.fromarray(
    np.clip(
        np.stack([COLUMNS * 2, ROWS * 2, 90 + 60 * ((ROWS // 16 + COLUMNS // 16) % 2)], 2)
        + np.random.default_rng(0).integers(-20, 20, (96, 120, 3)),
        0,
        255,
    ).astype(np.uint8)
)
FILES: dict[str, tuple[str, dict[str, Any]]] = {
    "PNG": ("PNG", {}),
    "JPEG": ("JPEG", {}),
    "progressive": ("JPEG", {"progressive": True}),
    "restarts": ("JPEG", {"restart_marker_blocks": 7}),
    "GIF": ("GIF", {}),
    "TIFF": ("TIFF", {}),
    "TIFF zlib": ("TIFF", {"compression": "tiff_deflate"}),
    "TIFF LZW": ("TIFF", {"compression": "tiff_lzw"}),
    "TIFF JPEG": ("TIFF", {"compression": "jpeg"}),
    "BMP": ("BMP", {}),
    "PPM": ("PPM", {}),
    "TGA": ("TGA", {}),
    "JPEG2000": ("JPEG2000", {}),
    "WEBP": ("WEBP", {}),
    "QOI": ("QOI", {}),
}


def saved(name: str, **more: Any) -> bytes:
    file = io.BytesIO()
    PICTURE.save(file, FILES[name][0], **FILES[name][1], **more)
    return file.getvalue()


def outcome(data: bytes, processor: ImageProcessor = PROCESSOR) -> torch.Tensor | None:
    """The pixels, or None where the file is refused; any other error is a failure."""
    try:
        return processor(data)
    except ImageError:
        return None


def chunk(kind: bytes, data: bytes, crc: int = 0) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) ^ crc)


def exif(orientation: int, *odd: bytes) -> bytes:
    """An EXIF block with an orientation and other entries of 12 bytes each."""
    entries = struct.pack("<HHLHH", 0x0112, 3, 1, orientation, 0), *odd
    return b"II*\0" + struct.pack("<LH", 8, len(entries)) + b"".join(entries) + bytes(4)


@pytest.mark.requirement("23.2")
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["PNG", "JPEG", "progressive", "WEBP"])
@pytest.mark.parametrize("kind", [*range(14), 255])
def test_one_odd_tag_beside_the_orientation(name: str, orientation: int, kind: int) -> None:
    """23.2: WHEN the metadata of a file state an orientation that can be read, THE ImageProcessor SHALL turn the
    picture as the Reference turns a sound file of that orientation."""
    sound = saved(name, exif=b"Exif\0\0" + exif(orientation))
    odd = saved(name, exif=b"Exif\0\0" + exif(orientation, struct.pack("<HHLL", 0x011A, kind, 70000, 0xFFFFFFF0)))
    assert torch.equal(PROCESSOR(odd), PROCESSOR(sound))
    plain = PROCESSOR(saved(name))
    assert torch.equal(PROCESSOR(sound), plain) == (orientation == 1)


@pytest.mark.property(27)
@given(block=st.binary(max_size=80) | st.binary(max_size=60).map(lambda tail: exif(1)[:20] + tail))
@settings(max_examples=100)
def test_any_bytes_as_exif(block: bytes) -> None:
    """Property 27: *For any* bytes in the place of an EXIF block, the pixels are those of the picture, turned at
    most."""
    shape = PROCESSOR(PICTURE).shape
    data = saved("PNG")
    for file in (data[:33] + chunk(b"eXIf", block) + data[33:], jpeg_with(b"Exif\0\0" + block)):
        assert PROCESSOR(file).shape == shape


def jpeg_with(body: bytes, marker: int = 0xE1) -> bytes:
    data = saved("JPEG")
    return data[:2] + struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body + data[2:]


BODIES = {"empty": b"", "short": b"\1", "zeros": bytes(40), "long text": b"key\0" + b"x" * (3 << 19)}


@pytest.mark.requirement("23.1")
@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize(
    "kind", ["gAMA", "cHRM", "sRGB", "pHYs", "tEXt", "zTXt", "iTXt", "iCCP", "eXIf", "acTL", "fcTL"]
)
def test_damage_of_ancillary_chunks(kind: str, body: str) -> None:
    """23.1: WHEN the metadata of a file are broken, THE ImageProcessor SHALL return the pixels that the picture
    has without them."""
    data, plain = saved("PNG"), PROCESSOR(PICTURE)
    whole = chunk(kind.encode(), BODIES[body])
    longer = struct.pack(">I", len(BODIES[body]) + 7) + whole[4:]
    for bad in (whole, chunk(kind.encode(), BODIES[body], crc=1), longer):
        assert torch.equal(PROCESSOR(data[:33] + bad + data[33:]), plain)


def avif(**more: Any) -> bytes:
    file = io.BytesIO()
    PICTURE.save(file, "AVIF", **more)
    return file.getvalue()


@pytest.mark.requirement("23.1")
@pytest.mark.skipif(not features.check("avif"), reason="Pillow is built without libavif")
@given(block=st.binary(min_size=32, max_size=32), place=st.sampled_from(["block", "header", "offset", "length"]))
@settings(max_examples=50)
def test_broken_exif_of_an_avif(block: bytes, place: str) -> None:
    """23.1: WHEN the metadata of a file are broken, THE ImageProcessor SHALL return the pixels that the picture
    has without them."""
    sound = b"II*\0" + struct.pack("<LHHHLHHL", 8, 1, 0x010F, 3, 1, 1, 0, 0) + bytes(6)
    data = avif(exif=sound, xmp=b"<x/>")
    start, held = data.index(sound) - 4, struct.pack(">L", len(sound) + 4)
    entry = struct.pack(">L", start) + held  # of the item's place in iloc
    assert len(sound) == len(block) == 32
    assert data.count(entry) == 1
    bad = {
        "block": data.replace(sound, block),
        "header": data[:start] + block[:4] + data[start + 4 :],
        "offset": data.replace(entry, block[:4] + held),
        "length": data.replace(entry, entry[:4] + block[:4]),
    }[place]
    assert torch.equal(PROCESSOR(bad), PROCESSOR(avif()))
    for end in (start, len(bad) // 2, len(bad) - 1):
        with pytest.raises(ImageError):
            PROCESSOR(bad[:end])


@pytest.mark.requirement("23.1")
@pytest.mark.parametrize("marker", [0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE])
@pytest.mark.parametrize(
    "body", [b"", b"JFIF\0", b"Adobe", b"ICC_PROFILE\0", b"Exif\0\0", b"Photoshop 3.0\x008BIM\4", b"MPF\0II*\0"]
)
def test_short_markers_of_a_jpeg(marker: int, body: bytes) -> None:
    """23.1: WHEN the metadata of a file are broken, THE ImageProcessor SHALL return the pixels that the picture
    has without them."""
    assert torch.equal(PROCESSOR(jpeg_with(body, marker)), PROCESSOR(saved("JPEG")))


@pytest.fixture
def switches() -> Iterator[None]:
    before = ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
    yield
    ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = before


@pytest.mark.usefixtures("switches")
@pytest.mark.requirement("23.3")
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("isolated", [True, False])
def test_switches_of_other_libraries(monkeypatch: pytest.MonkeyPatch, name: str, isolated: bool) -> None:
    """23.3: WHILE `LOAD_TRUNCATED_IMAGES`, `MAX_IMAGE_PIXELS` or the filters of warnings have other values than
    Pillow and Python set, THE ImageProcessor SHALL return the same rows and raise ImageError for the same
    files: also by the fallback where Pillow's readers cannot be isolated."""
    if isolated:
        assert pillow_readers.ISOLATED
    else:
        monkeypatch.setattr(pillow_readers, "ISOLATED", False)
        pillow_readers._reader.cache_clear()
    data = saved(name)
    expected = PROCESSOR(data)
    limit = None if not isolated else 100
    with warnings.catch_warnings():
        warnings.simplefilter("error" if isolated else "ignore")
        ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = True, limit
        if isolated or limit is None:
            assert torch.equal(PROCESSOR(data), expected)
        for part in (0.2, 0.5, 0.8, 0.95):
            assert outcome(data[: int(part * len(data))]) is None
        assert ImageFile.LOAD_TRUNCATED_IMAGES is True
    pillow_readers._reader.cache_clear()


@pytest.mark.usefixtures("switches")
@pytest.mark.requirement("23.3")
def test_no_limit_of_pixels_and_warnings_as_errors() -> None:
    """23.3: WHILE `LOAD_TRUNCATED_IMAGES`, `MAX_IMAGE_PIXELS` or the filters of warnings have other values than
    Pillow and Python set, THE ImageProcessor SHALL return the same rows and raise ImageError for the same
    files."""
    large = encode_image(Image.new("1", (10000, 10000)), "PNG")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert outcome(large) is not None
        Image.MAX_IMAGE_PIXELS = None
        with pytest.raises(ImageError, match="decompression bomb"):
            PROCESSOR(encode_image(Image.new("1", (20000, 10000)), "PNG"))


@pytest.mark.requirement("23.4")
def test_defaults_of_pytorch() -> None:
    """23.4: WHILE a caller has changed the default dtype or device of PyTorch or is inside autocast, THE
    ImageProcessor SHALL return float32 pixels on the CPU."""
    expected = PROCESSOR(PICTURE)
    try:
        for dtype, device in ((torch.float64, "cpu"), (torch.float16, "meta"), (torch.bfloat16, "meta")):
            torch.set_default_dtype(dtype)
            torch.set_default_device(device)
            with torch.autocast("cpu", torch.bfloat16):
                found = [PROCESSOR(PICTURE), *(batch.clone() for batch in PROCESSOR.batches([PICTURE] * 2, 1))]
            assert all(
                pixels.dtype == torch.float32 and pixels.device.type == "cpu" and torch.equal(pixels, expected)
                for pixels in found
            )
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


@pytest.mark.property(28)
@pytest.mark.parametrize("mode", ["RGB", "P", "L"])
@given(seed=SEEDS, where=st.floats(0, 1, exclude_max=True))
@settings(max_examples=100)
def test_one_bit_of_a_png(mode: str, seed: int, where: float) -> None:
    """Property 28: *For any* PNG and any one of its bits, the file with that bit changed is refused or gives the
    same pixels."""
    data = bytearray(encode_image(random_image(mode, 7, 5, seed, transparent=True), "PNG"))
    expected = PROCESSOR(bytes(data))
    bit = int(where * len(data) * 8)
    data[bit // 8] ^= 1 << bit % 8
    found = outcome(bytes(data))
    assert found is None or torch.equal(found, expected)


@pytest.mark.requirement("23.5")
def test_every_bit_of_a_small_png() -> None:
    """23.5: IF a chunk of a PNG that decides pixels does not fit its checksum, THEN THE ImageProcessor SHALL raise
    ImageError."""
    data = encode_image(random_image("RGB", 3, 3, 0), "PNG")
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        assert outcome(bytes(flipped)) is None


@pytest.mark.requirement("23.6")
def test_the_checksum_of_a_tiff() -> None:
    """23.6: IF a zlib stream of a TIFF does not fit its checksum, THEN THE ImageProcessor SHALL raise ImageError."""
    data = saved("TIFF zlib")
    with Image.open(io.BytesIO(data)) as image:
        offset, count = image.tag_v2[273][0], image.tag_v2[279][0]  # type: ignore[attr-defined]  # a TIFF has tags
    for position in range(offset + 2, offset + count, max(1, count // 40)):
        assert outcome(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]) is None
    assert outcome(data) is not None


@pytest.mark.requirement("23.7")
@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"optimize": True}, {"subsampling": 0}, {"quality": 30}]
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_scan_that_ends_early(options: dict[str, Any], mode: str) -> None:
    """23.7: IF a JPEG has no scan, lacks one, or has a scan with Huffman codes that ends before its last blocks,
    THEN THE ImageProcessor SHALL raise ImageError."""
    file = io.BytesIO()
    PICTURE.convert(mode).save(file, "JPEG", **options)
    data = file.getvalue()
    assert outcome(data) is not None
    assert outcome(data + b"behind the end") is not None
    scan = data.index(b"\xff\xda")
    for position in (scan, scan + 14, *range(scan + 20, len(data) - 60, 61)):
        assert outcome(data[:position] + b"\xff\xd9") is None
        assert outcome(data[:position] + bytes(len(data) - position - 2) + b"\xff\xd9") is None


@pytest.mark.requirement("23.8")
def test_a_scan_that_ends_late() -> None:
    """23.8: WHERE `strict` is true, IF a JPEG of one sequential scan goes on after its last block, THEN THE
    ImageProcessor SHALL raise ImageError."""
    data, strict = saved("JPEG"), ImageProcessor(32, strict=True)
    assert torch.equal(strict(data), PROCESSOR(data))
    assert outcome(data[:-2] + bytes(range(1, 200)) + b"\xff\xd9", strict) is None


@pytest.mark.requirement("23.9")
@pytest.mark.parametrize(
    "values",
    [
        np.linspace(0, 65535, 96 * 96).astype(np.uint16),
        np.linspace(0, 4095, 96 * 96).astype(np.uint16),
        np.linspace(0, 1, 96 * 96).astype(np.float32),
    ],
    ids=["16 bits", "12 bits", "floats"],
)
def test_levels_that_are_lost(tmp_path: Path, values: Any) -> None:
    """23.9: WHEN gray values do not fit a byte, THE ImageProcessor SHALL give ImagePrecisionWarning with the name
    of the image."""
    image = Image.fromarray(values.reshape(96, 96))
    image.save(tmp_path / "ramp.tif")
    with pytest.warns(ImagePrecisionWarning, match=r"image 1 \(.*ramp.tif\): gray values from 0 to"):
        PROCESSOR([PICTURE, tmp_path / "ramp.tif"])


@pytest.mark.requirement("23.10")
def test_levels_that_are_kept() -> None:
    """23.10: WHERE `scale_16bit` is true, THE ImageProcessor SHALL scale gray values from their full range to that
    of a byte."""
    levels = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    wide = ImageProcessor(32, scale_16bit=True)
    expected = PROCESSOR(Image.fromarray(levels))
    assert torch.equal(wide(encode_image(Image.fromarray(levels.astype(np.uint16) * 257), "PNG")), expected)
    assert torch.equal(wide(Image.fromarray((levels / np.float32(255)).astype(np.float32))), expected)
    with pytest.raises(ImageError, match=r"gray values from -1.0 to -1.0, expected 0 to 1"):
        wide(Image.new("F", (4, 4), -1))


@pytest.mark.requirement("23.11")
def test_formats_by_permission(tmp_path: Path) -> None:
    """23.11: IF a file is of a format that is not in `formats`, THEN THE ImageProcessor SHALL raise ImageError and
    start no other program."""
    PICTURE.save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.jpg")
    with pytest.raises(ImageError, match="none of the accepted formats"):
        PROCESSOR(tmp_path / "a.jpg")
    assert outcome(saved("PNG"), ImageProcessor(32, formats=["jpeg", "TGA"])) is None
    assert outcome(encode_image(PICTURE, "DDS"), ImageProcessor(32, formats=["DDS"])) is not None
    with pytest.raises(ConfigError, match="formats: unknown NONE"):
        ImageProcessor(32, formats=["PNG", "none"])


@pytest.mark.requirement("23.12")
@pytest.mark.parametrize("mode", ["RGBa", "La", "P"])
def test_transparency_of_every_mode(mode: str) -> None:
    """23.12: WHERE an image has mode RGBa, La or a palette with alpha, THE ImageProcessor SHALL composite it on
    white."""
    clear = Image.new(mode, (8, 8), 0)
    if mode == "P":
        clear.putpalette(bytes([9, 9, 9, 0]), "RGBA")
    assert torch.equal(PROCESSOR(clear), PROCESSOR(Image.new("RGB", (8, 8), "white")))


@pytest.mark.property(29)
@given(data=st.data(), width=st.integers(1, 40), height=st.integers(1, 40), seed=SEEDS)
@settings(max_examples=100)
def test_a_part_of_a_resize(data: st.DataObject, width: int, height: int, seed: int) -> None:
    """Property 29: *For any* picture, size that is not smaller and box, the part made alone has the bits of that
    part of Pillow's whole resize."""
    image = random_image("RGB", width, height, seed)
    size = data.draw(st.tuples(st.integers(width, 90), st.integers(height, 90)))
    left, top = data.draw(st.integers(0, size[0] - 1)), data.draw(st.integers(0, size[1] - 1))
    box = (left, top, data.draw(st.integers(left + 1, size[0])), data.draw(st.integers(top + 1, size[1])))
    whole = np.asarray(image.resize(size, Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(resized_part(image, size, box), whole[box[1] : box[3], box[0] : box[2]])


@pytest.mark.requirement("23.13")
@pytest.mark.parametrize("size", [(1, 3600), (4000, 1), (1, 60000)])
def test_strips(size: tuple[int, int]) -> None:
    """23.13: WHEN the short edge of an image becomes more pixels than are cut out, THE ImageProcessor SHALL return
    the bits of the Reference from an intermediate that does not grow with the ratio of its edges."""
    strip = random_image("RGB", *size, 1)
    found = ImageProcessor(224)(strip)
    short, long = sorted(size)
    # what the filter reaches of the middle, cut out where a whole number of rows stays a whole number
    (left, right), (top, bottom) = ((max(0, n // 2 - 12 * short), min(n, n // 2 + 12 * short)) for n in size)
    reach = strip.crop((left, top, right, bottom))
    assert torch.equal(found, ImageProcessor(224)(reach))
    assert long > 24 * short


@pytest.mark.requirement("23.14")
def test_the_budget_of_decoding() -> None:
    """23.14: WHILE threads decode, THE ImageProcessor SHALL admit no picture that exceeds a budget of pixels
    together with those being decoded, except alone."""
    budget, inside, most, lock = decoding._Budget(10), 0, [], threading.Lock()

    def work(pixels: int) -> None:
        nonlocal inside
        for _ in range(30):
            with budget.of(pixels):
                with lock:
                    inside += min(pixels, 10)
                    most.append(inside)
                with lock:
                    inside -= min(pixels, 10)

    threads = [threading.Thread(target=work, args=(pixels,)) for pixels in (1, 4, 7, 10, 99)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 150
    assert max(most) <= 10


@pytest.mark.requirement("23.15")
def test_the_command_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """23.15: WHEN `check PATHS` is run, THE CLI SHALL print each file that cannot be read with its reason and a
    summary, and exit with status 1 where there is one."""
    (tmp_path / "inner").mkdir()
    for name, data in (
        ("a.png", saved("PNG")),
        ("b.JPG", saved("JPEG")[:900]),
        ("inner/c.webp", b"no"),
        ("d.txt", b""),
    ):
        (tmp_path / name).write_bytes(data)
    assert main(["check", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert f"bad      {tmp_path / 'b.JPG'}: cannot be read: JPEG: cut off after 900 bytes" in out
    assert f"bad      {tmp_path / 'inner' / 'c.webp'}: cannot be read: starts with b'no'" in out
    assert "checked 3 files: 1 good, 2 bad, 0 with a warning" in out
    assert main(["check", str(tmp_path / "a.png"), "--strict", "--formats", "png"]) == 0
    assert main(["check", str(tmp_path / "missing.png")]) == 1


@pytest.mark.requirement("23.16")
def test_the_first_use_by_threads(tmp_path: Path) -> None:
    """23.16: WHEN the first pictures of a process are read by more than one thread at once, THE ImageProcessor
    SHALL return the rows that one thread returns."""
    for name in ("WEBP", "PNG", "TIFF", "JPEG"):
        (tmp_path / name).write_bytes(saved(name))
    code = (
        "import sys, threading; from llm_compression.multimodal.image_processor import ImageProcessor\n"
        "processor, start, done = ImageProcessor(16), threading.Barrier(8), []\n"
        "def work(name):\n    start.wait(); done.append(processor(name).shape)\n"
        "threads = [threading.Thread(target=work, args=(name,)) for name in sys.argv[1:] * 2]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]; assert len(done) == 8, done"
    )
    files = [str(tmp_path / name) for name in ("WEBP", "PNG", "TIFF", "JPEG")]
    found = subprocess.run([sys.executable, "-c", code, *files], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
