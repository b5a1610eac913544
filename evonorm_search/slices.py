"""Batch statistics over a few images of a larger batch, as several workers have them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from evonorm.base import affine, track
from evonorm.layers import EvoNorm
from evonorm.statistics import widen
from evonorm_classifier.trainer import share_statistics


def slice_batches(model: nn.Module, images: int) -> None:
    """Let each layer with batch statistics take them over so many images, in place.

    So a step on a batch equals one of several workers of so many images each, as in tables 2 and 3:
    a worker normalises its own images, and the running statistics move towards the mean of the
    workers' statistics.
    """
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if getattr(layer, "batch_dependent", False) and not isinstance(parent, Sliced):
                setattr(parent, name, Sliced(layer, images))


class Sliced(nn.Module):
    """A layer whose batch statistics are taken over slices of the batch in training."""

    def __init__(self, layer: nn.Module, images: int) -> None:
        super().__init__()
        self.layer, self.images, self.momentum = layer, images, layer.momentum

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.layer(x)
        if isinstance(self.layer, EvoNorm) and not self.layer.kind and not len(x) % self.images:
            return formula_in_slices(self.layer, x, self.images)
        slices, outputs = x.split(self.images), []
        for i, part in enumerate(slices):
            share_statistics([(self.layer, self.momentum)], i, len(slices))
            outputs.append(self.layer(part))
        return torch.cat(outputs)


def formula_in_slices(layer: EvoNorm, x: Tensor, images: int) -> Tensor:
    """The layer of a formula on all slices at once, several times faster than one by one."""
    wide = widen(x)
    v, v0 = (wide if p is None else p[:, None, None] for p in (layer.v, layer.v0))
    found: list[Tensor] = []  # of each aggregation over the batch, (N, C, 1, 1)
    formula = layer.formula
    for node, inner, running in zip(
        formula.batch, formula.inner_functions, layer.running_statistics()
    ):
        a = wide if inner is None else inner(wide, v0, v, found, layer.num_groups, layer.eps)
        slices = a.unflatten(0, (-1, images))
        mean = slices.mean((1, 3, 4), keepdim=True)
        if node.op == "mean_b":
            value = mean
        elif node.op == "std_b":
            value = (slices - mean).square().mean((1, 3, 4), keepdim=True)
        else:
            value = slices.square().mean((1, 3, 4), keepdim=True)
        track(running, value.mean(0).flatten(), layer.momentum)
        found.append(value.expand(-1, images, -1, -1, -1).flatten(0, 1))
    y = layer.function(wide, v0, v, found, layer.num_groups, layer.eps)
    return affine(y, layer.weight, layer.bias).to(x.dtype)
