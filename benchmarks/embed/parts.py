"""What the parts of a run cost alone, by one thread of a fresh process.

    LLM_COMPRESSION_NUM_THREADS=1 python -m benchmarks.embed.parts FOLDER --model MODEL

prints JSON. FOLDER holds JPEG files. Seconds are those of the processor, which other work on the machine does not count
to, though it slows them.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
import psutil
import pyarrow as pa
import torch

from llm_compression import VisionEncoder
from llm_compression.embed import run
from llm_compression.embed.encoders import description
from llm_compression.embed.shards import Settings, Shard, embed_shard, plan_shards, write_shard
from llm_compression.embed.sources import find_sources
from llm_compression.embed.tables import Embedded
from llm_compression.multimodal.image_check import check_images

IMAGES: Final = 128
PATHS: Final = 1_000_000
_BATCH: Final = 32
_SHARDS: Final = 100


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--paths", type=int, default=PATHS)
    options = parser.parse_args()
    encoder = VisionEncoder(options.model)
    settings = Settings(**description(encoder, None))
    with TemporaryDirectory() as directory:
        found = plan(Path(directory), settings, options.paths)
        found |= shard_overhead(Path(directory), encoder, settings)
    sound = (each.path for each in check_images(sorted(options.folder.glob("*.jpg"))) if each.reason is None)
    found |= passes(encoder, list(islice(sound, options.images)))
    print(json.dumps(found))


def plan(directory: Path, settings: Settings, paths: int) -> dict[str, float]:
    """What a path of a list costs in the plan: seconds and resident bytes, and bytes of its line."""
    listed = directory / "list.txt"
    with listed.open("w", encoding="utf-8") as file:
        file.writelines(f"/data/photos/{row // 1000:07}/{row:010}.jpg\n" for row in range(paths))
    before = psutil.Process().memory_info().rss
    kept = list[object]()  # alive until the memory is read

    def planned() -> None:
        kept.append(plan_shards(find_sources([listed]).fragments, settings, 1024))

    seconds = _seconds(planned)
    held = psutil.Process().memory_info().rss - before
    return {
        "plan_seconds_a_path": seconds / paths,
        "plan_bytes_a_path": held / paths,
        "line_bytes_a_path": listed.stat().st_size / paths,
    }


def shard_overhead(directory: Path, encoder: VisionEncoder, settings: Settings) -> dict[str, float]:
    """What a shard costs beside its rows: its descriptor, the file and the disk; and a look at it later."""
    folder, out = directory / "empty", directory / "out"
    folder.mkdir()
    for row in range(_SHARDS):
        (folder / f"{row:05}.jpg").touch()  # which costs a row of an error and no pass
    fragments = find_sources([folder]).fragments

    def embedded(shard_rows: int) -> None:
        for shard in plan_shards(fragments, settings, shard_rows):
            embed_shard(Shard.from_json(shard.to_json()), encoder, settings, out, _BATCH)

    embedded(_SHARDS)
    # on the clock: the processor does not wait for the disk
    times = list[float]()
    for shard_rows in (_SHARDS, 1):
        began = time.perf_counter()
        embedded(shard_rows)
        times.append(time.perf_counter() - began)
    began = time.perf_counter()
    for name in run._present(out, settings):
        run._counts(out / name)
    resumed = (time.perf_counter() - began) / (_SHARDS + 1)
    return {
        "shard_seconds": (times[1] - times[0]) / (_SHARDS - 1),
        "resume_seconds_a_shard": resumed,
        "output_bytes_a_row": _row_bytes(directory / "shard.parquet", settings),
    }


def _row_bytes(path: Path, settings: Settings) -> float:
    """What a row of a shard of `SHARD_ROWS` files with embeddings takes."""
    vectors = np.random.default_rng(0).standard_normal((run.SHARD_ROWS, settings.dimension)).astype(np.float32)
    names = [f"/data/photos/{0:07}/{row:010}.jpg" for row in range(run.SHARD_ROWS)]
    write_shard(path, Embedded(pa.table({"id": names, "path": names}), vectors), settings, "0" * 64)
    return path.stat().st_size / run.SHARD_ROWS


def passes(encoder: VisionEncoder, paths: list[str]) -> dict[str, float]:
    """What an image costs, to decode and to encode."""
    pixels = list[torch.Tensor]()
    batches = [paths[start : start + _BATCH] for start in range(0, len(paths), _BATCH)]

    def decode() -> None:
        pixels.extend(encoder.processor(batch) for batch in batches)

    def encode() -> None:
        for each in pixels:
            encoder.encode_pixels(each)

    encoder.encode_pixels(encoder.processor(batches[0]))
    decoding = _seconds(decode)
    return {
        "decode_seconds": decoding / len(paths),
        "encode_seconds": _seconds(encode) / len(paths),
        "image_bytes": sum(Path(path).stat().st_size for path in paths) / len(paths),
    }


def _seconds(work: Callable[[], None]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


if __name__ == "__main__":
    main()
