"""After a search (section 5.2): its best layers on larger networks, and the final test.

The ten best are trained on other networks with several seeds and scored on the part "val"; the
three with the best mean are the search's result. These are then trained anew beside known layers
and measured on the part "test", which neither the search nor the choice of the three saw.

Each training is a line of one file in the search's folder, written when it ends. The same command
does what is missing there.
"""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import torch
from fvcore.common.config import CfgNode

from evonorm import build_norm_act
from evonorm_runs.errors import UserError, disk_errors, user_errors
from evonorm_runs.folder import claimed, dump_line
from evonorm_runs.log import say
from evonorm_runs.random_state import mix

from .anchors import build_anchor
from .config import parts, source
from .data import Source, load_part
from .evaluation import Data, Proxy, Training, accuracy, curve
from .plugins import MODULES, load
from .slices import slice_batches
from .table import markdown

FILE = "rerank.jsonl"
KNOWN = ("BN-ReLU", "BN-Swish", "GN-ReLU", "GN-Swish", "EvoNormS0", "EvoNormB0")
WINNERS = 3  # the result of a search
FIRST_SEED = {"val": 1, "test": 1001}  # so that no training of the choice is one of the test
_TASK = ("steps", "batch_size", "lr", "momentum", "weight_decay", "schedule", "crop")


class Job(NamedTuple):
    """One training.

    Attributes:
        part: of the images that give the accuracy, "val" or "test".
        images: that a statistic over the batch is taken over, 0 for the whole batch.
    """

    norm_act: str
    network: str
    seed: int
    part: str
    images: int = 0


class Row(NamedTuple):
    """What the trainings of one layer gave: accuracies in percent.

    Attributes:
        mean: over all trainings.
        networks: mean and deviation over the seeds, by network; of one seed the deviation is 0.
    """

    norm_act: str
    images: int
    mean: float
    networks: dict[str, tuple[float, float]]


def jobs(
    layers: Sequence[str], networks: Sequence[str], seeds: int, part: str, images: int = 0
) -> list[Job]:
    """All trainings of a comparison, seed after seed."""
    first = FIRST_SEED[part]
    return [
        Job(layer, network, seed, part, images)
        for seed in range(first, first + seeds)
        for layer in layers
        for network in networks
    ]


def test_jobs(layers: Sequence[str], networks: Sequence[str], seeds: int, images: int) -> list[Job]:
    """Those of the final test: with the whole batch's statistics, and with those of `images`.

    What has no batch statistics is the same in both.
    """
    distinct = list(dict.fromkeys(layers))
    batch = [layer for layer in distinct if build_norm_act(layer, 1).batch_dependent]
    whole = jobs(distinct, networks, seeds, "test")
    return [*whole, *jobs(batch, networks, seeds, "test", images)]


def run_jobs(cfg: CfgNode, folder: Path, wanted: Sequence[Job], at_once: int = 1) -> list[Row]:
    """Do those trainings that the file in the folder lacks; the rows of all that are wanted.

    Args:
        cfg: of its keys, PROXY, DATA and DEVICE count.

    Raises:
        UserError: a full disk, a process that was killed, another process at work in the folder.
    """
    task = _task(cfg)
    with claimed(str(folder), [], resume=True):
        done = _done(folder, task)
        left = [job for job in wanted if job not in done]
        begin = time.perf_counter()
        for count, (job, result) in enumerate(_results(cfg, left, at_once), 1):
            _add(folder, {**job._asdict(), "task": task, **result})
            done[job] = result
            minutes = (time.perf_counter() - begin) / 60 * (len(left) - count) / count
            say(
                f"[{len(wanted) - len(left) + count}/{len(wanted)}] {100 * result['accuracy']:.1f} "
                f"{job.network}, seed {job.seed}: {job.norm_act} ({minutes:.0f} min to go)"
            )
    return summary({job: done[job]["accuracy"] for job in wanted})


def summary(accuracies: dict[Job, float]) -> list[Row]:
    """A row for each layer and number of images, the best mean first."""
    groups: dict[tuple[str, int], dict[str, list[float]]] = {}
    for job, value in accuracies.items():
        networks = groups.setdefault((job.norm_act, job.images), {})
        networks.setdefault(job.network, []).append(100 * value)
    rows = [
        Row(
            *key,
            fmean(value for values in networks.values() for value in values),
            {n: (fmean(v), stdev(v) if len(v) > 1 else 0.0) for n, v in networks.items()},
        )
        for key, networks in groups.items()
    ]
    return sorted(rows, key=lambda row: -row.mean)


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown: accuracies in percent, of each network with its deviation."""
    networks = list(rows[0].networks)
    lines = [["layer", "images per worker", "mean", *networks]]
    for row in rows:
        found = [row.networks[network] for network in networks]
        each = (f"{mean:.1f} ± {deviation:.1f}" for mean, deviation in found)
        lines.append([f"`{row.norm_act}`", f"{row.images or 'all'}", f"{row.mean:.2f}", *each])
    return markdown(lines)


def winners(cfg: CfgNode, folder: Path) -> list[str]:
    """The layers with the best mean in a finished reranking with this config, WINNERS at most.

    Raises:
        UserError: the folder has none.
    """
    found: dict[str, dict[tuple[str, int], float]] = {}
    for job, result in _done(folder, _task(cfg)).items():
        if job.part == "val" and job.network in cfg.ANCHORS:
            found.setdefault(job.norm_act, {})[job.network, job.seed] = result["accuracy"]
    if not found:
        raise UserError(f"{folder}: not reranked with these settings; do that first")
    complete = max(map(len, found.values()))
    means = {n: fmean(v.values()) for n, v in found.items() if len(v) == complete}
    return sorted(means, key=lambda name: -means[name])[:WINNERS]


def read(folder: Path) -> Iterator[dict[str, Any]]:
    """The lines of the file in a search's folder, without one that a kill left half written.

    Each has the keys of :class:`Job`, `task` (the settings of the training), `accuracy` (a
    fraction), `curve` (training losses, see :func:`evonorm_search.evaluation.curve`), `seconds`.
    """
    with user_errors(OSError):
        lines = (folder / FILE).read_bytes().splitlines() if (folder / FILE).exists() else []
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:
            continue


def _task(cfg: CfgNode) -> dict[str, Any]:
    """What a training depends on, beside its job."""
    found = {name: value for name, value in asdict(parts(cfg)[2]).items() if name in _TASK}
    return {**found, "data": cfg.DATA.NAME, "resolution": cfg.DATA.RESOLUTION}


def _done(folder: Path, task: dict[str, Any]) -> dict[Job, dict[str, Any]]:
    return {
        Job(*(line[key] for key in Job._fields)): line
        for line in read(folder)
        if line["task"] == task
    }


def _add(folder: Path, line: dict[str, Any]) -> None:
    path = folder / FILE
    with disk_errors(path), open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":  # what a kill left half written ends here
                file.write(b"\n")
        file.write(dump_line(line))


def _results(
    cfg: CfgNode, wanted: Sequence[Job], at_once: int
) -> Iterator[tuple[Job, dict[str, Any]]]:
    pool = ProcessPoolExecutor(at_once, get_context("spawn"), _begin, (tuple(MODULES),))
    try:
        own = parts(cfg)[2], source(cfg), cfg.DEVICE
        futures = {pool.submit(work, job, *own): job for job in wanted}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool:
        raise UserError("a process was lost; the same command does what is missing") from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _begin(modules: tuple[str, ...]) -> None:
    load(modules)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)


def work(job: Job, proxy: Proxy, images: Source, device: str) -> dict[str, Any]:
    """Do a training; its accuracy, a fraction, its curve and its seconds."""
    start = time.perf_counter()
    data = _data(images, job.part, device)
    torch.manual_seed(mix(job.seed) >> 1)
    model = build_anchor(job.network, job.norm_act, data.classes)
    model.to(device, memory_format=torch.channels_last)
    if job.images:
        slice_batches(model, job.images)
    training = Training(model, data, proxy, job.seed)
    training.run(proxy.steps)
    return {
        "accuracy": accuracy(model, data.val),
        "curve": curve(training.losses, proxy),
        "seconds": round(time.perf_counter() - start, 2),
    }


@functools.lru_cache(maxsize=2)
def _data(images: Source, part: str, device: str) -> Data:
    """Read once in each process; `val` is the part that gives the accuracy."""
    return Data(load_part(images, "train"), load_part(images, part)).to(device)
