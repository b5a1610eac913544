"""The checkpoint of the best evaluation: `TEST.BEST_METRIC`."""

from __future__ import annotations

import math
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.engine import hooks

from evonorm_runs.folder import METRICS, read_metrics

from .checkpoint import Checkpointer


class BestCheckpoint(hooks.BestCheckpointer):
    """Detectron2's hook, which writes model_best.pth, and goes on when the run does.

    What was best so far is read from metrics.json. It has to come behind the hook that evaluates.
    """

    def __init__(self, cfg: CfgNode, checkpointer: Checkpointer) -> None:
        super().__init__(cfg.TEST.EVAL_PERIOD, checkpointer, cfg.TEST.BEST_METRIC)
        self.metrics = Path(cfg.OUTPUT_DIR, METRICS)

    def before_train(self) -> None:
        lines = read_metrics(self.metrics.parent)[0] if self.metrics.exists() else []
        found = [(x[self._val_metric], x["iteration"]) for x in lines if self._val_metric in x]
        # Of several equal ones Detectron2 keeps the first.
        best = max((x for x in found if math.isfinite(x[0])), key=lambda x: x[0], default=None)
        if best is None:
            return
        self.best_metric, self.best_iter = best
        if self.best_iter == self.trainer.start_iter - 1:
            # The run may have been killed between the log and the file.
            self._checkpointer.save(self._file_prefix, iteration=self.best_iter)

    def after_train(self) -> None:
        if self.trainer.start_iter < self.trainer.max_iter:  # else it had ended before
            super().after_train()
