"""Encodes, forks, and encodes again in the fork: a program, as a test must not fork the run it is part of."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import select
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

from llm_compression import ArrowEngine, CLIPEngine, LlmCompressionError, VisionEncoder, shapes_model
from llm_compression.inference.shares import items_of_share
from llm_compression.inference.threads import available_cpus

Call = Callable[[], Any]
SECONDS: Final = 120  # a fork that has not answered by then hangs
CALLS: Final[dict[str, Call]] = {}


def in_fork(call: Call) -> Any:
    """What a call returns in a fork of this process; an error comes back as itself."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            answer = call()
        except Exception as error:  # whatever it is, the test shall see it
            answer = error
        os.write(writing, pickle.dumps(answer))  # less than a pipe holds
        os._exit(0)
    try:
        answered, _, _ = select.select([reading], [], [], SECONDS)
        return pickle.loads(os.read(reading, 1 << 16)) if answered else TimeoutError("the fork hangs")
    finally:
        os.kill(child, signal.SIGKILL)  # not waited for yet, so the number is still its own
        os.waitpid(child, 0)
        os.close(reading)
        os.close(writing)


def in_thread(call: Call) -> Any:
    """What a call returns in a new thread, as a server with threads makes it."""
    answers = list[Any]()
    thread = threading.Thread(target=lambda: answers.append(call()))
    thread.start()
    thread.join()
    return answers[0]


def run(name: str) -> Any:
    """One of the calls, by its name: what a pool can send."""
    return CALLS[name]()


def in_pool(name: str) -> Any:
    """What a call returns in a worker of multiprocessing's pool of forks."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply_async(run, (name,)).get(SECONDS)


def encodings(threads: int, vision: str, bert: str, images: str) -> dict[str, tuple[Any, Any]]:
    """For each way to fork and each call, what it returned before and in the fork."""
    torch.set_num_threads(threads)
    encoder = VisionEncoder(vision, dtype="float32")
    engine = ArrowEngine(bert, dtype="float32")
    clip = CLIPEngine(shapes_model(), dtype="float32")
    torch.set_num_threads(threads)  # also more than there are processors
    files = sorted(Path(images).iterdir())
    texts = ["a red cat", "the dog", "blue"] * 20
    if min(threads, available_cpus()) > 1:
        with torch.inference_mode():
            rows = torch.empty(len(files), encoder.config.num_positions, 1)
            assert items_of_share(rows, min(threads, available_cpus())) > 0, "the batch is not computed as shares"
    CALLS.update(
        {
            "VisionEncoder, one image": lambda: encoder.encode(files[0]),
            "VisionEncoder, a batch": lambda: encoder.encode(files, batch_size=len(files)),
            "ArrowEngine, one text": lambda: engine.encode("a red cat"),
            "ArrowEngine, a batch": lambda: engine.encode(texts, batch_size=len(texts)),
            "CLIPEngine, one image": lambda: clip.encode_image(files[0]),
            "CLIPEngine, a batch": lambda: clip.encode_image(files, batch_size=len(files)),
            "CLIPEngine, a text": lambda: clip.encode_text("a red circle"),
        }
    )
    # all of them before the first fork, so that every pool has its threads
    before = {name: call() for name, call in CALLS.items()}
    found: dict[str, tuple[Any, Any]] = {}
    for name, call in CALLS.items():
        found[f"{name}, fork"] = before[name], in_fork(call)
        found[f"{name}, thread of a fork"] = before[name], in_fork(partial(in_thread, call))
        found[f"{name}, fork of a fork"] = before[name], in_fork(partial(in_fork, call))
        found[f"{name}, pool"] = before[name], in_pool(name)
        found[f"{name}, before the next fork"] = before[name], call()
    fresh = in_fork(lambda: VisionEncoder(vision, dtype="float32").encode(files))
    found["an encoder made in the fork"] = before["VisionEncoder, a batch"], fresh
    return found


def refusals(vision: str, bert: str, images: str) -> dict[str, Any]:
    """What comes of a fork in which PyTorch was set to two threads again."""
    encoder, engine = VisionEncoder(vision, dtype="float32"), ArrowEngine(bert, dtype="float32")
    torch.set_num_threads(2)
    file = min(Path(images).iterdir())
    pixels = encoder.processor(file)
    calls: dict[str, Call] = {
        "encode": lambda: encoder.encode(file),
        "encode_pixels": lambda: encoder.encode_pixels(pixels),
        "forward": lambda: encoder(pixels),
        "text": lambda: engine.encode("a red cat"),
        "a new encoder": lambda: VisionEncoder(vision, dtype="float32"),
        "a new engine": lambda: ArrowEngine(bert, dtype="float32"),
    }
    for name in ("encode", "text"):
        calls[name]()

    def with_two(call: Call) -> Any:
        torch.set_num_threads(2)
        return call()

    def with_one_again() -> Any:
        try:
            with_two(calls["encode"])
        except LlmCompressionError:
            torch.set_num_threads(1)
        return encoder.encode(file)

    found = {name: in_fork(partial(with_two, call)) for name, call in calls.items()}
    found["in a new thread"] = in_fork(lambda: in_thread(lambda: with_two(calls["encode"])))
    found["with one thread again"] = in_fork(with_one_again)
    found["before"] = encoder.encode(file)
    return found


if __name__ == "__main__":
    what, out, *given = sys.argv[1:]
    answers: dict[str, Any] = encodings(int(given[0]), *given[1:]) if what == "encodings" else refusals(*given)
    Path(out).write_bytes(pickle.dumps(answers))
