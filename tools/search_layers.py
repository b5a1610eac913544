"""Search for normalization-activation layers with the paper's method, in small.

    search_layers.py run --config-file configs/search/small_s.yaml --at-once 2
    search_layers.py best output/search/small_s            the best ones, and the funnel
    search_layers.py export output/search/* table.jsonl.gz all candidates, a line each
    search_layers.py replay output/search/small_s          draw all again, and compare
    search_layers.py rerank --config-file configs/search/rerank_small.yaml output/search/small_s
                         the best ten on larger networks; the best three of them are the result
    search_layers.py test --config-file configs/search/rerank_small.yaml output/search/small_s
                         these three beside known layers, on images that nothing saw before

What it finds is a formula, and a formula is a NORM: `MODEL.NORM "x * sigmoid(x) / rms_g(x)"`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from evonorm import check_norm_act
from evonorm_runs.command_line import run_tool
from evonorm_runs.errors import UserError, user_errors
from evonorm_search import rerank
from evonorm_search.config import load_config
from evonorm_search.replay import replay
from evonorm_search.search import run
from evonorm_search.store import FILE, Store, best
from evonorm_search.table import read_table, summary, write_table

STAGES = {"quality": "of low quality", "stability": "unstable", "trained": "trained"}


@run_tool("search_layers.py", stopped="stopped; continue with --resume")
def main() -> int:
    args = parse()
    if args.command == "run":
        cfg = load_config(args.config_file, args.opts)
        if args.at_once is not None and args.ray:
            raise UserError("--at-once is for one machine; with --ray the cluster decides")
        if args.at_once is not None and args.at_once < 1:
            raise UserError(f"--at-once is {args.at_once}, but should be 1 at least")
        store = run(cfg, args.resume, args.at_once or 1, args.ray)
        print_best(store, 3)
    elif args.command == "best":
        print_best(open_store(args.run), args.top)
    elif args.command == "replay":
        print(replay(open_store(args.run)))
    elif args.command == "export":
        write_table(args.runs, args.out)
        print(f"{args.out}: a line for each candidate\n\n{summary(read_table(args.out))}")
    else:
        compare_trained(args)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    command = commands.add_parser("run", help="search, or go on")
    command.add_argument("--config-file", required=True, help="one of configs/search/")
    command.add_argument("--resume", action="store_true", help="go on with what is in OUTPUT_DIR")
    command.add_argument("--at-once", type=int, metavar="N", help="processes (1)")
    command.add_argument("--ray", metavar="ADDRESS", help="evaluate as tasks on a Ray cluster")
    command.add_argument("opts", nargs="*", metavar="KEY VALUE", help="such as CANDIDATES 500")
    command = commands.add_parser("best", help="the best candidates, and the funnel")
    command.add_argument("run", type=Path, help="OUTPUT_DIR of a search")
    command.add_argument("--top", type=int, default=10, metavar="N", help="how many (10)")
    command = commands.add_parser("replay", help="draw again from the seed, and compare")
    command.add_argument("run", type=Path, help="OUTPUT_DIR of a search")
    command = commands.add_parser("export", help="all candidates of searches as JSON lines")
    command.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="OUTPUT_DIR of a search")
    command.add_argument("out", type=Path, metavar="OUT", help="a new file, such as table.jsonl.gz")
    for name, text in (
        ("rerank", "the best candidates on larger networks, with several seeds"),
        ("test", "the best of a rerank, or --layers, beside known layers on the final test part"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("--config-file", required=True, help="such as rerank_small.yaml")
        command.add_argument("--at-once", type=int, default=1, metavar="N", help="processes (1)")
        command.add_argument("--seeds", type=int, default=3, metavar="N", help="trainings (3)")
        if name == "rerank":
            command.add_argument("--top", type=int, default=10, metavar="N", help="layers (10)")
        else:
            command.add_argument("--layers", nargs="+", metavar="NORM", help="in their place")
            command.add_argument(
                "--images", type=int, default=2, metavar="N", help="per worker, beside all (2)"
            )
        command.add_argument("run", type=Path, help="OUTPUT_DIR of a search")
        command.add_argument("opts", nargs="*", metavar="KEY VALUE", help="such as PROXY.STEPS 800")
    return parser.parse_args()


def open_store(folder: Path) -> Store:
    if not (folder / FILE).exists():
        raise UserError(f"{folder}: not the folder of a search, as it has no {FILE}")
    return Store(folder, read_only=True)


def print_best(store: Store, top: int) -> None:
    """Print the funnel and the candidates with the best mean accuracy."""
    stages = [result["stage"] for candidate, result in store.candidates()]
    counts = store.get("counts", {})
    print(f"\n{sum(counts.values())} graphs drawn")
    for stage, count in counts.items():
        print(f"  {count:>7} {stage}")
    for stage, words in STAGES.items():
        print(f"  {stages.count(stage):>7} {words}")
    print("\naccuracy, %: mean, each anchor   formula")
    for candidate, scores in best(store, top):
        each = " ".join(f"{100 * x:.1f}" for x in scores)
        mean = 100 * sum(scores) / len(scores)
        print(f"{mean:.1f}   {each}   {candidate.formula}")


def compare_trained(args: argparse.Namespace) -> None:
    """Of `rerank` and `test`: train what is missing, and print a table of all."""
    cfg = load_config(args.config_file, args.opts)
    store = open_store(args.run)
    check_counts(args, "at_once", "seeds", *({"top", "images"} & vars(args).keys()))
    if args.command == "rerank":
        layers = [candidate.formula for candidate, _ in best(store, args.top)]
        if not layers:
            raise UserError(f"{args.run}: no candidate was trained to its end yet")
        wanted = rerank.jobs(layers, cfg.ANCHORS, args.seeds, "val")
    else:
        with user_errors(ValueError, prefix="--layers: "):
            for layer in args.layers or ():
                check_norm_act(layer)
        layers = [*(args.layers or rerank.winners(cfg, args.run)), *rerank.KNOWN]
        wanted = rerank.test_jobs(layers, cfg.ANCHORS, args.seeds, args.images)
    print_rows(rerank.run_jobs(cfg, args.run, wanted, args.at_once))


def check_counts(args: argparse.Namespace, *names: str) -> None:
    for name in names:
        if getattr(args, name) < 1:
            option = name.replace("_", "-")
            raise UserError(f"--{option} is {getattr(args, name)}, but should be 1 at least")


def print_rows(rows: list[rerank.Row]) -> None:
    networks = list(rows[0].networks)
    print(f"\naccuracy, %: mean, then {', '.join(networks)} with deviations; images per worker")
    for row in rows:
        each = "  ".join(
            f"{mean:.1f} ± {deviation:.1f}" for mean, deviation in row.networks.values()
        )
        print(f"{row.mean:.2f}   {each}   {row.images or 'all'}   {row.norm_act}")


if __name__ == "__main__":
    sys.exit(main())
