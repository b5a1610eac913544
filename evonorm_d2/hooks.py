"""Hooks of a training: when it is evaluated, and how it ends at SIGTERM."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, EventWriter

from evonorm_runs import distributed, stop
from evonorm_runs.folder import METRICS, read_metrics

from .evaluators import MAIN_FIGURES
from .running_statistics import average_over_processes, batch_dependent, models_of


class Evaluation(hooks.EvalHook):
    """Detectron2's hook, with a log that holds each evaluation once, with the iteration it follows.

    Detectron2 logs the last evaluation an iteration late, and writes the others down up to 19
    iterations later. If a run is killed before an evaluation, it is done when the run goes on.
    """

    def __init__(
        self, period: int, evaluate: Callable[[], dict[str, Any]], writers: list[EventWriter]
    ) -> None:
        super().__init__(period, evaluate)
        self.writers = [x for x in writers if not isinstance(x, CommonMetricPrinter)]

    def before_train(self) -> None:
        done, storage = self.trainer.start_iter, self.trainer.storage
        missed = self._due(done) and comm.is_main_process() and not self._logged(done - 1)
        if distributed.any_rank(missed):
            storage.iter = done - 1
            self._evaluate()
            storage.iter = done
        elif done >= self.trainer.max_iter:
            self._func()  # the results of a run that had ended, which are in the log

    def after_step(self) -> None:
        if self._due(self.trainer.iter + 1):
            self._evaluate()

    def after_train(self) -> None:
        del self._func  # like Detectron2's hook, this one refers to the trainer

    def _due(self, done: int) -> bool:
        periodic = self._period > 0 and done > 0 and done % self._period == 0
        return periodic or done == self.trainer.max_iter

    def _logged(self, iteration: int) -> bool:
        folder = Path(self.trainer.cfg.OUTPUT_DIR)
        lines = read_metrics(folder)[0] if (folder / METRICS).exists() else []
        mine = (line for line in lines if line.get("iteration") == iteration)
        return any(key.rpartition("/")[2] in MAIN_FIGURES for line in mine for key in line)

    def _evaluate(self) -> None:
        self._do_eval()
        for writer in self.writers:
            writer.write()


class StopOnSigterm(HookBase):
    """After a step in which SIGTERM came, writes a checkpoint and raises Stopped."""

    def after_step(self) -> None:
        trainer = self.trainer
        if trainer.iter + 1 == trainer.max_iter or not stop.asked():
            return
        for model in models_of(trainer):
            average_over_processes(batch_dependent(model))
        if comm.is_main_process():
            trainer.checkpointer.save(f"model_{trainer.iter:07d}", iteration=trainer.iter)
        raise stop.Stopped(
            f"stopped by SIGTERM after iteration {trainer.iter}; continue with --resume"
        )
