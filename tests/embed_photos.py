"""A folder of good and bad pictures, and runs over it, for the tests of `embed`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from llm_compression import shapes_model
from llm_compression.embed.run import embed

IMAGES = 40
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"
BROKEN = {"b-cut.png": "damaged", "c-empty.jpg": "empty", "d-folder.jpg": "directory", "e-gone.jpg": "missing"}
BROKEN |= {
    "f-lfs.jpg": "lfs_pointer",
    "g-text.jpg": "not_an_image",
    "h-huge.png": "too_large",
    "i-pipe.jpg": "not_a_file",
}
MODEL = str(shapes_model())
# what a decoder does that takes its process with it, or never ends
HOSTILE_SITE = """
import os, pathlib, signal, time
real = pathlib.Path.open
def opened(self, *given, **named):
    if "crash" in self.name:
        os.kill(os.getpid(), signal.SIGSEGV)
    while "hang" in self.name:
        with open(self.with_suffix(".pid"), "w") as file:
            file.write(str(os.getpid()))
        time.sleep(1)
    return real(self, *given, **named)
pathlib.Path.open = opened
"""


def write_photos(folder: Path) -> Path:
    """Good pictures of several formats, and one of each kind that is none."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for row in range(IMAGES):
        pixels = rng.integers(0, 256, (30 + row, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"a{row:03}.{('png', 'jpg', 'webp')[row % 3]}")
    whole = (folder / "a000.png").read_bytes()
    (folder / "b-cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "c-empty.jpg").touch()
    (folder / "d-folder.jpg").mkdir()
    (folder / "e-gone.jpg").symlink_to("nowhere")
    (folder / "f-lfs.jpg").write_bytes(LFS)
    (folder / "g-text.jpg").write_text("no picture at all")
    Image.new("1", (20000, 20000)).save(folder / "h-huge.png")
    os.mkfifo(folder / "i-pipe.jpg")
    return folder


def run(photos: Path, out: Path, **options: Any) -> Any:
    """A run with shards of 7 rows by one worker of one thread, unless it is said otherwise."""
    return embed([photos], out, MODEL, **{"shard_rows": 7, "workers": 1, "threads": 1, **options})


def files(out: Path) -> dict[str, bytes]:
    """Every file of a data set, by name."""
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.parquet"))}
