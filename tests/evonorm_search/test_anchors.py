"""The anchors: their strides, channels and sites, against torchvision's networks and counting."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision import models

from evonorm.base import NormAct
from evonorm_search.anchors import ANCHORS, B0, build_anchor, efficientnet

SMALL = [name for name in ANCHORS if name.endswith("-small")]
PAPER = [name for name in ANCHORS if name.endswith("-CIFAR")]


def count(model):
    return sum(p.numel() for p in model.parameters())


def test_efficientnet_b0_is_torchvisions():
    mine, right = efficientnet(B0, 1000).state_dict(), models.efficientnet_b0().state_dict()
    assert {key: x.shape for key, x in mine.items()} == {key: x.shape for key, x in right.items()}


@pytest.mark.parametrize(
    "name, whole",
    [
        ("MobileNetV2-CIFAR", lambda: models.mobilenet_v2(num_classes=10, width_mult=0.5)),
        ("EfficientNet-CIFAR", lambda: efficientnet(B0, 10, width=0.5)),
    ],
)
def test_nothing_but_strides_differs_from_the_network_for_imagenet(name, whole):
    mine, right = ANCHORS[name](10), whole()
    assert {k: v.shape for k, v in mine.state_dict().items()} == {
        k: v.shape for k, v in right.state_dict().items()
    }
    pairs = zip(mine.modules(), right.modules())
    convolutions = [(a, b) for a, b in pairs if isinstance(a, nn.Conv2d)]
    differing = [(a, b) for a, b in convolutions if a.stride != b.stride]
    assert [(a.stride, b.stride) for a, b in differing] == [((1, 1), (2, 2))] * 2
    strided = [b for _, b in convolutions if b.stride == (2, 2)]
    assert [b for _, b in differing] == strided[:2]


@pytest.mark.parametrize("name", ANCHORS)
def test_the_last_maps(name):
    """Of 24x24 images the paper's networks make maps of 3x3, of 16x16 the others 4x4."""
    size, last = (24, 3) if name in PAPER else (16, 4)
    model = build_anchor(name, "BN-ReLU").eval()
    seen = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda m, inputs, y: seen.append(tuple(y.shape[2:])))
    with torch.no_grad():
        assert model(torch.randn(2, 3, size, size)).shape == (2, 10)
    maps = [shape for shape in seen if shape != (1, 1)]  # those are of squeeze-and-excitation
    assert maps[0] == (size, size) and maps[-1] == (last, last)


@pytest.mark.parametrize("name", ANCHORS)
def test_sites(name):
    """A norm-act wherever there was a norm with its activation; v is all that they add."""
    plain, model = ANCHORS[name](10), build_anchor(name, "EvoNormS0")
    norms = [m for m in plain.modules() if isinstance(m, nn.BatchNorm2d)]
    layers = [m for m in model.modules() if isinstance(m, NormAct)]
    assert len(layers) == len(norms)
    assert [layer.num_features for layer in layers] == [norm.num_features for norm in norms]
    active = [layer for layer in layers if layer.activation]
    assert count(model) - count(plain) == sum(layer.num_features for layer in active)
    inverted = "ResNet" not in name
    assert (len(layers) > len(active)) == inverted  # a linear bottleneck has no activation
    left = (nn.ReLU, nn.ReLU6, nn.BatchNorm2d)
    assert not any(isinstance(m, left) for m in model.modules())
    excitations = sum(type(m).__name__ == "SqueezeExcitation" for m in model.modules())
    assert sum(isinstance(m, nn.SiLU) for m in model.modules()) == excitations


@pytest.mark.parametrize("name", SMALL)
def test_a_formula_trains(name):
    torch.manual_seed(0)
    model = build_anchor(name, "x * tanh(v1 * x) / std_g(x)", num_classes=3)
    x, y = torch.randn(6, 3, 16, 16), torch.arange(6) % 3
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    losses = []
    for _ in range(25):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_an_anchor_of_ones_own(monkeypatch):
    def mine(num_classes):
        return nn.Sequential(
            *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
            *(nn.Flatten(), nn.Linear(8, num_classes)),
        )

    monkeypatch.setitem(ANCHORS, "mine", mine)
    model = build_anchor("mine", "EvoNormS1", num_classes=4)
    assert type(model[1]).__name__ == "EvoNorm" and model(torch.randn(2, 3, 9, 9)).shape == (2, 4)


def test_an_unknown_anchor_is_refused():
    with pytest.raises(ValueError, match="no anchor is named 'VGG'; known are ResNet50-CIFAR, "):
        build_anchor("VGG", "EvoNormS0")
    with pytest.raises(ValueError, match="unknown norm-act 'EvoNormS9'"):
        build_anchor("ResNet-small", "EvoNormS9")
