"""Every layer against float64 NumPy, written from the paper's tables 2, 3 and appendix B."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from evonorm import build_norm_act, list_norm_acts

pytestmark = pytest.mark.usefixtures("one_thread")


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


class Statistics:
    """What the formulas take of x: mean, std and rms over the batch (b), a sample's channel (i),
    a whole sample (l), a group of channels (g), and the rms over the channels of a pixel (p)."""

    def __init__(self, x, groups, eps, running=None):
        n, c, h, w = x.shape

        def over(pattern, a):
            total = np.einsum(f"nchw->{pattern}", a)
            shape = [s if k in pattern else 1 for k, s in zip("nchw", x.shape)]
            return (total / (x.size / total.size)).reshape(shape)

        def std(pattern):
            return np.sqrt(over(pattern, (x - over(pattern, x)) ** 2) + eps)

        def rms(pattern):
            return np.sqrt(over(pattern, x**2) + eps)

        self.of = lambda y: Statistics(y, groups, eps, running)
        if running is None:
            self.mean_b, self.std_b, self.rms_b = over("c", x), std("c"), rms("c")
        else:
            self.std_b = self.rms_b = np.sqrt(running["running_var"].reshape(1, c, 1, 1) + eps)
            self.mean_b = running.get("running_mean", np.zeros(c)).reshape(1, c, 1, 1)
        self.std_i, self.rms_i, self.rms_l, self.rms_p = std("nc"), rms("nc"), rms("n"), rms("nhw")
        self.mean_g, self.std_g, self.rms_g = (np.empty((n, c, 1, 1)) for _ in range(3))
        size = c // groups
        for i in range(n):
            for first in range(0, c, size):
                block = x[i, first : first + size]
                mean = block.sum() / block.size
                self.mean_g[i, first : first + size] = mean
                var = ((block - mean) ** 2).sum() / block.size
                self.std_g[i, first : first + size] = np.sqrt(var + eps)
                rms_g = np.sqrt((block**2).sum() / block.size + eps)
                self.rms_g[i, first : first + size] = rms_g


EVONORMS = {  # without gamma and beta, which follow
    "EvoNormB0": lambda x, v, s: x / np.maximum(s.std_b, v * x + s.std_i),
    "EvoNormB1": lambda x, v, s: x / np.maximum(s.std_b, (x + 1) * s.rms_i),
    "EvoNormB2": lambda x, v, s: x / np.maximum(s.std_b, s.rms_i - x),
    "EvoNormS0": lambda x, v, s: x * sigmoid(v * x) / s.std_g,
    "EvoNormS1": lambda x, v, s: x * sigmoid(x) / s.std_g,
    "EvoNormS2": lambda x, v, s: x * sigmoid(x) / s.rms_g,
    "RS+rej": lambda x, v, s: np.maximum(x, 0) / s.rms_b,
    "Random+rej": lambda x, v, s: np.tanh(np.maximum(x, np.tanh(x))),
    "Random": lambda x, v, s: s.of(sigmoid(x)).std_i ** 0.5 + 0 * x,
    "EvoNormB/1": lambda x, v, s: x / np.maximum(s.std_b, (x + 1) * s.rms_i),
    "EvoNormB/2": lambda x, v, s: x / np.maximum(s.std_b, x + s.rms_l),
    "EvoNormB/3": lambda x, v, s: -x * sigmoid(x) / s.std_b,
    "EvoNormB/4": lambda x, v, s: x / np.maximum(s.std_b, x * s.rms_i),
    "EvoNormB/5": lambda x, v, s: x / np.maximum(s.std_b, s.rms_l - x),
    "EvoNormB/6": lambda x, v, s: x / np.maximum(s.std_b, v * x + s.std_i),
    "EvoNormB/7": lambda x, v, s: x / np.maximum(s.std_b, s.rms_i - x),
    "EvoNormB/8": lambda x, v, s: x / np.maximum(s.std_b, x * s.rms_i),
    "EvoNormB/9": lambda x, v, s: x / np.maximum(s.std_b, x + s.std_i),
    "EvoNormB/10": lambda x, v, s: x / np.maximum(s.std_b, x + s.std_i),
    "EvoNormS/1": lambda x, v, s: x * np.tanh(sigmoid(x)) / s.rms_g,
    "EvoNormS/2": lambda x, v, s: x * sigmoid(x) / s.rms_g,
    "EvoNormS/3": lambda x, v, s: x * sigmoid(x) / s.rms_g,
    "EvoNormS/4": lambda x, v, s: x * sigmoid(x) / s.rms_g,
    "EvoNormS/5": lambda x, v, s: x * sigmoid(x) / s.std_g,
    "EvoNormS/6": lambda x, v, s: x * sigmoid(v * x) / s.std_g,
    "EvoNormS/7": lambda x, v, s: x * sigmoid(x) / s.std_g,
    "EvoNormS/8": lambda x, v, s: x * sigmoid(x) / s.rms_g,
    "EvoNormS/9": lambda x, v, s: x * sigmoid(x) / s.std_g,
    "EvoNormS/10": lambda x, v, s: (z := x / s.rms_g) * sigmoid(np.maximum(x, z)),
}
NORMS = {
    "BN": lambda x, s: (x - s.mean_b) / s.std_b,
    "GN": lambda x, s: (x - s.mean_g) / s.std_g,
    "LN": lambda x, s: (x - s.mean_g) / s.std_g,
    "PixelNorm": lambda x, s: x / s.rms_p,
    "FRN": lambda x, s: x / s.rms_i,
}
ACTIVATIONS = {  # of z = norm(x) * gamma + beta
    "ReLU": lambda z, v: np.maximum(z, 0),
    "PReLU": lambda z, v: np.where(z > 0, z, v * z),
    "Swish": lambda z, v: z * sigmoid(v * z),
    "Swish-1": lambda z, v: z * sigmoid(z),
    "": lambda z, v: np.maximum(z, v),  # FRN's thresholded linear unit
}


def reference(name, x, state, gamma, beta, num_groups, activation, training):
    groups = num_groups  # the authors' rule: fewer where they do not divide C
    while x.shape[1] % groups:
        groups -= 1
    norm, _, act = name.partition("-")
    s = Statistics(
        x,
        1 if norm == "LN" else groups,
        1e-8 if norm == "PixelNorm" else 1e-5,
        running=None if training or "running_var" not in state else state,
    )
    v = state["v"].reshape(1, -1, 1, 1) if "v" in state else None
    if name in EVONORMS:
        return (EVONORMS[name](x, v, s) if activation else x) * gamma + beta
    z = NORMS[norm](x, s) * gamma + beta
    return ACTIVATIONS[act](z, v) if activation else z


def assert_equal(y, expected, dtype):
    bound = 100 * torch.finfo(dtype).eps * max(1.0, np.abs(expected).max())  # 1.2e-5, 2.2e-14
    assert y.dtype == dtype
    np.testing.assert_allclose(y.detach().double().numpy(), expected, rtol=0, atol=bound)


SHAPES = [  # with num_groups
    ((2, 64, 5, 3), 32),
    ((3, 48, 2, 4), 32),
    ((2, 16, 3, 3), 32),
    ((1, 37, 2, 5), 32),
    ((2, 24, 4, 3), 5),
    ((3, 20, 1, 1), 4),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", [True, False])
@pytest.mark.parametrize("name", list_norm_acts())
def test_formula(name, activation, training, dtype, random_layer):
    for seed, (shape, num_groups) in enumerate(SHAPES):
        layer = random_layer(
            name, shape[1], activation, seed, num_groups=num_groups, dtype=dtype
        ).train(training)
        x = np.random.default_rng(seed).normal(0.5, 2.0, shape)
        x = torch.from_numpy(x).to(dtype)
        state = {k: p.double().numpy().copy() for k, p in layer.state_dict().items()}
        gamma, beta = (state[k].reshape(1, -1, 1, 1) for k in ("weight", "bias"))
        expected = reference(
            name, x.double().numpy(), state, gamma, beta, num_groups, activation, training
        )
        assert_equal(layer(x), expected, dtype)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", list_norm_acts())
def test_conditional(name, training, random_layer):
    """gamma and beta of each sample, as a class-conditional generator gives them."""
    rng = np.random.default_rng(1)
    x, gamma, beta = (rng.normal(0.5, 2.0, s) for s in ((3, 8, 4, 2), (3, 8, 1, 1), (3, 8, 1, 1)))
    for activation in (True, False):
        layer = random_layer(name, 8, activation, num_groups=2, dtype=torch.float64).train(training)
        state = {k: p.numpy().copy() for k, p in layer.state_dict().items()}
        y = layer(*map(torch.from_numpy, (x, gamma[..., 0, 0], beta[..., 0, 0])))
        expected = reference(name, x, state, gamma, beta, 2, activation, training)
        assert_equal(y, expected, torch.float64)


@pytest.mark.parametrize(
    "channels, groups", [(64, 32), (256, 32), (48, 24), (16, 16), (20, 20), (37, 1)]
)
def test_groups_are_lowered_until_they_divide(channels, groups):
    assert build_norm_act("EvoNormS0", channels).num_groups == groups


def test_lists_every_layer_of_the_paper():
    bases = ("BN-ReLU", "BN-PReLU", "BN-Swish", "BN-Swish-1", "GN-ReLU", "GN-Swish", "LN-ReLU")
    assert {*EVONORMS, *bases, "PixelNorm-ReLU", "FRN"} <= set(list_norm_acts())


def assert_same_bits(layer, stock, x):
    (y, dx), (expected, expected_dx) = (
        (out := module(a := x.clone().requires_grad_()), torch.autograd.grad(out.sin().sum(), a)[0])
        for module in (layer, stock)
    )
    assert torch.equal(y, expected) and torch.equal(dx, expected_dx)


@pytest.mark.parametrize("activation", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_relu_is_torchs(training, activation):
    layer = build_norm_act("BN-ReLU", 6, activation, momentum=0.3).train(training)
    norm = nn.BatchNorm2d(6, momentum=0.3)
    stock = nn.Sequential(norm, nn.ReLU() if activation else nn.Identity()).train(training)
    for seed in range(3):
        x = torch.randn(4, 6, 3, 5, generator=torch.Generator().manual_seed(seed)) * 2 + 1
        assert_same_bits(layer, stock, x)
    assert torch.equal(layer.running_mean, norm.running_mean)
    assert torch.equal(layer.running_var, norm.running_var)


@pytest.mark.parametrize("name", ["BN-PReLU", "BN-Swish", "BN-Swish-1"])
def test_batch_norm_statistics_are_torchs(name):
    layer, norm = build_norm_act(name, 6, momentum=0.3), nn.BatchNorm2d(6, momentum=0.3)
    for seed in range(3):
        x = torch.randn(4, 6, 3, 5, generator=torch.Generator().manual_seed(seed)) * 2 + 1
        layer(x), norm(x)
    torch.testing.assert_close(layer.running_mean, norm.running_mean)
    torch.testing.assert_close(layer.running_var, norm.running_var)


@pytest.mark.parametrize("parameters", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("per_sample", [False, True])
def test_without_activation_it_is_affine(dtype, parameters, per_sample):
    """x * weight + bias and its gradients, whatever the dtypes; the output has the input's."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 8, 4, 5), *((3, 8) if per_sample else (8,) for _ in range(2)), (3, 8, 4, 5))
    x, weight, bias, dy = (torch.randn(shape, generator=generator) for shape in shapes)
    inputs = [x.to(dtype), weight.to(parameters), bias.to(parameters)]
    exact = [t.double().requires_grad_() for t in inputs]
    inputs = [t.requires_grad_() for t in inputs]
    layer = build_norm_act("EvoNormS0", 8, activation=False)
    y = layer(inputs[0], weight=inputs[1], bias=inputs[2])
    y.backward(dy.to(dtype))
    expected = exact[0] * exact[1][..., None, None] + exact[2][..., None, None]
    expected.backward(dy.to(dtype).double())
    assert y.dtype == dtype
    coarse = max(torch.finfo(t).eps for t in (dtype, parameters))
    for ours, theirs in [(y, expected), *((a.grad, b.grad) for a, b in zip(inputs, exact))]:
        bound = 4 * coarse * theirs.abs().max().item()
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=bound)


@pytest.mark.parametrize("name, groups", [("GN-ReLU", 4), ("LN-ReLU", 1)])
def test_group_norm_relu_is_torchs(name, groups):
    x = torch.randn(4, 8, 3, 5, generator=torch.Generator().manual_seed(0))
    stock = nn.Sequential(nn.GroupNorm(groups, 8), nn.ReLU())
    assert_same_bits(build_norm_act(name, 8, num_groups=4), stock, x)
    assert_same_bits(build_norm_act(name, 8, activation=False, num_groups=4), stock[0], x)
