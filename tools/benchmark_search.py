"""Measure how fast a search's parts are, and write a file of results for each.

    python tools/benchmark_search.py sift step driver          # no search is needed for these
    python tools/benchmark_search.py --store output/search/small_s -o docs/results/search   # all

sift    Graphs that the sieve sees in a second, on one core, in either space.
step    A training step with a random candidate that passed the sieve, over the same step with
        BN-ReLU, on each small anchor: median and 90th percentile.
driver  What a candidate costs the process that draws, selects and records, with 5,000 simulated
        workers and the paper's population.
rate    Candidates an hour, from the store of a search; what equal candidates saved, which share a
        result; and a training step on a GPU by calculation.

Everything runs on one thread. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from evonorm_repro.benchmark import search as benchmark
from evonorm_repro.benchmark.layers import machine
from evonorm_repro.benchmark.plot import check_new
from evonorm_runs.command_line import run_tool
from evonorm_runs.errors import UserError, user_errors
from evonorm_search.config import get_cfg
from evonorm_search.data import Source, load_data
from evonorm_search.store import FILE, Store

PARTS = ("sift", "step", "driver", "rate")


@run_tool("benchmark_search.py")
def main() -> int:
    args = parse()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    if args.out:
        with user_errors(OSError):
            args.out.mkdir(parents=True, exist_ok=True)
            for part in args.parts:
                check_new(args.out / f"speed_{part}.json")
    for part in args.parts:
        found = MEASURE[part](args)
        if args.out:
            record = json.dumps({**machine("cpu"), "results": found}, indent=1)
            (args.out / f"speed_{part}.json").write_text(record + "\n")
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("-o", "--out", type=Path, help="folder for a new file of each part")
    parser.add_argument("--store", type=Path, help="OUTPUT_DIR of a search, for rate")
    parser.add_argument("--graphs", type=int, default=5000, metavar="N", help="for sift (5000)")
    parser.add_argument("--formulas", type=int, default=200, metavar="N", help="for step (200)")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="of a step (5)")
    parser.add_argument("--candidates", type=int, default=100_000, metavar="N", help="for driver")
    parser.add_argument("--cores", type=int, default=os.cpu_count(), metavar="N", help="for rate")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.parts = args.parts or PARTS
    for part in args.parts:
        if part not in PARTS:
            raise UserError(f"{part!r} is no part of a search; known are {', '.join(PARTS)}")
    for option in ("graphs", "formulas", "repeats", "candidates", "cores"):
        if getattr(args, option) < 1:
            raise UserError(f"--{option} is {getattr(args, option)}, but should be 1 at least")
    if "rate" in args.parts:
        if args.store is None:
            raise UserError("rate takes a search: name its OUTPUT_DIR with --store")
        if not (args.store / FILE).is_file():
            raise UserError(f"--store {args.store} holds no search: it has no {FILE}")
    return args


def sift(args: argparse.Namespace) -> dict[str, Any]:
    found = benchmark.sift(args.graphs, args.seed)
    for name, result in found.items():
        print(f"{name} space: {result['per_second']:.0f} graphs sifted a second on one core")
    return found


def step(args: argparse.Namespace) -> dict[str, Any]:
    formulas = benchmark.survivors(args.formulas, args.seed)

    def tell(line: str) -> None:
        print(line, file=sys.stderr)

    cfg = get_cfg()
    found = benchmark.step(cfg, load_data(Source()), formulas, args.repeats, args.seed, tell)
    for anchor, result in found.items():
        print(
            f"{anchor}: {result['median_ratio']:.2f} times a step with {benchmark.BASELINE} "
            f"({result['baseline_ms']:.1f} ms), the 90th percentile {result['ratio_90']:.2f}"
        )
    return found


def driver(args: argparse.Namespace) -> list[dict[str, float]]:
    with tempfile.TemporaryDirectory() as folder:
        cfg = get_cfg()
        cfg.CANDIDATES = args.candidates + benchmark.WORKERS  # so that all are at work to the end
        found = benchmark.driver(cfg, Path(folder), args.candidates, benchmark.WORKERS)
    for row in found[:1] + found[9:10] + found[99:100]:
        print(f"driver: {row['ms']:.2f} ms a candidate up to the {row['candidates']}th")
    return found


def rate(args: argparse.Namespace) -> dict[str, Any]:
    cfg = get_cfg()
    found = benchmark.rate(Store(args.store, read_only=True), args.cores)
    formulas = benchmark.survivors(min(args.formulas, 20), args.seed)
    found["gpu"] = benchmark.on_a_gpu(cfg, load_data(Source()), formulas)
    print(
        f"{found['per_hour']:.0f} candidates an hour on {args.cores} cores; sharing results saved "
        f"{100 * found['shared_of_all_seconds']:.0f} % of the time"
    )
    for anchor, row in found["gpu"]["anchors"].items():
        print(
            f"{anchor} on an H100, calculated: {row['alone_ms']:.2f} ms a step alone, "
            f"{row['shared_ms']:.3f} ms where processes share it"
        )
    return found


MEASURE = {"sift": sift, "step": step, "driver": driver, "rate": rate}

if __name__ == "__main__":
    sys.exit(main())
