"""What the discriminator's loss has besides the hinge: R1, LeCam and consistency, each by a key."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from evonorm_runs import distributed
from evonorm_runs.random_state import mix

from .augment import translation
from .losses import consistency, lecam, r1_penalty

LECAM_DECAY = 0.99  # of the moving averages of D's scores (Tseng et al. 2021)
APART = 0xC  # keeps the draws of the changed copies apart from those of DIFF_AUGMENT


class Regularisers:
    """Those of a run.

    Attributes:
        averages: LeCam's moving averages of D's scores of real and of generated images; None before
            the first update.
    """

    def __init__(self, cfg: CfgNode, device: torch.device) -> None:
        self.cfg, self.device = cfg, device
        self.averages: list[float] | None = None

    def r1_is_due(self, step: int, i: int) -> bool:
        """Whether the i-th update of D in a step, from 1, takes R1."""
        solver = self.cfg.SOLVER
        return solver.R1_GAMMA > 0 and ((step - 1) * solver.D_STEPS + i) % solver.R1_PERIOD == 0

    def inputs(
        self, images: Tensor, labels: Tensor, position: tuple[int, int, int]
    ) -> tuple[Tensor, Tensor]:
        """What D is to score: the images and, for consistency, changed copies of them behind.

        Args:
            images: (2n, 3, R, R), real ones and then as many generated ones; labels (2n,).
            position: step, update and part; the changes depend on it, the seed and the rank.
        """
        real, fake = images.chunk(2)
        of_real, of_fake = labels.chunk(2)
        parts = [(images, labels)]
        if self.cfg.SOLVER.CR_REAL:
            parts.append((self._changed(real, (*position, 0)), of_real))
        if self.cfg.SOLVER.CR_FAKE:
            parts.append((self._changed(fake, (*position, 1)), of_fake))
        if len(parts) > 1:
            images, labels = (torch.cat(x) for x in zip(*parts))
        # R1 differentiates with respect to what D sees.
        return images.requires_grad_(self.r1_is_due(*position[:2])), labels

    def forward_pass(self, step: int, i: int) -> contextlib.AbstractContextManager:
        """Around D's: the fused kernels of attention have no second derivatives."""
        if self.r1_is_due(step, i):
            return sdpa_kernel(SDPBackend.MATH)
        return contextlib.nullcontext()

    def penalties(self, images: Tensor, scores: Tensor, step: int, i: int) -> dict[str, Tensor]:
        """By the name in the log, what is added to the loss, strengths included.

        Args:
            images: those of :meth:`inputs`; scores: D's of them.
        """
        solver = self.cfg.SOLVER
        copies = [strength for strength in (solver.CR_REAL, solver.CR_FAKE) if strength]
        real, fake, *changed = scores.chunk(2 + len(copies))
        found = {}
        if self.r1_is_due(step, i):
            # So that its mean over the updates is that of R1 at each.
            strength = solver.R1_GAMMA * solver.R1_PERIOD
            found["r1"] = strength * r1_penalty(real, images)
        if solver.LECAM and self.averages:
            found["lecam"] = solver.LECAM * lecam(real, fake, *self.averages)
        pairs = [pair for pair in ((solver.CR_REAL, real), (solver.CR_FAKE, fake)) if pair[0]]
        if pairs:
            terms = [s * consistency(x, y) for (s, x), y in zip(pairs, changed)]
            found["consistency"] = torch.stack(terms).sum()
        return found

    def update(self, score_real: float, score_fake: float) -> None:
        """Take mean scores of an update, of all ranks, into LeCam's averages."""
        if not self.cfg.SOLVER.LECAM:
            return
        new = [score_real, score_fake]
        old = self.averages or new
        self.averages = [LECAM_DECAY * a + (1 - LECAM_DECAY) * b for a, b in zip(old, new)]

    def load(self, averages: Any) -> None:
        self.averages = None if averages is None else [float(x) for x in averages]
        if self.averages is not None and len(self.averages) != 2:
            raise ValueError(f"lecam has {len(self.averages)} values, not 2")

    def _changed(self, images: Tensor, position: tuple[int, ...]) -> Tensor:
        """Shifted by up to 1/8, and mirrored at random if DATA.FLIP is set."""
        generator = torch.Generator(self.device)
        generator.manual_seed(mix(self.cfg.SEED, APART, *position, distributed.rank()))
        images = translation(images, generator)
        if not self.cfg.DATA.FLIP:
            return images
        mirrored = torch.rand(len(images), device=self.device, generator=generator) < 0.5
        return torch.where(mirrored[:, None, None, None], images.flip(-1), images)
