"""How fast the parts of a search are; tools/benchmark_search.py calls it, and says what is what."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from random import Random
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from evonorm_runs.errors import UserError
from evonorm_runs.random_state import mix
from evonorm_search.anchors import build_anchor
from evonorm_search.config import parts
from evonorm_search.evaluation import Data, Training, batches
from evonorm_search.search import Search, evaluations
from evonorm_search.sift import NEW, SEEN_FORMULA, SEEN_VALUES, STAGES, Sieve
from evonorm_search.space import Graph, Space, formula
from evonorm_search.store import Store

BASELINE = "BN-ReLU"
WORKERS = 5000  # that the paper's search had
CHUNK = 1000  # candidates that a figure of the driver's cost is a mean over


def sift(graphs: int, seed: int) -> dict[str, Any]:
    """Graphs sifted per second, on the thread that calls it, in either space."""
    found = {}
    for name, space in (("S", Space(batch=False)), ("B", Space(batch=True))):
        sieve, rng = Sieve(), Random(seed)
        sieve(space.random(rng), -1)  # makes the fixed inputs
        drawn = [space.random(rng) for _ in range(graphs)]
        start = time.perf_counter()
        for key, graph in enumerate(drawn):
            sieve(graph, key)
        found[name] = {
            "per_second": graphs / (time.perf_counter() - start),
            "counts": {stage: sieve.counts[stage] for stage in STAGES},
        }
    return found


def survivors(count: int, seed: int) -> list[str]:
    """Formulas of random graphs that pass the sieve: half of either space, in turn."""
    sources = [_survivors(Space(batch=batch), mix(seed, batch)) for batch in (False, True)]
    return [next(sources[i % 2]) for i in range(count)]


def _survivors(space: Space, seed: int) -> Iterator[str]:
    sieve, rng = Sieve(), Random(seed)
    for key in range(10**9):
        graph = space.random(rng)
        if sieve(graph, key)[0] == NEW:
            yield str(formula(graph))


def step(
    cfg: CfgNode,
    data: Data,
    formulas: Sequence[str],
    repeats: int,
    seed: int,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """A training step with each formula over one with BN-ReLU, on each of the config's anchors.

    Both take turns, a step each, so that other work of the machine slows both of them. A ratio is
    one of medians over the repetitions. Where a loss is not finite the time is that of such a step.
    """
    proxy = parts(cfg)[2]
    found = {}
    for anchor in cfg.ANCHORS:

        def prepare(norm_act: str, anchor: str = anchor) -> Callable[[], float]:
            torch.manual_seed(seed)
            model = build_anchor(anchor, norm_act, data.classes)
            model.to(data.train[0].device, memory_format=torch.channels_last)
            training = Training(model.train(), data, proxy, seed)
            batch = next(batches(data, proxy, seed))
            return lambda: _seconds(training.step, *batch)

        usual, ratios, baseline = prepare(BASELINE), {}, []
        for name in formulas:
            ours = prepare(name)
            for run in (ours, usual):
                run()
            times = [(ours(), usual()) for _ in range(repeats)]
            mine, other = (statistics.median(column) for column in zip(*times))
            ratios[name] = mine / other
            baseline.append(other)
            tell(f"{anchor} {ratios[name]:.2f} {name}")
        ordered = sorted(ratios.values())
        found[anchor] = {
            "baseline_ms": 1e3 * statistics.median(baseline),
            "median_ratio": statistics.median(ordered),
            "ratio_90": ordered[int(0.9 * (len(ordered) - 1))],
            "ratios": ratios,
        }
    return found


def _seconds(call: Callable[..., Any], *args: Any) -> float:
    start = time.perf_counter()
    call(*args)  # ends with loss.item(), which waits for a GPU
    return time.perf_counter() - start


class _Passes:
    """In a sieve's place: each graph is new."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(STAGES, 0)

    def __call__(self, graph: Graph, key: int) -> tuple[str, int | None, bytes]:
        self.counts[NEW] += 1
        return NEW, None, key.to_bytes(16, "big")


class _Simulated:
    """So many workers, of which a random one has ended whenever all of them are at work."""

    def __init__(self, count: int, scores: int) -> None:
        self.room, self._rng, self._scores = count, Random(0), scores
        self._busy: list[Future] = []

    def submit(self, norm_act: str) -> Future:
        future: Future = Future()
        self._busy.append(future)
        if len(self._busy) == self.room:
            place = self._rng.randrange(self.room)
            self._busy[place], self._busy[-1] = self._busy[-1], self._busy[place]
            self._busy.pop().set_result(self._result())
        return future

    def _result(self) -> dict[str, Any]:
        scores = [self._rng.random() for _ in range(self._scores)]
        curves = [[round(self._rng.random(), 4) for _ in range(20)] for _ in scores]
        return {"stage": "trained", "scores": scores, "curves": curves}

    def lost(self, error: BaseException) -> bool:
        return False

    def close(self) -> None:
        pass


def driver(cfg: CfgNode, folder: Path, candidates: int, workers: int) -> list[dict[str, float]]:
    """What a candidate costs the driver, with the settings of a full-size search.

    The loop of a search, with its store, a population of 2500 members and tournaments of 125, but
    with simulated workers, who give random scores and curves. What the sieve costs is told apart,
    since most graphs that it sees never become candidates.

    Returns:
        for each thousand candidates, the mean milliseconds of one.
    """
    store = Store(folder, repr(parts(cfg)[0]))
    search = Search(cfg, store)
    search.sieve = _Passes()
    found, start = [], None
    for candidate, result in evaluations(search, _Simulated(workers, len(cfg.ANCHORS))):
        start = start or time.perf_counter()  # once each worker has its first one
        search.record(candidate, result)
        if search.evaluated % CHUNK == 0:
            now = time.perf_counter()
            found.append({"candidates": search.evaluated, "ms": 1e3 * (now - start) / CHUNK})
            start = now
        if search.evaluated == candidates:
            break
    store.db.close()
    return found


def rate(store: Store, cores: int) -> dict[str, Any]:
    """Candidates per hour from a store, and what sharing results saved.

    Raises:
        UserError: the store has no candidate that was evaluated.
    """
    evaluated, shared, stages = [], 0.0, dict.fromkeys(("quality", "stability", "trained"), 0)
    duplicates = 0
    for candidate, result in store.candidates():
        if candidate.same_as is None:
            evaluated.append(result["seconds"])
            stages[result["stage"]] += 1
        else:
            duplicates += 1
            shared += result["seconds"]
    if not evaluated:
        raise UserError(f"{store.path} has no candidate that was evaluated")
    mean, counts = statistics.fmean(evaluated), store.get("counts")
    seen = counts[SEEN_FORMULA] + counts[SEEN_VALUES]
    return {
        "evaluated": len(evaluated),
        "stages": stages,
        "mean_seconds": mean,
        "median_seconds": statistics.median(evaluated),
        "cores": cores,
        "per_hour": cores * 3600 / mean,
        "seen_formula": counts[SEEN_FORMULA],
        "seen_values": counts[SEEN_VALUES],
        "new": counts[NEW],
        "duplicates_of_new_and_seen": seen / max(seen + counts[NEW], 1),
        "shared_results": duplicates,
        "shared_seconds": shared,
        "shared_of_all_seconds": shared / (shared + sum(evaluated)),
    }


class _Counter(TorchDispatchMode):
    """Counts the operations that would be kernels, and the bytes of their inputs and outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view and "detach" not in str(func) and "empty" not in str(func):
            leaves = torch.utils._pytree.tree_leaves((args, kwargs, out))
            self.kernels += 1
            self.bytes += sum(t.nbytes for t in leaves if isinstance(t, torch.Tensor))
        return out


# Of an NVIDIA H100 SXM: float32 with TF32 off, memory, and what a process needs to start a kernel.
GPU = {"flops": 67e12, "bytes": 3.35e12, "launch": 5e-6}
EFFICIENCY = 0.3  # of the flops and of the bandwidth, on layers as small as these


def on_a_gpu(cfg: CfgNode, data: Data, formulas: Sequence[str]) -> dict[str, Any]:
    """By calculation: how long a training step of each anchor takes an H100, and what binds it.

    A step with each formula is counted here, kernels, bytes and operations, and their means are
    divided by the GPU's rates. One process at a time is bound by the start of its kernels;
    processes that share the GPU are bound by the larger of arithmetic and memory.
    """
    proxy = parts(cfg)[2]
    found = {}
    for anchor in cfg.ANCHORS:
        rows = []
        for name in formulas:
            training = Training(build_anchor(anchor, name, data.classes).train(), data, proxy, 0)
            batch = next(batches(data, proxy, 0))
            with FlopCounterMode(display=False) as flops, _Counter() as counter:
                training.step(*batch)
            rows.append((counter.kernels, counter.bytes, flops.get_total_flops()))
        kernels, moved, operations = (statistics.fmean(column) for column in zip(*rows))
        arithmetic = operations / (EFFICIENCY * GPU["flops"])
        shared = max(arithmetic, moved / (EFFICIENCY * GPU["bytes"]))
        found[anchor] = {
            "kernels": kernels,
            "bytes": moved,
            "flops": operations,
            "alone_ms": 1e3 * max(shared, kernels * GPU["launch"]),
            "shared_ms": 1e3 * shared,
        }
    return {"gpu": GPU, "efficiency": EFFICIENCY, "anchors": found}
