"""What the generator and the discriminator are made of, beside convolutions."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from evonorm import build_norm_act
from evonorm_runs.errors import UserError, user_errors

SPECTRAL_NORM_EPS = 1e-6  # in the power iteration of training only


def orthogonal(module: nn.Module) -> nn.Module:
    """Orthogonal initialisation (Saxe et al. 2014) of a convolution, linear or embedding.

    Now, and whenever its `reset_parameters` is called.
    """
    module.reset_parameters = partial(_initialise, module)
    module.reset_parameters()
    return module


@torch.no_grad()
def _initialise(module: nn.Module) -> None:
    normalised = parametrize.is_parametrized(module, "weight")
    weight = module.parametrizations.weight.original if normalised else module.weight
    nn.init.orthogonal_(weight)
    if getattr(module, "bias", None) is not None:
        nn.init.zeros_(module.bias)
    if normalised:
        fresh = _SpectralNorm(weight, eps=SPECTRAL_NORM_EPS)
        module.parametrizations.weight[0].load_state_dict(fresh.state_dict())


def spectral_norm(module: nn.Module) -> nn.Module:
    """Divide the weight, initialised here, by its largest singular value (Miyato et al. 2018).

    A forward pass in training takes one power iteration, one in evaluation none.
    """
    norm = _SpectralNorm(orthogonal(module).weight, eps=SPECTRAL_NORM_EPS)
    return parametrize.register_parametrization(module, "weight", norm)


class _SpectralNorm(parametrizations._SpectralNorm):
    """PyTorch's, in full precision under autocast too, which would be 0.3 % off."""

    def forward(self, weight: Tensor) -> Tensor:
        device = weight.device.type
        if weight.is_meta or not torch.is_autocast_enabled(device):  # meta knows no autocast
            return super().forward(weight)
        with torch.autocast(device, enabled=False):
            return super().forward(weight)


def conv(in_channels: int, out_channels: int, kernel_size: int, bias: bool = True) -> nn.Module:
    """A spectrally normalised convolution (N, C, H, W) -> (N, out_channels, H, W)."""
    padding = kernel_size // 2
    return spectral_norm(
        nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, bias=bias)
    )


def linear(in_features: int, out_features: int, bias: bool = True) -> nn.Module:
    """A spectrally normalised linear layer."""
    return spectral_norm(nn.Linear(in_features, out_features, bias=bias))


def _spectrally_normalised(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module, "weight"):
            yield name, module.parametrizations.weight


@torch.no_grad()
def singular_values(model: nn.Module) -> dict[str, float]:
    """The estimated largest singular value of each spectrally normalised weight, by layer name."""
    sigma = {}
    for name, weight in _spectrally_normalised(model):
        norm, matrix = weight[0], weight.original.flatten(1)
        sigma[name] = torch.vdot(norm._u, matrix @ norm._v)
    return dict(zip(sigma, torch.stack(list(sigma.values())).tolist())) if sigma else {}


@torch.no_grad()
def make_spectral_norm_exact(model: nn.Module) -> None:
    """Let each weight be divided by its largest singular value, not by the last estimate of it.

    A moving average of weights has the estimates of the last step's weights: up to 16 % off.
    """
    for _, weight in _spectrally_normalised(model):
        matrix = weight.original.flatten(1).cpu().double()
        wide = matrix.shape[0] <= matrix.shape[1]
        first = torch.linalg.eigh(matrix @ matrix.T if wide else matrix.T @ matrix)[1][:, -1]
        second = F.normalize((matrix.T if wide else matrix) @ first, dim=0)
        weight[0]._u.copy_(first if wide else second)
        weight[0]._v.copy_(second if wide else first)


@contextlib.contextmanager
def frozen_spectral_norm(model: nn.Module) -> Iterator[None]:
    """Within, forward passes take no power iteration, whatever mode the model is in."""
    modes = [(weight[0], weight[0].training) for _, weight in _spectrally_normalised(model)]
    try:
        for norm, _ in modes:
            norm.eval()
        yield
    finally:
        for norm, mode in modes:
            norm.train(mode)


class ConditionalNormAct(nn.Module):
    """A norm-act with gamma(c) = 1 + W_gamma c and beta(c) = W_beta c; no activation follows.

    Args:
        norm: a name or a formula, as :func:`evonorm.build_norm_act` takes.
        num_features: C of the input (N, C, H, W).
        dim_c: length of the condition c (N, dim_c).
        options: see :func:`evonorm.build_norm_act`.

    Raises:
        UserError: unknown norm or option, or a norm-act that takes no gamma and beta per sample.
    """

    def __init__(self, norm: str, num_features: int, dim_c: int, options: dict[str, Any]) -> None:
        super().__init__()
        self.norm = norm_act(norm, num_features, affine=False, **options)
        self.gamma = linear(dim_c, num_features, bias=False)
        self.beta = linear(dim_c, num_features, bias=False)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.norm(x, weight=1 + self.gamma(c), bias=self.beta(c))


def norm_act(norm: str, num_features: int, **options: Any) -> nn.Module:
    """:func:`evonorm.build_norm_act` for a layer that can be conditional."""
    with user_errors(TypeError, ValueError):
        layer = build_norm_act(norm, num_features, **options)
    if not {"weight", "bias"} <= set(inspect.signature(layer.forward).parameters):
        raise UserError(
            f"norm-act {norm!r} cannot be conditional: its forward should take (x, weight, bias), "
            "weight and bias of shape (N, C)"
        )
    return layer


class SelfAttention(nn.Module):
    """x + gain * o(softmax(theta(x)^T phi(x)) g(x)) (Zhang et al. 2019); gain starts at 0.

    Keys and values are max-pooled 2x2; x is (N, C, H, W) with even H and W, C a multiple of 8.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.theta = conv(channels, channels // 8, 1, bias=False)
        self.phi = conv(channels, channels // 8, 1, bias=False)
        self.g = conv(channels, channels // 2, 1, bias=False)
        self.o = conv(channels // 2, channels, 1, bias=False)
        self.gain = nn.Parameter(torch.empty(()))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.gain)

    def forward(self, x: Tensor) -> Tensor:
        query = self.theta(x)
        key, value = F.max_pool2d(self.phi(x), 2), F.max_pool2d(self.g(x), 2)
        # As one head, (N, 1, positions, channels), which the fused kernels and ONNX want.
        query, key, value = (t.flatten(2).mT.unsqueeze(1) for t in (query, key, value))
        out = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        return x + self.gain * self.o(out.squeeze(1).mT.unflatten(2, x.shape[2:]))


def look_up(embedding: nn.Embedding, y: Tensor, num: int) -> Tensor:
    """The embeddings (num, dim) of class indices y (num,), int64.

    Raises:
        UserError: another shape or dtype, or, on the CPU, an index out of range.
    """
    if y.dtype != torch.int64 or y.shape != (num,):
        raise UserError(
            f"y should be {num} class indices, of shape ({num},) and dtype int64; "
            f"it is of shape {tuple(y.shape)} and {y.dtype}"
        )
    try:
        return embedding(y)
    except IndexError as error:
        last = embedding.num_embeddings - 1
        wrong = y[(y < 0) | (y > last)][0]
        raise UserError(f"y has a class index {wrong}; there are 0 to {last}") from error
