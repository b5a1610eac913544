"""timm's layers as a second witness; its checkpoints load by name."""

from __future__ import annotations

import pytest
import torch
from timm import layers as timm_layers

from evonorm import build_norm_act

# timm's "a" variants differ only without an activation and in the default of eps.
PAIRS = [("EvoNormB0", "EvoNorm2dB0"), ("EvoNormB1", "EvoNorm2dB1"), ("EvoNormB2", "EvoNorm2dB2")]
PAIRS += [(f"EvoNormS{i}", f"EvoNorm2dS{i}{a}") for i in range(3) for a in ("", "a")]
PAIRS += [("FRN", "FilterResponseNormTlu2d")]


def both(ours, theirs, activation=True):
    """The two layers with the same random parameters and eps (timm's default differs by layer)."""
    timm_layer = getattr(timm_layers, theirs)(64, apply_act=activation)
    layer = build_norm_act(ours, 64, activation, eps=timm_layer.eps)
    generator = torch.Generator().manual_seed(0)
    for key, value in timm_layer.state_dict().items():
        new = torch.randn(64, generator=generator)
        value.copy_(new.abs() + 0.5 if key == "running_var" else new)
    state = timm_layer.state_dict()
    if "tau" in state:  # FRN's threshold is v in the paper's table 3
        state["v"] = state.pop("tau")
    layer.load_state_dict(state, strict=True)
    return layer, timm_layer


def inputs():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(3, 64, 5, 4, generator=generator) * 2 + 0.5 for _ in range(2)]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("ours, theirs", PAIRS)
def test_outputs_and_gradients(ours, theirs, training):
    x, dy = inputs()
    results = []
    for layer in both(ours, theirs):
        leaf = x.clone().requires_grad_()
        y = layer.train(training)(leaf)
        y.backward(dy)
        parameters = dict(layer.named_parameters())
        parameters["v"] = parameters.pop("tau", parameters.get("v"))
        grads = {k: p.grad for k, p in parameters.items() if p is not None}
        results.append({"y": y.detach(), "x": leaf.grad, **grads})
    for key, expected in results[1].items():
        bound = 2e-5 * expected.abs().max().item()
        torch.testing.assert_close(results[0][key], expected, rtol=0, atol=bound)


@pytest.mark.parametrize("ours, theirs", PAIRS[:3])
def test_running_variance_is_timms_but_biased(ours, theirs):
    layer, timm_layer = both(ours, theirs)
    before, (x, _) = layer.running_var.clone(), inputs()
    layer(x), timm_layer(x)
    values = x.numel() / 64
    step, timm_step = layer.running_var - 0.9 * before, timm_layer.running_var - 0.9 * before
    torch.testing.assert_close(step, timm_step * (values - 1) / values, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(step, timm_step, rtol=1e-3)


@pytest.mark.parametrize("ours, theirs", [p for p in PAIRS if p[1][-1] != "a"])
def test_without_activation(ours, theirs):
    layer, timm_layer = both(ours, theirs, activation=False)
    x, _ = inputs()
    assert "running_var" not in layer.state_dict()  # timm's B series has one without using it
    torch.testing.assert_close(layer(x), timm_layer(x), rtol=1e-5, atol=1e-5)
