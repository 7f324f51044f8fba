"""Two live processes that answer by turns, so that both meet the same moments of a machine.

The noise of a shared machine is slow: the ratio of two calls that follow each other is far steadier than either time.
A process waits on its standard input between its turns and answers each line with one of JSON.
"""

from __future__ import annotations

import json
import os
import queue
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Final

from llm_compression.harness.paired.child import MeasurementError

_TIMEOUT_S: Final = 300
# after a call OpenMP's threads spin for a moment, which the next call would share the processors with
_PAUSE_S: Final = 0.005


class Live:
    """A process that is asked line by line; entered once it is ready.

    Args:
        name: What it is, for errors.
        arguments: The interpreter's arguments that start it.
        timeout_s: After how many seconds without an answer it is ended.
        environment: Variables beside those of this process.
    """

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        timeout_s: float = _TIMEOUT_S,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._name, self._arguments, self._timeout_s = name, tuple(arguments), timeout_s
        self._environment = dict(environment or {})
        self._answers: queue.Queue[str] = queue.Queue()
        self.ready: dict[str, Any] = {}

    def __enter__(self) -> Live:
        self._errors = tempfile.TemporaryFile(mode="w+", encoding="utf-8")
        self._process = subprocess.Popen(
            [sys.executable, *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, **self._environment},
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self.ready = self._answer()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            assert stream is not None
            with suppress(BrokenPipeError):  # what it was asked last and never read
                stream.close()

    def ask(self) -> dict[str, Any]:
        """Its answer to a line.

        Raises:
            MeasurementError: It ended, or did not answer in time.
        """
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended, and why is read below
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        return self._answer()

    def last(self) -> dict[str, Any]:
        """What it says when it is asked no more.

        Raises:
            MeasurementError: As `ask`.
        """
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self._answer()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put("")  # the end

    def _answer(self) -> dict[str, Any]:
        try:
            line = self._answers.get(timeout=self._timeout_s)
        except queue.Empty:
            raise MeasurementError(f"{self._name}: no answer in {self._timeout_s:g} s") from None
        try:
            answer = json.loads(line)
        except ValueError:
            status = self._process.wait(timeout=self._timeout_s) if not line else None
            self._errors.seek(0)
            said = "\n".join(self._errors.read().strip().splitlines()[-12:])
            raise MeasurementError(f"{self._name}: exit status {status}, printed {line!r}\n{said}") from None
        if not isinstance(answer, dict):
            raise MeasurementError(f"{self._name}: printed {line!r}, expected a JSON object")
        return answer


def take_turns(one: Live, other: Live, turns: int, seed: int) -> list[tuple[float, float]]:
    """Milliseconds of a call of each, turn by turn, in random order within a turn.

    Raises:
        MeasurementError: One of them ended, or did not answer in time.
    """
    order, taken = random.Random(seed), []
    for _ in range(turns):
        milliseconds: Mapping[Live, float] = {}
        for each in order.sample((one, other), 2):
            milliseconds = {**milliseconds, each: float(each.ask()["ms"])}
            time.sleep(_PAUSE_S)
        taken.append((milliseconds[one], milliseconds[other]))
    return taken
