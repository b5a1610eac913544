"""Training of BigGAN-deep: one loop, to be read from `train` downwards.

Brock et al. 2019 (arXiv:1809.11096), with the settings of section 5.5 of the EvoNorm paper.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from evonorm_runs import distributed, stop
from evonorm_runs.checkpoint import check_same_run, write_checkpoint
from evonorm_runs.errors import UserError, user_errors
from evonorm_runs.folder import owns_folder, write_start
from evonorm_runs.log import Log, progress, say
from evonorm_runs.random_state import get_random_state, mix, seed_all, set_random_state

from . import checkpoint
from .augment import changes, diff_augment
from .data import describe, open_dataset, to_float, train_batches
from .evaluation.metrics import COUNTS, Evaluator, metric_key
from .finetune import freeze_first_blocks, start_from_weights
from .losses import discriminator_hinge, generator_hinge, orthogonal_penalty
from .models import (
    build_discriminator,
    build_generator,
    make_spectral_norm_exact,
    singular_values,
)
from .regularise import Regularisers
from .sampling import class_grid, latents, standing_statistics, write_png

AMP = {"": None, "bf16": torch.bfloat16, "fp16": torch.float16}
SMALLEST_SCALE = 2.0**-16  # of fp16's losses; it gets this small only if no gradient is ever finite
LOST = 0.01  # a mean loss of D below this: it tells all images apart
GRID_CLASSES, GRID_COLUMNS = 10, 10


@distributed.process_flags()
@owns_folder("*.pth")
@stop.on_sigterm()
def train(cfg: CfgNode, resume: bool | Path = False) -> dict[str, float]:
    """Train, and evaluate the moving average; everything is written to OUTPUT_DIR.

    A run that was killed and resumed equals an uninterrupted one bit for bit, on a CPU. A step's
    draws are a function of the seed and the step, whatever the number of processes.

    Args:
        resume: from the last checkpoint in OUTPUT_DIR, if there is one; or from the one at this
            path, there or in another run's folder.

    Returns:
        the results of the last evaluation, in every process; empty if there was none.

    Raises:
        UserError: a config, data set, image or checkpoint that is wrong or missing; divergence.
        Stopped: by SIGTERM, after a step whose checkpoint is written.
    """
    device = distributed.init(cfg.DEVICE)
    last = check_run(cfg, resume)
    dataset = open_dataset(cfg)
    cfg = checkpoint.keep_discriminator(cfg, last or weights_to_start_from(cfg))
    run = GanRun(cfg, device, list(dataset.classes), len(dataset))
    if last:
        run.load(last)
        if isinstance(resume, Path):
            run.save()  # so that it is the last one in OUTPUT_DIR
    elif cfg.MODEL.INIT:
        say(run.start_from_weights())
    say(describe(dataset))
    say(str(run))
    log = Log(run.folder, run.step, cfg)
    evaluation = Evaluation(cfg, dataset, device, log)
    write_start(cfg, run.step)
    if last and evaluation.due(run.step):  # killed before its end
        evaluation(run)

    batches = real_batches(cfg, dataset, run.step * cfg.SOLVER.D_STEPS)
    timer = Timer(cfg)
    steps = range(run.step + 1, cfg.SOLVER.MAX_ITER + 1)
    for step in progress(steps, cfg.SOLVER.MAX_ITER, timer.images):
        timer.start()
        for i in range(cfg.SOLVER.D_STEPS):
            discriminator_step(run, step, i, *next(batches))
        generator_step(run, step)
        update_average(run, step)
        timer.stop()
        run.step = step

        if due(cfg, step, cfg.SOLVER.LOG_PERIOD):
            write_log(run, log, timer)
        if due(cfg, step, cfg.SOLVER.SAMPLE_PERIOD):
            write_samples(run)
        if due(cfg, step, cfg.SOLVER.CHECKPOINT_PERIOD) or evaluation.due(step):
            run.save()
        if evaluation.due(step):
            evaluation(run)
            if cfg.TEST.STOP_ON_COLLAPSE and evaluation.collapsed():
                break
        if step < cfg.SOLVER.MAX_ITER and stop.asked():
            run.save()
            raise stop.Stopped(f"stopped by SIGTERM after step {step}; continue with --resume")
    log.close()
    return evaluation.last()


# The steps of the two networks.


def discriminator_step(run: GanRun, step: int, i: int, images: Tensor, labels: Tensor) -> None:
    """One step of the discriminator on real images (n, 3, R, R) uint8, labels (n,), of this rank.

    Args:
        step: the generator's step that it belongs to, from 1; `i`: which of its D_STEPS.
    """
    solver = run.cfg.SOLVER
    G, D = run.G.network, run.D
    D.requires_grad_(True)
    parts = zip(
        draw(run, step, i), images.chunk(solver.ACCUMULATE), labels.chunk(solver.ACCUMULATE)
    )
    losses = []
    for part, ((z, y), images_part, labels_part) in enumerate(parts, 1):
        real = run.image_format(to_float(images_part.to(run.device)))
        labels_part = labels_part.to(run.device)
        with torch.no_grad(), run.autocast():
            fake = G(z, y).float()
        # One pass over all, so one power iteration of the spectral norm.
        both = run.augment(torch.cat([real, fake]), (step, i, part))
        seen, classes = run.regularisers.inputs(both, torch.cat([labels_part, y]), (step, i, part))
        with D.gradients(synchronise=part == solver.ACCUMULATE):
            with run.autocast(), run.regularisers.forward_pass(step, i):
                scores = D.wrapped(seen, classes).float()
            score_real, score_fake = scores[: len(both)].chunk(2)
            loss = discriminator_hinge(score_real, score_fake)
            more = run.regularisers.penalties(seen, scores, step, i)
            D.backward(sum(more.values(), loss) / solver.ACCUMULATE)
        values = [loss, score_real.mean(), score_fake.mean(), *more.values()]
        losses.append(torch.stack(values).detach())
    means = run.update(D, step, torch.stack(losses).mean(0))
    run.regularisers.update(*means[1:3])
    run.add(**dict(zip(("loss_d", "d_real", "d_fake", *more), means)))


def generator_step(run: GanRun, step: int) -> None:
    """One step of the generator; `step` from 1."""
    solver = run.cfg.SOLVER
    G, D = run.G, run.D.network
    run.D.requires_grad_(False)
    losses = []
    for part, (z, y) in enumerate(draw(run, step, solver.D_STEPS), 1):
        with G.gradients(synchronise=part == solver.ACCUMULATE):
            with run.autocast():
                fake = G.wrapped(z, y).float()
                fake = run.augment(fake, (step, solver.D_STEPS, part))
                scores = D(fake, y).float()
            loss = generator_hinge(scores)
            total = loss
            if solver.ORTHO_REG:
                total = loss + solver.ORTHO_REG * orthogonal_penalty(G.network)
            G.backward(total / solver.ACCUMULATE)
        losses.append(loss.detach())
    (loss,) = run.update(G, step, torch.stack(losses).mean(0, keepdim=True))
    run.add(loss_g=loss)


def update_average(run: GanRun, step: int) -> None:
    """Move the moving average of the generator's weights; up to EMA_START it is a copy."""
    if step <= run.cfg.SOLVER.EMA_START:
        run.ema.n_averaged.zero_()  # PyTorch's class copies where it has averaged nothing yet
    run.ema.update_parameters(run.G.network)


def draw(run: GanRun, step: int, i: int) -> list[tuple[Tensor, Tensor]]:
    """This rank's z and y of the i-th update in a step, in ACCUMULATE parts.

    They are drawn for all ranks and then shared out, so they don't depend on the number of ranks.
    """
    cfg = run.cfg
    seed = mix(cfg.SEED, step, i)
    drawn = latents(cfg.SOLVER.BATCH_SIZE, cfg.MODEL.DIM_Z, cfg.MODEL.NUM_CLASSES, seed)
    own = (x.chunk(distributed.world_size())[distributed.rank()].to(run.device) for x in drawn)
    return list(zip(*(x.chunk(cfg.SOLVER.ACCUMULATE) for x in own)))


def real_batches(cfg: CfgNode, dataset: Any, start: int) -> Iterator[tuple[Tensor, Tensor]]:
    """This rank's batches for the discriminator, from the run's batch `start` on."""
    ranks = distributed.world_size()
    return train_batches(
        *(dataset, cfg.SOLVER.BATCH_SIZE // ranks, cfg.SEED, start, distributed.rank(), ranks),
        num_workers=cfg.DATA.NUM_WORKERS,
        flip=cfg.DATA.FLIP,
    )


# What a run consists of.


class Player:
    """A network with what trains it.

    Attributes:
        network: the module itself.
        wrapped: the same, its gradients averaged over the ranks.
        frozen: the names of the parameters that are not trained.
    """

    def __init__(self, network: nn.Module, lr: float, cfg: CfgNode, device: torch.device) -> None:
        self.network = network
        self.frozen = {name for name, p in network.named_parameters() if not p.requires_grad}
        self.wrapped = distributed.wrap(network)
        # No weight decay on anything, so EvoNorm's v needs no group of its own.
        self.optimizer = torch.optim.Adam(
            self.trained().values(), lr, cfg.SOLVER.BETAS, cfg.SOLVER.EPS, fused=True
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=cfg.SOLVER.AMP == "fp16")

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that are not frozen, by name."""
        parameters = self.network.named_parameters()
        return {name: p for name, p in parameters if name not in self.frozen}

    def requires_grad_(self, flag: bool) -> None:
        """Whether gradients are taken of the parameters; never of frozen ones."""
        for p in self.trained().values():
            p.requires_grad_(flag)

    def gradients(self, synchronise: bool) -> Any:
        """Around a forward and backward pass; without `synchronise` ranks keep their gradients."""
        return distributed.no_sync(self.wrapped, not synchronise)

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def gradient_norm(self) -> Tensor:
        """Over all parameters; 1 under fp16, where the scaler looks after it."""
        gradients = [p.grad for p in self.trained().values()]
        if self.scaler.is_enabled():
            return gradients[0].new_ones(())
        return torch.nn.utils.get_total_norm(gradients)

    def step(self) -> None:
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()

    def load(self, network: dict, optimizer: dict, scaler: dict) -> None:
        lr = self.optimizer.param_groups[0]["lr"]
        self.network.load_state_dict(network)
        self.optimizer.load_state_dict(optimizer)
        self.optimizer.param_groups[0]["lr"] = lr  # the config's, which may have been changed
        for name, p in self.trained().items():
            for moment in ("exp_avg", "exp_avg_sq"):
                shape = self.optimizer.state[p][moment].shape
                if shape != p.shape:
                    raise ValueError(f"{moment} of {name} has shape {tuple(shape)}")
        if scaler:
            self.scaler.load_state_dict(scaler)


class GanRun:
    """The networks of a run, its position, and its checkpoints."""

    def __init__(self, cfg: CfgNode, device: torch.device, classes: list[str], images: int) -> None:
        self.cfg, self.device, self.classes, self.images = cfg, device, classes, images
        self.folder = Path(cfg.OUTPUT_DIR)
        self.step = 0
        self.sums: dict[str, list[float]] = {}  # of what is logged: total and count
        seed_all(cfg.SEED)  # the initial weights, alike on all ranks
        layout = torch.channels_last if cfg.SOLVER.CHANNELS_LAST else torch.contiguous_format
        G, D = (
            build(cfg).to(device).to(memory_format=layout)
            for build in (build_generator, build_discriminator)
        )
        freeze_first_blocks(D, cfg.SOLVER.FREEZE_D)
        average = get_ema_multi_avg_fn(cfg.SOLVER.EMA_DECAY)
        self.ema = AveragedModel(G, multi_avg_fn=average).requires_grad_(False).eval()
        if cfg.SOLVER.COMPILE:
            G.compile()
            D.compile()
        self.G = Player(G, cfg.SOLVER.LR_G, cfg, device)
        self.D = Player(D, cfg.SOLVER.LR_D, cfg, device)
        self.regularisers = Regularisers(cfg, device)

    def __str__(self) -> str:
        counts = (
            f"{name} {sum(p.numel() for p in player.network.parameters()):,}"
            for name, player in (("generator", self.G), ("discriminator", self.D))
        )
        processes, frozen = distributed.world_size(), self.cfg.SOLVER.FREEZE_D
        return (
            f"{self.cfg.MODEL.NORM}; parameters: {', '.join(counts)}; {self.device.type}"
            + (f", {processes} processes" if processes > 1 else "")
            + (f"; {frozen} blocks of the discriminator frozen" if frozen else "")
            + (f"; goes on after step {self.step}" if self.step else "")
        )

    def averaged(self) -> nn.Module:
        """The generator with the moving average of its weights, as it is evaluated."""
        G = copy.deepcopy(self.ema.module)
        make_spectral_norm_exact(G)
        return G

    def autocast(self) -> torch.autocast:
        dtype = AMP[self.cfg.SOLVER.AMP]
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None)

    def image_format(self, images: Tensor) -> Tensor:
        if self.cfg.SOLVER.CHANNELS_LAST:
            return images.contiguous(memory_format=torch.channels_last)
        return images

    def augment(self, images: Tensor, position: tuple[int, ...]) -> Tensor:
        """What D sees of images; its draws depend on the seed, the position and the rank."""
        if not self.cfg.SOLVER.DIFF_AUGMENT:
            return images
        generator = torch.Generator(self.device)
        generator.manual_seed(mix(self.cfg.SEED, *position, distributed.rank()))
        return diff_augment(images, self.cfg.SOLVER.DIFF_AUGMENT, generator)

    def update(self, player: Player, step: int, losses: Tensor) -> list[float]:
        """Let a player take its step, unless its loss or gradients are not finite.

        Args:
            losses: (k,), the loss first, of this rank.

        Returns:
            the k values' means over the ranks.

        Raises:
            UserError: not finite. The weights are still as before this step.
        """
        values = torch.stack([*losses, player.gradient_norm()])
        distributed.average_([values])
        *means, norm = values.tolist()
        if not (math.isfinite(sum(means)) and math.isfinite(norm)):
            raise UserError(self._diverged(player, step, means[0], norm))
        player.step()
        if player.scaler.get_scale() < SMALLEST_SCALE:
            raise UserError(self._diverged(player, step, means[0], math.inf))
        return means

    def _diverged(self, player: Player, step: int, loss: float, norm: float) -> str:
        name = "generator" if player is self.G else "discriminator"
        remedy = "a lower SOLVER.LR_G and SOLVER.LR_D"
        remedy += " or without SOLVER.AMP" if self.cfg.SOLVER.AMP else ""
        try:
            last = checkpoint.find_checkpoint(self.folder)
        except UserError:
            way = f"there is no checkpoint yet; start again with {remedy}"
        else:
            way = f"the last good checkpoint is {last}; go on from it by --resume with {remedy}"
        return (
            f"step {step}: the {name}'s loss is {loss:.4g}, the norm of its gradients {norm:.4g}; "
            f"{way}, or start a new run with a larger SOLVER.BATCH_SIZE"
        )

    def add(self, **values: float) -> None:
        """Count values in for the next line of the log."""
        for key, value in values.items():
            total, count = self.sums.get(key, (0.0, 0))
            self.sums[key] = [total + value, count + 1]

    def pop_means(self) -> dict[str, float]:
        means = {key: total / count for key, (total, count) in self.sums.items()}
        self.sums = {}
        return means

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        for network in (self.G.network, self.ema.module):
            average_statistics(network)
        return {
            "step": self.step,
            "config": self.cfg.dump(),
            "classes": self.classes,
            "generator": self.G.network.state_dict(),
            "discriminator": self.D.network.state_dict(),
            "ema": self.ema.module.state_dict(),
            "optimizer_g": self.G.optimizer.state_dict(),
            "optimizer_d": self.D.optimizer.state_dict(),
            "scaler": {"g": self.G.scaler.state_dict(), "d": self.D.scaler.state_dict()},
            "lecam": self.regularisers.averages,
            "random": get_random_state(),
            "data": {
                "seed": self.cfg.SEED,
                "batches": self.step * self.cfg.SOLVER.D_STEPS,
                "images": self.images,
            },
            "sums": self.sums,
        }

    def save(self) -> None:
        state = self.state()
        if distributed.is_main():
            checkpoint.save_checkpoint(self.folder, state, self.cfg.SOLVER.KEEP)

    def load(self, path: Path) -> None:
        """Go on where a checkpoint was written.

        Raises:
            UserError: it is of another run, or not of a run at all.
        """
        data = checkpoint.load_checkpoint(path)
        if "optimizer_g" not in data:
            raise UserError(f"{path}: holds a generator to sample from, not a run to go on with")
        old = checkpoint.config_of(data, str(path), self.cfg.DEVICE)
        check_same_run(old, self.cfg, path, checkpoint.MAY_DIFFER)
        with user_errors(*checkpoint.WRONG_STATE, prefix=f"{path}: damaged: "):
            images = int(data["data"]["images"])
        if images != self.images:
            raise UserError(f"{path} is of a run on {images} images; DATA has {self.images} now")
        with user_errors(*checkpoint.WRONG_STATE, prefix=f"{path}: damaged: "):
            self._load(data)
        if self.step > self.cfg.SOLVER.MAX_ITER:
            raise UserError(
                f"{path} has done {self.step} steps, but SOLVER.MAX_ITER is "
                f"{self.cfg.SOLVER.MAX_ITER}"
            )

    def start_from_weights(self) -> str:
        """Begin with the weights at MODEL.INIT. Returns a line about them.

        Raises:
            UserError: as :func:`evonorm_gan.finetune.start_from_weights`.
        """
        networks = self.G.network, self.ema.module, self.D.network
        about = start_from_weights(self.cfg, *networks, self.classes)
        self.ema.n_averaged.fill_(1)
        return about

    def _load(self, data: dict[str, Any]) -> None:
        self.G.load(data["generator"], data["optimizer_g"], data["scaler"]["g"])
        self.D.load(data["discriminator"], data["optimizer_d"], data["scaler"]["d"])
        self.ema.module.load_state_dict(data["ema"])
        self.ema.n_averaged.fill_(1)
        self.regularisers.load(data.get("lecam"))
        if distributed.world_size() == 1:
            set_random_state(data["random"])
        self.step = data["step"]
        self.sums = {key: [total + 0.0, count + 0] for key, (total, count) in data["sums"].items()}


def average_statistics(network: nn.Module) -> None:
    """Average running statistics over the ranks, each of which has its own unless MODEL.SYNC."""
    layers = (m for m in network.modules() if getattr(m, "batch_dependent", False))
    distributed.average_(
        buffer for m in layers for buffer in m.buffers(recurse=False) if buffer.is_floating_point()
    )


def check_run(cfg: CfgNode, resume: bool | Path = False) -> Path | None:
    """The checkpoint to go on from, None for a new run.

    Args:
        resume: as :func:`train`.

    Raises:
        UserError: what would go wrong later on.
    """
    folder, solver, ranks = Path(cfg.OUTPUT_DIR), cfg.SOLVER, distributed.world_size()
    if solver.BATCH_SIZE % (ranks * solver.ACCUMULATE):
        raise UserError(
            f"SOLVER.BATCH_SIZE {solver.BATCH_SIZE} can't be divided by {ranks} processes times "
            f"SOLVER.ACCUMULATE {solver.ACCUMULATE}"
        )
    changes(solver.DIFF_AUGMENT)  # raises for an unknown one
    begun = any(folder.glob("*.pth"))
    if isinstance(resume, Path):
        chosen = checkpoint.find_checkpoint(resume)
        if begun and chosen.resolve().parent != folder.resolve():
            raise UserError(
                f"OUTPUT_DIR {folder} holds another run than {chosen}: name a new OUTPUT_DIR, or a "
                "checkpoint of that folder"
            )
        return chosen
    if not begun and solver.FREEZE_D and not cfg.MODEL.INIT:
        raise UserError(
            f"SOLVER.FREEZE_D is {solver.FREEZE_D}, but there is no MODEL.INIT (--init) with a "
            "trained discriminator"
        )
    return checkpoint.find_checkpoint(folder) if begun else None


def weights_to_start_from(cfg: CfgNode) -> Path | None:
    """The checkpoint at MODEL.INIT; None if a new run begins with random weights."""
    return checkpoint.find_checkpoint(cfg.MODEL.INIT) if cfg.MODEL.INIT else None


def due(cfg: CfgNode, step: int, period: int) -> bool:
    """Whether what is done every `period` steps (0: never), and at the end, is done now."""
    return step == cfg.SOLVER.MAX_ITER or (period > 0 and step % period == 0)


# What is written on the way.


class Timer:
    """Seconds per step, without what is written and evaluated in between."""

    def __init__(self, cfg: CfgNode) -> None:
        self.images = cfg.SOLVER.BATCH_SIZE * cfg.SOLVER.D_STEPS
        self.seconds, self.steps = 0.0, 0

    def start(self) -> None:
        self.began = time.perf_counter()

    def stop(self) -> None:
        self.seconds += time.perf_counter() - self.began
        self.steps += 1

    def pop(self) -> dict[str, float]:
        """Seconds per step, and real images per second, since the last call."""
        seconds = self.seconds / self.steps
        self.seconds, self.steps = 0.0, 0
        return {"time": seconds, "images_per_second": self.images / seconds}


def write_log(run: GanRun, log: Log, timer: Timer) -> None:
    """A line of losses, speed, and singular values of the layers outside of the blocks."""
    solver = run.cfg.SOLVER
    values = {**run.pop_means(), "lr_g": solver.LR_G, "lr_d": solver.LR_D, **timer.pop()}
    line = ", ".join(
        f"{key} {values[key]:.3f}" for key in ("loss_d", "loss_g", "d_real", "d_fake", "time")
    )
    say(f"step {run.step}: {line}, {values['images_per_second']:.0f} images/s")
    for name, network in (("G", run.G.network), ("D", run.D.network)):
        for layer, value in singular_values(network).items():
            if not layer.startswith("blocks"):
                values[f"singular_value/{name}.{layer}"] = value
    log.write(run.step, values)


def write_samples(run: GanRun) -> None:
    """A grid of the moving average's images: a row per class, the same z in every grid."""
    G = run.averaged()
    test = run.cfg.TEST
    standing_statistics(G, test.STANDING_BATCHES, test.BATCH_SIZE, run.cfg.SEED)
    if distributed.is_main():
        classes = range(min(GRID_CLASSES, run.cfg.MODEL.NUM_CLASSES))
        grid = class_grid(G, classes, GRID_COLUMNS, run.cfg.SEED)
        write_png(run.folder / "samples" / f"{run.step:07d}.png", grid)


class Evaluation:
    """Evaluates a run's moving average now and then; keeps its best checkpoints."""

    def __init__(self, cfg: CfgNode, dataset: Any, device: torch.device, log: Log) -> None:
        self.cfg, self.log = cfg, log
        # At once, so that nothing it lacks is found out hours later.
        self.evaluator = Evaluator(cfg, dataset, device) if cfg.TEST.EVAL_PERIOD >= 0 else None
        if self.evaluator:
            say("\n".join(self.evaluator.about))
        self.fid, self.inception_score = (
            metric_key(name, cfg.TEST.EXTRACTOR) for name in ("FID", "IS")
        )

    def due(self, step: int) -> bool:
        period = self.cfg.TEST.EVAL_PERIOD
        done = any(line["step"] == step for line in self.log.with_key(self.fid))
        return period >= 0 and step > 0 and due(self.cfg, step, period) and not done

    def __call__(self, run: GanRun) -> None:
        """Evaluate the run as it is now. All processes take part."""
        results = self.evaluator.evaluate(run.averaged(), seed=self.cfg.SEED)
        # The line last: a run killed before it is evaluated again.
        self._keep_best(run, results)
        self.log.write(run.step, results)
        say(f"step {run.step}: {summary(results)}")
        if self.collapsed():
            say(
                f"step {run.step}: collapsed: the discriminator's loss is 0 and "
                f"{self.fid} rises; the best checkpoint is {run.folder / 'best_fid.pth'}"
            )

    def _keep_best(self, run: GanRun, results: dict[str, float]) -> None:
        before = self.log.with_key(self.fid)
        state = run.state()
        for name, key, sign in (("fid", self.fid, -1), ("is", self.inception_score, 1)):
            if key not in results:  # timm's models give no IS
                continue
            best = all(sign * results[key] > sign * line[key] for line in before)
            if best and distributed.is_main():
                write_checkpoint(run.folder / f"best_{name}.pth", state)

    def collapsed(self) -> bool:
        return collapsed(self.log.lines, self.fid)

    def last(self) -> dict[str, float]:
        done = self.log.with_key(self.fid)
        return {key: value for key, value in done[-1].items() if key != "step"} if done else {}


def collapsed(lines: list[dict[str, Any]], fid: str) -> bool:
    """Whether D tells all images apart since the last evaluation but one, and FID rose in three.

    Args:
        lines: of the log.
        fid: its key for FID.
    """
    evaluations = [line for line in lines if isinstance(line.get(fid), (int, float))][-3:]
    values = [line[fid] for line in evaluations]
    if len(values) < 3 or not values[0] < values[1] < values[2]:
        return False
    since = evaluations[-2]["step"]
    losses = [line["loss_d"] for line in lines if "loss_d" in line and line["step"] > since]
    return bool(losses) and sum(losses) / len(losses) < LOST


def summary(results: dict[str, float]) -> str:
    """Results on one line, such as `IS 98.12, FID 8.70`, a remark that all keys make once."""
    shown = {key: value for key, value in results.items() if key not in COUNTS}
    values = ", ".join(f"{key.split(' (')[0]} {value:.4g}" for key, value in shown.items())
    remarks = {f" ({key.split(' (')[1]}" for key in results if " (" in key}
    counts = [results[key] for key in COUNTS if key in results]
    about = "; precision and recall of {} images and {} real ones".format(*counts) if counts else ""
    return values + "".join(sorted(remarks)) + about
