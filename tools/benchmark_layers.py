"""Measure the time and memory of EvoNorms, of native norms with ReLU or SiLU, and of a copy.

    python tools/benchmark_layers.py                   # Mask R-CNN and BigGAN-deep 128, float32
    python tools/benchmark_layers.py --shapes mask-rcnn-heads --dtype bfloat16 --json result.json
    python tools/benchmark_layers.py --growth --plot growth.png      # 1e5 to 1e8 elements
    python tools/benchmark_layers.py --norms FRN "x * tanh(v1 * x) / std_g(x)"   # layers you name

The layers take turns, one call each per repetition, so that other work of the machine slows all of
them alike. Times are medians; the JSON file has the quartiles too, and tools/plot_benchmark.py
draws it. The forward pass alone is in evaluation mode. The shapes of BigGAN are those of its
conditional layers, with a weight and bias per sample.

On a GPU that is the time of its kernels; the JSON file has the host's apart, in microseconds.

S0/GN, B0/BN: our time over that of the native norm with an in-place ReLU.
timm/S0, timm/B0: timm's time over ours.
of copy: the bandwidth as a share of the copy's. It counts the bytes that the best schedule moves:
each tensor once, and again for the output if the values that share a statistic exceed what a
multiprocessor or core holds.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from evonorm import check_norm_act
from evonorm_repro.benchmark.layers import (
    SHAPES,
    chosen_shapes,
    common_options,
    machine,
    measure,
    set_up,
    table,
)
from evonorm_repro.benchmark.plot import check_new, check_plot, draw
from evonorm_runs.command_line import run_tool
from evonorm_runs.errors import UserError, user_errors


@run_tool("benchmark_layers.py")
def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = ["mask-rcnn-1", "mask-rcnn-2", "mask-rcnn-heads", "biggan-128"]
    names = f"any of {', '.join(sorted(SHAPES))} (default: {' '.join(default)})"
    parser.add_argument("--shapes", nargs="+", default=default, metavar="NAME", help=names)
    parser.add_argument(
        "--norms", nargs="+", metavar="NORM", help="these names and formulas instead of EvoNorms"
    )
    parser.add_argument("--growth", action="store_true", help="measure growing inputs instead")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--repeats", type=int, default=15, help="of each call (default 15)")
    parser.add_argument("--compile", action="store_true", help="also torch.compile of timm's")
    parser.add_argument("--plot", type=Path, help="draw the result: a new .png, .svg or .pdf")
    common_options(parser)
    args = parser.parse_args()
    if args.norms and (args.growth or args.plot):
        raise UserError("--norms goes without --growth and --plot, which draw fixed sets of layers")
    with user_errors(ValueError, OSError):
        set_up(args)
        for norm in args.norms or ():
            check_norm_act(norm)
        sets = chosen_shapes(args)
        for path, check in ((args.json, check_new), (args.plot, check_plot)):
            if path:
                check(path)
    about = {**machine(args.device), "dtype": args.dtype, "channels_last": args.channels_last}
    record = {**about, "repeats": args.repeats, "results": []}
    for model, shapes in sets.items():
        for shape in shapes:
            print(f"{model} {shape}", file=sys.stderr)
            record["results"] += measure(model, shape, args)
            if args.json:  # after each shape, as a machine may be lent for some minutes only
                args.json.write_text(json.dumps(record, indent=1) + "\n")
    print(table(record["results"]))
    if args.plot:
        draw(record, args.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
