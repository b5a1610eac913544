"""Write a report over runs as one HTML file: curves, results, pictures, settings.

  report.py output/demo                          all runs below a folder
  report.py output/GN output/EvoNormS0 -o o.html

The file holds all that it shows, and needs no network. An earlier report of that name is replaced.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from evonorm_repro.report import write_report
from evonorm_runs.command_line import run_tool


@run_tool("report.py")
def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN_OR_FOLDER", help="runs, or folders of runs"
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("report.html"), help="default: report.html"
    )
    args = parser.parse_args()
    write_report(args.runs, args.output)
    print(f"{args.output}: {args.output.stat().st_size / 1e6:.1f} MB; open it in a browser")
    return 0


if __name__ == "__main__":
    sys.exit(main())
