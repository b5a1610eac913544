"""Draw what the norm-acts do to a value, or accuracy against the batch size.

    python tools/plot_norms.py batch -o batch.svg           # table 2 without the EvoNorms
    python tools/plot_norms.py evonorm-b -o evonorm_b.svg   # EvoNorm-B0, B1, B2
    python tools/plot_norms.py sample -o sample.svg         # table 3: statistics of single samples
    python tools/plot_norms.py layers FRN "x * tanh(v1 * x) / std_g(x)" -o own.svg   # any layers
    python tools/plot_norms.py small-batch RESULT.json -o small_batch.svg
    python tools/plot_norms.py widths RESULT.json -o widths.svg
    python tools/plot_norms.py ranks RESULT.json -o ranks.svg
    python tools/plot_norms.py search docs/results/search.jsonl.gz -o search.svg

All but the last four show a layer's output against one value of its input. The other values of the
input have the statistics that the picture names. The curves are computed by the layers themselves,
from feature maps with those statistics. Three draw what reproduce.py wrote: of table3, of figure11,
and for `ranks` of any table. `search` draws figures 10, 2 and 4 of an exported table of searches.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from evonorm import check_norm_act
from evonorm_repro.benchmark.plot import check_plot
from evonorm_repro.curves import (
    BATCH,
    EVONORM_B,
    SAMPLE,
    draw_layers,
    draw_ranks,
    draw_rows,
    draw_small_batch,
    draw_widths,
    read_ranks,
    read_result,
    save,
)
from evonorm_repro.search_curves import draw_search
from evonorm_runs.command_line import run_tool
from evonorm_search.table import read_table

# Of which table's results.
RESULTS = {
    "small-batch": "reproduce.py table3",
    "widths": "reproduce.py figure11",
    "ranks": "reproduce.py TABLE",
    "search": "search_layers.py export",
}


@run_tool("plot_norms.py", kinds=(ValueError, OSError))
def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="WHAT")
    for name, about in (
        ("batch", "BatchNorm with activations, and the random layers of table 2"),
        ("evonorm-b", "the B series"),
        ("sample", "GN, FRN and the S series"),
        ("layers", "norm-acts that you name, or formulas"),
        ("small-batch", "accuracy against images per worker"),
        ("widths", "accuracy against parameters and MAdds"),
        ("ranks", "the order of a table's layers over the training"),
        ("search", "searches by their ten best, random layers, network against network"),
    ):
        command = commands.add_parser(name, help=about, description=f"Draw {about}.")
        if name in RESULTS:
            help_text = f"what {RESULTS[name]} wrote"
            command.add_argument("result", type=Path, help=help_text)
        if name == "layers":
            command.add_argument("norms", nargs="+", metavar="NORM", help="a name or a formula")
        command.add_argument("-o", "--out", type=Path, required=True, help="a new .png, .svg, .pdf")
    args = parser.parse_args()
    check_plot(args.out)
    for norm in args.norms if args.command == "layers" else ():
        check_norm_act(norm)
    figure = {
        "batch": lambda: draw_layers(BATCH, "batch"),
        "evonorm-b": lambda: draw_rows(EVONORM_B),
        "layers": lambda: draw_rows(args.norms),
        "sample": lambda: draw_layers(SAMPLE, "sample"),
        "small-batch": lambda: draw_small_batch(read_result(args.result)),
        "widths": lambda: draw_widths(read_result(args.result, "figure11")),
        "ranks": lambda: draw_ranks(read_ranks(args.result)),
        "search": lambda: draw_search(read_table(args.result)),
    }[args.command]()
    save(figure, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
