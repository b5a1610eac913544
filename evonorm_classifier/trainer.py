"""Training of a classifier: one loop, to be read from `train` downwards.

Synchronous SGD of WORKERS workers (Goyal et al. 2017, arXiv:1706.02677), with the settings of
section 5.1 of the EvoNorm paper. Each worker normalises by the statistics of its own images; the
running statistics are the means of all workers' running statistics.
"""

from __future__ import annotations

import itertools
import math

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torch.nn import functional as F

from evonorm_runs import distributed, stop
from evonorm_runs.errors import UserError
from evonorm_runs.folder import owns_folder, write_start
from evonorm_runs.log import Log, progress, say

from .data import Batches, DigitsSet, FolderSet, open_data, seed_of, val_batches, worker_batches
from .loading import decoding_rate
from .mistakes import CONFUSION, answers_of, write_mistakes
from .run import CHECKPOINT, ClassifierRun
from .solver import learning_rate

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
