"""Make the embedded data set, scenes of real handwritten digits, as a COCO json and PNGs."""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

with warnings.catch_warnings():
    # Importing Detectron2 warns that TorchScript is deprecated; nothing a user could act on.
    warnings.simplefilter("ignore", FutureWarning)
    from evonorm_d2.data import default_folder, write_digits
    from evonorm_runs.command_line import run_tool


@run_tool("make_digits.py", kinds=(ValueError, OSError))
def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=default_folder(), help="folder to make")
    parser.add_argument("--train", type=int, default=1200, help="number of training images")
    parser.add_argument("--val", type=int, default=200, help="number of validation images")
    parser.add_argument("--size", type=int, default=128, help="side of an image in pixels")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same bytes")
    args = parser.parse_args()
    made = write_digits(args.out, args.train, args.val, args.size, args.seed)
    print(f"{args.out}: {'written' if made else 'already there'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
