"""The search: propose, evaluate, record, until enough candidates are evaluated.

Whoever is free gets the next candidate; nothing waits for a generation. A draw is a function of the
seed, its number and the population, so that with one process a search is a function of its seed.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from random import Random
from typing import Any

import torch
from fvcore.common.config import CfgNode

from evonorm_runs import stop
from evonorm_runs.config import flat, merge_saved
from evonorm_runs.errors import UserError, one_line, user_errors
from evonorm_runs.folder import claimed, write_start
from evonorm_runs.log import say
from evonorm_runs.random_state import mix

from .anchors import build_anchor
from .config import get_cfg, parts, source
from .data import count_to_train_on
from .evolution import Member, child
from .plugins import MODULES
from .scores import scored
from .sift import NEW, Sieve
from .space import Graph, formula
from .store import FILE, Candidate, Store
from .warm_start import first_graphs
from .workers import OnRay, Processes, Task, Workers, work

MAY_CHANGE = ("CANDIDATES", "DATA.ROOT", "DEVICE", "OUTPUT_DIR", "SEARCH.GPUS_PER_TASK")
TRIES = 3  # of a candidate whose worker is lost


class Draws:
    """What a search draws: a function of the seed, the draw's number and the population."""

    def __init__(self, cfg: CfgNode) -> None:
        self.seed = cfg.SEED
        self.space, self.settings, _ = parts(cfg)
        self.first = first_graphs(cfg.EVOLUTION.WARM_START, self.space, cfg.SEED)

    def __call__(self, population: Sequence[Member], key: int) -> tuple[Graph, Member | None]:
        """The graph of draw `key`, and its parent, None if it has none."""
        if key < len(self.first):
            return self.first[key], None
        return child(population, self.space, self.settings, Random(mix(self.seed, key)))


class Search:
    """The state of a search: its population, its sieve, the number of the next draw.

    What the store holds is played back, in the order of completion.
    """

    def __init__(self, cfg: CfgNode, store: Store) -> None:
        self.cfg, self.store = cfg, store
        self.space, self.settings, self.proxy = parts(cfg)
        self.draws = Draws(cfg)
        self.population: deque[Member] = deque(maxlen=self.settings.window)
        self.sieve = Sieve(duplicates=cfg.SIEVE.DUPLICATES)
        self.results: dict[int, dict[str, Any]] = {}
        self.evaluated = 0  # without those that share a result
        self.next = store.get("next", 0)
        self.sieve.counts |= store.get("counts", {})
        for candidate, result in store.candidates():
            with user_errors(ValueError, prefix=f"{store.path}: candidate {candidate.key}: "):
                self.space.check(candidate.graph)
            if candidate.same_as is None and cfg.SIEVE.DUPLICATES:
                self.sieve.formulas[candidate.formula] = candidate.key
                self.sieve.values[candidate.fingerprint] = candidate.key
            self._take(candidate, result)

    def propose(self) -> Candidate:
        """The next candidate to evaluate. Those before it that share a result are recorded."""
        while True:
            key, self.next = self.next, self.next + 1
            graph, parent = self.draws(self.population, key)
            stage, equal, fingerprint = self.sieve(graph, key)
            parent_key = parent.key if parent else None
            shown, after = str(formula(graph)), len(self.results)
            found = Candidate(key, graph, shown, fingerprint, after, parent_key, equal)
            if stage == NEW:
                return found
            if equal in self.results:  # not one that is still evaluated
                self.record(found, self.results[equal])

    def record(self, candidate: Candidate, result: dict[str, Any]) -> None:
        """Write a result to the store and take it into the population."""
        state = {"next": max(self.store.get("next", 0), candidate.key + 1)}
        self.store.add(candidate, result, counts=self.sieve.counts, **state)
        self._take(candidate, result)

    def _take(self, candidate: Candidate, result: dict[str, Any]) -> None:
        self.results[candidate.key] = result
        self.evaluated += candidate.same_as is None
        self.population.extend(members(candidate, result))


def members(candidate: Candidate, result: dict[str, Any]) -> list[Member]:
    """What a result adds to the population: nothing if the candidate was rejected."""
    if result["stage"] != "trained":
        return []
    return [Member(candidate.graph, tuple(result["scores"]), candidate.key)]


def run(
    cfg: CfgNode,
    resume: bool = False,
    at_once: int = 1,
    ray_address: str | None = None,
    workers: Workers | None = None,
) -> Store:
    """Search until CANDIDATES are evaluated; everything is in OUTPUT_DIR.

    Args:
        resume: go on with what the store in OUTPUT_DIR holds.
        at_once: processes that evaluate, on this machine.
        ray_address: of a cluster that evaluates instead, as :func:`ray.init` takes it.
        workers: that evaluate instead of both; they are closed at the end.

    Returns:
        the store, open.

    Raises:
        UserError: a config or store that is wrong; a full disk; no answer from Ray.
        Stopped: by SIGTERM. What was being evaluated is lost.
    """
    _check_data(cfg)
    _check_anchors(cfg)
    opened = workers or _workers(cfg, at_once, ray_address)
    with closing(opened), claimed(cfg.OUTPUT_DIR, [FILE], resume, cfg), stop.on_sigterm():
        store = Store(Path(cfg.OUTPUT_DIR), repr(parts(cfg)[0]))
        search = Search(cfg, store)
        _check_same(cfg, store)
        write_start(cfg, search.next)
        begin, before = time.perf_counter(), search.evaluated
        for candidate, result in evaluations(search, opened):
            result = scored(cfg.EVOLUTION.SCORE, candidate.formula, result)
            search.record(candidate, result)
            minutes = (time.perf_counter() - begin) / 60
            rate = (search.evaluated - before) / minutes
            say(_line(candidate, result, search.evaluated, cfg.CANDIDATES, rate))
        return store


def _check_data(cfg: CfgNode) -> None:
    count = count_to_train_on(source(cfg))
    if count < cfg.PROXY.BATCH_SIZE:
        size = cfg.PROXY.BATCH_SIZE
        raise UserError(f"PROXY.BATCH_SIZE is {size}, but there are {count} images to train on")


def _check_anchors(cfg: CfgNode) -> None:
    """Each network takes a layer and images, and gives scores."""
    classes = 10
    images = torch.zeros(2, 3, *[cfg.PROXY.CROP or cfg.DATA.RESOLUTION] * 2)
    for name in cfg.ANCHORS:
        # A network of a user's own may raise anything.
        with user_errors(Exception, prefix=f"ANCHORS: {name}: "), torch.no_grad():
            shape = tuple(build_anchor(name, "EvoNormS0", classes)(images).shape)
        if shape != (2, classes):
            raise UserError(
                f"ANCHORS: {name}: it gives {shape} for 2 images and {classes} classes, not "
                f"{(2, classes)}"
            )


def _check_same(cfg: CfgNode, store: Store) -> None:
    """A search goes on with the settings that it began with, but for those in MAY_CHANGE."""
    begun = merge_saved(get_cfg(), store.get("config", cfg.dump()), str(store.path))
    before, now = flat(begun), flat(cfg)
    for key in before:
        if before[key] != now[key] and key not in MAY_CHANGE:
            raise UserError(
                f"{store.path} is of a search with other settings than {cfg.OUTPUT_DIR}'s now "
                f"({key} was {before[key]!r}, not {now[key]!r}): leave them as they were, or name "
                "another OUTPUT_DIR"
            )
    store.set("config", cfg.dump())


def _workers(cfg: CfgNode, at_once: int, ray_address: str | None) -> Workers:
    task = Task(
        tuple(cfg.ANCHORS), parts(cfg)[2], source(cfg), cfg.SEED, cfg.DEVICE, tuple(MODULES)
    )
    if ray_address is None:
        return Processes(partial(work, task), at_once)
    gpus = cfg.SEARCH.GPUS_PER_TASK
    if gpus:  # this machine may have none
        task = task._replace(device="cuda")
    return OnRay(partial(work, task), ray_address, gpus)


def evaluations(search: Search, workers: Workers) -> Iterator[tuple[Candidate, dict[str, Any]]]:
    """Evaluate candidates, as many at a time as there is room for; yields them as they end."""
    ended: SimpleQueue[Future] = SimpleQueue()
    pending: dict[Future, tuple[Candidate, int]] = {}

    def begin(candidate: Candidate, tries: int) -> None:
        future = workers.submit(candidate.formula)
        pending[future] = (candidate, tries)
        future.add_done_callback(ended.put)

    while (left := search.cfg.CANDIDATES - search.evaluated) > 0:
        while len(pending) < min(workers.room, left):
            begin(search.propose(), 1)
        future = _next(ended)
        candidate, tries = pending.pop(future)
        try:
            result = future.result()
        except Exception as error:
            if not workers.lost(error):
                raise
            if tries == TRIES:
                raise UserError(
                    f"the process that evaluates {candidate.formula} was lost {TRIES} times "
                    f"({one_line(error)}); continue with --resume"
                ) from error
            begin(candidate, tries + 1)
        else:
            yield candidate, result


def _next(ended: SimpleQueue[Future]) -> Future:
    """What ended next."""
    while True:
        if stop.asked():
            raise stop.Stopped("stopped by SIGTERM; continue with --resume")
        try:
            return ended.get(timeout=1.0)
        except Empty:
            continue


def _line(candidate: Candidate, result: dict[str, Any], count: int, total: int, rate: float) -> str:
    scores = " ".join(f"{100 * x:.1f}" for x in result["scores"] or result["quality"])
    return (
        f"[{count}/{total}] {result['stage']:<9} {scores:<15} {candidate.formula} "
        f"({rate:.1f} a minute, {(total - count) / rate:.0f} min to go)"
    )
