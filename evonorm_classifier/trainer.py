"""Training of a classifier: one loop, to be read from `train` downwards.

Synchronous SGD of WORKERS workers (Goyal et al. 2017, arXiv:1706.02677), with the settings of
section 5.1 of the EvoNorm paper. Each worker normalises by the statistics of its own images; the
running statistics are the means of all workers' running statistics.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torch.nn import functional as F

from evonorm_runs import distributed, stop
from evonorm_runs.checkpoint import check_same_run, write_checkpoint
from evonorm_runs.config import merge_saved
from evonorm_runs.errors import UserError, user_errors
from evonorm_runs.files import read_checkpoint
from evonorm_runs.folder import owns_folder, write_start
from evonorm_runs.log import Log, progress, say
from evonorm_runs.random_state import seed_all

from .config import get_cfg
from .data import Batches, DigitsSet, FolderSet, open_data, seed_of, val_batches, worker_batches
from .loading import Loading, decoding_rate
from .mistakes import CONFUSION, answers_of, write_mistakes
from .models import build_model
from .solver import build_optimizer, learning_rate, moving_average

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
RESULTS = ("train_accuracy", "accuracy", "top5_accuracy", "val_loss")


@distributed.process_flags()
@owns_folder(CHECKPOINT)
@stop.on_sigterm()
def train(cfg: CfgNode, resume: bool = False) -> dict[str, float]:
    """Train, and evaluate after each epoch; everything is written to OUTPUT_DIR.

    The number of processes that the workers are spread over changes nothing but rounding. A run
    that was killed and resumed equals an uninterrupted one bit for bit, on a CPU.

    Args:
        resume: from the checkpoint in OUTPUT_DIR, if there is one.

    Returns:
        the last epoch's results, in every process; empty if the log of a finished run is gone.

    Raises:
        UserError: a config, data set or checkpoint that is wrong or missing; divergence.
        Stopped: by SIGTERM, after a step whose checkpoint is written.
    """
    device = distributed.init(cfg.DEVICE)
    train_set, val_set = open_data(cfg)
    run = ClassifierRun(cfg, device, len(train_set), train_set.classes)
    if (run.folder / CHECKPOINT).exists():
        run.load(run.folder / CHECKPOINT)
    write_start(cfg, run.step)
    say(f"{len(train_set.classes)} classes, {len(train_set)} and {len(val_set)} images")
    say(str(run))
    if isinstance(train_set, FolderSet) and run.step < cfg.SOLVER.EPOCHS * run.steps:
        say_decoding_rate(cfg, train_set)
    log = Log(run.folder, run.step, cfg)
    batches = train_batches(run, train_set)
    total = cfg.SOLVER.EPOCHS * run.steps
    answers = None
    for step in progress(range(run.step + 1, total + 1), total, run.images):
        lr = train_step(run, step, batches)
        run.step = step
        epoch_ends = step % run.steps == 0
        if epoch_ends or (cfg.SOLVER.LOG_PERIOD and step % cfg.SOLVER.LOG_PERIOD == 0):
            write_log(run, log, step, lr)
        if epoch_ends:
            found, answers = evaluate(run, val_set)
            results = {"train_accuracy": run.pop_train_accuracy(), **found}
            # The line comes first: if the run is killed before its checkpoint, it is written again.
            log.write(step, {"epoch": run.epoch, **results})
            say(f"epoch {run.epoch}: {summary(results)}")
            run.save()
        if step < total and stop.asked():
            run.save()
            raise stop.Stopped(f"stopped by SIGTERM after step {step}; continue with --resume")
    log.close()
    missing = distributed.is_main() and not (run.folder / CONFUSION).exists()
    if answers is None and distributed.any_rank(missing):  # killed before it was written
        _, answers = evaluate(run, val_set)
    if answers is not None:
        write_mistakes(run.folder, val_set, answers)
    done = log.with_key("accuracy")[-1:]
    return {key: line[key] for line in done for key in RESULTS if key in line}


def say_decoding_rate(cfg: CfgNode, train_set: FolderSet) -> None:
    """Print how fast the images come at most; the main process alone tries it."""
    if distributed.is_main():
        rate, processes = decoding_rate(train_set.drawn(cfg.SEED)), cfg.DATA.NUM_WORKERS
        say(
            f"one process decodes {rate:.0f} images a second; "
            f"DATA.NUM_WORKERS is {processes}, for each of {distributed.world_size()} processes"
        )


def train_batches(run: ClassifierRun, train_set: DigitsSet | FolderSet) -> Batches:
    """The batches of this process's workers, in turn, after the steps that are done."""
    own = run.cfg, distributed.rank(), distributed.world_size(), getattr(train_set, "order", None)
    done = run.step % run.steps * len(run.workers)  # batches done of the current epoch
    for epoch in range(run.epoch + 1, run.cfg.SOLVER.EPOCHS + 1):
        chosen = itertools.islice(worker_batches(len(train_set), epoch, *own), done, None)
        yield from train_set.batches(chosen, seed_of(run.cfg.SEED, epoch))
        done = 0


def train_step(run: ClassifierRun, step: int, batches: Batches) -> float:
    """Do one step, counted from 1, for each of this process's workers. Returns its lr."""
    lr = learning_rate(run.cfg, step - 1, run.steps)
    run.start_timer()
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    for i, worker in enumerate(run.workers):
        images, labels = (x.to(run.device, non_blocking=True) for x in run.loading.take(batches))
        share_statistics(run.batch_norms, i, len(run.workers))
        run.seed(seed_of(run.cfg.SEED, step, worker))  # for dropout
        with distributed.no_sync(run.wrapped, i < len(run.workers) - 1):
            scores = run.scores(run.wrapped, images)
            loss = F.cross_entropy(scores, labels, label_smoothing=run.cfg.SOLVER.LABEL_SMOOTHING)
            (loss / len(run.workers)).backward()
        run.sums += torch.stack([loss.detach(), hits(scores, labels).mean()])
    run.optimizer.step()
    run.optimizer.zero_grad()
    if run.averaged:
        run.averaged.update_parameters(run.model)
    run.counted += 1
    run.timed += 1
    return lr


def share_statistics(layers: list[tuple[nn.Module, float]], i: int, workers: int) -> None:
    """Set the momentum of layers for the i-th worker of a process, from 0.

    After all `workers`, the running statistics have moved by the layers' own momentum towards the
    mean of the workers' batch statistics. They are then the mean that workers with running
    statistics of their own would have.
    """
    if workers > 1:
        for layer, momentum in layers:
            share = momentum / workers
            layer.momentum = share / (1 - (workers - 1 - i) * share)


def hits(scores: Tensor, labels: Tensor) -> Tensor:
    """1.0 where the highest of the scores (n, classes) is that of the label, else 0.0: (n,)."""
    return (scores.argmax(1) == labels).float()


@torch.no_grad()
def evaluate(run: ClassifierRun, val_set: DigitsSet | FolderSet) -> tuple[dict[str, float], Tensor]:
    """Accuracy in percent, and loss, over a whole set, with running statistics; and all answers.

    The answers are as :func:`.mistakes.answers_of` gives them, (images, 4), in every process. The
    statistics are those of the averaged weights, if there are such. Top-5 accuracy, the share of
    images whose label is among the five highest scores, is left out where there are no more
    classes.
    """
    run.average_statistics()
    model = run.averaged.module if run.averaged else run.model
    model.eval()
    ranks = distributed.rank(), distributed.world_size()
    chosen = list(val_batches(len(val_set), run.cfg.TEST.BATCH_SIZE, *ranks))
    sums = torch.zeros(3, dtype=torch.float64, device=run.device)
    best = min(5, run.data["classes"])
    answers = [torch.zeros(0, 4, dtype=torch.float64, device=run.device)]
    for indices, (images, labels) in zip(chosen, val_set.batches(chosen, run.cfg.SEED)):
        labels = labels.to(run.device)
        scores = run.scores(model, images.to(run.device))
        loss = F.cross_entropy(scores, labels, reduction="sum")
        among_best = (scores.topk(best).indices == labels[:, None]).sum()
        sums += torch.stack([hits(scores, labels).sum(), loss, among_best])
        answers.append(answers_of(indices, labels, scores))
    model.train()
    distributed.average_([sums])
    correct, loss, among_best = (sums * distributed.world_size() / len(val_set)).tolist()
    top5 = {"top5_accuracy": 100 * among_best} if run.data["classes"] > best else {}
    results = {"accuracy": 100 * correct, **top5, "val_loss": loss}
    return results, distributed.gather(torch.cat(answers))


def _statistics(model: nn.Module) -> list[Tensor]:
    """The running statistics of layers that depend on the batch."""
    layers = [m for m in model.modules() if getattr(m, "batch_dependent", False)]
    return [b for m in layers for b in m.buffers() if b.is_floating_point()]


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


def write_log(run: ClassifierRun, log: Log, step: int, lr: float) -> None:
    """Write a line with loss, learning rate and speed.

    Raises:
        UserError: the loss is not finite or, at the end of an epoch, a weight is not.
    """
    steps = run.timed
    loss, seconds = run.pop_means()
    weights = run.model.parameters() if step % run.steps == 0 else ()
    if not math.isfinite(loss) or not all(torch.isfinite(p).all() for p in weights):
        log.write(step, {"diverged": 1, "lr": lr})
        raise UserError(
            f"step {step}: diverged, as the loss is {loss:.4g} or a weight is not finite; "
            "start again in another OUTPUT_DIR with a lower SOLVER.BASE_LR"
        )
    log.write(step, {"loss": loss, "lr": lr, "seconds": seconds})
    say(f"step {step}: loss {loss:.4f}, lr {lr:.4g}, {seconds:.4f} s")
    if hint := run.loading.hint(seconds * steps):
        say(hint)


def summary(results: dict[str, float]) -> str:
    """Results on one line."""
    return ", ".join(f"{key} {value:.4g}" for key, value in results.items())
