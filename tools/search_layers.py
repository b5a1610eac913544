"""Search for normalization-activation layers with the paper's method, in small.

    search_layers.py run --config-file configs/search/small_s.yaml --at-once 2
    search_layers.py best output/search/small_s            the best ones, and the funnel
    search_layers.py export output/search/* table.jsonl.gz all candidates, a line each
    search_layers.py rebuild docs/results/search.jsonl.gz evolution_s output/search/evolution_s
                         a search's folder from such a table, to look at or to go on with
    search_layers.py replay output/search/small_s          draw all again, and compare
    search_layers.py rerank --config-file configs/search/rerank_small.yaml output/search/small_s
                         the best ten on larger networks; the best three of them are the result
    search_layers.py test --config-file configs/search/rerank_small.yaml output/search/small_s
                         these three beside known layers, on images that nothing saw before
    search_layers.py paper --gpus 8 output/search/paper_s /data/imagenet/train output/rerank
                         the best ten on ImageNet, as in section 5.2; --dry-run prints commands
    search_layers.py show output/search/small_s 117 -o graph.svg
                         all about a candidate; `best` shows the keys
    search_layers.py survey --config-file configs/search/small_s.yaml --random 2000
                         random layers beside BN-ReLU: the paper's figures 2 and 4
    search_layers.py compare output/search/*               figure 10: methods beside each other

What it finds is a formula, and a formula is a NORM: `MODEL.NORM "x * sigmoid(x) / rms_g(x)"`.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path

from evonorm import check_norm_act
from evonorm_runs.command_line import run_tool
from evonorm_runs.errors import UserError, user_errors
from evonorm_runs.files import atomic_write
from evonorm_runs.grid import run_jobs
from evonorm_search import compare, paper_size, rerank, survey
from evonorm_search.config import load_config
from evonorm_search.drawing import svg
from evonorm_search.plugins import load
from evonorm_search.rebuild import rebuild
from evonorm_search.replay import replay
from evonorm_search.search import run
from evonorm_search.show import describe
from evonorm_search.store import FILE, Store, best
from evonorm_search.table import read_table, summary, write_table

STAGES = {"quality": "of low quality", "stability": "unstable", "trained": "trained"}


@run_tool("search_layers.py", stopped="stopped; continue with --resume")
def main() -> int:
    args = parse()
    load(args.modules)
    if args.command == "run":
        cfg = load_config(args.config_file, args.opts)
        store = run(cfg, args.resume, at_once(args), args.ray)
        print_best(store, 3)
    elif args.command == "survey":
        check_counts(args, "random")
        cfg = load_config(args.config_file, args.opts)
        print(f"\n{survey.table(survey.survey(cfg, args.random, at_once(args), args.ray))}")
    elif args.command == "paper":
        train_at_papers_size(args)
    elif args.command == "compare":
        print_comparison(args)
    elif args.command == "show":
        show(args)
    elif args.command == "best":
        print_best(open_store(args.run), args.top)
    elif args.command == "replay":
        print(replay(open_store(args.run)))
    elif args.command == "rebuild":
        print_best(rebuild(args.table, args.search, args.out, args.opts), 3)
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
    parser.add_argument(
        "--import",
        action="append",
        default=[],
        dest="modules",
        metavar="MODULE",
        help="with ops, networks or scores of your own",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    command = commands.add_parser("run", help="search, or go on")
    add_config(command, "one of configs/search/")
    command.add_argument("--resume", action="store_true", help="go on with what is in OUTPUT_DIR")
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
    command = commands.add_parser("rebuild", help="a search's folder from an exported table")
    command.add_argument("table", type=Path, help="such as docs/results/search.jsonl.gz")
    command.add_argument("search", help="which one: its name in the table")
    command.add_argument("out", type=Path, metavar="OUTPUT_DIR", help="a new folder")
    command.add_argument("opts", nargs="*", metavar="KEY VALUE", help="such as PROXY.STEPS 800")
    command = commands.add_parser("rerank", help="the best candidates on larger networks")
    add_config(command, "such as rerank_small.yaml")
    command.add_argument("--top", type=int, default=10, metavar="N", help="layers (10)")
    add_trainings(command)
    command = commands.add_parser("test", help="the best of a rerank beside known layers")
    add_config(command, "that of the rerank")
    command.add_argument("--layers", nargs="+", metavar="NORM", help="in place of the best")
    command.add_argument("--images", type=int, default=2, metavar="N", help="per worker, too (2)")
    add_trainings(command)
    command = commands.add_parser("paper", help="rerank at the paper's size, on ImageNet")
    command.add_argument("--dry-run", action="store_true", help="print the commands only")
    command.add_argument("--top", type=int, default=10, metavar="N", help="layers (10)")
    command.add_argument("--seeds", type=int, default=1, metavar="N", help="trainings (1)")
    command.add_argument("--at-once", type=int, metavar="N", help="trainings at a time (1)")
    command.add_argument("--gpus", type=int, default=0, metavar="N", help="of each training (0)")
    command.add_argument("--ray", metavar="ADDRESS", help="train as tasks on a Ray cluster")
    command.add_argument("run", type=Path, help="OUTPUT_DIR of a search")
    command.add_argument("images", type=Path, help="ImageNet's train, a folder per class")
    command.add_argument("out", type=Path, help="folder of the runs and of links to the images")
    command.add_argument("opts", nargs="*", metavar="KEY VALUE", help="such as SOLVER.AMP True")
    command = commands.add_parser("show", help="all about a candidate")
    command.add_argument("run", type=Path, help="OUTPUT_DIR of a search")
    command.add_argument("key", type=int, help="of the candidate")
    command.add_argument("-o", dest="out", type=Path, metavar="SVG", help="draw its graph")
    command = commands.add_parser("survey", help="random layers, beside BN-ReLU")
    add_config(command, "one of configs/search/")
    command.add_argument("--random", type=int, required=True, metavar="N", help="how many")
    command.add_argument("--ray", metavar="ADDRESS", help="evaluate as tasks on a Ray cluster")
    command.add_argument("opts", nargs="*", metavar="KEY VALUE", help="such as OUTPUT_DIR FOLDER")
    command = commands.add_parser("compare", help="searches by the ten best as they go on")
    command.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="OUTPUT_DIR of a search")
    command.add_argument("--json", type=Path, metavar="OUT", help="write all points")
    return parser.parse_args()


def add_config(command: argparse.ArgumentParser, which: str) -> None:
    command.add_argument("--config-file", required=True, help=which)
    command.add_argument("--at-once", type=int, metavar="N", help="processes (1)")


def add_trainings(command: argparse.ArgumentParser) -> None:
    command.add_argument("--seeds", type=int, default=3, metavar="N", help="trainings (3)")
    command.add_argument("run", type=Path, help="OUTPUT_DIR of a search")
    command.add_argument("opts", nargs="*", metavar="KEY VALUE", help="such as PROXY.STEPS 800")


def open_store(folder: Path) -> Store:
    if not (folder / FILE).exists():
        raise UserError(f"{folder}: not the folder of a search, as it has no {FILE}")
    return Store(folder, read_only=True)


def at_once(args: argparse.Namespace) -> int:
    if args.at_once is None:
        return 1
    if getattr(args, "ray", None):
        raise UserError("--at-once is for one machine; with --ray the cluster decides")
    check_counts(args, "at_once")
    return args.at_once


def show(args: argparse.Namespace) -> None:
    store = open_store(args.run)
    rows = list(store.candidates())
    print(describe(rows, args.key, compare.config_of(store).ANCHORS))
    if args.out:
        graph = next(candidate.graph for candidate, _ in rows if candidate.key == args.key)
        with user_errors(OSError):
            args.out.write_text(svg(graph))


def print_comparison(args: argparse.Namespace) -> None:
    searches = [compare.read(open_store(folder)) for folder in args.runs]
    print("\n\n".join(compare.table(searches, key) for key in ("count", "seconds")))
    if args.json:
        found = {key: compare.compare(searches, key) for key in ("count", "seconds")}
        found["searches"] = [search._asdict() for search in searches]
        with user_errors(OSError), atomic_write(args.json) as file:
            file.write(json.dumps(found).encode() + b"\n")


def print_best(store: Store, top: int) -> None:
    """Print the funnel and the candidates with the best mean accuracy."""
    evaluated = (row for row in store.candidates() if row[0].same_as is None)
    stages = [result["stage"] for _, result in evaluated]
    counts = store.get("counts", {})
    print(f"\n{sum(counts.values())} graphs drawn")
    for stage, count in counts.items():
        print(f"  {count:>7} {stage}")
    for stage, words in STAGES.items():
        print(f"  {stages.count(stage):>7} {words}")
    print("\naccuracy, %: mean, each anchor   key   formula")
    for candidate, scores in best(store, top):
        each = " ".join(f"{100 * x:.1f}" for x in scores)
        mean = 100 * sum(scores) / len(scores)
        print(f"{mean:.1f}   {each}   {candidate.key}   {candidate.formula}")


def compare_trained(args: argparse.Namespace) -> None:
    """Of `rerank` and `test`: train what is missing, and print a table of all."""
    cfg = load_config(args.config_file, args.opts)
    store = open_store(args.run)
    check_counts(args, "seeds", *({"top", "images"} & vars(args).keys()))
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
    print(f"\n{rerank.table(rerank.run_jobs(cfg, args.run, wanted, at_once(args)))}")


def train_at_papers_size(args: argparse.Namespace) -> None:
    check_counts(args, "top", "seeds")
    layers = [candidate.formula for candidate, _ in best(open_store(args.run), args.top)]
    out = args.out.absolute()
    wanted = paper_size.runs(layers, args.seeds, out, args.opts)
    if args.dry_run:
        for run in wanted.values():
            print(shlex.join(["python", *run.command(args.gpus)]))
        return
    paper_size.split(args.images, out / "data")
    run_jobs(list(wanted.values()), at_once(args), args.gpus, args.ray)
    print(f"\n{rerank.table(paper_size.results(wanted))}")


def check_counts(args: argparse.Namespace, *names: str) -> None:
    for name in names:
        if getattr(args, name) < 1:
            option = name.replace("_", "-")
            raise UserError(f"--{option} is {getattr(args, name)}, but should be 1 at least")


if __name__ == "__main__":
    sys.exit(main())
