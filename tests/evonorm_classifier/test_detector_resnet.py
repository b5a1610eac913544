"""ResNets in Detectron2's layout, against torchvision's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torchvision

from evonorm_classifier.config import load_config
from evonorm_classifier.models import MODELS, build_model
from evonorm_runs.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs" / "classification"
CONFIG = str(CONFIGS / "imagenet_resnet50_detectron2.yaml")
# Norms with an activation and without: Detectron2's v1 blocks, counted by hand.
SITES = {18: (9, 11), 34: (17, 19), 50: (33, 20), 101: (67, 37)}
VECTORS = {50: 7_616, 101: 16_320}  # values of v in EvoNorm-S0


def build(*overrides):
    return build_model(load_config(CONFIG, ["DEVICE", "cpu", *map(str, overrides)]), 1000)


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def torchvisions_name(key):
    """The name in torchvision's ResNet of one of ours."""
    key = re.sub(r"^res(\d)", lambda m: f"layer{int(m[1]) - 1}", key.removeprefix("stem."))
    key = key.replace("shortcut.norm", "downsample.1").replace("shortcut.", "downsample.0.")
    return re.sub(r"conv(\d)\.norm", r"bn\1", key).replace("linear.", "fc.")


@pytest.mark.parametrize("depth", SITES)
def test_computes_what_torchvisions_does(depth):
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, f"resnet{depth}")().eval()
    with torch.no_grad():
        for name, value in theirs.state_dict().items():
            if "running_var" in name:
                value.uniform_(0.5, 1.5)
            elif "running_mean" in name:
                value.normal_(0, 0.1)
    ours = MODELS[f"resnet{depth}"](1000).eval()
    state = theirs.state_dict()
    ours.load_state_dict({key: state[torchvisions_name(key)] for key in ours.state_dict()})
    assert len(ours.state_dict()) == len(state)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))
        from_bn_relu = build("MODEL.NAME", f"resnet{depth}", "MODEL.NORM", "BN-ReLU").eval()
        from_bn_relu.load_state_dict(ours.state_dict())
        torch.testing.assert_close(from_bn_relu(x), theirs(x))


@pytest.mark.parametrize("depth", SITES)
@pytest.mark.parametrize("norm", ["BN-ReLU", "EvoNormS0", "x * tanh(v1 * x) / std_g(x)"])
def test_every_norm_with_its_activation_is_swapped(depth, norm):
    with torch.device("meta"):
        model = build("MODEL.NAME", f"resnet{depth}", "MODEL.NORM", norm)
    sites = [m for m in model.modules() if hasattr(m, "norm_act")]
    active = sum(site.activation for site in sites)
    assert (active, len(sites) - active) == SITES[depth]
    assert not [m for m in model.modules() if isinstance(m, (torch.nn.BatchNorm2d, torch.nn.ReLU))]
    assert all(name.endswith(".norm") for name, m in model.named_modules() if m in sites)


@pytest.mark.parametrize("depth, bn", [(50, 25_557_032), (101, 44_549_160)])
def test_parameters(depth, bn):
    with torch.device("meta"):
        model, s0 = (
            build("MODEL.NAME", f"resnet{depth}", "MODEL.NORM", norm)
            for norm in ("BN-ReLU", "EvoNormS0")
        )
    assert parameters(model) == bn  # torchvision's documentation
    assert parameters(s0) == bn + VECTORS[depth]


@pytest.mark.parametrize("norm", ["BN-ReLU", "EvoNormS0", "EvoNormB0"])
def test_blocks_start_as_their_shortcuts_if_asked(norm):
    models = {
        zero: build("MODEL.WIDTH", 0.125, "MODEL.NORM", norm, "MODEL.ZERO_INIT_LAST", zero)
        for zero in (True, False)
    }
    y = torch.rand(2, 32, 8, 8)  # of res2, so that a ReLU changes nothing
    for zero, model in models.items():
        assert torch.equal(model.res2[1](y), y) == zero
        assert int(sum((p == 0).all() for p in model.parameters() if p.dim() > 1)) == 0
    with pytest.raises(UserError, match="ZERO_INIT_LAST is True, but MODEL.NAME is mobilenet_v2"):
        build("MODEL.NAME", "mobilenet_v2")
