"""Running statistics of batch-dependent norm-acts: precise ones, and one mean of all processes."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from fvcore.nn.precise_bn import get_bn_modules
from torch import nn

from evonorm.statistics import update_running_statistics


class RunningStatistics(HookBase):
    """Prepares running statistics of batch-dependent norm-acts for checkpoints and evaluations.

    They are averaged over the processes. Each process has its own, as Detectron2 does not broadcast
    buffers. With TEST.PRECISE_BN.ENABLED they are first taken anew, with fixed weights, over
    TEST.PRECISE_BN.NUM_ITER batches, whenever Detectron2's PreciseBN does so for BatchNorm.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.precise = cfg.TEST.PRECISE_BN
        self.eval_period = cfg.TEST.EVAL_PERIOD
        self.checkpoint_period = cfg.SOLVER.CHECKPOINT_PERIOD

    def after_step(self) -> None:
        for model in models_of(self.trainer):
            layers = batch_dependent(model)
            if layers and self._due(self.eval_period) and self.precise.ENABLED:
                batches = islice(self.trainer.data_loader.batches(0), self.precise.NUM_ITER)
                recompute_statistics(model, batches)
            if layers and (self._due(self.eval_period) or self._due(self.checkpoint_period)):
                average_over_processes(layers)

    def _due(self, period: int) -> bool:
        done = self.trainer.iter + 1
        return done == self.trainer.max_iter or (period > 0 and done % period == 0)


def models_of(trainer: Any) -> list[nn.Module]:
    """The model, not wrapped for distributed training, and its average if there is one."""
    average = [] if trainer.average is None else [trainer.average.module]
    return [trainer.checkpointer.model, *average]


def batch_dependent(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if getattr(m, "batch_dependent", False) and m.training]


def recompute_statistics(model: nn.Module, batches: Iterable[list[dict]]) -> None:
    """Precise running statistics for norm-acts in training mode; BatchNorm layers keep theirs."""
    stock = get_bn_modules(model)
    momentum = [layer.momentum for layer in stock]
    for layer in stock:
        layer.momentum = 0.0
    try:
        with EventStorage():  # takes what the model logs
            seen = update_running_statistics(model, batches)
    finally:
        for layer, value in zip(stock, momentum):
            layer.momentum = value
    logging.getLogger(__name__).info("Took running statistics over %d batches", seen)


def average_over_processes(layers: Iterable[nn.Module]) -> None:
    """Average the buffers of layers over the processes of a distributed run, in place."""
    if comm.get_world_size() > 1:
        for buffer in (buffer for layer in layers for buffer in layer.buffers()):
            torch.distributed.all_reduce(buffer)
            buffer /= comm.get_world_size()
