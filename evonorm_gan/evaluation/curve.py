"""The truncation curve of a generator: IS against FID over the truncation (Brock et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from .metrics import Evaluator, metric_key


def truncation_curve(
    evaluator: Evaluator, G: nn.Module, truncations: Sequence[float | None], seed: int = 0
) -> list[dict[str, Any]]:
    """The metrics at each truncation (None: none), which is in "truncation"."""
    return [{"truncation": t, **evaluator.evaluate(G, seed, t)} for t in truncations]


def draw_curve(rows: list[dict[str, Any]], extractor: str, path: Path) -> None:
    """Draw a curve as a picture; its format is that of the file's suffix."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import; no display
    from matplotlib.figure import Figure

    fid, score = (metric_key(name, extractor) for name in ("FID", "IS"))
    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot([row[fid] for row in rows], [row[score] for row in rows], marker="o")
    for row in rows:
        text = "no truncation" if row["truncation"] is None else f"{row['truncation']:g}"
        axes.annotate(text, (row[fid], row[score]), xytext=(5, 5), textcoords="offset points")
    axes.set(xlabel=fid, ylabel=score, title="truncation")
    axes.grid(alpha=0.3)
    figure.savefig(path)
