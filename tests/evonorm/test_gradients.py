"""First and second derivatives, against differences and against autograd through the formula."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jvp, vmap

from evonorm import EvoNorm, build_norm_act, list_norm_acts
from evonorm.baselines import SampleNormAct
from tests.evonorm.unnamed import UNNAMED

pytestmark = pytest.mark.usefixtures("one_thread")


def random(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator, dtype=torch.float64) * 2 + 0.5).to(dtype)


def as_function(layer):
    """The layer as a function of its input and parameters, and these."""
    names, parameters = zip(*layer.named_parameters())

    def function(x, *values):
        return functional_call(layer, dict(zip(names, values)), (x,))

    return function, [p.detach().clone().requires_grad_() for p in parameters]


CASES = [(n, True) for n in (*list_norm_acts(), *UNNAMED)]
CASES += [(n, False) for n in list_norm_acts() if "/" not in n]  # an affine map for all candidates


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name, activation", CASES)
def test_against_differences(name, activation, training, random_layer):
    layer = random_layer(name, 4, activation, num_groups=2, dtype=torch.float64).train(training)
    function, parameters = as_function(layer)
    inputs = (random(2, 4, 2, 2).requires_grad_(), *parameters)
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("name", ["EvoNormB0", "EvoNormS0", "BN-ReLU", "GN-ReLU", "FRN"])
def test_conditional_against_differences(name, random_layer):
    layer = random_layer(name, 4, num_groups=2, dtype=torch.float64)
    shapes = ((2, 4, 2, 2), (2, 4), (2, 4))
    inputs = [random(*s, seed=i).requires_grad_() for i, s in enumerate(shapes)]
    assert torch.autograd.gradcheck(layer, inputs)
    assert torch.autograd.gradgradcheck(layer, inputs)


def plain_formula(layer, x):
    """The layer in ordinary differentiable operations, without what saves memory."""
    v, weight, bias = layer.v, layer.weight, layer.bias
    if isinstance(layer, SampleNormAct):
        return layer.evaluate(x, v, weight, bias)
    mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
    if isinstance(layer, EvoNorm):
        of_batch = {"std_b(x)": var, "rms_b(x)": x.square().mean((0, 2, 3))}
        statistics = [of_batch[text] for text in layer.formula.batch_statistics]
        return layer.evaluate(x, v, layer.v0, statistics, weight, bias)
    return layer.evaluate(x, v, mean, var, weight, bias)


@pytest.mark.parametrize("name", list_norm_acts())
def test_float32_gradients_equal_those_of_the_plain_formula_in_float64(name, random_layer):
    layer = random_layer(name, 8, num_groups=2)
    exact = random_layer(name, 8, num_groups=2, dtype=torch.float64)
    exact.load_state_dict(layer.state_dict())
    x = random(4, 8, 6, 5, dtype=torch.float32).requires_grad_()
    exact_x = x.detach().double().requires_grad_()
    dy = random(4, 8, 6, 5, seed=1, dtype=torch.float32)
    layer(x).backward(dy)
    plain_formula(exact, exact_x).backward(dy.double())
    pairs = zip([x, *layer.parameters()], [exact_x, *exact.parameters()])
    for ours, theirs in pairs:
        bound = 1e-5 * theirs.grad.abs().max().item()
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=0, atol=bound)


@pytest.mark.parametrize("name", list_norm_acts())
def test_a_graph_of_the_gradient_leaves_its_value(name, random_layer):
    layer = random_layer(name, 8, num_groups=2, dtype=torch.float64)
    x, dy = random(2, 8, 3, 3).requires_grad_(), random(2, 8, 3, 3, seed=1)
    wanted = [x, *layer.parameters()]
    first = torch.autograd.grad(layer(x), wanted, dy)
    torch.testing.assert_close(torch.autograd.grad(layer(x), wanted, dy, create_graph=True), first)


@pytest.mark.parametrize("name", ["EvoNormB0", "EvoNormS0", "BN-Swish", "FRN"])
@pytest.mark.parametrize("wanted", ["x", "parameters"])
def test_only_what_needs_a_gradient_gets_one(name, wanted, random_layer):
    layer = random_layer(name, 8).requires_grad_(wanted == "parameters")
    x = random(2, 8, 3, 3, dtype=torch.float32).requires_grad_(wanted == "x")
    layer(x).sum().backward()
    assert (x.grad is not None) == (wanted == "x")
    assert all((p.grad is not None) == (wanted == "parameters") for p in layer.parameters())


def test_one_layer_used_twice():
    """The running variance moves between a forward pass and its backward pass."""
    layer, conv = build_norm_act("EvoNormB0", 4), nn.Conv2d(4, 4, 1)
    grads = []
    for model in (nn.Sequential(layer, conv, layer), nn.Sequential(layer, conv, deepcopy(layer))):
        x = random(2, 4, 3, 3, dtype=torch.float32).requires_grad_()
        grads.append(torch.autograd.grad(model(x).sin().sum(), x)[0])
    assert torch.equal(*grads)


@pytest.mark.parametrize("name", [*list_norm_acts(), *UNNAMED])
def test_gradients_of_each_sample_by_torch_func(name, random_layer):
    """vmap, grad and jvp, against a loop over the samples."""
    layer = random_layer(name, 4, num_groups=2, dtype=torch.float64)
    layer.train(not layer.batch_dependent)
    function, parameters = as_function(layer)
    x, dx = random(3, 4, 2, 3), random(3, 4, 2, 3, seed=1)

    def loss(x, *parameters):
        return function(x[None], *parameters).square().sum()

    wanted = range(1 + len(parameters))
    found = vmap(grad(loss, tuple(wanted)), (0, *(None for _ in parameters)))(x, *parameters)
    _, change = jvp(layer, (x,), (dx,))
    for i, sample in enumerate(x):
        leaf = sample.clone().requires_grad_()
        expected = torch.autograd.grad(loss(leaf, *parameters), [leaf, *parameters])
        torch.testing.assert_close([f[i] for f in found], list(expected))
    torch.testing.assert_close(vmap(lambda sample: layer(sample[None])[0])(x), layer(x))
    plus, minus = layer(x + 1e-6 * dx), layer(x - 1e-6 * dx)
    torch.testing.assert_close(change, (plus - minus) / 2e-6, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["EvoNormB0", "EvoNormB/1", "BN-Swish"])
def test_statistics_of_a_batch_are_refused_under_torch_func(name):
    layer = build_norm_act(name, 4)
    with pytest.raises(RuntimeError, match="call the model's eval\\(\\) first") as caught:
        grad(lambda x: layer(x).sum())(random(2, 4, 3, 3, dtype=torch.float32))
    assert "\n" not in str(caught.value)
