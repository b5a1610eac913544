"""Names, options, and the one line that a mistake gets."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from evonorm import build_norm_act, list_norm_acts, register_norm_act, registry


def refused(error, function, *args, **kwargs):
    """The message, which must be one line."""
    with pytest.raises(error) as info:
        function(*args, **kwargs)
    message = str(info.value)
    assert message and "\n" not in message
    return message


@pytest.fixture
def clean_registry(monkeypatch):
    monkeypatch.setattr(registry, "_FACTORIES", dict(registry._FACTORIES))


def test_register_your_own(clean_registry):
    @register_norm_act("Tanh")
    class Tanh(nn.Module):
        def __init__(self, num_features, activation=True, scale=1.0):
            super().__init__()
            self.scale, self.activation = scale, activation

        def forward(self, x):
            return torch.tanh(self.scale * x) if self.activation else x

    layer, x = build_norm_act("Tanh", 4, scale=2.0), torch.ones(1, 4, 1, 1)
    assert isinstance(layer, Tanh) and layer.norm_act == "Tanh"
    assert torch.equal(layer(x), torch.tanh(2 * x))
    assert build_norm_act("Tanh", 4, activation=False)(x) is x
    assert list_norm_acts()[-1] == "Tanh"
    message = refused(ValueError, register_norm_act("Tanh"), Tanh)
    assert "'Tanh'" in message and "choose another name" in message


@pytest.mark.parametrize("name, meant", [("evonorm-s0", "EvoNormS0"), ("BNReLU", "BN-ReLU")])
def test_unknown_name(name, meant):
    message = refused(ValueError, build_norm_act, name, 8)
    assert f"{name!r}: did you mean {meant!r}?" in message
    assert all(known in message for known in list_norm_acts() if "/" not in known)
    assert "EvoNormB/1 to EvoNormB/10" in message


@pytest.mark.parametrize("name", [None, "", "xyzzy"])
def test_name_like_no_other(name):
    message = refused(ValueError, build_norm_act, name, 8)
    assert "did you mean" not in message and "EvoNormS0" in message


@pytest.mark.parametrize(
    "option, value, right",
    [
        ("num_features", 0, "an integer > 0"),
        ("num_features", 2.5, "an integer > 0"),
        ("num_groups", 0, "an integer > 0"),
        ("num_groups", -4, "an integer > 0"),
        ("eps", -1, "a number >= 0"),
        ("eps", "1e-5", "a number >= 0"),
        ("momentum", 2, "a number in [0, 1]"),
        ("momentum", None, "a number in [0, 1]"),
    ],
)
@pytest.mark.parametrize("name", ["EvoNormB0", "GN-ReLU", "BN-ReLU"])
def test_impossible_option(name, option, value, right):
    message = refused(ValueError, build_norm_act, name, **{"num_features": 8, option: value})
    assert message == f"{option}={value!r} should be {right}"


@pytest.mark.parametrize("name", list_norm_acts())
def test_unknown_option(name):
    message = refused(TypeError, build_norm_act, name, 8, group=4)
    assert "unknown option group" in message and "num_groups" in message and "__" not in message


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", [True, False])
@pytest.mark.parametrize("name", list_norm_acts())
def test_wrong_input(name, activation, training):
    layer = build_norm_act(name, 8, activation).train(training)
    for shape in ((2, 8, 3), (2, 4, 3, 8), (8,), (1, 2, 8, 3, 3)):
        message = refused(ValueError, layer, torch.ones(shape))
        assert message == f"{name} takes a tensor (N, 8, H, W), not one of shape {shape}"
    message = refused(TypeError, layer, torch.ones(2, 8, 3, 3, dtype=torch.int64))
    assert message == f"{name} takes a floating-point tensor, not torch.int64"


@pytest.mark.parametrize("name", list_norm_acts())
def test_options(name):
    layer = build_norm_act(name, 8, zero_init=True, eps=0.1, dtype=torch.float64, device="meta")
    assert layer.eps == 0.1
    assert {(t.device.type, t.dtype) for t in layer.state_dict().values()} == {
        ("meta", torch.float64)
    }
    layer = build_norm_act(name, 8, zero_init=True)
    assert torch.equal(layer.weight, torch.zeros(8)) and torch.equal(layer.bias, torch.zeros(8))
    layer = build_norm_act(name, 8, affine=False)
    assert layer.weight is None and layer.bias is None
    x = torch.randn(2, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer(x), build_norm_act(name, 8)(x))


def test_repr_names_the_layer():
    assert "EvoNormS0, 8, activation=False" in repr(build_norm_act("EvoNormS0", 8, False))
