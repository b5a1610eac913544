"""Reproduce one of the paper's tables, in small on the embedded digits or at the paper's size.

Each run has a folder of its own below --out. The same command again continues unfinished runs.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
import warnings
from functools import partial
from pathlib import Path

import torch

from evonorm import check_norm_act
from evonorm_repro.costs import describe, in_full
from evonorm_repro.experiment import Experiment
from evonorm_repro.present import as_table, as_text
from evonorm_repro.reproduction import reproduce
from evonorm_repro.tables import SCALES, TABLES
from evonorm_runs import machine
from evonorm_runs.command_line import run_tool
from evonorm_runs.errors import UserError, user_errors
from evonorm_runs.files import atomic_write
from evonorm_runs.grid import run_jobs

LIBRARIES = ("torchvision", "numpy")  # in addition to torch


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", choices=sorted(TABLES))
    parser.add_argument("--scale", choices=SCALES, default="small")
    models = "; ".join(f"{name}: {', '.join(t.models)}" for name, t in sorted(TABLES.items()))
    parser.add_argument("--model", help=f"by default the first of {models}")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="3 by default")
    parser.add_argument("--norms", nargs="+", metavar="NORM", help="by default the paper's rows")
    parser.add_argument(
        "--lrs",
        nargs="+",
        type=float,
        metavar="X",
        help="multiples of the config's learning rate to choose from; by default 0.5 1 2, "
        "for classifiers 4 and 8 too, at the paper's size 1",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="by default output/reproduce/TABLE_SCALE"
    )
    parser.add_argument("--at-once", type=int, default=1, metavar="N", help="runs at a time")
    parser.add_argument(
        "--gpus",
        type=int,
        metavar="N",
        help="GPUs for each run; by default one in small, at the paper's size all there are",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the runs' commands, images and GPU hours"
    )
    parser.add_argument(
        "--images-per-second",
        type=float,
        metavar="X",
        help="what one GPU of yours trains with this model, for the GPU hours of --dry-run",
    )
    parser.add_argument("--ray", metavar="ADDRESS", help="run as tasks on a Ray cluster")
    parser.add_argument(
        "opts",
        nargs="*",
        metavar="KEY VALUE",
        help="config keys of all runs, such as DATA.ROOT; not directly behind --norms or --lrs",
    )
    return parser.parse_intermixed_args()


@run_tool("reproduce.py", stopped="stopped; the same command goes on")
def main() -> int:
    args = parse()
    check(args)
    with warnings.catch_warnings():
        # Importing Detectron2 warns that TorchScript is deprecated.
        warnings.simplefilter("ignore", FutureWarning)
        text, complete = (costs if args.dry_run else run)(args)
    print(text)
    return 0 if complete else 1


def check(args: argparse.Namespace) -> None:
    models = TABLES[args.table].models
    args.model = args.model or models[0]
    if args.model not in models:
        raise UserError(f"--model {args.model}: {args.table} has {', '.join(models)}")
    with user_errors(ValueError, prefix="--norms: "):
        rows = TABLES[args.table](args.scale, args.model).norms
        for norm in args.norms or ():
            if norm not in rows:
                check_norm_act(norm)
    for name in ("seeds", "at_once"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1")
    if not all(0 < factor < math.inf for factor in args.lrs or ()):
        raise UserError("--lrs must be positive")
    if args.images_per_second is not None and not 0 < args.images_per_second < math.inf:
        raise UserError("--images-per-second must be positive")
    if args.images_per_second is not None and not args.dry_run:
        raise UserError("--images-per-second is for --dry-run")
    if len(args.opts) % 2:
        raise UserError(f"KEY VALUE on the command line: {args.opts[-1]} has no value")
    check_gpus(args)
    name = args.table if args.model == models[0] else f"{args.table}_{args.model}"
    args.out = (args.out or Path(f"output/reproduce/{name}_{args.scale}")).absolute()
    if not args.dry_run:
        with user_errors(OSError, prefix="--out: "):
            args.out.mkdir(parents=True, exist_ok=True)


def check_gpus(args: argparse.Namespace) -> None:
    if args.ray:
        if args.at_once > 1:
            raise UserError("--at-once is for one machine; a Ray cluster takes what fits on it")
        if args.gpus is None and args.scale == "paper":
            raise UserError("--ray at the paper's size: say how many GPUs a run takes with --gpus")
        args.gpus = args.gpus or 0
        return
    count = torch.cuda.device_count()
    if args.gpus is None:
        args.gpus = count // args.at_once if args.scale == "paper" else min(1, count)
    if not 0 <= args.gpus * args.at_once <= count:
        raise UserError(
            f"--gpus {args.gpus} times --at-once {args.at_once}: PyTorch sees {count} GPUs here"
        )


def chosen(args: argparse.Namespace) -> tuple[Experiment, list[str]]:
    """The table and its rows."""
    experiment = TABLES[args.table](args.scale, args.model)
    if args.lrs or args.scale == "paper":
        experiment.factors = tuple(args.lrs or (1.0,))
        experiment.widen = False
    return experiment, list(dict.fromkeys(args.norms or experiment.norms))


def costs(args: argparse.Namespace) -> tuple[str, bool]:
    """What --dry-run prints."""
    experiment, norms = chosen(args)
    options = args.seeds, args.out, args.opts, args.gpus, args.images_per_second
    table = TABLES[args.table]
    others = [table(args.scale, x) for x in table.models if x != args.model]
    lines = [in_full(other, norms, args.seeds, args.opts) for other in others]
    more = ["", "The other models, by --model:", *lines] if lines else []
    return "\n".join([describe(experiment, norms, *options), *more]), True


def run(args: argparse.Namespace) -> tuple[str, bool]:
    """Do all runs and write results.json and table.json.

    Returns:
        the table as text, and whether each of its figures has a run.
    """
    experiment, norms = chosen(args)
    grid = partial(run_jobs, at_once=args.at_once, gpus=args.gpus, ray_address=args.ray)
    results = reproduce(experiment, norms, args.seeds, args.out, grid, args.opts)
    table = as_table(experiment, results)
    about = {
        "command": shlex.join(["tools/reproduce.py", *sys.argv[1:]]),
        "machine": machine.machine(),
        "versions": machine.versions(LIBRARIES),
        "title": experiment.title,
    }
    for name, content in (("results.json", about | results), ("table.json", table)):
        with atomic_write(args.out / name) as file:
            file.write(json.dumps(content, indent=2).encode() + b"\n")
    return f"{as_text(table)}\n\n{args.out}/results.json", all(r["seeds"] for r in results["rows"])


if __name__ == "__main__":
    sys.exit(main())
