"""Draw a result of tools/benchmark_layers.py.

    python tools/plot_benchmark.py docs/results/layers_cpu.json -o layers.png

Layers by shape: time relative to the native norm with ReLU (1, the line), whiskers at the
quartiles. Growing inputs: time, and time per element, by the number of elements.
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
