"""Measure IS, FID, KID, precision, recall, density, coverage of images, or print table 5.

  eval_gan.py output/gan/digits                           a run's newest checkpoint (or a file)
  eval_gan.py --config-file configs/gan/digits.yaml X     X: a folder, .zip or .npz of images
  eval_gan.py --config-file configs/gan/digits.yaml --real-val
  eval_gan.py --table output/gan/*                        table 5 of the paper over run folders

With several GPUs: torchrun --nproc_per_node=8 tools/eval_gan.py ...
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode

from evonorm_gan.checkpoint import TAG, find_checkpoint, load_generator
from evonorm_gan.config import finish_config, load_config
from evonorm_gan.data import open_dataset
from evonorm_gan.evaluation.curve import draw_curve, truncation_curve
from evonorm_gan.evaluation.metrics import Evaluator
from evonorm_gan.sampling import TRUNCATE_BY, check_statistics
from evonorm_repro.table5 import format_table, table
from evonorm_runs import distributed
from evonorm_runs.command_line import run_tool
from evonorm_runs.config import value as config_value
from evonorm_runs.distributed import process_flags
from evonorm_runs.errors import UserError, user_errors
from evonorm_runs.files import atomic_write
from evonorm_runs.images.files import image_batches


def truncations(text: str) -> list[float | None]:
    return [None if part == "none" else truncation(part) for part in text.split(",")]


def truncation(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError
    return value


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "arguments",
        nargs="*",
        metavar="[INPUT] KEY VALUE ...",
        help="what to evaluate, then config keys, such as DATA.ROOT imagenet/train",
    )
    parser.add_argument(
        "--config-file", help="names real data and extractor (default: the checkpoint's)"
    )
    parser.add_argument("--real-val", action="store_true", help="rate the real images of val")
    parser.add_argument(
        "--reference",
        help="real images, or an .npz of TTUR or ADM with their statistics (TEST.REFERENCE)",
    )
    parser.add_argument("--num-samples", type=int, help="default: TEST.NUM_SAMPLES")
    parser.add_argument("--seed", type=int, default=0, help="for z and the classes (default: 0)")
    parser.add_argument("--truncation", type=truncation, help="of z (default: TEST.TRUNCATION)")
    parser.add_argument(
        "--truncate-by",
        choices=TRUNCATE_BY,
        help="resample: draw z again outside of +-TRUNCATION; scale: TRUNCATION times a z within "
        "+-2 (default: the checkpoint's TEST.TRUNCATE_BY; scale for released weights)",
    )
    parser.add_argument("--no-ema", action="store_true", help="use the weights without averaging")
    parser.add_argument("--inception-weights", help="a file (default: torch-fidelity's)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here too")
    parser.add_argument(
        "--truncation-curve",
        type=truncations,
        metavar="T1,T2,...",
        help="draw IS against FID over these truncations, such as 0.2,0.5,1,none; needs --output",
    )
    parser.add_argument(
        "-o", "--output", type=Path, help="the curve's picture; its numbers go into a .json"
    )
    parser.add_argument("--table", type=Path, nargs="+", metavar="RUN", help="folders of runs")
    args = parser.parse_intermixed_args()
    # KEY VALUE are pairs, so an odd number of arguments begins with the input.
    odd = len(args.arguments) % 2
    args.input = Path(args.arguments[0]) if odd else None
    args.opts = args.arguments[odd:]
    others = [value for key, value in vars(args).items() if key not in ("table", "json")]
    if args.table and any(others):
        parser.error("--table goes with --json only")
    if not 0 <= args.seed < 2**63:
        parser.error(f"--seed is {args.seed}, but should not be negative, or huge")
    if (args.input is not None) + args.real_val + (args.table is not None) != 1:
        parser.error("give one of INPUT, --real-val and --table")
    if (args.truncation_curve is None) != (args.output is None):
        parser.error("--truncation-curve and --output go together")
    return args


def options(args: argparse.Namespace) -> list[str]:
    """The KEY VALUE pairs, and the options that stand for config keys as such pairs."""
    keys = {
        "TEST.REFERENCE": args.reference,
        "TEST.NUM_SAMPLES": args.num_samples,
        "TEST.TRUNCATION": args.truncation,
        "TEST.TRUNCATE_BY": args.truncate_by,
        "TEST.INCEPTION_WEIGHTS": args.inception_weights,
    }
    return [str(x) for key, x in keys.items() if x is not None for x in (key, x)] + args.opts


def is_checkpoint(path: Path) -> bool:
    if path.is_dir():
        return (path / TAG).exists() or (path / "config.yaml").exists()
    return path.suffix not in (".npz", ".zip")


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """The results, and what was evaluated. All processes take part."""
    if args.input is not None and is_checkpoint(args.input):
        return evaluate_generator(args)
    generator_only = {"--truncation": args.truncation, "--truncation-curve": args.truncation_curve}
    generator_only |= {"--no-ema": args.no_ema, "--num-samples": args.num_samples}
    generator_only |= {"--truncate-by": args.truncate_by}
    for name, given in generator_only.items():
        if given:
            raise UserError(f"{name} is for generators, but {args.input or '--real-val'} is none")
    if args.config_file is None:
        raise UserError("--config-file is missing: it names the real images to compare with")
    cfg = load_config(args.config_file, options(args))
    if args.real_val:
        val = open_dataset(cfg, "val")
        loader = torch.utils.data.DataLoader(
            val,
            cfg.TEST.BATCH_SIZE,
            num_workers=0 if val.images is not None else cfg.DATA.NUM_WORKERS,
        )
        batches = (images for images, _ in loader)
    else:
        if not args.input.exists():
            raise UserError(f"{args.input}: there is no such file or folder")
        batches = image_batches(
            args.input, cfg.MODEL.RESOLUTION, cfg.TEST.BATCH_SIZE, cfg.DATA.NUM_WORKERS
        )
    evaluator = make_evaluator(cfg)
    what = {"images": "real images, split val" if args.real_val else str(args.input)}
    return {**what, **about(evaluator), **evaluator.evaluate_images(batches)}


def evaluate_generator(args: argparse.Namespace) -> dict[str, Any]:
    path = find_checkpoint(args.input)
    G, own, _, step = load_generator(path, not args.no_ema)
    if args.config_file is not None:
        # How z is truncated belongs to the weights, not to the real images.
        by = ["TEST.TRUNCATE_BY", own.TEST.TRUNCATE_BY]
        cfg = load_config(args.config_file, [*by, *options(args)])
    else:
        cfg = own.clone()
        cfg.defrost()
        cfg.DEVICE = ""  # this machine's
        finish_config(cfg, options(args))
    named = {key for key in args.opts[::2] if key.startswith("MODEL.")}
    for key in sorted({"MODEL.RESOLUTION", "MODEL.NUM_CLASSES"} | named):
        ours, theirs = (config_value(config, key) for config in (own, cfg))
        if ours != theirs:
            raise UserError(f"{path}: its {key} is {ours}, not {theirs}")
    for value in args.truncation_curve or [cfg.TEST.TRUNCATION]:
        check_statistics(G, own, cfg.TEST.STANDING_BATCHES, value, cfg.TEST.TRUNCATE_BY)
    evaluator = make_evaluator(cfg)
    if args.truncation_curve and not evaluator.extractor.has_classes:
        raise UserError(f"--truncation-curve needs IS, which {cfg.TEST.EXTRACTOR} does not give")
    G.to(evaluator.extractor.device)
    what = {"checkpoint": str(path), "step": step, "ema": not args.no_ema, "seed": args.seed}
    what |= {"samples": cfg.TEST.NUM_SAMPLES, **about(evaluator)}
    what |= {"truncate_by": cfg.TEST.TRUNCATE_BY}
    if args.truncation_curve is None:
        results = evaluator.evaluate(G, args.seed)
        return {**what, "truncation": cfg.TEST.TRUNCATION, **results}
    rows = truncation_curve(evaluator, G, args.truncation_curve, args.seed)
    if distributed.is_main():
        write_json(args.output.with_suffix(".json"), {**what, "curve": rows})
        with user_errors(OSError, ValueError, prefix=f"{args.output}: "):
            draw_curve(rows, cfg.TEST.EXTRACTOR, args.output)
    return {**what, "curve": rows}


def make_evaluator(cfg: CfgNode) -> Evaluator:
    device = distributed.init(cfg.DEVICE)
    train = cfg.TEST.REFERENCE == "train"
    evaluator = Evaluator(cfg, open_dataset(cfg) if train else None, device)
    if distributed.is_main():
        print("\n".join(evaluator.about), file=sys.stderr)
    return evaluator


def about(evaluator: Evaluator) -> dict[str, str]:
    extractor = evaluator.extractor
    about = {"reference": evaluator.cfg.TEST.REFERENCE}
    return {**about, "extractor": extractor.name, "weights sha256": extractor.digest}


def write_json(path: Path, results: Any) -> None:
    with user_errors(OSError, prefix=f"{path}: "):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(json.dumps(results, indent=1).encode() + b"\n")


def run(args: argparse.Namespace) -> None:
    if args.output and args.output.suffix not in (".png", ".svg", ".pdf"):
        raise UserError(f"{args.output}: name the picture .png, .svg or .pdf")
    beside = args.output.with_suffix(".json") if args.output else None
    for path in (args.json, args.output, beside):
        if path is not None and path.exists():
            raise UserError(f"{path} exists: name another file, or delete it first")
    if args.table:
        rows = table(args.table)
        print(format_table(rows))
        results: Any = rows
    else:
        results = evaluate(args)
        if distributed.is_main():
            print(json.dumps(results))
    if args.json and distributed.is_main():
        write_json(args.json, results)
    distributed.shut_down()


@run_tool("eval_gan.py")
@process_flags(cudnn_benchmark=False)
def main() -> int:
    args = parse()
    logging.basicConfig(format="%(message)s")
    run(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
