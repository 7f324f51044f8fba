"""One worker: a process with an encoder, which answers each line on its standard input with lines of JSON.

    python -m llm_compression.embed.worker '{"model": "models/clip", "dtype": "auto", ...}'

It is started as a program of its own, never forked, so that a decoder that dies takes nothing else with it.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llm_compression.embed.encoders import description, open_encoder
from llm_compression.embed.shards import Settings, Shard, embed_shard, probe_shard
from llm_compression.errors import LlmCompressionError


def main() -> None:
    """Open the encoder, say what it is, then do what each line asks for, until whoever writes the lines is gone."""
    lines = _lines()
    request = json.loads(sys.argv[1])
    # what a library prints goes to standard error: these lines are for the one who started this
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(**what: Any) -> None:
        answers.write(json.dumps(what) + "\n")
        answers.flush()

    try:
        column = request["text_column"]
        encoder = open_encoder(request["model"], request["device"], request["dtype"], column)
        vectors = {name: request[name] for name in ("vector_type", "vector_dtype")}
        settings = Settings(**description(encoder, column), normalized=request["normalize"], **vectors)
    except (LlmCompressionError, OSError) as error:
        say(failed=str(error), kind=type(error).__name__)
        return
    say(ready=asdict(settings))
    out, batch_size = Path(request["out"]), request["batch_size"]
    for line in lines:
        task = json.loads(line)
        shard = Shard.from_json(task["shard"])
        try:
            if task["write"]:
                receipt = embed_shard(shard, encoder, settings, out, batch_size, lambda rows: say(rows=rows))
                say(receipt=asdict(receipt))
            else:
                probe_shard(shard, encoder, settings, batch_size, lambda rows: say(rows=rows))
                say(alive=True)
        except (LlmCompressionError, OSError) as error:
            say(failed=str(error), kind=type(error).__name__)


def _lines() -> Iterator[str]:
    """The lines of standard input; where it ends, so does the process, also while a decoder holds the other thread."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            lines.put(line)
        os._exit(1)

    threading.Thread(target=listen, daemon=True, name="embed-lines").start()
    return iter(lines.get, None)


if __name__ == "__main__":
    main()
