"""Components of one's own: declared, derived from one that is, or refused."""

from __future__ import annotations

import pytest
import torch
from detectron2.config import CfgNode, instantiate
from detectron2.config import LazyCall as L
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, ROI_BOX_HEAD_REGISTRY, Backbone
from detectron2.modeling.backbone import FPN
from detectron2.modeling.backbone.fpn import LastLevelMaxPool

from evonorm import check
from evonorm_d2 import resolve, resolve_lazy, takes_norm_act
from evonorm_d2.fpn import build_fpn
from evonorm_d2.heads import NormActConvFCHead
from evonorm_d2.norm import as_norm, norm_acts, norm_from_config

BOX = ("MODEL.ROI_BOX_HEAD.NUM_CONV", 1, "MODEL.ROI_BOX_HEAD.NAME")


@takes_norm_act()
class Tower(Backbone):
    """Convs of stride 2 with a norm-act each."""

    def __init__(self, norm="", channels=16):
        super().__init__()
        norm, widths = as_norm(norm), [3] + 5 * [channels]
        self.convs = torch.nn.ModuleList(
            Conv2d(a, b, 3, stride=2, padding=1, bias=False, norm=get_norm(norm, b))
            for a, b in zip(widths, widths[1:])
        )
        self._out_features = ["res2", "res3", "res4", "res5"]
        self._out_feature_strides = {f"res{i}": 2**i for i in range(2, 6)}
        self._out_feature_channels = dict.fromkeys(self._out_features, channels)

    def forward(self, x):
        out = {}
        for i, conv in enumerate(self.convs):
            x = conv(x)
            out[f"res{i + 1}"] = x
        return {key: out[key] for key in self._out_features}


@takes_norm_act("TOWER.NORM", "FPN.NORM")
@BACKBONE_REGISTRY.register()
def build_tower_fpn(cfg, input_shape):
    tower = Tower(norm_from_config(cfg, cfg.MODEL.TOWER.NORM))
    return build_fpn(cfg, tower, LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_undeclared(cfg, input_shape):
    return build_tower_fpn(cfg, input_shape)


@ROI_BOX_HEAD_REGISTRY.register()
class Described(NormActConvFCHead):
    def describe(self):
        return "the same norms"


@ROI_BOX_HEAD_REGISTRY.register()
class DescribedAgain(Described):
    pass


@ROI_BOX_HEAD_REGISTRY.register()
class OtherForward(Described):
    def forward(self, x):
        return super().forward(torch.relu(x))


@ROI_BOX_HEAD_REGISTRY.register()
class BelowOtherForward(OtherForward):
    pass


@takes_norm_act("ROI_BOX_HEAD.NORM")
@ROI_BOX_HEAD_REGISTRY.register()
class DeclaredForward(OtherForward):
    pass


def tower_cfg(tiny_cfg, name="build_tower_fpn"):
    cfg = tiny_cfg("EvoNormS0", *BOX, "FastRCNNConvFCHead")
    cfg.MODEL.TOWER = CfgNode({"NORM": "EvoNormS0"})
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.BACKBONE.NAME = name
    return cfg


def test_a_backbone_of_ones_own_from_yaml(tiny_cfg, build, batch, train_step):
    model = build(tower_cfg(tiny_cfg))
    assert len(norm_acts(model.backbone.bottom_up)) == 5
    assert check(model, batch()) == []
    assert all(loss.isfinite() for loss in train_step(model, batch()).values())


def test_a_key_of_its_own_is_refused_if_nothing_declares_it(tiny_cfg):
    cfg = tower_cfg(tiny_cfg)
    cfg.MODEL.SPIRE = CfgNode({"NORM": "EvoNormS0"})
    with pytest.raises(ValueError, match="^MODEL.SPIRE.NORM is EvoNormS0, but no component is"):
        resolve(cfg)


def test_a_backbone_that_is_not_declared_is_refused(tiny_cfg):
    expected = "^MODEL.FPN.NORM is EvoNormS0, but 'build_undeclared' .*evonorm_d2.takes_norm_act"
    with pytest.raises(ValueError, match=expected):
        resolve(tower_cfg(tiny_cfg, "build_undeclared"))


@pytest.mark.parametrize("name", ["Described", "DescribedAgain", "DeclaredForward"])
def test_what_changes_no_norm_is_accepted(name, tiny_cfg, build):
    model = build(tiny_cfg("EvoNormS0", *BOX, name))
    assert type(model.roi_heads.box_head).__name__ == name
    assert len(norm_acts(model.roi_heads.box_head)) == 1


@pytest.mark.parametrize("name", ["OtherForward", "BelowOtherForward"])
def test_a_subclass_with_a_forward_of_its_own_is_refused(name, tiny_cfg):
    with pytest.raises(ValueError, match=f"^MODEL.ROI_BOX_HEAD.NORM is EvoNormS0, but '{name}'"):
        resolve(tiny_cfg("EvoNormS0", *BOX, name))


def test_in_a_lazy_config():
    fpn = L(FPN)(
        bottom_up=L(Tower)(norm="EvoNormS0"),
        in_features=["res2", "res3"],
        out_channels=16,
        norm="EvoNormS0",
    )
    model = instantiate(resolve_lazy(fpn, num_groups=4))
    assert len(norm_acts(model)) == 5 + 4
    assert {layer.num_groups for layer in norm_acts(model)} == {4}
    assert check(model, torch.zeros(1, 3, 64, 64)) == []

    shape = ShapeSpec(channels=16, height=7, width=7)
    head = {"input_shape": shape, "conv_dims": [16], "fc_dims": [], "conv_norm": "EvoNormS0"}
    assert len(norm_acts(instantiate(resolve_lazy(L(Described)(**head))))) == 1
    for refused in (OtherForward, BelowOtherForward):
        with pytest.raises(ValueError, match=f"of .*{refused.__name__}: .*takes_norm_act"):
            resolve_lazy(L(refused)(**head))
