"""The best evaluation (TEST.BEST_METRIC): its checkpoint, and the end of a run that awaits it."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any, Callable

from detectron2.config import CfgNode
from detectron2.engine import HookBase, hooks
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm

from evonorm_runs import distributed
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
        found = evaluations(self.metrics, self._val_metric)
        if best_of(found) is None:
            return
        self.best_iter = best_of(found)
        self.best_metric = found[self.best_iter]
        if self.best_iter == self.trainer.start_iter - 1:
            # The run may have been killed between the log and the file.
            self._checkpointer.save(self._file_prefix, iteration=self.best_iter)

    def _best_checking(self) -> None:
        if self._val_metric not in self.trainer.storage.latest():
            figures = ", ".join(flatten_results_dict(self.trainer._last_eval_results))
            logging.getLogger(__name__).warning(
                "TEST.BEST_METRIC is %r, but the evaluation gave %s: there is no model_best.pth",
                self._val_metric,
                figures,
            )
            return
        super()._best_checking()

    def after_train(self) -> None:
        if self.trainer.start_iter < self.trainer.max_iter:  # else it had ended before
            super().after_train()


class EnoughEvaluations(Exception):
    """Ends a training: no evaluation has been better for long enough."""


class Patience(HookBase):
    """Ends a run after TEST.PATIENCE evaluations in a row without a better one.

    What was evaluated is read from metrics.json, so a run that goes on waits no longer than an
    uninterrupted one. It has to come behind the hooks that evaluate and keep the best checkpoint.

    Args:
        evaluate: gives the results of a run that had ended before.
    """

    def __init__(self, cfg: CfgNode, evaluate: Callable[[], Any]) -> None:
        self.patience, self.key = cfg.TEST.PATIENCE, cfg.TEST.BEST_METRIC
        self.period = cfg.TEST.EVAL_PERIOD
        self.metrics, self.evaluate = Path(cfg.OUTPUT_DIR, METRICS), evaluate

    def before_train(self) -> None:
        if self._enough():
            if not hasattr(self.trainer, "_last_eval_results"):
                self.evaluate()
            raise EnoughEvaluations

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self.period == 0 and done < self.trainer.max_iter and self._enough():
            if comm.is_main_process():
                self.trainer.checkpointer.save("model_final", iteration=self.trainer.iter)
            raise EnoughEvaluations

    def after_train(self) -> None:
        del self.evaluate  # it refers to the trainer

    def _enough(self) -> bool:
        return distributed.any_rank(comm.is_main_process() and self._waited() >= self.patience)

    def _waited(self) -> int:
        """How many evaluations there are since the best, or in all if none gave a figure."""
        found = evaluations(self.metrics, self.key)
        best = best_of(found)
        waited = len(found) if best is None else sum(iteration > best for iteration in found)
        if waited >= self.patience:
            logging.getLogger(__name__).info(
                "Stopped by TEST.PATIENCE: %d evaluations without a better %s than %s",
                *(waited, self.key, "none" if best is None else f"{found[best]:.3f} ({best})"),
            )
        return waited


def evaluations(metrics: Path, key: str) -> dict[int, float]:
    """The figure of each evaluation in metrics.json, by the iteration that it follows."""
    lines = read_metrics(metrics.parent)[0] if metrics.exists() else []
    return {line["iteration"]: line[key] for line in lines if key in line}


def best_of(found: dict[int, float]) -> int | None:
    """The iteration of the highest figure, the first if several are equal; None if none is."""
    finite = [iteration for iteration in found if math.isfinite(found[iteration])]
    return max(finite, key=lambda iteration: found[iteration], default=None)
