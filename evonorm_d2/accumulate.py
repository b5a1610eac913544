"""The batch of a step in parts, for less memory: `SOLVER.ACCUMULATE`. AMP on a CPU."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter

import torch
from detectron2.engine import AMPTrainer, SimpleTrainer
from fvcore.nn.precise_bn import get_bn_modules
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


class InParts(SimpleTrainer):
    """Detectron2's training step, with the gradient of the mean of the losses of `parts` parts.

    It is the step that `parts` times as many GPUs would do, each with a part of the batch.
    """

    parts = 1
    precision: torch.dtype | None = None  # of automatic mixed precision
    grad_scaler: torch.amp.GradScaler | None = None

    def run_step(self) -> None:
        start = time.perf_counter()
        images = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        size = len(images) // self.parts
        self.optimizer.zero_grad()
        means: dict[str, Tensor] = {}
        for i in range(self.parts):
            with self._gradients_stay_here(i < self.parts - 1):
                for name, loss in self._losses(images[i * size : (i + 1) * size]).items():
                    means[name] = means.get(name, 0) + loss
        self._write_metrics(means, data_time)
        if self.grad_scaler is None:
            self.optimizer.step()
        else:
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()

    def _losses(self, images: list[dict]) -> dict[str, Tensor]:
        """The losses of a part over the number of parts, after the backward pass."""
        device = "cpu" if on_cpu(self.model) else "cuda"
        with torch.autocast(device, self.precision, enabled=self.precision is not None):
            losses = {name: x / self.parts for name, x in self.model(images).items()}
            total = sum(losses.values())
        (total if self.grad_scaler is None else self.grad_scaler.scale(total)).backward()
        return {name: x.detach() for name, x in losses.items()}

    def _gradients_stay_here(self, here: bool) -> contextlib.AbstractContextManager:
        """Processes average their gradients once a step, with those of the last part."""
        wrapped = isinstance(self.model, DistributedDataParallel)
        return self.model.no_sync() if here and wrapped else contextlib.nullcontext()


class AMPInParts(InParts, AMPTrainer):
    """The same with Detectron2's automatic mixed precision on a GPU."""

    precision = torch.float16


def in_parts(trainer: SimpleTrainer, parts: int) -> SimpleTrainer:
    """A trainer of the same model, data and optimizer that takes each batch in parts."""
    amp, cpu = isinstance(trainer, AMPTrainer), on_cpu(trainer.model)
    kind = AMPInParts if amp and not cpu else InParts
    new = kind(trainer.model, trainer.data_loader, trainer.optimizer)
    new.parts = parts
    if amp and cpu:  # bfloat16 has float32's range, so gradients need no scaling
        new.precision = torch.bfloat16
    _tell_of_batch_statistics(new.model, parts)
    return new


def on_cpu(model: nn.Module) -> bool:
    return next(model.parameters()).device.type == "cpu"


def _tell_of_batch_statistics(model: nn.Module, parts: int) -> None:
    ours = [m for m in model.modules() if getattr(m, "batch_dependent", False) and m.training]
    kinds = Counter(type(layer).__name__ for layer in get_bn_modules(model))
    kinds.update(str(getattr(layer, "norm_act", type(layer).__name__)) for layer in ours)
    if kinds and parts > 1:
        logging.getLogger(__name__).warning(
            "SOLVER.ACCUMULATE is %d: statistics of the batch are those of a part, in %s, so a "
            "step is not that of the whole batch",
            *(parts, ", ".join(f"{count} {kind}" for kind, count in kinds.items())),
        )
