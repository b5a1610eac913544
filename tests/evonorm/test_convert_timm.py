"""convert() on timm's models: the numbers of the unconverted model, and what it says it left."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from timm import layers as timm_layers
from torch import nn

from evonorm import EvoNorm, NormAct, build_norm_act, convert
from tests.evonorm.test_convert import (
    AtTheRoot,
    ConvNorm,
    Functional,
    Unknown,
    assert_same_model,
    check_untouched,
    same_weights,
)

EVOS = ["resnetv2_50d_evos", "test_efficientnet_evos", "regnetz_c16_evos", "regnetz_d8_evos"]
LAYERS = [f"EvoNorm2d{kind}" for kind in "B0 B1 B2 S0 S0a S1 S1a S2 S2a".split()]
LAYERS.append("FilterResponseNormTlu2d")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def scattered(model: nn.Module) -> nn.Module:
    """The vectors of all norms off their first values, so that one that is lost shows."""
    torch.manual_seed(0)
    for module in model.modules():
        if any(word in type(module).__name__ for word in ("Norm2d", "NormAct")):
            for key, value in module.named_parameters(recurse=False):
                low = -0.2 if key == "bias" else 0.8
                nn.init.uniform_(value, low, low + 0.4)
    return model


def assert_same_outputs(model: nn.Module, ours: nn.Module, x: torch.Tensor) -> None:
    for mode in (True, False):
        with torch.no_grad():
            expected, y = model.train(mode)(x), ours.train(mode)(x)
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("name", EVOS)
def test_timms_evonorms_become_ours_with_their_weights(name):
    model = scattered(timm.create_model(name))
    layers = {p: m for p, m in model.named_modules() if type(m).__name__.startswith("EvoNorm2d")}
    ours = copy.deepcopy(model)
    report = convert(ours)
    assert [swap.module for swap in report] == list(layers)
    assert (report.kept, report.refused) == ({}, {})
    for path, theirs in layers.items():
        layer = ours.get_submodule(path)
        assert isinstance(layer, EvoNorm)
        assert (layer.num_groups, layer.eps) == (theirs.groups, theirs.eps)
    assert ours.state_dict().keys() == model.state_dict().keys()
    assert_same_outputs(model, ours, torch.randn(2, 3, 64, 64))


@pytest.mark.parametrize("activation", [True, False])
@pytest.mark.parametrize("kind", LAYERS)
def test_each_evonorm_of_timms(kind, activation):
    layer = getattr(timm_layers, kind)(32, groups=4, eps=0.01, momentum=0.3, apply_act=activation)
    model = scattered(nn.Sequential(nn.Conv2d(3, 32, 3), layer)).double()
    if hasattr(layer, "running_var"):
        layer.running_var.uniform_(0.5, 2.0)
    ours = copy.deepcopy(model)
    assert convert(ours)[0] == ("1", kind, activation)
    x = torch.randn(8, 3, 6, 6).double()
    model.eval(), ours.eval()
    torch.testing.assert_close(ours(x), model(x))
    torch.testing.assert_close(ours.train()(x), model.train()(x))


def test_keeps_device_mode_and_what_is_frozen():
    layer = timm_layers.EvoNorm2dS0(8, device="meta").requires_grad_(False).eval()
    model = nn.Sequential(layer, timm_layers.EvoNorm2dS0(8, dtype=torch.float64))
    convert(model)
    assert model[0].weight.is_meta and not model[0].v.requires_grad and not model[0].training
    assert model[1].weight.dtype == torch.float64 and model[1].v.requires_grad and model[1].training


def test_the_same_name_keeps_weights_another_starts_fresh():
    def build():
        first = timm_layers.EvoNorm2dS0(8, group_size=2)
        nn.init.constant_(first.weight, 3.0)
        return nn.Sequential(first, ConvNorm(channels=8), nn.ReLU())

    same, other = build(), build()
    same[1][0] = other[1][0] = nn.Conv2d(8, 8, 3)
    report = convert(same, "EvoNormS0", num_groups=1)
    assert [swap.replaced for swap in report] == ["EvoNorm2dS0", "BatchNorm2d + ReLU"]
    assert (same[0].weight == 3).all() and same[0].num_groups == 1
    convert(other, "GN-ReLU", num_groups=4)
    assert (other[0].weight == 1).all() and other[0].norm_act == other[1][1].norm_act == "GN-ReLU"


@pytest.mark.parametrize(
    ("name", "norm", "atol"),
    [
        ("resnetv2_18", "BN-ReLU", 0.0),
        ("resnetv2_50d_gn", "GN-ReLU", 1e-6),
        ("test_efficientnet", "BN-Swish-1", 1e-6),
        ("regnety_002", "BN-ReLU", 0.0),
    ],
)
def test_norms_that_hold_their_activation(name, norm, atol):
    shallow = {"layers": (1, 1, 1, 1)} if "resnetv2" in name else {}
    model = scattered(timm.create_model(name, **shallow).double())
    assert_same_model(model, same_weights(model, norm), atol=atol)


def test_every_norm_of_a_model_of_timms_is_swapped_as_its_class_says():
    with torch.device("meta"):
        model = timm.create_model("mobilenetv3_small_100")
    wanted = {
        path: not isinstance(module.act, nn.Identity)
        for path, module in model.named_modules()
        if isinstance(module, timm_layers.BatchNormAct2d)
    }
    report = convert(model, "EvoNormS0")
    assert {swap.module: swap.activation for swap in report} == wanted
    assert {swap.replaced for swap in report} == {
        "BatchNormAct2d",
        "BatchNormAct2d + ReLU",
        "BatchNormAct2d + Hardswish",
    }
    model(torch.zeros(2, 3, 64, 64, device="meta"))


# One or two of each way in which timm's models call their norms; none may fail in forward.
ANY = "dla60 dla60x_c xception41 densenet121 tf_efficientnet_b0 resnest14d ghostnet_100 vgg11_bn"


@pytest.mark.parametrize("name", ANY.split())
def test_a_converted_model_runs(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    before = sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    report = convert(model, "EvoNormS0", partly=True)
    assert len(report) + len(report.refused) == before
    assert len(report.refused) == (name == "xception41")
    for mode in (True, False):
        model.train(mode)(torch.zeros(2, 3, 96, 96, device="meta"))


def test_the_report_names_what_was_swapped_kept_and_refused():
    model = nn.Sequential(
        Functional(torch.relu), Unknown(), nn.Conv2d(3, 3, 1), nn.InstanceNorm2d(3), AtTheRoot()
    )
    check_untouched(model, r"^1.body.1: .* of sin, .* \(1 of 4 norms are refused; ", "EvoNormS0")
    report = convert(model, "EvoNormS0", partly=True)
    assert [swap.module for swap in report] == ["0.one.1", "0.two.1", "4.body.1"]
    assert report.kept == {"3": "InstanceNorm2d"}
    assert list(report.refused) == ["1.body.1"] and isinstance(model[1].body[1], nn.BatchNorm2d)
    lines = str(report).splitlines()
    assert lines[0] == "swapped 0.one.1 (BatchNorm2d + relu)"
    assert lines[3] == "kept 3 (InstanceNorm2d)"
    assert lines[4].startswith("refused 1.body.1: can't tell whether an activation follows")
    assert lines[5] == "3 swapped, 1 kept, 1 refused"
    model(torch.zeros(1, 3, 8, 8))


def test_without_a_name_only_timms_evonorms_are_swapped():
    model = nn.Sequential(ConvNorm(), nn.ReLU(), timm_layers.EvoNorm2dB0(3))
    report = convert(model)
    assert [swap.module for swap in report] == ["2"] and report.kept == {"0.1": "BatchNorm2d"}
    check_untouched(ConvNorm(), "^found none of timm's EvoNorms in ConvNorm$", "")


def test_a_block_that_cannot_be_rewritten_is_left_with_all_its_norms():
    class Block(Functional):
        def forward(self, x):
            return super().forward(x) + torch.ones(3, 1, 1)  # a tensor made in its forward

    model = nn.Sequential(ConvNorm(), nn.ReLU(), Block(nn.ReLU()))
    report = convert(model, "EvoNormS0", partly=True)
    assert [swap.module for swap in report] == ["0.1"]
    assert list(report.refused) == ["2.one.1", "2.two.1"]
    assert sum(isinstance(m, NormAct) for m in model.modules()) == 1
    model(torch.zeros(1, 3, 8, 8))


class AsksItsNorm(ConvNorm):
    def forward(self, x):
        return super().forward(x) * self[1].num_batches_tracked.add(1).sign()


def test_a_model_that_would_not_run_afterwards_is_left_as_it_was():
    check_untouched(
        nn.Sequential(Functional(torch.relu), AsksItsNorm()),
        "^the model would not run after the swap: 1: .* no attribute 'num_batches_tracked'",
        "EvoNormS0",
    )


@pytest.mark.parametrize(
    ("norm", "message"),
    [
        (timm_layers.BatchNormAct2d(3, act_layer=nn.Sigmoid), "as nothing is known of Sigmoid, wh"),
        (timm_layers.BatchNormAct2d(3, drop_layer=nn.Dropout2d), "of Dropout2d . ReLU, which it"),
        (timm_layers.GroupNormAct(3, 3), "as ReLU takes its output, beside the ReLU that it hol"),
    ],
)
def test_refuses_what_holds_more_than_an_activation(norm, message):
    check_untouched(nn.Sequential(ConvNorm(norm), nn.ReLU()), f"^0.1: .* {message}", "EvoNormS0")


def test_group_size_is_timms():
    for channels, size, groups in [(48, 16, 3), (1536, 16, 96), (40, 16, 4), (8, 16, 1)]:
        layer = build_norm_act("EvoNormS0", channels, group_size=size)
        assert layer.num_groups == groups
        if channels % size == 0:
            theirs = timm_layers.EvoNorm2dS0(channels, group_size=size)
            x = torch.randn(2, channels, 4, 4)
            torch.testing.assert_close(layer(x), theirs(x))
    assert build_norm_act("LN-ReLU", 8, group_size=2).num_groups == 1
    with pytest.raises(ValueError, match=r"^group_size=-1 should be an integer >= 0$"):
        build_norm_act("EvoNormS0", 8, group_size=-1)
