"""Random layers (figures 2 and 4): how good they are on each anchor, and on several at once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode

from evonorm_runs.errors import user_errors
from evonorm_runs.files import atomic_write

from .config import parts, source
from .data import load_data
from .evaluation import evaluate
from .results import Row, evaluated, histogram, trained
from .search import run

FILE = "survey.json"
KNOWN = "BN-ReLU"
BINS = 20


def survey(
    cfg: CfgNode, count: int, at_once: int = 1, ray_address: str | None = None
) -> dict[str, Any]:
    """Evaluate random graphs until `count` are; write and return :func:`statistics` of them.

    It is a search whose children are all random, in OUTPUT_DIR, and goes on with one that is there.
    survey.json is beside its store.

    Raises:
        UserError: as :func:`evonorm_search.search.run`.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.CANDIDATES, cfg.EVOLUTION.RANDOM_CHILDREN = count, 1.0
    cfg.freeze()
    store = run(cfg, True, at_once, ray_address)
    file = Path(cfg.OUTPUT_DIR) / FILE
    known = _known(cfg, file)
    found = statistics(store.candidates(), cfg.ANCHORS, known)
    with user_errors(OSError), atomic_write(file) as out:
        out.write(json.dumps(found, indent=1).encode() + b"\n")
    return found


def statistics(
    rows: Iterable[Row], anchors: Sequence[str], known: Sequence[float]
) -> dict[str, Any]:
    """Figures 2 and 4 in numbers. Accuracies are fractions.

    Args:
        known: the accuracies of BN-ReLU, one per anchor.

    Returns:
        `stages`: how many ended at each; `bins`, `histograms`: of the trained ones' accuracies, by
        anchor; `known`, `better`: BN-ReLU's accuracy by anchor, and how many have a higher one;
        `correlation`: Pearson's, anchor against anchor, None where there are too few.
    """
    rows = evaluated(rows)
    stages = [result["stage"] for _, result in rows]
    scores = [result["scores"] for _, result in trained(rows)]
    columns = list(zip(*scores)) or [()] * len(anchors)
    matrix = torch.full((len(anchors),) * 2, torch.nan, dtype=torch.float64)
    if len(scores) > 1:
        values = torch.tensor(columns, dtype=torch.float64)
        matrix = torch.corrcoef(values).reshape(matrix.shape)
    return {
        "anchors": list(anchors),
        "stages": {stage: stages.count(stage) for stage in ("quality", "stability", "trained")},
        "bins": BINS,
        "histograms": {a: histogram(column, BINS) for a, column in zip(anchors, columns)},
        "known": dict(zip(anchors, known)),
        "better": {
            a: sum(score > own for score in column)
            for a, column, own in zip(anchors, columns, known)
        },
        "correlation": [[None if v != v else v for v in row] for row in matrix.tolist()],
    }


def table(found: dict[str, Any]) -> str:
    """What :func:`statistics` gives, as text."""
    anchors, bins = found["anchors"], found["bins"]
    lines = [", ".join(f"{count} {stage}" for stage, count in found["stages"].items()), ""]
    lines.append("of those that were trained\naccuracy, %   " + "   ".join(anchors))
    for i in range(bins):
        counts = [found["histograms"][a][i] for a in anchors]
        if any(counts):
            cells = "   ".join(f"{count:>{len(a)}}" for a, count in zip(anchors, counts))
            lines.append(f"{100 * i / bins:>4.0f} to {100 * (i + 1) / bins:<4.0f}  {cells}")
    known = "   ".join(f"{100 * found['known'][a]:>{len(a)}.1f}" for a in anchors)
    better = "   ".join(f"{found['better'][a]:>{len(a)}}" for a in anchors)
    lines += [f"{KNOWN:<14}{known}", f"{'better':<14}{better}", "", "correlation"]
    for anchor, row in zip(anchors, found["correlation"]):
        cells = "   ".join("-" if value is None else f"{value:.2f}" for value in row)
        lines.append(f"  {cells}   {anchor}")
    return "\n".join(lines)


def _known(cfg: CfgNode, file: Path) -> list[float]:
    """BN-ReLU's accuracies on the anchors, from an earlier survey if there was one."""
    try:
        found = json.loads(file.read_text())["known"]
        return [found[anchor] for anchor in cfg.ANCHORS]
    except (OSError, ValueError, TypeError, KeyError):
        pass
    data = load_data(source(cfg)).to(cfg.DEVICE)
    result = evaluate(KNOWN, cfg.ANCHORS, data, parts(cfg)[2], cfg.SEED)
    # One that is rejected, as after too few steps, has no other accuracies than those.
    early = result["quality"] + [0.0] * (len(cfg.ANCHORS) - len(result["quality"]))
    return result["scores"] or early
