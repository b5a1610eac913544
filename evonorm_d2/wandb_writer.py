"""Detectron2's events to Weights & Biases: `WANDB_PROJECT`."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.utils.events import EventWriter, get_event_storage

from evonorm_runs.wandb_run import start_wandb


class WandbWriter(EventWriter):
    """Writes the scalars that Detectron2's TensorboardXWriter writes, with the same smoothing."""

    window = 20  # iterations

    def __init__(self, cfg: CfgNode) -> None:
        self._run = start_wandb(cfg, Path(cfg.OUTPUT_DIR))
        self._last = -1  # iteration that was written

    def write(self) -> None:
        lines: dict[int, dict[str, float]] = defaultdict(dict)
        latest = get_event_storage().latest_with_smoothing_hint(self.window)
        for key, (value, iteration) in latest.items():
            if iteration > self._last:
                lines[iteration][key] = value
        for iteration in sorted(lines):
            self._run.log(lines[iteration], step=iteration)
            self._last = iteration

    def close(self) -> None:
        self._run.finish()
