"""check() on models with a known fault, and without one."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torchvision import models

from evonorm import build_norm_act, check, convert, register_norm_act, registry
from evonorm.check import Site

X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


class Then(nn.Module):
    """A norm-act, then what `after` does with its output."""

    def __init__(self, after, name: str = "EvoNormS0", activation: bool = True, **options) -> None:
        super().__init__()
        self.norm, self.after = build_norm_act(name, 4, activation, **options), after
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return self.after(self.norm(self.conv(x)))


@pytest.mark.parametrize(
    ("after", "activation"),
    [
        (F.relu, "relu"),
        (F.relu_, "relu_"),
        (nn.ReLU(inplace=True), "relu_"),
        (nn.ReLU6(), "hardtanh"),
        (nn.SiLU(), "silu"),
        (nn.PReLU(), "_prelu_kernel"),
        (nn.Mish(), "mish"),
        (nn.Softplus(), "softplus"),
        (lambda y: y * y.sigmoid(), "sigmoid"),
        (lambda y: y.clamp(min=0), "clamp"),
        (lambda y: F.elu(F.max_pool2d(y, 2)), "elu"),
        (lambda y: F.gelu(F.avg_pool2d(y, 2)), "gelu"),
        (lambda y: torch.cat([X, y], 1).relu(), "relu"),
        (lambda y: F.interpolate(F.pad(y, (1, 1)), scale_factor=2).relu(), "relu"),
        (lambda y: F.relu(F.dropout(y, 0.5, training=False)), "relu"),
        (lambda y: y.chunk(2, 1)[1].flatten(2).relu(), "relu"),
    ],
)
def test_names_an_activation_however_it_is_called(after, activation):
    where = "1.after" if isinstance(after, nn.Module) else "1"
    model = nn.Sequential(nn.Conv2d(4, 4, 1), Then(after))
    assert check(model, X) == [Site("1.norm", activation, where)]


@pytest.mark.parametrize(
    "after",
    [
        lambda y: F.relu(y + X),
        lambda y: F.relu_(y.add_(X)),
        lambda y: F.relu(F.conv2d(y, torch.ones(1, 4, 1, 1))),
        lambda y: y * F.conv2d(y.mean((2, 3), keepdim=True), torch.ones(4, 4, 1, 1)).sigmoid(),
        lambda y: (y, F.relu(X)),
    ],
    ids="sum in-place-sum conv squeeze-excitation other".split(),
)
def test_says_nothing_of_an_activation_elsewhere(after):
    assert check(Then(after), X) == []


def test_looks_at_layers_that_act_only():
    plain = nn.Sequential(
        Then(F.relu, activation=False),
        Then(F.relu, activation=False, linear="x / std_g(x)"),
        Then(F.relu, activation=False, name="GN-ReLU"),
    )
    with pytest.raises(ValueError, match="^found no norm-act with an activation in Sequential$"):
        check(plain, X)
    assert check(nn.Sequential(plain, Then(nn.Identity())), X) == []
    for name in ("GN-ReLU", "BN-Swish", "x * tanh(x) / std_g(x)"):  # what they call is their own
        assert check(Then(nn.Identity(), name), X) == []
        assert len(check(Then(F.relu, name), X)) == 1


def test_a_norm_act_of_ones_own(monkeypatch):
    monkeypatch.setattr(registry, "_FACTORIES", dict(registry._FACTORIES))

    @register_norm_act("check-IN-SiLU")
    def build(num_features, activation=True, **options):
        norm = nn.InstanceNorm2d(num_features)
        return nn.Sequential(norm, nn.SiLU()) if activation else norm

    off = Then(F.relu, "check-IN-SiLU", activation=False)
    model = nn.Sequential(off, Then(F.relu, "check-IN-SiLU"))
    assert check(model, X) == [Site("1.norm", "relu", "1")]


def test_the_model_stays_as_it_was():
    model = Then(F.relu, "EvoNormB0").train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    first, second = check(model, X), check(model, (X,))
    assert first == second == [Site("norm", "relu", "")]
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    assert model.training and not any(m._forward_hooks for m in model.modules())
    with pytest.raises(RuntimeError):
        check(model, torch.zeros(1, 3, 8, 8))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_site_that_runs_twice_is_named_once():
    block = Then(F.relu)
    assert len(check(nn.Sequential(block, block), X)) == 1


def test_norm_acts_that_do_not_run_are_no_proof():
    model = nn.Sequential(nn.Conv2d(4, 4, 1))
    model.spare = build_norm_act("EvoNormS0", 4)
    model.forward = model[0].forward
    with pytest.raises(ValueError, match="^none of 1 norm-acts ran on the example"):
        check(model, X)


def test_every_relu_of_a_hand_made_swap_is_found():
    """Norms swapped without their ReLUs: as many sites as convert() takes ReLUs out."""
    wrong, right = models.resnet18(), models.resnet18()
    swaps = convert(right, "EvoNormS0")
    for swap in swaps:
        owner, _, key = swap.module.rpartition(".")
        layer = right.get_submodule(swap.module)
        setattr(wrong.get_submodule(owner), key, layer)
    x = torch.randn(1, 3, 32, 32)
    assert check(right.eval(), x) == []
    assert {site.norm_act for site in check(wrong.eval(), x)} == {
        swap.module for swap in swaps if swap.activation
    }


@pytest.mark.parametrize("name", ["regnetz_c16_evos", "test_efficientnet_evos", "dla34"])
def test_converted_models_of_timms(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    convert(model, "EvoNormS0" if name == "dla34" else "")
    assert check(model, torch.zeros(2, 3, 64, 64, device="meta")) == []
