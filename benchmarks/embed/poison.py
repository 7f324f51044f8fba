"""A decoder that ends its process at one row of several thousand: that row says so, and all others have vectors.

    python -m benchmarks.embed.poison --rows 5000 --model models/clip --out DIR

prints what became of the rows as JSON, and exits with 1 where it is not that.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from pathlib import Path
from typing import Any, Final

from PIL import Image

from benchmarks.embed import child

# Of every Python process of the run: reading a file of this name is a real violation of memory.
_SITE: Final = """
import ctypes, pathlib
real = pathlib.Path.open
def opened(self, *given, **named):
    if self.name == "poison.jpg":
        ctypes.string_at(0)
    return real(self, *given, **named)
pathlib.Path.open = opened
"""


def main() -> int:
    """Write the images, embed them, and say what became of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="a directory, made anew")
    parser.add_argument("--workers", default="1")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    listed, row = write(options.out, options.rows, options.seed)
    site = options.out / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(_SITE, encoding="utf-8")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(site.resolve()), os.environ.get("PYTHONPATH", "")])
    vectors = options.out / "vectors"
    ran = child.run(
        child.command(listed, vectors, options.model, "--workers", options.workers), options.out / "run.log"
    )
    found = outcome(vectors, listed.read_text(encoding="utf-8").splitlines(), row)
    print(json.dumps({"status": ran.status, "seconds": ran.seconds, "peak_bytes": ran.peak_bytes, **found}, indent=2))
    return 1 if ran.status or found["wrong"] else 0


def write(directory: Path, rows: int, seed: int) -> tuple[Path, int]:
    """A list of one small photo as often as there are rows but one, and which one is the other."""
    directory.mkdir(parents=True)
    photo, poison = directory / "photo.jpg", directory / "poison.jpg"
    Image.linear_gradient("L").convert("RGB").save(photo)
    poison.write_bytes(photo.read_bytes())
    row = random.Random(seed).randrange(rows)
    listed = directory / "list.txt"
    names = [str(poison if each == row else photo) for each in range(rows)]
    listed.write_text("\n".join(names) + "\n", encoding="utf-8")
    return listed, row


def outcome(out: Path, paths: list[str], row: int) -> dict[str, Any]:
    """How many rows have vectors, what the row of the poison says, and the rows that are not as they should be."""
    import pyarrow.dataset as ds

    table = ds.dataset(sorted(map(str, out.glob("*.parquet")))).to_table()
    errors, valid = table["error"].to_pylist(), table["embedding"].is_valid().to_pylist()
    wanted = ["crashed" if each == row else None for each in range(len(paths))]
    wrong = [
        each
        for each in range(max(len(paths), table.num_rows))
        if each >= min(len(paths), table.num_rows)
        or table["path"][each].as_py() != paths[each]
        or errors[each] != wanted[each]
        or valid[each] != (each != row)
    ]
    says = None if row >= table.num_rows else table["error_message"][row].as_py()
    return {"rows": table.num_rows, "with_vectors": sum(valid), "row": row, "says": says, "wrong": wrong[:20]}


if __name__ == "__main__":
    sys.exit(main())
