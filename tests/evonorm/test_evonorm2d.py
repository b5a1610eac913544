"""EvoNorm2D, the call signature of the evonorm2d project."""

from __future__ import annotations

import inspect

import pytest
import torch

from evonorm import EvoNorm2D, build_norm_act


def x(channels=64):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, channels, 5, 4, generator=generator) + 0.5


def test_signature():
    parameters = inspect.signature(EvoNorm2D).parameters
    assert {k: p.default for k, p in list(parameters.items())[1:]} == {
        "non_linear": True,
        "version": "S0",
        "efficient": False,
        "affine": True,
        "momentum": 0.9,
        "eps": 1e-5,
        "groups": 32,
        "training": True,
    }
    assert next(iter(parameters)) == "input"


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "arguments, name",
    [
        ({}, "EvoNormS0"),
        ({"version": "B0"}, "EvoNormB0"),
        ({"efficient": True}, "EvoNormS1"),
        ({"version": "B0", "efficient": True}, "EvoNormB0"),
        ({"non_linear": False}, "EvoNormS0"),
        ({"affine": False}, "EvoNormS0"),
        ({"groups": 4, "eps": 0.1}, "EvoNormS0"),
    ],
)
def test_is_the_registered_layer(arguments, name, training):
    layer = EvoNorm2D(64, training=training, **arguments)
    same = {"eps": arguments.get("eps", 1e-5), "affine": arguments.get("affine", True)}
    other = build_norm_act(
        name, 64, arguments.get("non_linear", True), num_groups=arguments.get("groups", 32), **same
    ).train(training)
    assert layer.training == training
    assert layer.state_dict().keys() == other.state_dict().keys()
    assert torch.equal(layer(x()), other(x()))


def test_positional_arguments():
    layer = EvoNorm2D(64, True, "B0", False, True, 0.75, 1e-4, 16, False)
    assert (layer.eps, layer.momentum, layer.num_groups, layer.training) == (1e-4, 0.25, 16, False)


def test_momentum_is_the_decay():
    """And the running variance is one number per channel, that project's open to-do."""
    layer = EvoNorm2D(8, version="B0", momentum=0.75)
    layer(x(8))
    assert layer.running_var.shape == (8,)
    expected = 0.75 + 0.25 * x(8).var((0, 2, 3), unbiased=False)
    torch.testing.assert_close(layer.running_var, expected)


def test_one_by_one_maps():
    """That project's issue 4: NaN from the unbiased variance of a single value."""
    for version in ("S0", "B0"):
        assert EvoNorm2D(64, version=version)(x()[:, :, :1, :1]).isfinite().all()


def test_other_versions_are_refused():
    with pytest.raises(ValueError, match="^EvoNorm2D has the versions 'S0' and 'B0', not 'S9'$"):
        EvoNorm2D(8, version="S9")
