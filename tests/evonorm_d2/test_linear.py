"""MODEL.EVONORM.LINEAR: what stands where no activation follows a norm-act's conv."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from detectron2 import model_zoo
from detectron2.config import instantiate

from evonorm_d2 import resolve, resolve_lazy
from evonorm_d2.analysis import analyze
from evonorm_d2.norm import Norm, norm_acts
from evonorm_d2.resnet import NormActBottleneckBlock
from evonorm_d2.running_statistics import recompute_statistics
from evonorm_d2.solver import build_optimizer

LINEAR = "MODEL.EVONORM.LINEAR"
FORMULA = "(x - mean_b(x)) / std_b(x)"
VALUES = ["affine", "BN", "GN", "LN", FORMULA]
PAPER = (
    *("MODEL.BACKBONE.NAME", "build_paper_resnet_fpn_backbone"),
    *("MODEL.RPN.HEAD_NAME", "PaperRPNHead"),
    *("MODEL.ROI_HEADS.NAME", "build_paper_roi_heads"),
    *("MODEL.ROI_BOX_HEAD.NAME", "PaperConvFCHead"),
    *("MODEL.ROI_MASK_HEAD.NAME", "PaperConvUpsampleHead"),
)


def is_linear(name):
    """Whether a layer of this name stands before an addition or in the FPN."""
    places = (".conv3.", "shortcut", "fpn_", "backbone.norms.")
    return "roi_heads" not in name and any(place in name for place in places)


def kinds(model):
    """The layers' norms by name."""
    return {name: m.norm_act for name, m in model.named_modules() if getattr(m, "norm_act", "")}


@pytest.mark.parametrize("overrides", [(), PAPER], ids=["stock", "paper"])
@pytest.mark.parametrize("linear", VALUES)
def test_sites(linear, overrides, tiny_cfg, build):
    layers = kinds(build(tiny_cfg("EvoNormS0", LINEAR, linear, *overrides)))
    assert layers == {name: linear if is_linear(name) else "EvoNormS0" for name in layers}
    sites = 16 + 4 + (5 if overrides else 8)  # R-50's blocks, shortcuts, FPN
    assert sum(map(is_linear, layers)) == sites


def test_basic_blocks(tiny_cfg, build):
    wide = ("MODEL.RESNETS.STEM_OUT_CHANNELS", 64, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64)
    model = build(tiny_cfg("EvoNormB0", LINEAR, "GN", "MODEL.RESNETS.DEPTH", 18, *wide))
    layers = kinds(model.backbone.bottom_up)
    linear = {name for name, norm in layers.items() if norm == "GN"}
    assert linear == {name for name in layers if "conv2" in name or "shortcut" in name}


@pytest.mark.parametrize("norm", ["EvoNormS0", "GN-ReLU"])
def test_the_affine_map_or_the_normalization_by_default(norm, tiny_cfg, build):
    layers = norm_acts(build(tiny_cfg(norm)))
    assert {layer.norm_act for layer in layers} == {norm}
    assert sum(not layer.activation for layer in layers) == 16 + 4 + 8


def test_a_block_with_group_norm_before_the_addition():
    norm = Norm("EvoNormS0", linear="GN", num_groups=4)
    block = NormActBottleneckBlock(8, 12, bottleneck_channels=4, norm=norm)
    for parameter in block.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, mean=0.5)
    seen = {}
    for conv in (block.conv1, block.conv2, block.conv3, block.shortcut):
        conv.register_forward_hook(lambda m, x, y: seen.update({m: (x[0].clone(), y.clone())}))
    y = block(torch.randn(2, 8, 10, 10))
    for conv in (block.conv3, block.shortcut):
        x, out = seen[conv]
        z = F.conv2d(x, conv.weight)
        torch.testing.assert_close(out, F.group_norm(z, 4, conv.norm.weight, conv.norm.bias, 1e-5))
    torch.testing.assert_close(y, F.relu(seen[block.conv3][1] + seen[block.shortcut][1]))


@pytest.mark.parametrize("linear", ["", *VALUES])
def test_it_trains(linear, tiny_cfg, build, batch, train_step):
    model = build(tiny_cfg("EvoNormS0", LINEAR, linear))
    losses = train_step(model, batch())
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_the_same_model_from_a_lazy_config(stock_cfg):
    model = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model
    bottom_up = model.backbone.bottom_up
    bottom_up.stem.norm = bottom_up.stages.norm = model.backbone.norm = "EvoNormS0"
    with torch.device("meta"):
        layers = kinds(instantiate(resolve_lazy(model, linear="GN")))
    assert layers == {name: "GN" if is_linear(name) else "EvoNormS0" for name in layers}
    assert sum(map(is_linear, layers)) == 16 + 4 + 8


@pytest.mark.parametrize("linear", VALUES)
def test_counts_stay(linear, tiny_cfg):
    """A weight and a bias per channel and 2 per element, whatever stands there."""
    before = analyze(resolve(tiny_cfg("EvoNormS0")))
    assert analyze(resolve(tiny_cfg("EvoNormS0", LINEAR, linear))) == before


@pytest.mark.parametrize("linear", VALUES)
def test_no_weight_decay(linear, tiny_cfg, build):
    cfg = tiny_cfg("EvoNormS0", LINEAR, linear)
    model = build(cfg)
    norms = {id(p) for layer in norm_acts(model) for p in layer.parameters()}
    for group in build_optimizer(cfg, model).param_groups:
        assert {id(p) in norms for p in group["params"]} == {group["weight_decay"] == 0}


@pytest.mark.parametrize("linear", VALUES)
def test_the_last_norm_of_a_block_may_start_at_zero(linear, tiny_cfg, build):
    model = build(tiny_cfg("EvoNormS0", LINEAR, linear, "MODEL.EVONORM.ZERO_INIT_LAST", True))
    first = {n: p for n, p in model.backbone.named_parameters() if n.endswith("norm.weight")}
    zero = {name for name, weight in first.items() if not weight.any()}
    assert zero == {name for name in first if "conv3" in name}


@pytest.mark.parametrize("linear", ["BN", FORMULA])
def test_running_statistics(linear, tiny_cfg, build, batch, train_step):
    """Of a frozen stage they stay; of others they follow, and can be taken anew."""
    cfg = tiny_cfg("EvoNormS0", LINEAR, linear, "MODEL.BACKBONE.FREEZE_AT", 2)
    model = build(cfg)
    before = {name: b.clone() for name, b in model.named_buffers() if "norm" in name}
    train_step(model, batch())

    def moved():
        buffers = dict(model.named_buffers())
        return {name for name in before if not torch.equal(buffers[name], before[name])}

    followed = {name for name in before if ".res2." not in name}
    assert moved() == followed and len(followed) == 2 * (13 + 3 + 8)
    before = {name: b.clone() for name, b in model.named_buffers() if "norm" in name}
    recompute_statistics(model, [batch(), batch(n=1)])
    assert moved() == followed


@pytest.mark.parametrize(
    "linear, reason",
    [
        ("relu", "'relu'"),
        ("EvoNormS0", "'EvoNormS0'"),
        ("FrozenBN", "affine, BN, GN, LN or a formula"),
        ("x / std(x)", "unknown function 'std' at character 5"),
    ],
)
def test_another_value_is_refused_in_one_line(linear, reason, tiny_cfg):
    cfg = tiny_cfg("EvoNormS0", LINEAR, linear)
    before = cfg.dump()
    with pytest.raises(ValueError) as error:
        resolve(cfg)
    line = str(error.value)
    assert line.startswith(f"{LINEAR}: ") and reason in line and "\n" not in line
    assert cfg.dump() == before
    with pytest.raises(ValueError, match=re.escape(reason)):
        resolve_lazy(model_zoo.get_config("common/models/mask_rcnn_fpn.py").model, linear=linear)


def test_stock_norms_know_nothing_of_it(tiny_cfg):
    cfg = tiny_cfg("GN", LINEAR, "BN", "MODEL.RPN.NORM", "")
    before = cfg.dump()
    assert resolve(cfg).dump() == before
