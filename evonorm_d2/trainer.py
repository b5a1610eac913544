"""Detectron2's default trainer, with care for norm-acts."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase, hooks
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from torch import nn

from evonorm import recompute
from evonorm_runs.errors import user_errors

from . import average, solver
from .accumulate import in_parts, on_cpu
from .best import BestCheckpoint, Patience
from .checkpoint import Checkpointer, RandomState, kept_random_state
from .evaluators import build_evaluator
from .hooks import Evaluation, StopOnSigterm
from .loader import TrainLoader, build_test_loader
from .running_statistics import RunningStatistics
from .wandb_writer import WandbWriter


class Trainer(DefaultTrainer):
    """Detectron2's default trainer with our optimizer, checkpoints, data and running statistics.

    A run that was killed and resumed equals an uninterrupted one bit for bit, in one process on a
    CPU and as far as :class:`TrainLoader` can restore the position in the data.

    Attributes:
        average: the moving average of the model (SOLVER.EMA_DECAY), which is evaluated; or None.
    """

    def __init__(self, cfg: CfgNode) -> None:
        with warnings.catch_warnings():
            # On a CPU Detectron2 makes a scaler, and PyTorch warns that there is no GPU for it.
            warnings.filterwarnings("ignore", ".*torch.cuda.amp.GradScaler")
            super().__init__(cfg)
        if cfg.SOLVER.ACCUMULATE > 1 or (cfg.SOLVER.AMP.ENABLED and on_cpu(self.model)):
            self._trainer = in_parts(self._trainer, cfg.SOLVER.ACCUMULATE)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        model = super().build_model(cfg)
        return recompute(model) if cfg.MODEL.EVONORM.RECOMPUTE else model

    def build_hooks(self) -> list[HookBase | None]:
        # Called at the end of __init__, when Detectron2 has made the checkpointer to replace.
        self.checkpointer = Checkpointer(
            self.model,
            self.cfg.OUTPUT_DIR,
            cfg=self.cfg,
            trainer=weakref.proxy(self),
            data=self.data_loader,
            random=RandomState(),
        )
        self.average = None
        if self.cfg.SOLVER.EMA_DECAY:
            model = self.checkpointer.model  # not wrapped for distributed training
            self.average = average.weight_average(model, self.cfg.SOLVER.EMA_DECAY)
            self.checkpointer.add_checkpointable(average.KEY, self.average)
        result = super().build_hooks()
        savers = (hooks.PeriodicCheckpointer, hooks.EvalHook)
        first_saver = next(i for i, hook in enumerate(result) if isinstance(hook, savers))
        result.insert(first_saver, RunningStatistics(self.cfg))
        if self.average is not None:
            result.insert(first_saver, average.UpdateAverage(self.average))
        writers = [x for hook in result for x in getattr(hook, "_writers", [])]
        place = next(i for i, hook in enumerate(result) if isinstance(hook, hooks.EvalHook))
        result[place] = Evaluation(result[place]._period, self._evaluate, writers)
        if self.cfg.TEST.PATIENCE:
            result.insert(place + 1, Patience(self.cfg, self._evaluate))
        if self.cfg.TEST.BEST_METRIC and comm.is_main_process():
            result.insert(place + 1, BestCheckpoint(self.cfg, self.checkpointer))
        return [*result, StopOnSigterm()]

    def build_writers(self) -> list[EventWriter]:
        wandb = [WandbWriter(self.cfg)] if self.cfg.WANDB_PROJECT else []
        return [*super().build_writers(), *wandb]

    def _evaluate(self) -> dict[str, Any]:
        model = self.model if self.average is None else self.average.module
        results = self.test(self.cfg, model)
        if self.cfg.TEST.AUG.ENABLED and self.iter + 1 >= self.max_iter:
            results.update(self.test_augmented(self.cfg, model))
        self._last_eval_results = results
        return results

    def resume_or_load(self, resume: bool = True) -> None:
        super().resume_or_load(resume)
        self.data_loader.start = self.start_iter

    def run_step(self) -> None:
        with user_errors(FloatingPointError, prefix="try a lower SOLVER.BASE_LR: "):
            super().run_step()

    # Detectron2 0.6 forgets the optimizer.

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        state = state_dict["_trainer"]
        scaler = getattr(self._trainer, "grad_scaler", None)
        if scaler is not None:  # which a run on a CPU has none of
            state = {"grad_scaler": scaler.state_dict(), **state}
        self._trainer.load_state_dict(state)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return solver.build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainLoader:
        return TrainLoader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[list[dict]]:
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        return build_evaluator(cfg, dataset_name)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> dict[str, Any]:
        with kept_random_state():  # a run does not depend on when it is evaluated
            return super().test(cfg, model, evaluators)

    @classmethod
    def test_augmented(cls, cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
        """Test with Detectron2's test-time augmentation (TEST.AUG); keys end in _TTA."""
        augmented = GeneralizedRCNNWithTTA(cfg, model).train(model.training)
        folder = "inference_TTA"
        evaluators = [build_evaluator(cfg, name, folder) for name in cfg.DATASETS.TEST]
        found = cls.test(cfg, augmented, evaluators)
        return {f"{key}_TTA": value for key, value in found.items()}
