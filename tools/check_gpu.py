"""Check the kernels on a machine with a GPU: tests, speed of layers, training, beside the targets.

    PYTHONPATH=. python3 tools/check_gpu.py OUT                 # all parts that are not in OUT yet
    PYTHONPATH=. python3 tools/check_gpu.py OUT --part tests --part layers-bf16
    PYTHONPATH=. python3 tools/check_gpu.py OUT --part summary  # of the files in OUT; needs no GPU
    PYTHONPATH=. python3 tools/check_gpu.py OUT --device cpu --tiny    # a rehearsal

It needs PyTorch with Triton, and takes what else is there: timm, pytest, pytest-xdist, Detectron2.
Nothing is installed or downloaded. A part takes at most nine minutes, has a process of its own, and
writes OUT/PART.json with every result. After each part OUT/summary.md is written anew, with a
verdict per row. A part that is named is measured again, and its file replaced.

machine: versions, GPUs, bandwidth of a copy. tests: those of the kernels, in parallel
(tests.log has what pytest prints).
layers-bf16, layers-compile (beside timm's layers by torch.compile), layers-float32,
layers-channels-last (bfloat16), growth (1e5 to 1e8 elements): as tools/benchmark_layers.py.
biggan-64, biggan-128, mask-rcnn (R-50-FPN): iterations as in tools/benchmark_training.py, in
float32 and by autocast in bfloat16. several-gpus: synchronised layers and iterations with NCCL.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from evonorm_repro.benchmark.gpu_parts import PARTS
from evonorm_repro.benchmark.gpu_summary import summarize
from evonorm_repro.benchmark.part import COMPLETE, read, run
from evonorm_runs.command_line import run_tool
from evonorm_runs.errors import UserError, user_errors

SUMMARY = "summary"


@run_tool("check_gpu.py", stopped="stopped; the same command goes on with the parts that are left")
def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="a folder")
    parser.add_argument(
        "--part", action="append", metavar="NAME", help=f"{', '.join(PARTS)} or {SUMMARY}"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="shapes of milliseconds")
    args = parser.parse_args()
    names = args.part or [name for name in PARTS if not is_complete(args.out, name)]
    for name in names:
        if name not in (*PARTS, SUMMARY):
            known = ", ".join([*PARTS, SUMMARY])
            raise UserError(f"--part: {name!r} is not known; known are {known}")
    if args.device == "cuda" and not torch.cuda.is_available() and set(names) - {SUMMARY}:
        raise UserError(
            "PyTorch sees no GPU; `--device cpu --tiny` rehearses the parts without one"
        )
    with user_errors(OSError):
        args.out.mkdir(parents=True, exist_ok=True)
    for name in names:
        if name != SUMMARY:
            print(f"{name}: {run(PARTS[name], name, args.out, args.device, args.tiny)}", flush=True)
        page = summarize(args.out)
        with user_errors(OSError):
            (args.out / "summary.md").write_text(page)
    print(summarize(args.out))
    return 0


def is_complete(out: Path, name: str) -> bool:
    record = read(out, name)
    return record is not None and record.get("ended") == COMPLETE


if __name__ == "__main__":
    sys.exit(main())
