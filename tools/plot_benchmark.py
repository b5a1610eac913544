"""Draw a result of tools/benchmark_layers.py.

    python tools/plot_benchmark.py docs/results/layers_cpu.json -o layers.png

For layers by shape it draws the time relative to the native norm with ReLU (the line at 1), with
whiskers at the quartiles. For growing inputs it draws the time, and the time per element, against
the number of elements.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from evonorm_repro.benchmark.plot import check_plot, draw, read
from evonorm_runs.command_line import run_tool


@run_tool("plot_benchmark.py", kinds=(ValueError, OSError))
def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("result", type=Path, help="what benchmark_layers.py --json wrote")
    parser.add_argument("-o", "--out", type=Path, required=True, help="a new .png, .svg or .pdf")
    args = parser.parse_args()
    check_plot(args.out)
    draw(read(args.result), args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
