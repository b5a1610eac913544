"""Draw the predictions of a run next to the ground truth, as one PNG."""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

from PIL import Image

with warnings.catch_warnings():
    # Importing Detectron2 warns that TorchScript is deprecated; nothing a user could act on.
    warnings.simplefilter("ignore", FutureWarning)
    from evonorm_d2.data import register_embedded
    from evonorm_d2.visualize import draw_sheet
    from evonorm_runs.command_line import run_tool
    from evonorm_runs.errors import user_errors


@run_tool("visualize.py")
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="OUTPUT_DIR of a run that was evaluated")
    parser.add_argument("-o", "--output", type=Path, help="the sheet (default: sheet.png in run)")
    parser.add_argument("--num", type=int, default=8, help="number of images (default: 8)")
    parser.add_argument(
        "--score-threshold", type=float, default=0.5, help="least score to draw (default: 0.5)"
    )
    args = parser.parse_args()
    output = args.output or args.run / "sheet.png"
    if args.num < 1:
        parser.error(f"--num must be at least 1, got {args.num}")
    register_embedded()
    sheet = draw_sheet(args.run, args.num, args.score_threshold)
    with user_errors(OSError, ValueError, prefix=f"{output}: "):
        Image.fromarray(sheet.permute(1, 2, 0).numpy()).save(output)
    print(f"{output}: pairs of ground truth (left) and predictions (right)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
