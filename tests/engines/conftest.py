"""What the engines are given: pictures, one of them broken, and the data set that the local engine makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llm_compression.embed.run import embed
from tests.engines.runs import MODEL, ROWS, SHARD_ROWS


@pytest.fixture(scope="session")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list of pictures of several sizes, one of them text and one that is not there."""
    folder = tmp_path_factory.mktemp("engines")
    rng, names = np.random.default_rng(0), list[Path]()
    for row in range(ROWS):
        names.append(folder / f"{row:03}.png")
        Image.fromarray(rng.integers(0, 256, (30 + row, 50, 3), dtype=np.uint8)).save(names[-1])
    names[9].write_text("no picture")
    names[30].unlink()
    (folder / "list.txt").write_text("\n".join(map(str, names)))
    return folder / "list.txt"


@pytest.fixture(scope="session")
def local(listed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set of `listed`, by two workers of this machine."""
    out = tmp_path_factory.mktemp("local") / "out"
    found = embed([listed], out, MODEL, shard_rows=SHARD_ROWS, workers=2, threads=1)
    assert found.errors == {"missing": 1, "not_an_image": 1}
    return out
