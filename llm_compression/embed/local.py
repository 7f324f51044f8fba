"""The local engine: worker processes that are handed shards, watched, and started anew where one dies.

Nothing of a shard passes through here: a worker reads its source and writes its file, and sends a receipt.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from llm_compression.embed.shards import Receipt, Settings, Shard
from llm_compression.errors import EmbedError, LlmCompressionError, SourceChangedError, SourceError
from llm_compression.inference.threads import available_cpus

# The one name by which a process is told how many threads it may have.
_THREADS_VARIABLE: Final = "LLM_COMPRESSION_NUM_THREADS"
_START_SECONDS: Final = 600.0
_LONGEST_WAIT: Final = 1.0
THREADS_MAX: Final = 4
_KINDS: Final[Mapping[str, type[LlmCompressionError]]] = {
    kind.__name__: kind for kind in (SourceError, SourceChangedError)
}


@dataclass(frozen=True)
class Job:
    """What all workers of a run are told.

    Attributes:
        model: Directory that holds ``weights.parquet``, or the file.
        out: The directory of the data set.
        device: Where they compute.
        dtype: What they compute in.
        normalize: Whether each embedding gets unit length.
        vector_type: Of the column ``embedding``.
        vector_dtype: Of its values.
        batch_size: Images of one pass.
        threads: Of each worker; as the engine has room for unless given.
        timeout: Seconds without a row read or a shard written, after which a worker is taken for dead.
        directory: What relative paths begin at, wherever a worker is.
        text_column: The column whose texts are embedded, or None.
    """

    model: str
    out: str
    device: str
    dtype: str
    normalize: bool
    vector_type: str
    vector_dtype: str
    batch_size: int
    threads: int | None
    timeout: float
    directory: str
    text_column: str | None = None


class Engine(Protocol):
    """What hands out shards, on whatever machines, and collects receipts. Nothing of a shard passes through it.

    Attributes:
        settings: What its workers say of their encoder.
    """

    settings: Settings

    def __enter__(self) -> Engine: ...

    def __exit__(self, *_: object) -> None: ...

    def run(
        self, shards: Iterable[Shard], on_rows: Callable[[int], None], on_receipt: Callable[[Receipt], bool | None]
    ) -> None:
        """As `LocalEngine.run`."""


def error_of(message: str, kind: str) -> LlmCompressionError:
    """The error that a worker reports by its words and the name of its class."""
    return _KINDS.get(kind, EmbedError)(message)


class _Worker:
    """One process, the shard it has, and when it last said something."""

    def __init__(self, job: Job, messages: queue.Queue[tuple[_Worker, dict[str, Any] | None]]) -> None:
        request = {name: getattr(job, name) for name in job.__dataclass_fields__}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "llm_compression.embed.worker", json.dumps(request)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            cwd=job.directory,
            env={**os.environ, _THREADS_VARIABLE: str(job.threads)},
            # an interrupt is for the process that hands out shards, which then ends the others
            start_new_session=True,
        )
        self.shard: Shard | None = None
        self.heard = time.monotonic()
        self.rows = 0
        self.hung = False
        self._thread = threading.Thread(target=self._listen, args=(messages,), daemon=True, name="embed-worker")
        self._thread.start()

    def _listen(self, messages: queue.Queue[tuple[_Worker, dict[str, Any] | None]]) -> None:
        assert self._process.stdout is not None
        try:
            for line in self._process.stdout:
                messages.put((self, json.loads(line)))
        except ValueError:
            pass  # it was killed within a line
        finally:
            messages.put((self, None))

    def give(self, shard: Shard, *, write: bool = True) -> None:
        """Hand over a shard."""
        self.shard, self.rows, self.heard = shard, 0, time.monotonic()
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has died, which its end of file says
            self._process.stdin.write(json.dumps({"shard": shard.to_json(), "write": write}) + "\n")
            self._process.stdin.flush()

    def end(self) -> None:
        """Kill the process, if it lives."""
        self._process.kill()
        self._process.wait()
        self._thread.join()  # which reads to the end of what is closed here
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()

    def obituary(self, timeout: float) -> str:
        """How it ended."""
        if self.hung:
            return f"the process made no progress for {timeout:g} s"
        status = self._process.wait()
        if status < 0:
            return f"the process ended with signal {-status} ({signal.Signals(-status).name})"
        return f"the process ended with status {status}"


class LocalEngine:
    """Workers on this machine.

    Args:
        job: What they are told; of threads the processors, four at most, unless it has some.
        workers: How many, each with the job's threads; as the processors have room for unless given.

    Attributes:
        settings: What the first worker says of its encoder.

    Raises:
        EmbedError: A worker does not start; the message is that of its encoder.
    """

    def __init__(self, job: Job, workers: int | None) -> None:
        processors = available_cpus()
        threads = job.threads or min(processors, THREADS_MAX)
        self._job, self._count = replace(job, threads=threads), workers or max(1, processors // threads)
        self._messages: queue.Queue[tuple[_Worker, dict[str, Any] | None]] = queue.Queue()
        self._workers: list[_Worker] = []
        self.settings: Settings
        self._idle = list[_Worker]()
        try:
            self._idle.append(self._start())
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> LocalEngine:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.end()

    def run(
        self, shards: Iterable[Shard], on_rows: Callable[[int], None], on_receipt: Callable[[Receipt], bool | None]
    ) -> None:
        """Embed shards, in whatever order.

        Args:
            shards: What is to be done.
            on_rows: Told of rows as they are read; of those of a shard that is tried again, a negative number first.
            on_receipt: Told of each shard whose file is there; True ends the run.

        Raises:
            SourceError: A source cannot be read; finished shards stay.
            EmbedError: A file cannot be written, or a shard cannot be embedded even row by row.
        """
        waiting, tried, suspects = deque(shards), set[str](), list[tuple[Shard, str]]()
        while waiting or any(worker.shard for worker in self._workers):
            while waiting and (self._idle or len(self._workers) < self._count):
                worker = self._idle.pop() if self._idle else self._start()
                worker.give(waiting.popleft())
            worker, message = self._hear()
            shard = worker.shard
            assert shard is not None
            if message is None:
                how = worker.obituary(self._job.timeout)
                self._bury(worker)
                on_rows(-worker.rows)
                if shard.name in tried:
                    suspects.append((shard, how))
                else:
                    tried.add(shard.name)
                    waiting.appendleft(shard)
            elif self._done(worker, message, on_rows, on_receipt):
                return
        for shard, how in suspects:
            if self._without_its_poison(shard, how, on_rows, on_receipt):
                return

    def _without_its_poison(
        self, shard: Shard, how: str, on_rows: Callable[[int], None], on_receipt: Callable[[Receipt], bool | None]
    ) -> bool:
        """Halve a shard that has ended two processes until the rows that do so are found, and embed the others."""
        crashed, crashed_texts = dict[int, str](), dict[int, str]()
        # each with how it is known to end a process, or None for what is not known yet
        spans: list[tuple[int, int, str | None]] = [(shard.start, shard.stop, how)]
        while spans:
            start, stop, known = spans.pop()
            known = known or self._dies(replace(shard, start=start, stop=stop))
            if known is not None and stop - start == 1:
                image, text = self._to_blame(replace(shard, start=start, stop=stop), known)
                if image is not None:
                    crashed[start - shard.start] = image
                if text is not None:
                    crashed_texts[start - shard.start] = text
            elif known is not None:
                middle = (start + stop) // 2
                spans += [(middle, stop, None), (start, middle, None)]
        worker = self._worker()
        worker.give(replace(shard, crashed=crashed, crashed_texts=crashed_texts))
        while True:
            worker, message = self._hear()
            if message is None:
                how = worker.obituary(self._job.timeout)
                self._bury(worker)
                first, last = (shard.fragment.start + row for row in (shard.start, shard.stop))
                raise EmbedError(
                    f"{shard.name}: rows {first} to {last} of {shard.fragment.uri}: {how}, though "
                    "each part of it alone can be embedded; a smaller --batch-size or --shard-rows needs less memory"
                )
            if "rows" not in message:
                return self._done(worker, message, on_rows, on_receipt)
            on_rows(message["rows"])

    def _to_blame(self, row: Shard, how: str) -> tuple[str | None, str | None]:
        """How the image, and how the text of one row end a process; what does not is None."""
        if self._job.text_column is None:
            return how, None
        text = self._dies(replace(row, crashed={0: how}))
        return (how, None) if text is None else (self._dies(replace(row, crashed_texts={0: how})), text)

    def _dies(self, shard: Shard) -> str | None:
        """How a process ends that does all of a shard but write, or None if it lives."""
        worker = self._worker()
        worker.give(shard, write=False)
        while True:
            worker, message = self._hear()
            if message is None:
                how = worker.obituary(self._job.timeout)
                self._bury(worker)
                return how
            if "failed" in message:
                raise self._freed(worker, message)
            if "alive" in message:
                worker.shard = None
                self._idle.append(worker)
                return None

    def _worker(self) -> _Worker:
        return self._idle.pop() if self._idle else self._start()

    def _start(self) -> _Worker:
        worker = _Worker(self._job, self._messages)
        self._workers.append(worker)
        held = list[tuple[_Worker, dict[str, Any] | None]]()
        while True:
            try:
                who, message = self._messages.get(timeout=_START_SECONDS)
            except queue.Empty:
                raise EmbedError(f"a worker did not start within {_START_SECONDS:g} s") from None
            if who is not worker:
                held.append((who, message))
                continue
            for each in held:
                self._messages.put(each)
            if message is None:
                raise EmbedError(f"a worker did not start: {worker.obituary(self._job.timeout)}")
            if "failed" in message:
                raise self._error(worker, message)
            self.settings = Settings(**message["ready"])
            return worker

    def _hear(self) -> tuple[_Worker, dict[str, Any] | None]:
        """The next message of a worker that has a shard; one that is silent for too long is killed, which is one."""
        while True:
            try:
                worker, message = self._messages.get(timeout=min(_LONGEST_WAIT, self._job.timeout / 4))
            except queue.Empty:
                for each in self._workers:
                    if each.shard is not None and time.monotonic() - each.heard > self._job.timeout:
                        each.hung = True
                        each.end()
                continue
            worker.heard = time.monotonic()
            if worker.shard is not None:
                return worker, message
            if message is None:  # an idle one has died
                self._bury(worker)

    def _bury(self, worker: _Worker) -> None:
        worker.end()
        worker.shard = None
        self._workers.remove(worker)
        if worker in self._idle:
            self._idle.remove(worker)

    def _done(
        self,
        worker: _Worker,
        message: Mapping[str, Any],
        on_rows: Callable[[int], None],
        on_receipt: Callable[[Receipt], bool | None],
    ) -> bool:
        """What a message of a shard means; whether the run is to end."""
        if "rows" in message:
            worker.rows += message["rows"]
            on_rows(message["rows"])
            return False
        if "failed" in message:
            raise self._freed(worker, message)
        worker.shard = None
        self._idle.append(worker)
        return bool(on_receipt(Receipt(**message["receipt"])))

    def _freed(self, worker: _Worker, message: Mapping[str, Any]) -> LlmCompressionError:
        """The error of a worker's shard; it lives, and takes another."""
        error, worker.shard = self._error(worker, message), None
        self._idle.append(worker)
        return error

    def _error(self, worker: _Worker, message: Mapping[str, Any]) -> LlmCompressionError:
        where = worker.shard.name if worker.shard is not None and message["kind"] not in _KINDS else ""
        return error_of(f"{where}: {message['failed']}" if where else message["failed"], message["kind"])
