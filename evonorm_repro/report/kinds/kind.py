"""What the report has to know of a kind of run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Callable


@dataclass(frozen=True)
class Result:
    """A result: its key in metrics.json, and how it is shown.

    Attributes:
        sign: 1 if higher is better, -1 if lower is.
        remark: what a stand-in's key says of it, such as "(not comparable with Inception)"; goes
            with the title wherever that is shown.
        rank: sorts the results of a kind.
        first: whether its curve is among those that are shown first.
        peak: whether the paper reports it at its peak (section 5.5).
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

    @property
    def label(self) -> str:
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def format(self, value: float | None) -> str:
        if value is None:
            return "–"
        return f"{value:.{self.digits}f}" if math.isfinite(value) else "not finite"


def _no_result(key: str) -> Result | None:
    return None


def _no_setting(key: str) -> bool:
    return False


@dataclass(frozen=True)
class Kind:
    """A kind of run; the modules beside this one have one each.

    Attributes:
        id: of the page's part.
        title: of that part.
        tool: that trains such runs.
        config_key: a key that only their config has.
        metrics_key: one that only their metrics have.
        find_result: the result that a key of metrics.json stands for, None if it is none.
        curves: what is drawn beside the results, by key of metrics.json.
        more_curves: how the keys begin that are drawn below the fold.
        names_layer: whether a setting other than a NORM says which layer a run has.
        unit: what the trainer's steps are called.
        first_step: 0 or 1.
    """

    id: str
    title: str
    tool: str
    config_key: str
    metrics_key: str
    find_result: Callable[[str], Result | None] = _no_result
    curves: dict[str, str] = field(default_factory=lambda: {"loss": "loss", "lr": "learning rate"})
    more_curves: tuple[str, ...] = ()
    names_layer: Callable[[str], bool] = _no_setting
    unit: str = "step"
    first_step: int = 1
