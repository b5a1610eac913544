"""How good a candidate is: the trainings and the stress test of sections 4.2 and 4.4.

Everything here is a function of a model, data and a seed, and runs in one process.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evonorm_runs.random_state import mix

from .anchors import build_anchor

SCHEDULES = ("constant", "cosine")  # of the learning rate


@dataclass(frozen=True)
class Proxy:
    """The task that candidates are trained on; the defaults are those of the paper's B search.

    Attributes:
        steps: of a full training.
        batch_size: images per step.
        lr: of SGD with Nesterov's momentum; constant, or falling to 0 with `schedule` "cosine".
        weight_decay: of all parameters.
        crop: pixels of the random crops that are trained on, 0 for whole images. Whole images are
            evaluated.
        quality_steps, quality: a candidate is rejected if its accuracy, a fraction, is lower than
            `quality` after so many of these steps.
        stability_steps, stability_lr, stability_limit: see :func:`worst_gradient_norm`.
    """

    steps: int = 2000
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: str = "constant"
    crop: int = 24
    quality_steps: int = 100
    quality: float = 0.2
    stability_steps: int = 100
    stability_lr: float = 0.1
    stability_limit: float = 1e8

    def rate(self, step: int) -> float:
        """The learning rate of a step, from 0."""
        if self.schedule == "cosine":
            return self.lr * (1 + math.cos(math.pi * step / self.steps)) / 2
        return self.lr


@dataclass(frozen=True)
class Data:
    """Images uint8 (n, 1 or 3, H, W) and classes int64 (n,): to train on, and to score with."""

    train: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor]

    @property
    def classes(self) -> int:
        return int(self.train[1].max()) + 1

    def to(self, device: torch.device | str) -> Data:
        """The same on a device, where they stay."""
        moved = (tuple(x.to(device) for x in part) for part in (self.train, self.val))
        return Data(*moved)


def evaluate(
    norm_act: str, anchors: Sequence[str], data: Data, proxy: Proxy, seed: int
) -> dict[str, Any]:
    """What becomes of a candidate: the stage that it ends at, and what was measured on the way.

    First the quality on each anchor, then the stability, then the rest of the trainings, whose
    first steps gave the quality. A model's first weights are a function of the seed.

    Returns:
        `stage`: "quality" or "stability" if it was rejected, else "trained"; `quality`: accuracies
        after the first steps; `worst`: gradient norms; `scores`: accuracies of full trainings;
        `curves`: training losses, see :func:`curve`. Each is a list over the anchors, as far as
        they were measured.
    """
    device = data.train[0].device

    def build(anchor: str) -> nn.Module:
        torch.manual_seed(mix(seed) >> 1)
        model = build_anchor(anchor, norm_act, data.classes)
        return model.to(device, memory_format=torch.channels_last)  # a third faster on a CPU

    found: dict[str, Any] = {"stage": "trained", "quality": [], "worst": [], "scores": []}
    trainings: list[Training] = []

    def end(stage: str) -> dict[str, Any]:
        return {**found, "stage": stage, "curves": [curve(t.losses, proxy) for t in trainings]}

    for anchor in anchors:
        trainings.append(Training(build(anchor), data, proxy, seed))
        trainings[-1].run(proxy.quality_steps)
        found["quality"].append(accuracy(trainings[-1].model, data.val))
        if found["quality"][-1] < proxy.quality:
            return end("quality")
    for anchor in anchors:
        found["worst"].append(worst_gradient_norm(build(anchor), data, proxy, seed))
        if found["worst"][-1] > proxy.stability_limit:
            return end("stability")
    for training in trainings:
        training.run(proxy.steps)
        found["scores"].append(accuracy(training.model, data.val))
    return end("trained")


class Training:
    """The proxy task's training of a model, in place; it goes on where it ended.

    Attributes:
        losses: one per step; they end early with one that is not finite.
    """

    def __init__(self, model: nn.Module, data: Data, proxy: Proxy, seed: int) -> None:
        self.model, self.proxy, self.seed = model, proxy, seed
        self.losses: list[float] = []
        self._batches = batches(data, proxy, seed)
        self._optimizer = torch.optim.SGD(
            model.parameters(),
            proxy.lr,
            proxy.momentum,
            weight_decay=proxy.weight_decay,
            nesterov=True,
            fused=True,  # the same numbers; a fiftieth of a small anchor's step on a CPU
        )

    def run(self, until: int) -> None:
        """Train until so many steps are done in all, PROXY.STEPS at most."""
        self.model.train()
        torch.manual_seed(mix(self.seed, len(self.losses)) >> 1)  # of dropout
        for step in range(len(self.losses), min(until, self.proxy.steps)):
            if self.losses and not math.isfinite(self.losses[-1]):
                return
            self._optimizer.param_groups[0]["lr"] = self.proxy.rate(step)
            self.losses.append(self.step(*next(self._batches)))

    def step(self, images: Tensor, labels: Tensor) -> float:
        """Train on one batch; its loss."""
        loss = F.cross_entropy(self.model(images), labels)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        return loss.item()


POINTS = 20  # of the curve of a full training


def curve(losses: Sequence[float], proxy: Proxy) -> list[float | None]:
    """Mean losses, each over a POINTS-th of a full training; None where one is not finite."""
    size = math.ceil(proxy.steps / POINTS)
    parts = (losses[i : i + size] for i in range(0, len(losses), size))
    means = (sum(part) / len(part) for part in parts)
    return [round(mean, 4) if math.isfinite(mean) else None for mean in means]


@torch.no_grad()
def accuracy(model: nn.Module, part: tuple[Tensor, Tensor], batch_size: int = 500) -> float:
    """The fraction of a part's images whose class gets the highest score, in evaluation mode.

    Scores that are not finite count as wrong.
    """
    model.eval()
    hits = 0
    for images, labels in zip(*(x.split(batch_size) for x in part)):
        scores = model(to_float(images))
        finite = torch.isfinite(scores).all(1)
        hits += int(((scores.argmax(1) == labels) & finite).sum())
    return hits / len(part[1])


def worst_gradient_norm(model: nn.Module, data: Data, proxy: Proxy, seed: int) -> float:
    """The norm of the loss's gradient where it gets worst (section 4.4, equation 1).

    The weights of the convolutions move `stability_steps` times by `stability_lr` times the
    gradient of the norm of the loss's gradient by these weights, so that this norm grows. The paper
    names no step size.

    Returns:
        the largest norm seen; infinity where one is not finite. It ends early above
        `stability_limit`. The model's weights are left where the ascent ended.
    """
    model.train()
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d)]
    worst = 0.0
    for _, (images, labels) in zip(range(proxy.stability_steps), batches(data, proxy, seed)):
        loss = F.cross_entropy(model(images), labels)
        unused = {"allow_unused": True, "materialize_grads": True}  # as behind a constant layer
        gradients = torch.autograd.grad(loss, weights, create_graph=True, **unused)
        norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
        value = norm.item()
        if value == 0.0:  # there is no way up
            continue
        ascent = torch.autograd.grad(norm, weights, **unused)
        worst = max(worst, value) if math.isfinite(value) else math.inf
        if worst > proxy.stability_limit:
            break
        with torch.no_grad():
            torch._foreach_add_(weights, ascent, alpha=proxy.stability_lr)
    return worst


def batches(data: Data, proxy: Proxy, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches, float32 images and classes; epoch after epoch in an order of its own."""
    images, labels = data.train
    device = images.device
    for epoch in range(10**9):
        generator = torch.Generator().manual_seed(mix(seed, epoch) >> 1)
        order = torch.randperm(len(labels), generator=generator).to(device)
        for chosen in order.split(proxy.batch_size):
            if len(chosen) == proxy.batch_size:
                picked = images[chosen]
                yield to_float(crops(picked, proxy.crop, generator)), labels[chosen]


def crops(images: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """A random crop of each image: (n, C, size, size); the images themselves for size 0."""
    if not size:
        return images
    n, height, width = len(images), images.shape[2], images.shape[3]
    top = torch.randint(height - size + 1, (n,), generator=generator)
    left = torch.randint(width - size + 1, (n,), generator=generator)
    rows = (top[:, None] + torch.arange(size)).to(images.device)
    columns = (left[:, None] + torch.arange(size)).to(images.device)
    index = torch.arange(n, device=images.device)[:, None, None]
    return images.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)


def to_float(images: Tensor) -> Tensor:
    """uint8 (n, 1 or 3, H, W) to float32 (n, 3, H, W) in [-1, 1]."""
    return (images.float() / 127.5 - 1).expand(-1, 3, -1, -1)
