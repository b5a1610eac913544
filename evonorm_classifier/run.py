"""A classifier's run: its model, its position in the training, and its checkpoint."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from evonorm_runs import distributed
from evonorm_runs.checkpoint import check_same_run, write_checkpoint
from evonorm_runs.config import merge_saved
from evonorm_runs.errors import UserError, user_errors
from evonorm_runs.files import read_checkpoint
from evonorm_runs.random_state import seed_all

from .config import get_cfg
from .loading import Loading
from .models import build_model
from .solver import build_optimizer, moving_average

CHECKPOINT = "checkpoint.pth"
# What may differ between a checkpoint and the run that goes on from it.
MAY_DIFFER = {
    "MODEL.RECOMPUTE",
    "SOLVER.AMP",
    "SOLVER.CHANNELS_LAST",
    "SOLVER.LOG_PERIOD",
    "DATA.ROOT",
    "DATA.NUM_WORKERS",
    "DATA.TRAIN_IMAGES",
    "DATA.VAL_IMAGES",
    "TEST.BATCH_SIZE",
}


class ClassifierRun:
    """The model of a run, its position, and its checkpoint.

    Attributes:
        step: the number of steps done.
        epoch: the number of epochs done.
        data: the numbers of training images and classes.
        classes: the names of the classes.
        steps: steps per epoch.
        images: images per step, of all workers.
        workers: the indices of the workers that this process computes.
        averaged: the moving average of the model, None without SOLVER.EMA.
    """

    def __init__(
        self, cfg: CfgNode, device: torch.device, images: int, classes: Sequence[str]
    ) -> None:
        solver = cfg.SOLVER
        self.cfg, self.device, self.folder = cfg, device, Path(cfg.OUTPUT_DIR)
        self.step, self.data = 0, {"images": images, "classes": len(classes)}
        self.classes = list(classes)
        self.images = solver.IMS_PER_WORKER * solver.WORKERS
        self.steps = images // self.images
        if not self.steps:
            raise UserError(
                f"SOLVER.IMS_PER_WORKER {solver.IMS_PER_WORKER} times SOLVER.WORKERS "
                f"{solver.WORKERS} is more than the {images} images there are"
            )
        ranks = distributed.world_size()
        if solver.WORKERS % ranks:
            raise UserError(
                f"SOLVER.WORKERS {solver.WORKERS} can't be spread over {ranks} processes"
            )
        count = solver.WORKERS // ranks
        self.workers = range(distributed.rank() * count, (distributed.rank() + 1) * count)
        seed_all(cfg.SEED)  # the initial weights, alike on all ranks
        layout = torch.channels_last if solver.CHANNELS_LAST else torch.contiguous_format
        self.model = build_model(cfg, len(classes)).to(device).to(memory_format=layout).train()
        self.averaged = moving_average(self.model, solver.EMA) if solver.EMA else None
        # torch.manual_seed takes a millisecond where CUDA is built in, but not used.
        self.seed = torch.default_generator.manual_seed
        if device.type == "cuda":
            self.seed = torch.cuda.default_generators[device.index].manual_seed
        self.batch_norms = [
            (m, m.momentum) for m in self.model.modules() if getattr(m, "batch_dependent", False)
        ]
        self.wrapped = distributed.wrap(self.model)
        self.optimizer = build_optimizer(cfg, self.model)
        # The sums of loss and accuracy, and the number of steps, since the log's last line.
        self.sums, self.counted = torch.zeros(2, device=device), 0
        self.timed = 0  # how many of these steps this process itself has done
        self.loading = Loading(cfg.DATA.NUM_WORKERS)
        self.correct = 0.0  # accuracy, summed over the steps of the epoch

    def __str__(self) -> str:
        solver, ranks = self.cfg.SOLVER, distributed.world_size()
        peak = solver.BASE_LR * self.images / solver.REFERENCE_BATCH
        return (
            f"{self.cfg.MODEL.NAME}, {self.cfg.MODEL.NORM}, "
            f"{sum(p.numel() for p in self.model.parameters()):,} parameters; {self.device.type}; "
            f"{solver.WORKERS} workers of {solver.IMS_PER_WORKER} images"
            + (f" in {ranks} processes" if ranks > 1 else "")
            + f", learning rate {peak:.4g}; {solver.EPOCHS} epochs of {self.steps} steps"
            + (f"; goes on after step {self.step}" if self.step else "")
        )

    @property
    def epoch(self) -> int:
        return self.step // self.steps

    def scores(self, model: nn.Module, images: Tensor) -> Tensor:
        """The scores, float32 (n, classes), that the model, or its wrapper, gives for images."""
        if self.cfg.SOLVER.CHANNELS_LAST:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.cfg.SOLVER.AMP):
            return model(images).float()

    def start_timer(self) -> None:
        """Start the timer unless it runs. The time of evaluations is not counted."""
        if not self.timed:
            self.began = time.perf_counter()

    def pop_means(self) -> tuple[float, float]:
        """The mean loss over all workers, and seconds per step, since the last call."""
        means = self.sums / (self.counted * len(self.workers))
        distributed.average_([means])
        loss, accuracy = means.tolist()
        seconds = (time.perf_counter() - self.began) / self.timed
        self.correct += accuracy * self.counted
        self.sums.zero_()
        self.counted = self.timed = 0
        return loss, seconds

    def pop_train_accuracy(self) -> float:
        """The epoch's accuracy in percent. Each batch is rated with the weights of its step."""
        accuracy, self.correct = 100 * self.correct / self.steps, 0.0
        return accuracy

    def average_statistics(self) -> None:
        """Replace the running statistics by their means over the processes."""
        for model in (self.model, *([self.averaged.module] if self.averaged else [])):
            distributed.average_(_statistics(model))

    def save(self) -> None:
        """Replace the run's checkpoint by one of the current state."""
        distributed.average_([self.sums])  # every process resumes from their mean
        self.average_statistics()
        state = {
            "epoch": self.epoch,
            "step": self.step,
            "sums": self.sums,
            "counted": self.counted,
            "correct": self.correct,
            "config": self.cfg.dump(),
            "data": self.data,
            "names": self.classes,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        if self.averaged:
            state["averaged"] = self.averaged.module.state_dict()
        if distributed.is_main():
            write_checkpoint(self.folder / CHECKPOINT, state)

    def load(self, path: Path) -> None:
        """Continue from a checkpoint.

        Raises:
            UserError: it is damaged, or belongs to another run.
        """
        data = read_checkpoint(path)
        if {"epoch", "config", "data", "model", "optimizer"} - data.keys():
            raise UserError(f"{path}: not a checkpoint of train_classifier.py")
        old = merge_saved(get_cfg(), data["config"], str(path))
        check_same_run(old, self.cfg, path, MAY_DIFFER)
        if data["data"] != self.data:
            raise UserError(f"{path} is of a run on {data['data']}; DATA has {self.data} now")
        with user_errors(RuntimeError, prefix=f"{path}: "):
            self.model.load_state_dict(data["model"])
            if self.averaged:
                self.averaged.module.load_state_dict(data.get("averaged", {}))
                self.averaged.n_averaged.fill_(1 + data["step"])
        self.optimizer.load_state_dict(data["optimizer"])
        # Earlier versions wrote checkpoints at the end of an epoch only, without these keys.
        self.step = data.get("step", data["epoch"] * self.steps)
        self.sums.copy_(data.get("sums", self.sums))
        self.counted, self.correct = data.get("counted", 0), data.get("correct", 0.0)


def _statistics(model: nn.Module) -> list[Tensor]:
    """The running statistics of layers that depend on the batch."""
    layers = [m for m in model.modules() if getattr(m, "batch_dependent", False)]
    return [b for m in layers for b in m.buffers() if b.is_floating_point()]
