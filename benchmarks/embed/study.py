"""Runs of `embed` over generated images: every row there, every error named, memory and cost held against a small run.

    python -m benchmarks.embed.study --images 20000 --model models/clip --out DIR [--kills 20]

writes DIR/study.json and DIR/study.md, and exits with 1 where a row, an error or a vector is wrong. Linux alone.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.embed import child, images, parts
from benchmarks.embed.check import differences, problems, shards_of
from benchmarks.embed.report import report
from llm_compression.harness.clip.this_machine import this_machine

SMALL: Final = 500
SHARD_ROWS: Final = 100


@dataclass(frozen=True)
class Run:
    """A run over some images, and what the data set is.

    Attributes:
        images: Rows of the folder.
        broken: Of these, those without an embedding.
        problems: What is wrong with the data set.
        seconds: Of the whole process.
        steady_seconds: On the clock, of an image, from the first finished shard to the last.
        start_processor_seconds: Of a dry run, which loads the model and plans.
        processor_seconds: Of an image, the start taken off.
        peak_bytes: Of the tree of processes, by proportional set sizes.
        output_bytes: Of a row.
    """

    images: int
    broken: int
    problems: list[str]
    seconds: float
    steady_seconds: float
    start_processor_seconds: float
    processor_seconds: float
    peak_bytes: int
    output_bytes: float


def main() -> int:
    """Make the images, run, check, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, required=True)
    parser.add_argument("--small", type=int, default=SMALL, help="images of the run before (default: %(default)s)")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="a directory, made anew")
    parser.add_argument("--workers", default="1")
    parser.add_argument("--shard-rows", type=int, default=SHARD_ROWS)
    parser.add_argument("--kills", type=int, default=0, help="how often the run is killed and resumed")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.out.exists():
        parser.error(f"{options.out}: exists, expected a new directory")
    options.out.mkdir(parents=True)
    flags = ["--workers", options.workers, "--shard-rows", str(options.shard_rows)]
    runs = list[Run]()
    for count in (options.small, options.images):
        runs.append(run(count, options.out, options.model, flags, options.seed))
        # what took long is there if the next thing fails
        (options.out / f"run-{count}.json").write_text(json.dumps(asdict(runs[-1]), indent=2) + "\n", encoding="utf-8")
    found: dict[str, Any] = {
        "command": f"python -m benchmarks.embed.study {shlex.join(sys.argv[1:])}",
        "machine": asdict(this_machine()),
        "shard_rows": options.shard_rows,
        "runs": [asdict(each) for each in runs],
        "parts": _parts(options.out / f"images-{options.images}", options.model),
    }
    if options.kills:
        found["kills"] = kill(options.kills, options.out, options.images, options.model, flags, options.seed, runs[1])
    (options.out / "study.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    text = report(found)
    (options.out / "study.md").write_text(text, encoding="utf-8")
    print(text)
    return 1 if any(each.problems for each in runs) or found.get("kills", {}).get("problems") else 0


def run(count: int, directory: Path, model: Path, flags: list[str], seed: int) -> Run:
    """Generate some images, embed them, and hold the data set against what they are."""
    wanted = images.items(count, seed)
    folder, out = directory / f"images-{count}", directory / f"vectors-{count}"
    images.write(folder, wanted, seed)
    command = child.command(folder, out, model, *flags)
    start = child.run([*command, "--dry-run"], directory / f"start-{count}.log")
    ran = child.run(command, directory / f"run-{count}.log")
    wrong = [f"status {each.status}: {each.output[-500:]}" for each in (start, ran) if each.status]
    wrong += problems(out, folder, wanted)
    return Run(
        images=count,
        broken=sum(item.code is not None for item in wanted),
        problems=wrong,
        seconds=ran.seconds,
        steady_seconds=_steady(out, count),
        start_processor_seconds=start.processor_seconds,
        processor_seconds=(ran.processor_seconds - start.processor_seconds) / count,
        peak_bytes=ran.peak_bytes,
        output_bytes=sum(path.stat().st_size for path in shards_of(out)) / count,
    )


def _steady(out: Path, count: int) -> float:
    """Seconds an image between the end of the first shard and that of the last; 0 where there is one."""
    import pyarrow.parquet as pq

    ends = sorted((path.stat().st_mtime, pq.read_metadata(path).num_rows) for path in shards_of(out))
    return (ends[-1][0] - ends[0][0]) / max(1, count - ends[0][1]) if ends else 0.0


def kill(
    kills: int, directory: Path, count: int, model: Path, flags: list[str], seed: int, whole: Run
) -> dict[str, Any]:
    """Kill the run at random moments, resume it each time, and hold each data set against the unbroken one.

    A run that ends before its moment is compared, and the next begins anew, until there were so many deaths.

    Args:
        kills: How many.
        directory: Where the images and the unbroken data set lie.
        count: Of the images.
        model: As of the unbroken run.
        flags: As of it.
        seed: Of the moments and of who is killed: the process alone, or with its workers.
        whole: The unbroken run.

    Returns:
        Deaths, data sets completed, shards made again that were finished, and what differed.
    """
    rng, wrong, made_again, data_sets, deaths = random.Random(seed), list[str](), 0, 0, list[dict[str, Any]]()
    folder, out = directory / f"images-{count}", directory / "vectors-killed"
    # so that all of them fall within about one run, and some before its first shard
    longest = 2 * max(whole.seconds / kills, whole.seconds - whole.steady_seconds * count)
    while True:
        kept = dict[str, int]()
        is_complete = False
        while not is_complete and len(deaths) < kills:
            victim: child.Victim = rng.choice(("parent", "tree"))
            moment = rng.uniform(0, longest)
            is_complete = not child.killed(child.command(folder, out, model, *flags), moment, victim)
            now = {path.name: path.stat().st_mtime_ns for path in shards_of(out)}
            made_again += sum(now.get(name) != when for name, when in kept.items())
            kept = now
            if not is_complete:
                deaths.append({"seconds": moment, "victim": victim, "shards": len(now)})
        if not is_complete:
            ran = child.run(child.command(folder, out, model, *flags), directory / "resumed.log")
            wrong += [f"status {ran.status}: {ran.output[-500:]}"] if ran.status else []
            now = {path.name: path.stat().st_mtime_ns for path in shards_of(out)}
            made_again += sum(now.get(name) != when for name, when in kept.items())
        data_sets += 1
        wrong += [f"data set {data_sets}: {name}" for name in differences(directory / f"vectors-{count}", out)]
        if len(deaths) == kills:
            return {"deaths": deaths, "data_sets": data_sets, "made_again": made_again, "problems": wrong}
        shutil.rmtree(out)


def _parts(folder: Path, model: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.embed.parts", str(folder), "--model", str(model)]
    ended = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "LLM_COMPRESSION_NUM_THREADS": "1"}
    )
    shown = shlex.join(["python", *command[1:]])
    return {"command": f"LLM_COMPRESSION_NUM_THREADS=1 {shown}", "images": parts.IMAGES, **json.loads(ended.stdout)}


if __name__ == "__main__":
    sys.exit(main())
