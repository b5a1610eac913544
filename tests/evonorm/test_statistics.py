"""Running statistics: their update, their use, freezing, and precise ones over many batches."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from evonorm import build_norm_act, list_norm_acts, update_running_statistics
from evonorm.statistics import batch_moments

pytestmark = pytest.mark.usefixtures("one_thread")

B_SERIES = [n for n in list_norm_acts() if n.startswith("EvoNormB")]
BATCH_DEPENDENT = [*B_SERIES, "RS+rej", *(n for n in list_norm_acts() if n.startswith("BN-"))]


def batches(count, samples=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (samples, 4, 3, 5)
    return [2 * torch.randn(shape, generator=generator) + i for i in range(count)]


def statistic(name, x):
    """What a layer takes of a batch, (C,)."""
    if name == "RS+rej":
        return x.square().mean((0, 2, 3))
    return x.var((0, 2, 3), unbiased=name.startswith("BN"))


@pytest.mark.parametrize("name", list_norm_acts())
def test_which_layers_depend_on_the_batch(name):
    layer = build_norm_act(name, 4)
    assert layer.batch_dependent == (name in BATCH_DEPENDENT)
    state = layer.state_dict()
    assert ("running_var" in state) == layer.batch_dependent
    x = batches(1)[0]
    assert torch.allclose(layer(x)[:1], layer(x[:1]), atol=1e-5) != layer.batch_dependent


@pytest.mark.parametrize("name", BATCH_DEPENDENT)
def test_running_variance(name):
    """From 1, with the decay 0.9; the variance is biased for the EvoNorms."""
    layer = build_norm_act(name, 4)
    expected = torch.ones(4)
    for x in batches(3):
        layer(x)
        expected = 0.9 * expected + 0.1 * statistic(name, x)
        assert layer.running_var.shape == (4,) and not layer.running_var.requires_grad
        torch.testing.assert_close(layer.running_var, expected)
    layer.eval()(batches(1)[0] + 7)
    torch.testing.assert_close(layer.running_var, expected)


def test_momentum_is_the_weight_of_the_new_batch():
    layer, x = build_norm_act("EvoNormB0", 4, momentum=1.0), batches(1)[0]
    layer(x)
    torch.testing.assert_close(layer.running_var, x.var((0, 2, 3), unbiased=False))


@pytest.mark.parametrize("name", ["EvoNormB0", "RS+rej", "BN-ReLU"])
def test_evaluation_does_not_see_the_batch(name):
    layer = build_norm_act(name, 4)
    for x in batches(3):
        layer(x)
    layer.eval()
    assert torch.allclose(layer(x)[:1], layer(x[:1]), atol=1e-6)


@pytest.mark.parametrize("name", list_norm_acts())
def test_frozen(name):
    model = nn.Sequential(build_norm_act(name, 4), nn.Conv2d(4, 4, 1))
    assert model[0].freeze() is model[0]
    before = {k: t.clone() for k, t in model[0].state_dict().items()}
    x = batches(1)[0]
    model.train()
    model(x).sum().backward()
    assert not model[0].training and model[1].training
    assert all(p.grad is None and not p.requires_grad for p in model[0].parameters())
    assert all(torch.equal(t, before[k]) for k, t in model[0].state_dict().items())


@pytest.mark.parametrize("name", BATCH_DEPENDENT)
def test_update_running_statistics(name):
    """They become the mean of the batch statistics, whatever they were."""
    model = nn.Sequential(build_norm_act(name, 4, momentum=0.3), nn.Conv2d(4, 4, 1))
    model[0].running_var.fill_(50)
    data = batches(7)
    model.train()
    assert update_running_statistics(model, data) == 7
    expected = torch.stack([statistic(name, x) for x in data]).mean(0)
    torch.testing.assert_close(model[0].running_var, expected)
    if name.startswith("BN"):
        expected = torch.stack([x.mean((0, 2, 3)) for x in data]).mean(0)
        torch.testing.assert_close(model[0].running_mean, expected)
    assert model[0].momentum == 0.3 and model.training


def test_update_running_statistics_skips_empty_batches_and_counts_each_use():
    """A head sees no RoI in some batches, and a shared layer several inputs in each."""
    layer = build_norm_act("EvoNormB0", 4)
    layer.running_var.fill_(50)
    data = batches(5)
    data[0] = data[2] = data[0][:0]

    def twice(x):
        layer(x), layer(3 * x)

    assert update_running_statistics(layer, data, twice) == 5
    used = [statistic("EvoNormB0", a * x) for x in data if len(x) for a in (1, 3)]
    torch.testing.assert_close(layer.running_var, torch.stack(used).mean(0))


def test_update_running_statistics_leaves_frozen_and_batch_independent_layers():
    model = nn.Sequential(build_norm_act("EvoNormB0", 4).freeze(), build_norm_act("EvoNormS0", 4))
    before = {k: t.clone() for k, t in model.state_dict().items()}
    assert update_running_statistics(model.train(), batches(2)) == 0
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())


def test_update_running_statistics_restores_the_momentum_after_an_error():
    layer = build_norm_act("EvoNormB0", 4)
    with pytest.raises(ValueError, match="takes a tensor"):
        update_running_statistics(layer, [*batches(1), torch.ones(3)])
    assert layer.momentum == 0.1
    layer.running_var.fill_(1)
    layer(x := batches(1)[0])
    expected = 0.9 + 0.1 * statistic("EvoNormB0", x)
    torch.testing.assert_close(layer.running_var, expected)


def test_update_running_statistics_wants_training_mode():
    with pytest.raises(ValueError, match="evaluation mode"):
        update_running_statistics(build_norm_act("EvoNormB0", 4).eval(), batches(1))


@pytest.mark.parametrize("dtype, wide", [(torch.half, torch.float32), (torch.double, torch.double)])
def test_batch_moments(dtype, wide):
    x = batches(1)[0].to(dtype)
    mean, var, count = batch_moments(x)
    assert mean.dtype == var.dtype == count.dtype == wide and count == 45
    torch.testing.assert_close(mean.double(), x.double().mean((0, 2, 3)), rtol=1e-6, atol=1e-6)
    expected = x.double().var((0, 2, 3), unbiased=False)
    torch.testing.assert_close(var.double(), expected, rtol=1e-6, atol=0)
    assert [t.tolist() for t in batch_moments(x[:0])] == [[0] * 4, [0] * 4, 0]
