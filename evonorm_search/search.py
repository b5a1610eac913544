"""The search: propose, evaluate, record, until enough candidates are evaluated.

Whoever is free gets the next candidate; nothing waits for a generation. A draw is a function of the
seed, its number and the population, so that with one process a search is a function of its seed.
"""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any

import torch
from fvcore.common.config import CfgNode

from evonorm_runs import stop
from evonorm_runs.config import flat, merge_saved
from evonorm_runs.errors import UserError, user_errors
from evonorm_runs.folder import claimed, write_start
from evonorm_runs.log import say
from evonorm_runs.random_state import mix

from .config import get_cfg, parts, source
from .data import Source, count_to_train_on, load_data
from .evaluation import Data, Proxy, evaluate
from .evolution import Member, child
from .sift import NEW, Sieve
from .space import formula
from .store import FILE, Candidate, Store

MAY_CHANGE = ("CANDIDATES", "DATA.ROOT", "DEVICE", "OUTPUT_DIR")
TRIES = 3  # of a candidate whose process is lost


class Search:
    """The state of a search: its population, its sieve, the number of the next draw.

    What the store holds is played back, in the order of completion.
    """

    def __init__(self, cfg: CfgNode, store: Store) -> None:
        self.cfg, self.store = cfg, store
        self.space, self.settings, self.proxy = parts(cfg)
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
            rng = Random(mix(self.cfg.SEED, key))
            graph, parent = child(self.population, self.space, self.settings, rng)
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
        if result["stage"] == "trained":
            scores = tuple(result["scores"])
            self.population.append(Member(candidate.graph, scores, candidate.key))


def run(cfg: CfgNode, resume: bool = False, at_once: int = 1) -> Store:
    """Search until CANDIDATES are evaluated; everything is in OUTPUT_DIR.

    Args:
        resume: go on with what the store in OUTPUT_DIR holds.
        at_once: processes that evaluate.

    Returns:
        the store, open.

    Raises:
        UserError: a config or store that is wrong; a full disk.
        Stopped: by SIGTERM. What was being evaluated is lost.
    """
    _check_data(cfg)
    with claimed(cfg.OUTPUT_DIR, [FILE], resume), stop.on_sigterm():
        store = Store(Path(cfg.OUTPUT_DIR), repr(parts(cfg)[0]))
        search = Search(cfg, store)
        _check_same(cfg, store)
        write_start(cfg, search.next)
        begin, before = time.perf_counter(), search.evaluated
        for candidate, result in _evaluations(search, at_once):
            search.record(candidate, result)
            minutes = (time.perf_counter() - begin) / 60
            rate = (search.evaluated - before) / minutes
            say(_line(candidate, result, search.evaluated, cfg.CANDIDATES, rate))
            if stop.asked():
                raise stop.Stopped("stopped by SIGTERM; continue with --resume")
        return store


def _check_data(cfg: CfgNode) -> None:
    count = count_to_train_on(source(cfg))
    if count < cfg.PROXY.BATCH_SIZE:
        size = cfg.PROXY.BATCH_SIZE
        raise UserError(f"PROXY.BATCH_SIZE is {size}, but there are {count} images to train on")


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


def _evaluations(search: Search, at_once: int) -> Iterator[tuple[Candidate, dict[str, Any]]]:
    """Evaluate candidates, `at_once` at a time; yields them as they end."""
    pending: dict[Future, tuple[Candidate, int]] = {}
    pool = _pool(at_once)
    try:
        while (left := search.cfg.CANDIDATES - search.evaluated) > 0:
            while len(pending) < min(at_once, left):
                candidate = search.propose()
                pending[_submit(pool, search, candidate)] = (candidate, 1)
            ended, _ = wait(pending, return_when=FIRST_COMPLETED)
            for future in ended:
                candidate, tries = pending.pop(future)
                try:
                    result = future.result()
                except BrokenProcessPool:  # a process was killed, and with it all others
                    if tries == TRIES:
                        raise UserError(
                            f"the process that evaluates {candidate.formula} was lost {TRIES} times"
                        ) from None
                    pool.shutdown(wait=False)
                    pool = _pool(at_once)
                    again = [(candidate, tries + 1), *((c, n + 1) for c, n in pending.values())]
                    pending = {_submit(pool, search, c): (c, n) for c, n in again}
                    break
                yield candidate, result
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _pool(at_once: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(at_once, get_context("spawn"), _begin)


def _begin() -> None:
    """Of each process: a thread of its own, and no denormals, which slow a CPU down."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)


def _submit(pool: ProcessPoolExecutor, search: Search, candidate: Candidate) -> Future:
    cfg = search.cfg
    arguments = tuple(cfg.ANCHORS), search.proxy, source(cfg), cfg.SEED, cfg.DEVICE
    return pool.submit(_work, candidate.formula, *arguments)


def _work(
    norm_act: str, anchors: tuple[str, ...], proxy: Proxy, images: Source, seed: int, device: str
) -> dict[str, Any]:
    start = time.perf_counter()
    result = evaluate(norm_act, anchors, _data(images, device), proxy, seed)
    return {**result, "seconds": round(time.perf_counter() - start, 2)}


@functools.lru_cache(maxsize=1)
def _data(images: Source, device: str) -> Data:
    """Read once in each process."""
    return load_data(images).to(device)


def _line(candidate: Candidate, result: dict[str, Any], count: int, total: int, rate: float) -> str:
    scores = " ".join(f"{100 * x:.1f}" for x in result["scores"] or result["quality"])
    return (
        f"[{count}/{total}] {result['stage']:<9} {scores:<15} {candidate.formula} "
        f"({rate:.1f} a minute, {(total - count) / rate:.0f} min to go)"
    )
