"""Any function over many inputs: on this machine, several at a time, or as tasks on Ray."""

from __future__ import annotations

import os
import queue
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, Callable, TypeVar

from .errors import UserError, one_line

Input = TypeVar("Input")
# Takes an input and the environment variables for the processes that it starts.
Function = Callable[[Input, dict[str, str]], Any]


def over_all(
    function: Function,
    inputs: Sequence[Input],
    at_once: int = 1,
    gpus: int = 0,
    ray_address: str | None = None,
) -> Iterator[tuple[Input, Any]]:
    """Call a function with each input; yields (input, result) as the calls end.

    If Ray loses a task, for instance with its machine, the result is a line that says so.

    Args:
        at_once: calls at a time on this machine.
        gpus: GPUs for each call. With several calls at once each gets its own.
        ray_address: the address of a cluster, as :func:`ray.init` takes it; None for this machine.

    Raises:
        UserError: Ray is missing or can't be reached, or its cluster has too few GPUs.
    """
    if ray_address is None:
        return _here(function, inputs, at_once, gpus)
    return _on_ray(function, inputs, ray_address, gpus)


def _here(
    function: Function, inputs: Sequence[Input], at_once: int, gpus: int
) -> Iterator[tuple[Input, Any]]:
    slots: queue.Queue[int] = queue.Queue()
    for slot in range(at_once):
        slots.put(slot)
    threads = max(1, (os.cpu_count() or 1) // at_once)

    def work(one: Input) -> Any:
        slot = slots.get()
        environment = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
        if gpus and at_once > 1:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            devices = visible.split(",") if visible else [str(i) for i in range(gpus * at_once)]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(devices[slot * gpus :][:gpus])
        try:
            return function(one, environment)
        finally:
            slots.put(slot)

    with ThreadPoolExecutor(at_once) as pool:
        futures = {pool.submit(work, one): one for one in inputs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _on_ray(
    function: Function, inputs: Sequence[Input], address: str, gpus: int
) -> Iterator[tuple[Input, Any]]:
    ray = connect(address, gpus)
    try:
        # Ray itself sets OMP_NUM_THREADS and CUDA_VISIBLE_DEVICES to what the task was given.
        task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(_call)
        pending = {task.remote(function, one): one for one in inputs}
        while pending:
            ready, _ = ray.wait(list(pending))
            one = pending.pop(ready[0])
            try:
                yield one, ray.get(ready[0])
            except ray.exceptions.RayError as error:  # for instance, the machine was lost
                yield one, one_line(error)
    finally:
        ray.shutdown()


def connect(address: str, gpus: float = 0) -> Any:
    """The module ray, connected to a cluster.

    Args:
        address: as :func:`over_all` takes it.
        gpus: that the cluster must have.

    Raises:
        UserError: Ray is missing or can't be reached, or its cluster has too few GPUs.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError("--ray needs Ray: pip install ray") from error
    try:
        _knock(address)
        ray.init(address=address, log_to_driver=False, logging_level="warning")
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"--ray {address}: {one_line(error)}") from error
    if ray.cluster_resources().get("GPU", 0) < gpus:
        ray.shutdown()
        raise UserError(f"--ray {address}: the cluster has no {gpus:g} GPUs for a run")
    return ray


def _call(function: Function, one: Any) -> Any:
    return function(one, {})


def _knock(address: str) -> None:
    """Raise an OSError if nothing answers at HOST:PORT: Ray itself would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host:
        socket.create_connection((host, int(port)), timeout=10).close()
