"""The engine on a Ray cluster: Ray Data hands out shards to actors, each of which has one local worker.

An actor's shard is embedded by the same supervised process as on one machine, so that a decoder that dies costs its row
and not the actor: Ray would try the same shard again until its retries are spent, and could name no row.
"""

from __future__ import annotations

import json
import logging
import os
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any, Final

import pyarrow as pa

from llm_compression.embed.local import THREADS_MAX, Job, LocalEngine, error_of
from llm_compression.embed.shards import Receipt, Settings, Shard
from llm_compression.errors import ConfigError, EmbedError, LlmCompressionError, MissingDependencyError
from llm_compression.inference.threads import available_cpus

INSTALL: Final = "pip install 'llm-compression[ray]'"
# Of an actor that dies, and of the shard that it had.
RETRIES: Final = 3
# Each is an object in Ray's memory until it is done, with the paths of its rows.
_SHARDS_AT_ONCE: Final = 1000
_ANSWER: Final = "answer"


class RayEngine:
    """Workers of a Ray cluster, which find the sources, the model and the data set under the same names.

    Args:
        job: What they are told; of threads one less than a machine has processors, four at most, unless it has some.
        workers: How many, each with the job's threads; as the cluster has room for, one processor left free, unless
            given. Those for which there is no room wait for it.
        address: Of the cluster; that of the variable ``RAY_ADDRESS``, or a new one on this machine, unless given. Where
            the program has connected to one, that is it.

    Attributes:
        settings: What a worker of the cluster says of its encoder.

    Raises:
        MissingDependencyError: Ray is not installed.
        ConfigError: No machine of the cluster has so many processors, or the device.
        EmbedError: There is no such cluster, or a worker does not start.
    """

    def __init__(self, job: Job, workers: int | None, address: str | None = None) -> None:
        try:
            import ray
            import ray.data
        except ImportError as error:
            raise MissingDependencyError(f"the engine ray needs Ray Data: {INSTALL}") from error
        self._ray, self._is_ours = ray, not ray.is_initialized()
        if self._is_ours:
            self._connect(address or os.environ.get("RAY_ADDRESS"))
        elif address is not None:
            raise ConfigError(f"address: {address!r}, expected none, as this program is connected to a Ray cluster")
        try:
            threads, room = room_of([node["Resources"] for node in ray.nodes() if node["Alive"]], job)
            self._count = workers or room
            self._needs: dict[str, Any] = {"num_cpus": threads, "num_gpus": int(job.device.startswith("cuda"))}
            answer = ray.get(ray.remote(**self._needs)(_settings_of).remote(replace(job, threads=threads)))
            self.settings = Settings(**found_of(answer))
            # what `auto` is differs between machines, and a data set has one
            self._job = replace(job, threads=threads, dtype=self.settings.dtype)
        except ray.exceptions.RayError as error:
            self.__exit__()
            raise EmbedError(f"a worker did not start on the Ray cluster: {error}") from error
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> RayEngine:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_ours:
            self._ray.shutdown()

    def run(
        self, shards: Iterable[Shard], on_rows: Callable[[int], None], on_receipt: Callable[[Receipt], bool | None]
    ) -> None:
        """As `LocalEngine.run`; rows are told of once their shard is done.

        Raises:
            SourceError: A source cannot be read; finished shards stay.
            EmbedError: A file cannot be written, a shard cannot be embedded even row by row, a machine has another
                encoder, or actors died too often.
        """
        waiting = list(shards)
        try:
            for first in range(0, len(waiting), _SHARDS_AT_ONCE):
                for answer in self._answers(waiting[first : first + _SHARDS_AT_ONCE]):
                    receipt = Receipt(**found_of(answer))
                    on_rows(receipt.rows)
                    if on_receipt(receipt):
                        return
        except self._ray.exceptions.RayError as error:
            raise EmbedError(f"Ray gave up, after {RETRIES} retries where an actor died: {error}") from error

    def _answers(self, shards: list[Shard]) -> Iterator[str]:
        from ray.data import ActorPoolStrategy, from_items
        from ray.util.annotations import RayDeprecationWarning

        pool = ActorPoolStrategy(
            # those that find no room are not waited for
            min_size=1,
            max_size=self._count,
            initial_size=self._count,
            max_tasks_in_flight_per_actor=1,
        )
        # a block for each, so that what is tried again is one shard
        items = from_items([shard.to_json() for shard in shards], override_num_blocks=len(shards))
        items.context.enable_progress_bars = False
        # all busy is as busy as they get, as no shard waits behind another
        items.context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
        with warnings.catch_warnings():
            # up to Ray 2.63 the only way to cap retries, which have no end otherwise
            warnings.simplefilter("ignore", RayDeprecationWarning)
            dataset = items.map_batches(
                EmbedShard,
                fn_constructor_args=(self._job, asdict(self.settings)),
                batch_size=1,
                batch_format="pyarrow",
                compute=pool,
                max_restarts=RETRIES,
                max_task_retries=RETRIES,
                **self._needs,
            )
        for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            yield from batch[_ANSWER].to_pylist()

    def _connect(self, address: str | None) -> None:
        # nothing is told to others unless its user wants that
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options: dict[str, Any] = {"logging_level": "warning"}
        if address in (None, "local"):
            options = {"num_cpus": available_cpus(), "include_dashboard": False, "logging_level": "error"}
        logging.getLogger("ray.data").setLevel(options["logging_level"].upper())
        try:
            self._ray.init(address or "local", **options)
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            raise EmbedError(f"no Ray cluster at {address or 'this machine'}: {error}") from error


def room_of(machines: Sequence[Mapping[str, float]], job: Job) -> tuple[int, int]:
    """Threads of a worker, and how many workers there is room for beside the process that hands out shards.

    Args:
        machines: What each has, in Ray's words: ``CPU`` and ``GPU``.
        job: Says the threads, unless they are to be found, and the device.

    Raises:
        ConfigError: No machine has so many processors, or the device.
    """
    processors = sorted(int(machine.get("CPU", 0)) for machine in machines)
    threads = job.threads or max(1, min(THREADS_MAX, processors[-1] - 1))
    if threads > processors[-1]:
        raise ConfigError(f"threads: {threads}, expected {processors[-1]} at most, as no machine has more")
    processors[-1] -= 1
    room = sum(count // threads for count in processors)
    if job.device.startswith("cuda"):
        devices = sum(int(machine.get("GPU", 0)) for machine in machines)
        if not devices:
            raise ConfigError(f"device: {job.device!r}, expected 'cpu', as no machine of the cluster has a GPU")
        room = min(room, devices)
    return threads, max(1, room)


class EmbedShard:
    """What an actor does with a shard: it hands it to its own local worker, and gives the receipt.

    Args:
        job: What the worker is told.
        settings: What it must say of its encoder.
    """

    def __init__(self, job: Job, settings: Mapping[str, Any]) -> None:
        self._job, self._settings = job, settings
        self._engine: LocalEngine | None = None

    def __call__(self, batch: pa.Table) -> pa.Table:
        """A table of shards in, a table of answers out."""
        return pa.table({_ANSWER: [_answer(partial(self._embed, line)) for line in batch["item"].to_pylist()]})

    def _embed(self, line: str) -> dict[str, Any]:
        if self._engine is None:
            engine = LocalEngine(self._job, 1)
            found = asdict(engine.settings)
            if differing := [name for name in found if found[name] != self._settings[name]]:
                engine.__exit__()
                described = "; ".join(f"{name}: {found[name]}, {self._settings[name]} wanted" for name in differing)
                raise EmbedError(f"machines have other encoders under the same name: {described}")
            # its process ends with the actor, also in the middle of a shard
            weakref.finalize(self, engine.__exit__)
            self._engine = engine
        receipts = list[Receipt]()
        self._engine.run([Shard.from_json(line)], lambda _: None, receipts.append)
        return asdict(receipts[0])


def _settings_of(job: Job) -> str:
    """What a worker of this machine says of its encoder, as an answer."""

    def found() -> dict[str, Any]:
        with LocalEngine(job, 1) as engine:
            return asdict(engine.settings)

    return _answer(found)


def _answer(what: Callable[[], Mapping[str, Any]]) -> str:
    """One line of what a function gives, or of its error: a class of Ray's stands for any error of an actor's."""
    import platform

    try:
        return json.dumps({"found": what()})
    except (LlmCompressionError, OSError) as error:
        return json.dumps({"failed": f"{error} (on {platform.node()})", "kind": type(error).__name__})


def found_of(answer: str) -> dict[str, Any]:
    """What an actor gives, as fields of a receipt or of settings.

    Raises:
        LlmCompressionError: It gave an error instead, which has the class and the words that it has on one machine, and
            the machine's name.
    """
    says = json.loads(answer)
    if "failed" in says:
        raise error_of(says["failed"], says["kind"])
    found: dict[str, Any] = says["found"]
    return found
