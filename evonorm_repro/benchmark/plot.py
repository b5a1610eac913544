"""Pictures of the time that layers take, from the results of tools/benchmark_layers.py."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


FAMILIES = {"S0": "GN", "B0": "BN"}  # each EvoNorm and the native norm that it is compared with
FORMATS = (".png", ".svg", ".pdf")
PASSES = ("forward + backward", "forward")


def find_ours(names: Sequence[str], kind: str) -> str:
    """The fastest backend of an EvoNorm among the layers' names; benchmarks list it first."""
    return next(name for name in names if name.startswith(kind))


def draw(record: dict[str, Any], out: Path) -> None:
    """Draw what was measured into a new file."""
    results = record["results"]
    figure = growth(results) if results[0]["model"] == "growth" else ratios(results)
    where = record["processor"] if record.get("device", "cpu") == "cpu" else record["device"]
    figure.suptitle(f"{where}, {record['threads']} threads, {record['dtype']}", fontsize=11)
    figure.savefig(out, dpi=130)


def ratios(results: list[dict[str, Any]]) -> Figure:
    """A panel for each EvoNorm and pass, with a row for each shape and a dot for each layer."""
    figure, of, rows = _figure(results)
    axes = figure.subplots(len(PASSES), len(FAMILIES), sharey=True, squeeze=False)
    for line, which in zip(axes, PASSES):
        for ax, (kind, norm) in zip(line, FAMILIES.items()):
            names = dict.fromkeys(r["layer"] for r in results)
            shown = [n for n in names if n[:2] in (kind, norm) or n == "copy"]
            shown.remove(f"{norm} + ReLU")
            for i, name in enumerate(shown):
                points = [
                    (y, of[(*row, which, name)], of[(*row, which, f"{norm} + ReLU")]["median_ms"])
                    for y, row in enumerate(rows)
                    if (*row, which, name) in of
                ]
                x = [r["median_ms"] / unit for _, r, unit in points]
                low = [v - r["quartiles_ms"][0] / unit for v, (_, r, unit) in zip(x, points)]
                high = [r["quartiles_ms"][1] / unit - v for v, (_, r, unit) in zip(x, points)]
                style = {"color": f"C{i}", "fmt": "D" if name.startswith(kind) else "o"}
                if name == "copy":
                    style = {"color": "black", "fmt": "|"}
                ax.errorbar(
                    x, [y for y, _, _ in points], xerr=(low, high), label=name, ms=5, lw=1, **style
                )
            ax.axvline(1, color="grey", lw=1)
            ax.set_xscale("log")
            ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if _within(t, ax)]
            ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
            ax.set_xticks([], minor=True)
            ax.set_yticks(range(len(rows)), [f"{model}  {shape}" for model, shape in rows])
            ax.set_title(f"EvoNorm-{kind}, {which}", fontsize=10, pad=20)
            ax.set_xlabel(f"time / time of {norm} + ReLU")
            ax.grid(alpha=0.3)
            above = {"loc": "lower center", "bbox_to_anchor": (0.5, 1), "frameon": False}
            ax.legend(ncols=len(shown), fontsize=7, columnspacing=1, handletextpad=0.2, **above)
        line[0].set_ylim(len(rows) - 0.5, -0.5)
    return figure


def growth(results: list[dict[str, Any]]) -> Figure:
    """The time of each pass, and the time per element, which is constant if growth is linear."""
    figure, of, rows = _figure(results, height=8)
    axes = figure.subplots(len(PASSES), 2, squeeze=False)
    elements = [math.prod(shape) for _, shape in rows]
    for (times, each), which in zip(axes, PASSES):
        for name in dict.fromkeys(r["layer"] for r in results):
            ms = [of[(*row, which, name)]["median_ms"] for row in rows]
            style = {"color": "black", "ls": "--"} if name == "copy" else {}
            times.loglog(elements, ms, marker=".", label=name, **style)
            ns = [1e6 * t / e for t, e in zip(ms, elements)]
            each.loglog(elements, ns, marker=".", label=name, **style)
        linear = [ms[-1] * e / elements[-1] for e in elements]
        times.loglog(elements, linear, color="grey", ls=":", label="linear")
        times.set_ylabel(f"{which}, ms")
        each.set_ylabel("ns per element")
        for ax in (times, each):
            ax.set_xlabel("elements")
            ax.grid(alpha=0.3)
            ax.legend(fontsize=8)
    return figure


def _figure(
    results: list[dict[str, Any]], height: float | None = None
) -> tuple[Figure, dict[tuple, dict[str, Any]], list[tuple]]:
    """An empty figure; results by (model, shape, pass, layer); the (model, shape)s."""
    from matplotlib.figure import Figure

    of = {(r["model"], tuple(r["shape"]), r["pass"], r["layer"]): r for r in results}
    rows = list(dict.fromkeys(key[:2] for key in of))
    size = (12, height or 3.5 + 0.5 * len(rows))
    return Figure(figsize=size, layout="constrained"), of, rows


def _within(tick: float, ax: Any) -> bool:
    low, high = ax.get_xlim()
    return low <= tick <= high


def check_new(path: Path) -> None:
    """Raise an OSError unless a file of this name can be made."""
    if path.exists():
        raise FileExistsError(f"{path} exists: name another file, or remove it first")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}")


def check_plot(path: Path) -> None:
    """Raise an OSError or ValueError unless a plot of this name can be drawn."""
    if path.suffix not in FORMATS:
        raise ValueError(f"{path}: a plot's name should end in {', '.join(FORMATS)}")
    check_new(path)
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ValueError("plots need matplotlib: pip install matplotlib") from error


def read(path: Path) -> dict[str, Any]:
    """A result of benchmark_layers.py. Raises ValueError if the file holds anything else."""
    try:
        record = json.loads(path.read_text())
        if all({"layer", "pass", "quartiles_ms"} <= set(r) for r in record["results"]):
            return record
    except (KeyError, TypeError, ValueError):
        pass
    raise ValueError(f"{path}: not a result of benchmark_layers.py --json")
