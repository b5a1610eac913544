"""Search for normalization-activation layers with the paper's method, in small.

    search_layers.py run --config-file configs/search/small_s.yaml --at-once 2
    search_layers.py best output/search/small_s            the best ones, and the funnel
    search_layers.py export output/search/small_s a.jsonl  all candidates, a line each

What it finds is a formula, and a formula is a NORM: `MODEL.NORM "x * sigmoid(x) / rms_g(x)"`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from evonorm_runs.command_line import run_tool
from evonorm_runs.errors import UserError, user_errors
from evonorm_search.config import load_config
from evonorm_search.search import run
from evonorm_search.store import FILE, Store, best

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
        show(store, 3)
    elif args.command == "best":
        show(open_store(args.run), args.top)
    else:
        export(open_store(args.run), args.out)
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
    command = commands.add_parser("export", help="all candidates as JSON lines")
    command.add_argument("run", type=Path, help="OUTPUT_DIR of a search")
    command.add_argument("out", type=Path, help="a new file")
    return parser.parse_args()


def open_store(folder: Path) -> Store:
    if not (folder / FILE).exists():
        raise UserError(f"{folder}: not the folder of a search, as it has no {FILE}")
    return Store(folder)


def show(store: Store, top: int) -> None:
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


def export(store: Store, out: Path) -> None:
    with user_errors(OSError), open(out, "x") as file:
        for candidate, result in store.candidates():
            row = candidate._replace(fingerprint=candidate.fingerprint.hex())._asdict()
            file.write(json.dumps({**row, **result}) + "\n")
    print(f"{out}: a line for each candidate")


if __name__ == "__main__":
    sys.exit(main())
