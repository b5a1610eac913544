"""Inputs on which earlier implementations failed: tiny, empty, constant, huge, low-precision."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from evonorm import build_norm_act, list_norm_acts
from evonorm.aggregations import std_g, std_i
from evonorm.statistics import batch_moments
from tests.evonorm.unnamed import UNNAMED

pytestmark = pytest.mark.usefixtures("one_thread")

every_name = pytest.mark.parametrize("name", [*list_norm_acts(), *UNNAMED])
MODES = [(training, activation) for training in (True, False) for activation in (True, False)]


def random(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype)


def run(layer, x):
    """Output and gradient of x; parameters get theirs."""
    x = x.detach().requires_grad_()
    layer.zero_grad()
    y = layer(x)
    y.sin().sum().backward()
    return y.detach(), x.grad


@every_name
@pytest.mark.parametrize(
    "x",
    [
        pytest.param(random(2, 8, 1, 1), id="1x1"),
        pytest.param(random(1, 8, 1, 1), id="one value per channel"),
        pytest.param(random(1, 8, 3, 2), id="batch of one"),
        pytest.param(torch.zeros(2, 8, 3, 2), id="zeros"),
        pytest.param(torch.full((2, 8, 3, 2), -3.0), id="constant"),
        pytest.param(1e4 * random(2, 8, 4, 4).half(), id="1e4 in float16"),
        pytest.param(torch.full((2, 8, 4, 4), 1e4).half(), id="constant 1e4 in float16"),
    ],
)
def test_finite(name, x, random_layer):
    for training, activation in MODES:
        layer = random_layer(name, 8, activation, num_groups=4).train(training)
        y, dx = run(layer, x)
        assert y.shape == x.shape and y.dtype == dx.dtype == x.dtype
        tensors = [y, dx, *(p.grad for p in layer.parameters()), *layer.buffers()]
        assert all(t.isfinite().all() for t in tensors)


@every_name
@pytest.mark.parametrize("shape", [(0, 8, 3, 2), (0, 8, 1, 1)])
def test_empty_batch(name, shape, random_layer):
    """No RoI on an image: all parameters stay in the graph, statistics stay as they are."""
    for training, activation in MODES:
        layer = random_layer(name, 8, activation, num_groups=4).train(training)
        before = {k: b.clone() for k, b in layer.named_buffers()}
        y, dx = run(layer, torch.empty(shape))
        assert y.shape == dx.shape == shape
        assert all(torch.equal(p.grad, torch.zeros(8)) for p in layer.parameters())
        assert all(torch.equal(b, before[k]) for k, b in layer.named_buffers())


@every_name
@pytest.mark.filterwarnings("error")
def test_empty_batch_warns_of_nothing(name):
    build_norm_act(name, 8)(torch.empty(0, 8, 3, 2))


@every_name
def test_channels_last_stays_channels_last(name, random_layer):
    for training, activation in MODES:
        x = random(2, 8, 5, 3)
        y, dx = run(random_layer(name, 8, activation, num_groups=4).train(training), x)
        layer = random_layer(name, 8, activation, num_groups=4).train(training)
        y_last, dx_last = run(layer, x.contiguous(memory_format=torch.channels_last))
        assert y_last.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(y_last, y)
        torch.testing.assert_close(dx_last, dx, rtol=1e-4, atol=1e-5)


@every_name
def test_non_contiguous(name, random_layer):
    base = random(2, 16, 6, 5)
    for x in (base[:, ::2, ::2], base.transpose(2, 3)[:, :8], base[:, :8, :1].expand(2, 8, 4, 5)):
        layer, other = (random_layer(name, 8, num_groups=4) for _ in range(2))
        (y, dx), (expected, expected_dx) = run(layer, x), run(other, x.contiguous())
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(dx, expected_dx, rtol=1e-4, atol=1e-5)


@every_name
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtype_under_autocast_is_group_norms(name, dtype):
    x = random(2, 8, 3, 3, dtype=dtype)
    for activation in (True, False):
        layer = build_norm_act(name, 8, activation)
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == nn.GroupNorm(4, 8)(x).dtype
            y, dx = run(layer, x)
        assert y.dtype == dx.dtype == dtype


@every_name
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_only_rounds_the_result(name, dtype, random_layer):
    for training in (True, False):
        layer, wide = (random_layer(name, 8, num_groups=4).train(training) for _ in range(2))
        x = (random(4, 8, 6, 5) + 2).to(dtype)
        with torch.autocast("cpu", torch.bfloat16):
            y, dx = run(layer, x)
        expected, expected_dx = run(wide, x.float())
        ulp = torch.finfo(dtype).eps
        torch.testing.assert_close(y.float(), expected, rtol=ulp, atol=ulp)
        # Its own gradient arrives rounded.
        torch.testing.assert_close(dx.float(), expected_dx, rtol=4 * ulp, atol=8 * ulp)
        for key, buffer in layer.named_buffers():
            torch.testing.assert_close(buffer, wide.get_buffer(key), rtol=1e-5, atol=1e-6)


@every_name
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_layers_of_other_dtypes(name, dtype, random_layer):
    """model.half() and the like: parameters and running statistics have the input's dtype."""
    for training in (True, False):
        layer = random_layer(name, 8, num_groups=4, dtype=dtype).train(training)
        exact = random_layer(name, 8, num_groups=4, dtype=torch.float64).train(training)
        exact.load_state_dict(layer.state_dict())
        x = random(4, 8, 6, 5, dtype=dtype)
        y, expected = layer(x), exact(x.double())
        ulp = torch.finfo(dtype).eps * (8 if name == "BN-ReLU" else 1)  # PyTorch's rounds more
        assert {t.dtype for t in (y, *layer.state_dict().values())} == {dtype}
        torch.testing.assert_close(y.double(), expected, rtol=0.6 * ulp, atol=ulp / 16)


@pytest.mark.parametrize("offset, bound", [(0, 3e-7), (1e3, 3e-7), (1e4, 3e-6)])
def test_variance_of_an_offset_input(offset, bound):
    """Relative error of float32 standard deviations where the mean is `offset` deviations; the
    difference of mean square and squared mean would lose all digits at 1e4."""
    x = random(4, 64, 28, 28) + offset
    exact = x.double()
    batch_std = batch_moments(x)[1].sqrt(), batch_moments(exact)[1].sqrt()
    instance = std_i(x, 0.0), std_i(exact, 0.0)
    group = std_g(x, 32, 0.0), std_g(exact, 32, 0.0)
    for std, expected in (batch_std, instance, group):
        assert ((std - expected) / expected).abs().max() < bound


@every_name
@pytest.mark.parametrize("shape", [(3, 8, 1, 1), (2, 8), (4,), (1, 8), ()])
def test_weight_and_bias_of_another_shape_are_refused(name, shape):
    layer, x = build_norm_act(name, 8), random(3, 8, 2, 2)
    for what in ("weight", "bias"):
        with pytest.raises(ValueError, match=rf"{what} should have the shape \(8,\) or \(3, 8\)"):
            layer(x, **{what: torch.ones(shape)})


def test_weight_of_another_shape_is_refused_while_compiling():
    layer, x = build_norm_act("GN-Swish", 8), random(3, 8, 2, 2)
    torch.compiler.reset()
    with pytest.raises(ValueError, match=r"weight should have the shape \(8,\) or \(3, 8\)"):
        torch.compile(layer, backend="eager")(x, torch.ones(3, 8, 1, 1))
