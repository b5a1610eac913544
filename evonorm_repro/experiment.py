"""What one of the paper's tables is as an experiment: its runs' settings and its metrics."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evonorm_runs.errors import UserError

from .settling import evaluations


@dataclass(frozen=True)
class Metric:
    """A column: its key in what `Experiment.read` returns, its title, and the digits shown."""

    key: str
    title: str
    digits: int = 1
    higher: bool = True  # whether higher is better
    compared: bool = True  # whether a test compares the norms by it


class Experiment(ABC):
    """What differs between the tables. Each table has a subclass in tables.py.

    Attributes:
        title: the table's title, which says what the runs were measured on.
        tool: the training tool's path from the repository's root.
        config: the config's path from the repository's root.
        models: the first is the default.
        norms: the rows.
        metrics: the columns; the learning rate is chosen by the first one.
        condition: the name of what is varied in addition to the norm, None if nothing is.
        conditions: its values; the learning rate is tuned at the first one.
        clock: the key in metrics.json that says how far a training was at an evaluation.
        held_out: KEY VALUE ... that measure a run for tuning on images which no reported run is
            measured on; empty if there are none.
        factors: multiples of the config's learning rate to choose from; one means no tuning.
        widen: whether further ones follow beyond the first or the last if that is the best.
        paper: the figures of the paper's table by metric, by norm and condition.
        baselines: the norms that all others are compared with, at the last condition.
        median_and_best: whether the table shows the median and the best too.
        notes: what a reader must know.
    """

    title: str
    tool: str
    config: str
    models: tuple[str, ...] = ()
    norms: tuple[str, ...]
    metrics: tuple[Metric, ...]
    condition: str | None = None
    conditions: tuple[Any, ...] = (None,)
    clock: str
    held_out: tuple[str, ...] = ()
    factors: tuple[float, ...] = (0.5, 1.0, 2.0)
    widen = True
    paper: dict[tuple[str, Any], dict[str, str]] = {}
    baselines: tuple[str, ...] = ()
    median_and_best = False
    notes: tuple[str, ...] = ()

    @abstractmethod
    def settings(self, norm: str, factor: float, condition: Any) -> list[str]:
        """KEY VALUE ... of a run, without its seed."""

    @abstractmethod
    def read(self, folder: Path) -> dict[str, float]:
        """The metrics of a finished run, by key."""

    def history(self, folder: Path) -> dict[float, float]:
        """The first metric by the share of the training after which it was measured."""
        return evaluations(folder, self.clock, self.metrics[0].key)

    def describe(self, norm: str, condition: Any = None) -> dict[str, float]:
        """Figures of a row that need no run, by title."""
        return {}

    def prepare(self) -> None:  # noqa: B027 - most tables have no data to make
        """Make the data if it does not exist."""


def number(value: float) -> str:
    """A number as text for a config, where 1.0 is a float and 1 is not."""
    return repr(float(f"{value:g}"))


def pick(values: dict[str, float], metrics: tuple[Metric, ...], folder: Path) -> dict[str, float]:
    """The metrics among a run's last values. A value is not finite if COCO had nothing to rate."""
    missing = [metric.key for metric in metrics if metric.key not in values]
    if missing:
        raise UserError(f"{folder}/metrics.json: no {missing[0]} in it")
    return {metric.key: values.get(metric.key, math.nan) for metric in metrics}
