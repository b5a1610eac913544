"""Who evaluates candidates: processes of this machine, or tasks on a Ray cluster.

Both give a :class:`concurrent.futures.Future` for each candidate, so a search has one loop for
them. A candidate is one task, with all its trainings. A task for each anchor would not train more
candidates an hour: most are rejected on the first anchor, and there is always a next candidate for
a worker that is free. It would have to send the models of the quality's trainings to where the full
trainings go on.
"""

from __future__ import annotations

import functools
import os
import threading
import time
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, Callable, NamedTuple, Protocol

import torch

from evonorm_runs.pool import connect

from .data import Source, load_data
from .evaluation import Data, Proxy, evaluate
from .plugins import load

Function = Callable[[str], dict[str, Any]]  # a formula -> its result
CALLS = 200  # candidates that a process on Ray evaluates before a fresh one takes its place


class Task(NamedTuple):
    """What is the same for all candidates of a search."""

    anchors: tuple[str, ...]
    proxy: Proxy
    images: Source
    seed: int
    device: str
    modules: tuple[str, ...] = ()  # see plugins.py


def work(task: Task, norm_act: str) -> dict[str, Any]:
    """Evaluate a candidate: :func:`evaluation.evaluate`'s result, and `seconds`."""
    load(task.modules)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # denormals slow a CPU down
    start = time.perf_counter()
    data = _data(task.images, task.device)
    result = evaluate(norm_act, task.anchors, data, task.proxy, task.seed)
    return {**result, "seconds": round(time.perf_counter() - start, 2)}


@functools.lru_cache(maxsize=1)
def _data(images: Source, device: str) -> Data:
    """Read once in each process."""
    return load_data(images).to(device)


class Workers(Protocol):
    """What a search needs: :class:`Processes`, :class:`OnRay`, or a test's."""

    @property
    def room(self) -> int:
        """How many candidates to have submitted at a time."""

    def submit(self, norm_act: str) -> Future:
        """Begin with a candidate. The future gives the result, or what the evaluation raised."""

    def lost(self, error: BaseException) -> bool:
        """Whether a future's error says that the worker was lost, not that it failed."""

    def close(self) -> None:
        """End all workers at once."""


class Processes:
    """`at_once` processes of this machine. They end with this one, however it ends."""

    def __init__(self, function: Function, at_once: int) -> None:
        self.room, self._function = at_once, function
        self._reader, self._writer = get_context("spawn").Pipe(duplex=False)
        # An executor for each process: if one is killed, only its own candidate is lost.
        self._free = [self._executor() for _ in range(at_once)]

    def submit(self, norm_act: str) -> Future:
        executor = self._free.pop()
        future = executor.submit(self._function, norm_act)

        def free(ended: Future) -> None:
            broken = isinstance(ended.exception(), BrokenProcessPool)
            self._free.append(self._executor() if broken else executor)

        future.add_done_callback(free)
        return future

    def lost(self, error: BaseException) -> bool:
        return isinstance(error, BrokenProcessPool)

    def close(self) -> None:
        self._writer.close()

    def _executor(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, get_context("spawn"), _begin, (self._reader,))


def _begin(reader: Connection) -> None:
    """Of each process: end once nobody holds the other end of the pipe."""

    def watch() -> None:
        try:
            reader.recv()
        except EOFError:
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class OnRay:
    """Tasks on a Ray cluster, whose machines share this file system and have this package.

    Args:
        address: as :func:`ray.init` takes it ("auto"; "local" for this machine alone).
        gpus: of each task; a part of 1 where several share a GPU.

    Raises:
        UserError: Ray is missing or can't be reached, or its cluster has too few GPUs.
    """

    def __init__(self, function: Function, address: str, gpus: float = 0.0) -> None:
        self._ray, self._gpus = connect(address, gpus), gpus
        # The search itself tries again, so that it knows how often.
        options = {"num_cpus": 1, "num_gpus": gpus, "max_retries": 0, "max_calls": CALLS}
        self._task = self._ray.remote(**options)(_call)
        self._function = self._ray.put(function)
        self._room, self._counted = 1, -1.0

    @property
    def room(self) -> int:
        """As many as the cluster has CPUs and GPUs for, and a tenth more, which wait for a worker.

        More would be drawn from a population that is old when they begin.
        """
        if not 0 <= time.monotonic() - self._counted < 10:  # machines come and go
            found = self._ray.cluster_resources()
            places = found.get("CPU", 0)
            if self._gpus:
                places = min(places, found.get("GPU", 0) / self._gpus + 1e-6)
            self._room, self._counted = max(1, int(places * 1.1)), time.monotonic()
        return self._room

    def submit(self, norm_act: str) -> Future:
        return self._task.remote(self._function, norm_act).future()

    def lost(self, error: BaseException) -> bool:
        kinds = self._ray.exceptions
        return isinstance(error, kinds.RayError) and not isinstance(error, kinds.RayTaskError)

    def close(self) -> None:
        self._ray.shutdown()


def _call(function: Function, norm_act: str) -> dict[str, Any]:
    return function(norm_act)
