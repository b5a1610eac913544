"""What the report has to know of a kind of run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Callable


@dataclass(frozen=True)
class Result:
    """A result: its key in metrics.json, and how it is shown.

    Attributes:
        sign: 1 if higher is better, -1 if lower is, 0 if it is no merit and has no curve.
        remark: what the key of a stand-in for Inception says of it, such as "(not comparable with
            Inception)". It is shown with the title.
        rank: sorts the results of a kind.
        first: whether its curve is among those that are shown first.
        peak: whether the paper reports it at its peak (section 5.5).
        against: the key of the result that charts draw it against, if there is one.
        logarithmic: whether its axis is logarithmic where its values are far apart.
    """

    key: str
    title: str
    unit: str
    sign: int
    digits: int
    remark: str = ""
    rank: tuple[str, int, str] = ("", 0, "")
    first: bool = False
    peak: bool = False
    against: str = ""
    logarithmic: bool = False

    @property
    def label(self) -> str:
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def format(self, value: float | None) -> str:
        if value is None:
            return "–"
        return f"{value:.{self.digits}f}" if math.isfinite(value) else "not finite"


def _no_result(key: str) -> Result | None:
    return None


def _no_class(key: str) -> tuple[str, str] | None:
    return None


def _no_setting(key: str) -> bool:
    return False


def _no_note(last: dict[str, float]) -> str:
    return ""


@dataclass(frozen=True)
class Kind:
    """A kind of run. Each module of this folder describes one.

    Attributes:
        id: the id of its part of the page.
        title: the heading of that part.
        tool: the tool that trains such runs.
        config_key: a key that only the config of such a run has.
        metrics_key: a key that only its metrics.json has.
        norm_keys: the settings that name its layer; the first that is set counts.
        find_result: returns the result that a key of metrics.json stands for, or None.
        find_class: returns the title of a table and the class (of images, of objects) for a key of
            metrics.json that holds a percentage of one class, or None.
        classes_title: the heading over these tables.
        against_title: the heading over the charts of results against results.
        curves: the titles of the curves that are shown beside the results, by key of metrics.json.
        more_curves: the beginning of the keys of those curves that are folded away.
        names_layer: returns whether a setting other than a NORM says which layer a run has.
        samples: the pattern of the grids of samples in a run's folder, whose names are steps.
        samples_note: a sentence over the grids of samples.
        seeds_note: a sentence over the table over seeds.
        unit: what the trainer's steps are called.
        first_step: the number of the first step, 0 or 1.
        last_key: the setting that holds the number of steps.
        note: returns a sentence on the last value of each key of metrics.json, or "".
    """

    id: str
    title: str
    tool: str
    config_key: str
    metrics_key: str
    norm_keys: tuple[str, ...] = ("MODEL.NORM",)
    find_result: Callable[[str], Result | None] = _no_result
    find_class: Callable[[str], tuple[str, str] | None] = _no_class
    classes_title: str = ""
    against_title: str = ""
    curves: dict[str, str] = field(default_factory=lambda: {"loss": "loss", "lr": "learning rate"})
    more_curves: tuple[str, ...] = ()
    names_layer: Callable[[str], bool] = _no_setting
    samples: str = ""
    samples_note: str = ""
    seeds_note: str = ""
    unit: str = "step"
    first_step: int = 1
    last_key: str = "SOLVER.MAX_ITER"
    note: Callable[[dict[str, float]], str] = _no_note
