"""Live processes that answer by turns, so that all meet the same moments of a machine.

The noise of a shared machine is slow: the ratio of two calls that follow each other is far steadier than either time.
A process waits on its standard input between its turns and answers each line with one of JSON.
"""

from __future__ import annotations

import json
import math
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
        request: Its last argument, as JSON; the time before its start is added.
    """

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        timeout_s: float = _TIMEOUT_S,
        environment: Mapping[str, str] | None = None,
        request: Mapping[str, Any] | None = None,
    ) -> None:
        self._name, self._arguments, self._timeout_s = name, tuple(arguments), timeout_s
        self._environment, self._request = dict(environment or {}), request
        self._answers: queue.Queue[str] = queue.Queue()
        self.ready: dict[str, Any] = {}

    def __enter__(self) -> Live:
        self._errors = tempfile.TemporaryFile(mode="w+", encoding="utf-8")
        asked = [] if self._request is None else [json.dumps({**self._request, "started": time.monotonic()})]
        self._process = subprocess.Popen(
            [sys.executable, *self._arguments, *asked],
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

    def ask(self, line: str = "") -> dict[str, Any]:
        """Its answer to a line.

        Raises:
            MeasurementError: It ended, or did not answer in time.
        """
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended, and why is read below
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
        return self._answer()

    def milliseconds(self, line: str = "") -> float:
        """How long it says that its answer took.

        Raises:
            MeasurementError: As `ask`, or its answer has no positive ``ms``.
        """
        answer = self.ask(line)
        found = answer.get("ms")
        if not isinstance(found, int | float) or not math.isfinite(found) or found <= 0:
            raise MeasurementError(f"{self._name}: no milliseconds in its answer to {line!r}: {answer}")
        return float(found)

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


def take_turns(
    processes: Sequence[Live], order: random.Random, *, turns: int, seconds: float = 0, line: str = ""
) -> list[tuple[float, ...]]:
    """Milliseconds of a call of each, turn by turn, in random order within a turn.

    Args:
        processes: Who takes turns.
        order: Draws who comes first in each turn.
        turns: At least so many.
        seconds: Turns are added until they took so long.
        line: What each is asked.

    Raises:
        MeasurementError: One of them ended, did not answer in time, or printed no milliseconds.
    """
    taken: list[tuple[float, ...]] = []
    until = time.monotonic() + seconds
    while len(taken) < turns or time.monotonic() < until:
        milliseconds = {}
        for place in order.sample(range(len(processes)), len(processes)):
            milliseconds[place] = processes[place].milliseconds(line)
            time.sleep(_PAUSE_S)
        taken.append(tuple(milliseconds[place] for place in range(len(processes))))
    return taken
