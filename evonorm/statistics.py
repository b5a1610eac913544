"""Batch statistics: over the ranks of a distributed run, and precisely for evaluation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .base import transformed


def widen(x: Tensor) -> Tensor:
    """x in the dtype that statistics are taken in: float64 for float64, else float32."""
    return x if x.dtype == torch.float64 else x.float()


def synchronized(sync: bool) -> bool:
    """Whether there are other ranks to synchronize statistics with."""
    return sync and dist.is_initialized() and dist.get_world_size() > 1


def batch_moments(x: Tensor, sync: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance per channel of a batch (N, C, H, W), differentiable.

    With `sync` they are those of all ranks' samples together, and so is the gradient; ranks may
    hold different numbers of samples, or none. Keeps x and the mean for the backward pass.

    Returns:
        mean (C,), variance (C,), number of values per channel (): float32, float64 for float64 x.
        An empty batch has mean and variance 0.

    Raises:
        RuntimeError: under a transform of torch.func.
    """
    if transformed():
        raise RuntimeError(
            "torch.func (vmap, grad, jvp) can't follow a layer's statistics of the batch in "
            "training; call the model's eval() first, or take a layer without them (EvoNormS0)"
        )
    return _BatchMoments.apply(x, synchronized(sync))


class _BatchMoments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sync: bool) -> tuple[Tensor, Tensor, Tensor]:
        wide = widen(x)
        count = wide.new_full((1,), x.numel() / x.shape[1])
        if wide.is_cuda and x.numel():  # in one pass
            var, mean = torch.var_mean(wide, (0, 2, 3), correction=0)
            squares = var * count
        else:
            mean = wide.sum((0, 2, 3)) / count.clamp(min=1)
            # Two passes: the difference of large sums would lose the variance of an offset input.
            squares = (wide - mean[:, None, None]).square().sum((0, 2, 3))
        if sync:
            count, mean, squares = _of_all_ranks(count, mean, squares)
        var = squares / count.clamp(min=1)
        count = count.reshape(())
        ctx.sync = sync
        ctx.save_for_backward(x, mean, count)
        ctx.mark_non_differentiable(count)
        return mean, var, count

    @staticmethod
    def backward(ctx: Any, d_mean: Tensor, d_var: Tensor, _: Any) -> tuple[Tensor, None]:
        x, mean, count = ctx.saved_tensors
        d_mean, d_var = _sum_over_ranks(torch.stack([d_mean, d_var]), ctx.sync)
        centred = widen(x) - mean[:, None, None]
        shift, slope = (d[:, None, None] / count.clamp(min=1) for d in (d_mean, 2 * d_var))
        return torch.addcmul(shift, centred, slope).to(x.dtype), None


def _of_all_ranks(count: Tensor, mean: Tensor, squares: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Number (1,), mean (C,), sum of squares about it (C,), from those of each rank's values.

    One exchange; the formula is that of Chan, Golub and LeVeque (1983).
    """
    own = torch.cat([count, mean, squares])
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, own)
    counts, means, squares = torch.stack(parts).split([1, len(mean), len(mean)], 1)
    count = counts.sum(0)
    mean = (counts * means).sum(0) / count.clamp(min=1)
    return count, mean, (squares + counts * (means - mean).square()).sum(0)


def _sum_over_ranks(x: Tensor, sync: bool) -> Tensor:
    if sync:
        import torch.distributed.nn.functional as dist_nn  # differentiable, for a double backward

        x = dist_nn.all_reduce(x)
    return x


@torch.no_grad()
def update_running_statistics(
    model: nn.Module, batches: Iterable[Any], forward: Callable[[Any], Any] | None = None
) -> int:
    """Set each norm-act's running statistics to the mean over `batches` of its batch statistics.

    The moving average lags behind the weights; this is what evaluation should use (precise
    statistics for a detector, standing statistics for a generator). Only layers that are in
    training mode take part, so frozen ones keep theirs.

    Args:
        model: in training mode.
        batches: what `forward` takes, one at a time.
        forward: by default `model` itself.

    Returns:
        the number of batches seen.

    Raises:
        ValueError: the model is in evaluation mode.
    """
    if not model.training:
        raise ValueError("the model is in evaluation mode, where statistics rest: call .train()")
    layers = [m for m in model.modules() if getattr(m, "batch_dependent", False) and m.training]
    momentum = [layer.momentum for layer in layers]
    hooks = [layer.register_forward_pre_hook(_cumulative_average()) for layer in layers]
    seen = 0
    try:
        for batch in batches if layers else ():
            (forward or model)(batch)
            seen += 1
    finally:
        for layer, hook, value in zip(layers, hooks, momentum):
            hook.remove()
            layer.momentum = value
    return seen


def _cumulative_average() -> Callable[[nn.Module, tuple[Any, ...]], None]:
    """A forward pre-hook by which a layer's moving average becomes the mean of all its inputs'."""
    seen = 0

    def hook(layer: nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal seen
        # An empty batch leaves the statistics as they are, unless another rank has samples.
        seen += args[0].numel() > 0 or getattr(layer, "sync", False)
        layer.momentum = 1 / max(seen, 1)

    return hook
