"""Pictures of the layers as functions, and of accuracy against images per worker."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from evonorm import build_norm_act

from .settling import LAST_THIRD

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


BATCH = ("BN-ReLU", "BN-PReLU", "BN-Swish-1", "BN-Swish", "RS+rej", "Random+rej")
EVONORM_B = ("EvoNormB0", "EvoNormB1", "EvoNormB2")
SAMPLE = ("GN-ReLU", "GN-Swish", "FRN", "EvoNormS0", "EvoNormS1", "EvoNormS2")
OTHER_V = {"BN-PReLU": 0.25, "BN-Swish": 3.0, "GN-Swish": 3.0, "FRN": -0.5}
OTHER_V |= {"EvoNormB0": 0.0, "EvoNormS0": 3.0}
DEVIATIONS = (0.5, 1.0, 2.0)
COLOURS = ("#d55e00", "#0072b2", "#000000")
WIDTHS = (3.4, 2.2, 1.0)  # so that lines on top of one another can all be seen
X = torch.linspace(-3, 3, 121, dtype=torch.float64)
OTHERS = 4096  # values of a feature map, without the one that is looked at


def curve(
    name: str, x: Tensor, batch: float = 1.0, sample: float = 1.0, v: float | None = None
) -> Tensor:
    """The output of a layer for each value of x (K,), in evaluation mode.

    Args:
        batch: the standard deviation of the batch that the layer has seen; its mean is 0.
        sample: the standard deviation of the feature map that holds the value; its mean is 0.
        v: the layer's v; None for its initial value.
    """
    layer = build_norm_act(name, 1, dtype=torch.float64, momentum=1.0)
    with torch.no_grad():
        layer(feature_maps(x, batch))  # the running statistics become those of this batch
        if v is not None:
            layer.v.fill_(v)
        return layer.eval()(feature_maps(x, sample))[:, 0, 0, 0]


def feature_maps(x: Tensor, deviation: float) -> Tensor:
    """For each value of x (K,), a map of mean 0 that begins with it: (K, 1, 1, 1 + OTHERS)."""
    mean = -x / OTHERS  # of the other values: half are `apart` above this mean, half below
    square = ((OTHERS + 1) * deviation**2 - x**2) / OTHERS - mean**2
    if (square < 0).any():
        raise ValueError(f"x is too large for a deviation of {deviation}")
    apart = torch.stack([square.sqrt(), -square.sqrt()], 1).repeat(1, OTHERS // 2)
    return torch.cat([x[:, None], mean[:, None] + apart], 1)[:, None, None, :]


def draw_layers(names: Sequence[str], of: str) -> Figure:
    """A panel for each layer, with a line for each deviation of the `batch` or `sample`."""
    figure = blank(9, 5.6)
    grid = figure.subplots(2, 3, sharex=True, sharey=True)
    for ax, name in zip(grid.flat, names):
        _panel(ax, name, of, {})
        ax.set_title(name, fontsize=10)
    _label(figure, grid, "of the batch" if of == "batch" else "of the feature map (group)")
    return figure


def draw_rows(names: Sequence[str]) -> Figure:
    """A row for each name or formula, a column for each deviation of the feature map."""
    figure = blank(9, 1.1 + 2.3 * len(names))
    columns = len(DEVIATIONS)
    grid = figure.subplots(len(names), columns, sharex=True, sharey=True, squeeze=False)
    for line, name in zip(grid, names):
        for ax, sample in zip(line, DEVIATIONS):
            _panel(ax, name, "batch", {"sample": sample})
            title = f"{name}, feature map's deviation {sample:g}"
            ax.set_title(textwrap.fill(title, 46), fontsize=9)
    _label(figure, grid, "of the batch")
    return figure


def _panel(ax: Axes, name: str, of: str, fixed: dict[str, float]) -> None:
    ax.axhline(0, color="#bbbbbb", lw=0.8)
    ax.axvline(0, color="#bbbbbb", lw=0.8)
    values = {"-": None, **({"--": OTHER_V[name]} if name in OTHER_V else {})}
    for style, v in values.items():
        for deviation, colour, width in zip(DEVIATIONS, COLOURS, WIDTHS):
            y = curve(name, X, **{of: deviation}, **fixed, v=v)
            ax.plot(X.numpy(), y.numpy(), style, color=colour, lw=width)
    if name in OTHER_V:
        start = build_norm_act(name, 1).v.item()
        text = f"solid: v = {start:g} (start)\ndashed: v = {OTHER_V[name]:g}"
        ax.text(0.03, 0.96, text, transform=ax.transAxes, va="top", fontsize=8)


def _label(figure: Figure, grid: Any, whose: str) -> None:
    for ax in grid[-1]:
        ax.set_xlabel("input x")
    for ax in grid[:, 0]:
        ax.set_ylabel("output y")
    grid[0, 0].set_ylim(-2.2, 4.2)
    styles = [{"color": colour, "lw": width} for colour, width in zip(COLOURS, WIDTHS)]
    lines = [grid[0, 0].plot([], [], **style)[0] for style in styles]
    names = [f"{deviation:g}" for deviation in DEVIATIONS]
    where = {"loc": "outside upper center", "ncols": len(lines), "frameon": False}
    figure.legend(lines, names, title=f"standard deviation {whose}", **where)


def draw_small_batch(record: dict[str, Any]) -> Figure:
    """Accuracy against images per worker, as figure 1 of the paper: means, and a dot per seed.

    Where the record has the paper's figures, they are in a panel of their own on the left.
    """
    rows = record["rows"]
    ours = {key: row["accuracy"] for key, row in _by_layer_and_size(rows) if row["accuracy"]}
    paper = {
        key: {"mean": float(row["paper"]["accuracy"]), "values": []}
        for key, row in _by_layer_and_size(rows)
        if "accuracy" in row.get("paper", {})
    }
    panels = {"paper, table 3, ImageNet": paper, record.get("title", "measured"): ours}
    panels = {title: points for title, points in panels.items() if points}
    figure = blank(1.5 + 4.5 * len(panels), 4.2)
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    for ax, (title, points) in zip(grid, panels.items()):
        for i, layer in enumerate(layers):
            own = sorted((size, found) for (name, size), found in points.items() if name == layer)
            sizes = [size for size, _ in own]
            style = {"color": f"C{i}", "marker": "os^vDPX*<>"[i % 10], "ms": 5, "lw": 1.2}
            ax.plot(sizes, [found["mean"] for _, found in own], label=layer, **style)
            for size, found in own:
                values = found["values"]
                ax.plot([size] * len(values), values, ".", color=f"C{i}", ms=4, alpha=0.6)
        sizes = sorted({size for _, size in points})
        ax.set_xscale("log", base=2)
        ax.set_xticks(sizes, [f"{size:g}" for size in sizes])
        ax.invert_xaxis()
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("images per worker")
        ax.grid(alpha=0.3)
    grid[0].set_ylabel("accuracy, %")
    grid[-1].legend(fontsize=8)
    return figure


def draw_widths(record: dict[str, Any]) -> Figure:
    """Accuracy against parameters and against MAdds, as figure 11: means, and a dot per seed."""
    rows = [row for row in record["rows"] if row["accuracy"]]
    figure = blank(9.5, 4.2)
    grid = figure.subplots(1, 2, sharey=True)
    for ax, title in zip(grid, ("Params (M)", "MAdds (M)")):
        for i, layer in enumerate(dict.fromkeys(row["layer"] for row in rows)):
            own = [(r["described"][title], r["accuracy"]) for r in rows if r["layer"] == layer]
            own.sort(key=lambda point: point[0])
            style = {"color": f"C{i}", "marker": "os^vDPX*<>"[i % 10], "ms": 5, "lw": 1.2}
            ax.plot([x for x, _ in own], [y["mean"] for _, y in own], label=layer, **style)
            for x, y in own:
                values = y["values"]
                ax.plot([x] * len(values), values, ".", color=f"C{i}", ms=4, alpha=0.6)
        ax.set_xlabel(title)
        ax.grid(alpha=0.3)
    grid[0].set_ylabel("accuracy, %")
    grid[-1].legend(fontsize=8)
    figure.suptitle(record.get("title", "measured"), fontsize=10)
    return figure


def draw_ranks(record: dict[str, Any]) -> Figure:
    """The place of each layer over the training, 1 for the best, in a panel for each condition."""
    panels = [one for one in record["settling"] if one["orders"]]
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure = blank(2.5 + 3 * columns, 1 + 2.7 * rows)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    layers = list(dict.fromkeys(row["layer"] for row in record["rows"]))
    for ax, one in zip(grid.flat, panels):
        for i, layer in enumerate(layers):
            own = [(x, names.index(layer) + 1) for x, names in one["orders"] if layer in names]
            style = {"color": f"C{i % 10}", "marker": "os^vDPX*<>"[i % 10], "ms": 4, "lw": 1.2}
            ax.plot([100 * x for x, _ in own], [place for _, place in own], label=layer, **style)
        ax.axvspan(100 * LAST_THIRD, 100, color="0.92", zorder=0)
        ax.set_title("" if one["at"] is None else f"{one['at']}", fontsize=9)
        ax.grid(alpha=0.3)
    grid[0, 0].set_yticks(range(1, len(layers) + 1))
    grid[0, 0].invert_yaxis()
    figure.supxlabel("% of the training; the last third is shaded", fontsize=9)
    figure.supylabel("place, 1 is the best", fontsize=9)
    figure.suptitle(record.get("title", "measured"), fontsize=10)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside right", fontsize=8)
    return figure


def read_ranks(path: Path) -> dict[str, Any]:
    """What reproduce.py wrote. Raises ValueError if it is anything else, or has no evaluations."""
    try:
        record = json.loads(path.read_text())
        layers = {row["layer"] for row in record["rows"]}
        orders = [order for one in record["settling"] for order in one["orders"]]
        if orders and all(0 < share <= 1 and layers >= set(names) for share, names in orders):
            return record
    except (KeyError, TypeError, ValueError):
        pass
    raise ValueError(f"{path}: not what reproduce.py writes, or no run was evaluated")


def _by_layer_and_size(
    rows: Sequence[dict[str, Any]], key: str = "ims_per_worker"
) -> list[tuple[tuple[str, float], Any]]:
    return [((row["layer"], row[key]), row) for row in rows]


def read_result(path: Path, table: str = "table3") -> dict[str, Any]:
    """What reproduce.py table3, or figure11, wrote. Raises ValueError if it is anything else."""
    key = {"table3": "ims_per_worker", "figure11": "width"}[table]
    try:
        record = json.loads(path.read_text())
        for (layer, size), row in _by_layer_and_size(record["rows"], key):
            found = row["accuracy"]  # None where all runs failed
            numbers = [found["mean"], *found["values"]] if found else []
            numbers += [row["described"][x] for x in ("Params (M)", "MAdds (M)") if key == "width"]
            if not (isinstance(layer, str) and size > 0 and all(n < 1e9 for n in numbers)):
                raise ValueError
        if any(row["accuracy"] for row in record["rows"]):
            return record
    except (KeyError, TypeError, ValueError):
        pass
    raise ValueError(f"{path}: not what reproduce.py {table} writes, or not one run ended well")


def blank(width: float, height: float) -> Figure:
    """An empty figure of so many inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def save(figure: Figure, path: Path) -> None:
    """Write a figure; the same one gives the same bytes."""
    import matplotlib

    # Ids in an SVG are random, and it has a date, unless told otherwise.
    with matplotlib.rc_context({"svg.hashsalt": "evonorm"}):
        dated = {".svg": "Date", ".pdf": "CreationDate"}.get(path.suffix)
        figure.savefig(path, dpi=130, metadata={dated: None} if dated else None)
