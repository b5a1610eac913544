"""A run, as its folder describes it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from evonorm_runs.folder import CONFIG, METRICS
from evonorm_search.results import Row
from evonorm_search.store import FILE as STORE

from .kinds import OTHER, RUN_KINDS, Kind

FAILED, JOB = "failed.txt", "job.json"  # which evonorm_runs.grid writes


@dataclass(frozen=True, eq=False)
class RunFolder:
    """A run, as its folder describes it.

    Attributes:
        name: different from that of any other run in the report.
        index: its place in the report.
        config: the values as text, by keys such as "SOLVER.MAX_ITER".
        lines: of metrics.json, each with its "step" (Detectron2's iteration); may hold nan and inf.
        rows: of a search, the candidates and their results in the order of completion.
        counts: of a search, how many graphs ended at each stage of its sieve.
        known: of a survey, BN-ReLU's accuracy in each network, a fraction.
        job: what a grid of runs wrote down: "settings" and, once it has ended well, "seconds".
        failed: why the run failed, None if it did not.
        notes: what could not be read.
    """

    folder: Path
    name: str
    index: int
    config: dict[str, str] = field(default_factory=dict)
    lines: list[dict[str, float]] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    known: dict[str, float] = field(default_factory=dict)
    job: dict[str, Any] = field(default_factory=dict)
    failed: str | None = None
    notes: list[str] = field(default_factory=list)

    @cached_property
    def kind(self) -> Kind:
        """The kind, by a key of the config; without a config, by the metrics or by the tool."""
        keys = {key for line in self.lines for key in line}
        tool = next(iter(self.job.get("settings", [])), "")
        for kind in RUN_KINDS:
            if kind.config_key in self.config:
                return kind
            if not self.config and (kind.metrics_key in keys or str(tool).endswith(kind.tool)):
                return kind
        return OTHER

    @cached_property
    def series(self) -> dict[str, dict[float, float]]:
        """The values by key and step. If a step was written twice, the later value counts."""
        found: dict[str, dict[float, float]] = {}
        for line in self.lines:
            for key, value in line.items():
                found.setdefault(key, {})[line["step"]] = value
        return {key: dict(sorted(values.items())) for key, values in found.items()}

    def finite(self, key: str) -> dict[float, float]:
        """The values of one key by step, without nan and inf."""
        return {s: v for s, v in self.series.get(key, {}).items() if math.isfinite(v)}

    @property
    def norm(self) -> str:
        """The layer, as a name or a formula; "" if no setting names it."""
        return next(filter(None, map(self.setting, self.kind.norm_keys)), "")

    def setting(self, key: str) -> str:
        """A setting from the config; if the run has no config, from the command that started it."""
        if self.config:
            return self.config.get(key, "")
        given = [str(value) for value in self.job.get("settings", [])[2:]]
        return dict(zip(given[::2], given[1::2])).get(key, "")

    @property
    def state(self) -> str:
        """How far the run has come, or that it failed and why."""
        done = max((line["step"] for line in self.lines), default=None)
        at = "before its first figures" if done is None else f"at {self.unit} {done:g}"
        if self.failed is not None:
            return f"failed {at}: {self.failed}"
        if done is None:
            return "no figures yet"
        wanted = self.config.get(self.kind.last_key, "")
        epochs = self.config.get("SOLVER.EPOCHS", "")
        seen = max(self.series.get("epoch", {0: 0}).values())
        last = done + 1 - self.kind.first_step
        if "seconds" in self.job or (wanted.isdigit() and last >= int(wanted)):
            return f"finished {at}"
        if epochs.isdigit():
            return f"finished {at}" if seen >= int(epochs) else f"{at}, epoch {seen:g} of {epochs}"
        return at + (f" of {wanted}" if wanted else "")

    @property
    def unit(self) -> str:
        """What the trainer's steps are called."""
        return self.kind.unit

    @property
    def written(self) -> float:
        """When the run last wrote its figures, in seconds since 1970."""
        paths = (self.folder / name for name in (METRICS, f"{STORE}-wal", STORE, FAILED, CONFIG))
        return next((path.stat().st_mtime for path in paths if path.exists()), 0.0)


def number(value: Any) -> float | None:
    """A number from JSON as a float, None if it is no number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf
