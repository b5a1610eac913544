"""The layers that the paper compares with: BN, GN, LN, PixelNorm, FRN, with their activations."""

from __future__ import annotations

from functools import partial
from typing import Any, Callable, Optional

import torch
from torch import Tensor, nn

from . import aggregations
from .base import NormAct, affine, keep_inputs_only, track
from .registry import register_norm_act
from .statistics import batch_moments, widen

# Activations act(z, v), v (C, 1, 1).


def relu(z: Tensor, v: Tensor) -> Tensor:
    return torch.relu_(z)


def prelu(z: Tensor, v: Tensor) -> Tensor:
    """max(z, 0) + v min(z, 0), a slope per channel."""
    return z.clamp(min=0) + v * z.clamp(max=0)


def swish(z: Tensor, v: Tensor) -> Tensor:
    return z * torch.sigmoid(v * z)


def swish_1(z: Tensor, v: Tensor) -> Tensor:
    return z * torch.sigmoid(z)


def tlu(z: Tensor, v: Tensor) -> Tensor:
    """FRN's thresholded linear unit, max(z, v)."""
    return torch.maximum(z, v)


# Normalizations of single samples, norm(x, groups, eps), without gamma and beta.


def group_norm(x: Tensor, groups: int, eps: float) -> Tensor:
    return torch.group_norm(x, groups, None, None, eps)


def pixel_norm(x: Tensor, groups: int, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + eps)


def filter_response_norm(x: Tensor, groups: int, eps: float) -> Tensor:
    return x / aggregations.rms_i(x, eps)


class SampleNormAct(NormAct):
    """y = act(norm(x) * weight + bias, v), with statistics of single samples.

    Args:
        norm: one of the normalizations above.
        act: one of the activations above.
        options: see :func:`evonorm.build_norm_act`.
    """

    def __init__(
        self,
        num_features: int,
        activation: bool = True,
        *,
        norm: Callable[..., Tensor],
        act: Callable[..., Tensor],
        **options: Any,
    ) -> None:
        super().__init__(num_features, activation, **options)
        self.norm = norm
        self.act = act
        self.like_torch = norm is group_norm
        self.native = norm is group_norm and (act is relu or not activation)

    def forward(
        self,
        x: Tensor,
        weight: Optional[Tensor] = None,
        bias: Optional[Tensor] = None,
    ) -> Tensor:
        """As :meth:`evonorm.EvoNorm.forward`."""
        if not torch.jit.is_scripting():
            self.check_input(x, weight, bias)
        if weight is None:
            weight = self.weight
        if bias is None:
            bias = self.bias
        if not torch.jit.is_scripting():
            if not self.native or (per_sample(weight) and not foldable(x)):
                return keep_inputs_only(self.evaluate, x, self.v, weight, bias)
            # PyTorch's own kernel with an in-place ReLU is lean already.
            if per_sample(weight):  # it knows no samples, so theirs become groups of one
                z = torch.group_norm(
                    x.reshape(1, -1, x.shape[2], x.shape[3]),
                    x.shape[0] * self.num_groups,
                    weight.flatten(),
                    bias.flatten(),
                    self.eps,
                ).view(x.shape)
            else:
                z = torch.group_norm(x, self.num_groups, weight, bias, self.eps)
            return (relu(z, z) if self.activation else z).to(x.dtype)
        return self.evaluate(x, self.v, weight, bias)

    def evaluate(
        self,
        x: Tensor,
        v: Optional[Tensor],
        weight: Optional[Tensor],
        bias: Optional[Tensor],
    ) -> Tensor:
        z = affine(self.norm(widen(x), self.num_groups, self.eps), weight, bias)
        if self.activation:
            z = self.act(z, z if v is None else v[:, None, None])
        return z.to(x.dtype)


class BatchNormAct(NormAct):
    """y = act(batch_norm(x) * weight + bias, v); running statistics as torch's BatchNorm2d.

    Args:
        act: one of the activations above.
        options: see :func:`evonorm.build_norm_act`.
    """

    batch_dependent = True
    like_torch = True

    def __init__(
        self,
        num_features: int,
        activation: bool = True,
        *,
        act: Callable[..., Tensor],
        **options: Any,
    ) -> None:
        super().__init__(num_features, activation, **options)
        self.act = act
        self.native = act is relu or not activation
        factory = {k: options.get(k) for k in ("device", "dtype")}
        self.register_buffer("running_mean", torch.zeros(num_features, **factory))
        self.register_buffer("running_var", torch.ones(num_features, **factory))

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if "running_var" in self._buffers:  # not while the parameters are made
            nn.init.zeros_(self.running_mean)
            nn.init.ones_(self.running_var)

    def forward(
        self,
        x: Tensor,
        weight: Optional[Tensor] = None,
        bias: Optional[Tensor] = None,
    ) -> Tensor:
        """As :meth:`evonorm.EvoNorm.forward`."""
        if not torch.jit.is_scripting():
            self.check_input(x, weight, bias)
        if weight is None:
            weight = self.weight
        if bias is None:
            bias = self.bias
        mean, var = self.running_mean, self.running_var
        if not torch.jit.is_scripting():
            # PyTorch's own kernels need, in training, two values per channel on this rank.
            own = self.training and (self.sync or x.numel() <= self.num_features)
            if self.native and not own:
                each = per_sample(weight)  # what PyTorch's kernels do not take
                w, b = (None, None) if each else (weight, bias)
                z = torch.batch_norm(
                    x, w, b, mean, var, self.training, self.momentum, self.eps, True
                )
                if each:
                    z = torch.addcmul(bias[..., None, None], z, weight[..., None, None])
                return (relu(z, z) if self.activation else z).to(x.dtype)
            if self.training:
                mean, var, count = batch_moments(x, self.sync)
                share = self.momentum * count.clamp(max=1)  # nothing of an empty batch
                track(self.running_mean, mean, share)
                unbiased = var * count / (count - 1).clamp(min=1)
                track(self.running_var, unbiased, share)
            return keep_inputs_only(self.evaluate, x, self.v, mean, var, weight, bias)
        return self.evaluate(x, self.v, mean, var, weight, bias)

    def evaluate(
        self,
        x: Tensor,
        v: Optional[Tensor],
        mean: Tensor,
        var: Tensor,
        weight: Optional[Tensor],
        bias: Optional[Tensor],
    ) -> Tensor:
        wide = widen(x)
        scale = torch.rsqrt(var.to(wide.dtype) + self.eps)
        z = affine((wide - mean[:, None, None]) * scale[:, None, None], weight, bias)
        if self.activation:
            z = self.act(z, z if v is None else v[:, None, None])
        return z.to(x.dtype)


def per_sample(weight: Tensor | None) -> bool:
    return weight is not None and weight.dim() == 2


def foldable(x: Tensor) -> bool:
    """Whether the number of samples is more than 0 and no compiler or tracer would fix it."""
    return not (torch.jit.is_tracing() or torch.compiler.is_compiling()) and x.shape[0] > 0


for _name, _factory in {
    "BN-ReLU": partial(BatchNormAct, act=relu),
    "BN-PReLU": partial(BatchNormAct, act=prelu, v=0.0),
    "BN-Swish": partial(BatchNormAct, act=swish, v=1.0),
    "BN-Swish-1": partial(BatchNormAct, act=swish_1),
    "GN-ReLU": partial(SampleNormAct, norm=group_norm, act=relu),
    "GN-Swish": partial(SampleNormAct, norm=group_norm, act=swish, v=1.0),
    "PixelNorm-ReLU": partial(SampleNormAct, norm=pixel_norm, act=relu, eps=1e-8),
    "FRN": partial(SampleNormAct, norm=filter_response_norm, act=tlu, v=0.0),
}.items():
    register_norm_act(_name)(_factory)


@register_norm_act("LN-ReLU")
def layer_norm_relu(num_features: int, activation: bool = True, **options: Any) -> SampleNormAct:
    """GN-ReLU with one group, whatever `num_groups` and `group_size` say."""
    options.update(num_groups=1, group_size=0)
    return SampleNormAct(num_features, activation, norm=group_norm, act=relu, **options)
