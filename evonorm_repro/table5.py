"""The paper's evaluation over several runs (section 5.5): table 5, from the runs' folders."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from fvcore.common.config import CfgNode

from evonorm import build_norm_act
from evonorm_gan.config import load_config, norm_options
from evonorm_gan.evaluation.metrics import metric_key
from evonorm_runs.config import value
from evonorm_runs.errors import UserError, user_errors
from evonorm_runs.folder import read_metrics

from .paper import TABLE_5

# Runs in one table must agree in these: the metrics depend on them.
SAME = (
    *("DATA.NAME", "MODEL.RESOLUTION", "MODEL.NUM_CLASSES", "MODEL.G_CH", "MODEL.D_CH"),
    *("MODEL.ATTENTION", "MODEL.BLOCKS", "TEST.REFERENCE"),
    *("SOLVER.BATCH_SIZE", "SOLVER.MAX_ITER", "TEST.EXTRACTOR", "TEST.NUM_SAMPLES"),
    *("TEST.TRUNCATION", "TEST.TRUNCATE_BY"),
)


@dataclass(frozen=True)
class PeakRun:
    """One run at its peak: IS and FID are each the best of its evaluations."""

    folder: Path
    cfg: CfgNode
    layer: str
    seed: int
    IS: float
    FID: float


def read_run(folder: Path) -> PeakRun:
    """A run from its config.yaml and metrics.json.

    Raises:
        UserError: one of them is missing, or the run was never evaluated.
    """
    for name in ("config.yaml", "metrics.json"):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: not the folder of a run, as it has no {name}")
    # The table needs no GPU, whatever the run had.
    cfg = load_config(str(folder / "config.yaml"), ["DEVICE", "cpu"])
    keys = [metric_key(name, cfg.TEST.EXTRACTOR) for name in ("IS", "FID")]
    with user_errors(OSError):
        lines, _ = read_metrics(folder)
    values = [[line.get(key) for key in keys] for line in lines]
    values = [pair for pair in values if all(map(_is_finite, pair))]
    if not values:
        raise UserError(f"{folder}: no evaluation in its metrics.json (no line with {keys[1]!r})")
    scores, distances = zip(*values)
    return PeakRun(folder, cfg, _layer(cfg), cfg.SEED, max(scores), min(distances))


def table(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """A row for each layer, in the paper's order: seeds, and median and best of IS and of FID.

    If the runs are of ImageNet at 128x128 with Inception, "paper IS" and "paper FID" hold the
    figures of table 5, and the other layers of table 5 have rows too.

    Raises:
        UserError: as :func:`read_run`; or two runs have the same layer and seed, or differ in what
            the metrics depend on.
    """
    runs = [read_run(folder) for folder in folders]
    seen: dict[tuple[str, int], PeakRun] = {}
    for run in runs:
        other = seen.setdefault((run.layer, run.seed), run)
        if other is not run:
            raise UserError(
                f"{other.folder} and {run.folder} are both of {run.layer} with SEED {run.seed}: "
                "leave one out"
            )
        for key in SAME:
            values = [value(r.cfg, key) for r in (runs[0], run)]
            if values[0] != values[1]:
                raise UserError(
                    f"{runs[0].folder} and {run.folder} can't be compared: {key} is "
                    f"{values[0]!r} and {values[1]!r}"
                )
    cfg = runs[0].cfg
    paper = (cfg.MODEL.RESOLUTION, cfg.MODEL.NUM_CLASSES) == (128, 1000)
    paper = paper and cfg.TEST.EXTRACTOR == "inception-v3-compat"
    return [
        _row([run for run in runs if run.layer == layer], layer, cfg.TEST.EXTRACTOR, paper)
        for layer in _in_order({run.layer for run in runs} | set(TABLE_5 if paper else ()))
    ]


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _row(runs: list[PeakRun], layer: str, extractor: str, paper: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"layer": layer, "seeds": sorted(run.seed for run in runs)}
    for name, best in (("IS", max), ("FID", min)):
        values = [getattr(run, name) for run in runs]
        found = {"median": median(values), "best": best(values)} if values else None
        row[metric_key(name, extractor)] = found
        if paper:
            row[f"paper {name}"] = TABLE_5.get(layer, ("", ""))[name == "FID"]
    return row


def format_table(rows: list[dict[str, Any]]) -> str:
    """The rows in table 5's layout: layers with batch statistics first, then those without."""
    columns = [key for key in rows[0] if key not in ("layer", "seeds")]
    header = ["Layer", "seeds", *(_title(key) for key in columns)]
    lines = [
        [row["layer"], str(len(row["seeds"])), *(_cell(row[key]) for key in columns)]
        for row in rows
    ]
    widths = [max(map(len, cells)) for cells in zip(header, *lines)]
    texts = ["  ".join(cell.ljust(w) for cell, w in zip(x, widths)).rstrip() for x in lines]
    rule = "-" * (sum(widths) + 2 * len(widths) - 2)
    dependent = [_batch_dependent(row["layer"]) for row in rows]
    if True in dependent and False in dependent:
        texts.insert(dependent.index(False), rule)
    first = "  ".join(cell.ljust(w) for cell, w in zip(header, widths)).rstrip()
    note = "IS and FID are each the best of a run's evaluations; median and best are over seeds."
    return "\n".join([first, rule, *texts, rule, note])


def _title(key: str) -> str:
    name, mark, about = key.partition(" (")
    return f"{name} (median/best{'; ' + about if mark else ')'}"


def _cell(value: dict[str, float] | str | None) -> str:
    if isinstance(value, dict):
        numbers = dict.fromkeys(f"{value[key]:.2f}" for key in ("median", "best"))
        return "/".join(numbers)
    return value or "-"


def _in_order(layers: set[str]) -> list[str]:
    """Sort layers: batch-dependent ones first, and the paper's before others."""
    order = list(TABLE_5)
    return sorted(
        layers,
        key=lambda x: (not _batch_dependent(x), order.index(x) if x in order else len(order), x),
    )


def _layer(cfg: CfgNode) -> str:
    name = cfg.MODEL.NORM
    if name.startswith("GN") or cfg.MODEL.NUM_GROUPS:
        return f"{name} ({norm_options(cfg)['num_groups']} groups)"
    return name


def _batch_dependent(layer: str) -> bool:
    return build_norm_act(layer.split(" ")[0], 32).batch_dependent
