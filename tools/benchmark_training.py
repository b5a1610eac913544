"""Seconds per training iteration with BN, GN, EvoNorm-B0, EvoNorm-S0 and with no norm-act.

    python tools/benchmark_training.py --model mask-rcnn-digits --json result.json
    python tools/benchmark_training.py --model biggan-64 MODEL.G_CH 64 MODEL.D_CH 64
    python tools/benchmark_training.py --model mask-rcnn-r50-256 --memory

Each model is trained on one random batch, by the same steps as in a real training. The norms
take turns, an iteration each per repetition, so that other work of the machine slows all of them
alike. Times are medians with quartiles. The ratios are medians of the ratios within a repetition.

"EvoNormS0 recomputed" computes the layers' outputs again in the backward pass, "EvoNormS0
checkpointed" each residual block of the backbone or the generator (torch.utils.checkpoint). "free"
has nothing in the place of EvoNorm-S0: no layer can be faster.

With --memory it measures, not seconds, the most bytes that an iteration allocates at a time beside
the weights and the optimizer's state, and those that it keeps for the backward pass.

mask-rcnn-digits: configs/detection/digits.
mask-rcnn-r50-256: configs/detection/stock (R-50-FPN, 1x) with 2 images of 256x256. In both models
there are as many objects as the heads sample, so that all norms have the same work.
biggan-32, biggan-64: configs/gan/digits.yaml, 16 images. An iteration is a step of the
discriminator and a step of the generator.
biggan-128: configs/gan/imagenet128.yaml, 32 images, for a GPU. Two steps of the discriminator.
timm/NAME: a classifier of timm with EvoNorms, such as resnetv2_50d_evos, on two images: a
training iteration and an evaluation with timm's layers, and with ours in their place.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings

from evonorm_repro.benchmark.layers import common_options, machine, set_up
from evonorm_repro.benchmark.plot import check_new
from evonorm_repro.benchmark.training import (
    DETECTORS,
    GANS,
    NORMS,
    TIMM,
    build_steps,
    measure,
    memory,
    memory_table,
    report,
    table,
)
from evonorm_runs.command_line import run_tool
from evonorm_runs.distributed import process_flags


@run_tool("benchmark_training.py", kinds=(ValueError, OSError))
@process_flags(cudnn_benchmark=False)
def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ", ".join([*DETECTORS, *GANS, f"{TIMM}NAME"])
    parser.add_argument("--model", required=True, metavar="NAME", help=names)
    parser.add_argument("--repeats", type=int, default=20, help="iterations (default 20)")
    parser.add_argument("--norms", nargs="+", default=NORMS, choices=NORMS, help="fewer of them")
    parser.add_argument("--memory", action="store_true", help="what is kept, instead of seconds")
    common_options(parser)
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="change the config")
    args = parser.parse_args()
    set_up(args)
    if args.model not in (*DETECTORS, *GANS) and not args.model.startswith(TIMM):
        raise ValueError(f"--model: {args.model!r} is not known; known are {names}")
    if args.model.startswith(TIMM) and args.norms != NORMS:
        raise ValueError(f"--norms is not for {TIMM}NAME, which has rows of its own")
    if args.json:
        check_new(args.json)
    with warnings.catch_warnings():
        # Importing Detectron2 warns that TorchScript is deprecated; nothing to act on.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", "torch.meshgrid")
        steps = build_steps(args.model, args.device, args.overrides, args.norms)
        record = {**machine(args.device), "model": args.model, "overrides": args.overrides}
        if args.memory:
            record["results"] = memory(steps, args.device)
            print(memory_table(record["results"]))
        else:
            times, peaks = measure(steps, args.repeats, args.device)
            record |= {"repeats": args.repeats, **report(times, peaks)}
            print(table(record))
    if args.json:
        args.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
