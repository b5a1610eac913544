"""Count what the GPU kernels need, in the machine code that Triton makes of them. No GPU is needed.

    python tools/count_kernels.py                          # Mask R-CNN and BigGAN-deep, bfloat16
    python tools/count_kernels.py --shapes mask-rcnn-heads --sm 90 --channels-last --json OUT.json
    python tools/count_kernels.py --host                   # the host's time of a call instead

A row is a pass of training: the bytes that must move, the microseconds that a copy of them takes
(3 TB/s on an H100, 1.75 TB/s on an A100), and the floor: the microseconds below which the launches
can't come, as their instructions have to be issued (4 a clock in each multiprocessor) and as the
units for special functions and for memory take fewer. A floor below the copy's time means that the
memory is the limit. Registers, spilled and shared bytes are those of each launch, joined by +.
What is not counted: waiting, launching (2 to 4 microseconds each), and the last, partial wave.

With --host, the microseconds that Python, PyTorch and Triton take for a forward and a backward pass
in which nothing is launched, and those of GroupNorm or BatchNorm with ReLU on a tiny map.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from evonorm.ops.reference import KINDS
from evonorm_repro.benchmark.layers import SHAPES, align
from evonorm_repro.benchmark.plot import check_new
from evonorm_runs.command_line import run_tool
from evonorm_runs.errors import UserError, user_errors
from evonorm_runs.machine import commit, versions


@run_tool("count_kernels.py")
def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = ["mask-rcnn-1", "mask-rcnn-heads", "biggan-128"]
    names = f"any of {', '.join(sorted(SHAPES))} (default: {' '.join(default)})"
    parser.add_argument("--shapes", nargs="+", default=default, metavar="NAME", help=names)
    parser.add_argument("--kinds", nargs="+", default=["S0", "B0"], choices=KINDS)
    parser.add_argument("--sm", nargs="+", type=int, default=[80, 90], choices=(80, 90))
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--host", action="store_true", help="time the host instead")
    parser.add_argument("--json", type=Path, metavar="OUT", help="a new file for the result")
    args = parser.parse_args()
    unknown = sorted(set(args.shapes) - set(SHAPES))
    if unknown:
        raise UserError(f"--shapes: no {unknown[0]}; there are {', '.join(sorted(SHAPES))}")
    try:
        from evonorm_repro.benchmark import counts, host
    except ImportError as error:
        raise UserError(f"Triton is needed, `pip install triton`: {error}") from error
    rows = []
    with user_errors(OSError):
        if args.json:
            check_new(args.json)
        for sm in [] if args.host else args.sm:
            for model in args.shapes:
                for shape in SHAPES[model]:
                    print(f"sm_{sm} {model} {shape}", file=sys.stderr)
                    for kind in args.kinds:
                        chosen = (model, shape, kind, getattr(torch, args.dtype))
                        rows += counts.measure(*chosen, args.channels_last, sm)
    if args.host:
        rows = host.measure(args.sm[-1], counts.GPUS[args.sm[-1]].processors)
    print("\n".join(align(host.as_table(rows) if args.host else counts.as_table(rows))))
    if args.json:
        about = {"command": " ".join(["python", *sys.argv]), "versions": versions(("triton",))}
        about |= {"commit": commit(), "dtype": args.dtype}
        about["gpus"] = {sm: counts.GPUS[sm]._asdict() for sm in args.sm}
        args.json.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
