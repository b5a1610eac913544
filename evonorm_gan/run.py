"""What a run consists of: its networks, its position, and what its checkpoints hold."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from evonorm_runs import distributed
from evonorm_runs.checkpoint import check_same_run
from evonorm_runs.errors import UserError, user_errors
from evonorm_runs.random_state import get_random_state, mix, seed_all, set_random_state

from . import checkpoint
from .ada import AdaptiveProbability, ada_augment
from .augment import diff_augment
from .finetune import freeze_first_blocks, start_from_weights
from .models import build_discriminator, build_generator, make_spectral_norm_exact
from .player import Player
from .regularise import Regularisers

AMP = {"": None, "bf16": torch.bfloat16, "fp16": torch.float16}
SMALLEST_SCALE = 2.0**-16  # of fp16's losses; it gets this small only if no gradient is ever finite


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
        self.ada = AdaptiveProbability(cfg)

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
        solver = self.cfg.SOLVER
        if not (solver.DIFF_AUGMENT or solver.ADA):
            return images
        generator = torch.Generator(self.device)
        generator.manual_seed(mix(self.cfg.SEED, *position, distributed.rank()))
        if solver.ADA:
            return ada_augment(images, self.ada.p, solver.ADA_AUGMENT, generator)
        return diff_augment(images, solver.DIFF_AUGMENT, generator)

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
            "ada": self.ada.state(),
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
        self.ada.load(data.get("ada"))
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
