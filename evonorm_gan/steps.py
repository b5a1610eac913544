"""The steps of the two networks, and that of the moving average."""

from __future__ import annotations

import torch
from torch import Tensor

from evonorm_runs import distributed
from evonorm_runs.random_state import mix

from .data import to_float
from .losses import discriminator_hinge, generator_hinge, orthogonal_penalty
from .run import GanRun
from .sampling import latents


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
        values = [loss, score_real.mean(), score_fake.mean(), score_real.sign().mean()]
        losses.append(torch.stack([*values, *more.values()]).detach())
    means = run.update(D, step, torch.stack(losses).mean(0))
    run.regularisers.update(*means[1:3])
    run.ada.update(means[3])
    run.add(**dict(zip(("loss_d", "d_real", "d_fake", "d_real_sign", *more), means)))


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
            with run.autocast():
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
