"""Outputs that are computed again: the same to the bit, and gone in between."""

from __future__ import annotations

import copy
import weakref

import pytest
import torch
from torch import nn

from evonorm import EvoNorm, build_norm_act, recompute, recompute_outputs
from evonorm.recomputation import offer

NORM_ACTS = ("EvoNormS0", "EvoNormB0", "x * sigmoid(x) / rms_b(x)", "max(x / std_i(x), v1 * x)")


def network(norm_act):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3),
        build_norm_act(norm_act, 32),
        nn.Conv2d(32, 32, 3),
        build_norm_act(norm_act, 32),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 4, 3),
    )


def gradients(model, x, dtype=None):
    """Those of two passes, summed, and what the model holds after them."""
    model.zero_grad()
    for part in x.chunk(2):
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            y = model(part)
        y.float().square().sum().backward()
    return [*(p.grad for p in model.parameters()), *model.buffers()]


def outputs(model, x):
    """Weak references to what the norm-acts give in a pass, while its graph is there."""
    found = []
    for module in model.modules():
        if isinstance(module, EvoNorm):
            module.register_forward_hook(lambda m, i, y: found.append(weakref.ref(y)))
    y = model(x)
    assert len(found) > 1
    alive = [reference() is not None for reference in found]
    y.sum().backward()
    return alive


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("norm_act", NORM_ACTS)
def test_gradients_are_the_same_to_the_bit(norm_act, dtype):
    x = torch.randn(8, 3, 16, 16)
    usual, other = network(norm_act), recompute(network(norm_act))
    copied = copy.deepcopy(other)
    expected = gradients(usual, x, dtype)
    for model in (other, copied):
        assert all(map(torch.equal, gradients(model, x, dtype), expected))


@pytest.mark.parametrize("norm_act", NORM_ACTS)
def test_second_derivatives(norm_act):
    x = torch.randn(4, 3, 16, 16, requires_grad=True)
    found = []
    for model in (network(norm_act), recompute(network(norm_act))):
        (dx,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
        dx.square().sum().backward()
        found.append([p.grad for p in model.parameters()])
    for a, b in zip(*found):
        assert (a is None and b is None) or torch.equal(a, b)


def test_outputs_are_gone_until_the_backward_pass():
    x = torch.randn(4, 3, 16, 16)
    assert all(outputs(network("EvoNormS0"), x))
    assert not any(outputs(recompute(network("EvoNormS0")), x))
    plain = network("EvoNormS0")
    with recompute_outputs():
        assert not any(outputs(plain, x))
    assert all(outputs(recompute(network("EvoNormS0")).eval(), x))  # only training is changed


def test_what_follows_may_be_computed_again_too():
    def double(x):
        return torch.cat([x, x], 2)

    norm, conv = build_norm_act("EvoNormS0", 32), nn.Conv2d(32, 4, 3)
    x = torch.randn(4, 32, 8, 8)
    found = []
    for again in (False, True):
        conv.zero_grad()
        with recompute_outputs():
            y = norm(x)
            twice = offer(double(y), double, y) if again else double(y)
            references = weakref.ref(y), weakref.ref(twice)
            z = conv(twice)
            del y, twice
        assert [r() is None for r in references] == [True, again]
        z.square().sum().backward()
        found.append(conv.weight.grad.clone())
    assert torch.equal(*found)


def test_an_output_that_is_changed_in_place_is_kept():
    found = []
    for model in (network("EvoNormS0"), recompute(network("EvoNormS0"))):
        model[1].register_forward_hook(lambda m, i, y: y.add_(1))
        model(torch.ones(2, 3, 16, 16)).square().sum().backward()
        found.append([p.grad for p in model.parameters()])
    assert all(map(torch.equal, *found))


def test_an_error_in_a_pass_ends_its_context():
    model = recompute(network("EvoNormS0"))
    with pytest.raises(RuntimeError):
        model(torch.ones(2, 5, 16, 16))
    assert all(outputs(network("EvoNormS0"), torch.randn(4, 3, 16, 16)))
