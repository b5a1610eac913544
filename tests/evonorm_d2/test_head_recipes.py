"""The recipes of other heads than Mask R-CNN's and of timm's backbones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from evonorm_d2.norm import norm_acts
from evonorm_d2.run_config import load_config

FOLDER = Path(__file__).parents[2] / "configs/detection"
# How many norm-acts the model has.
SITES = {
    # timm's 50 (its final norm is not a feature's), 4 for the levels; FPN, RPN, box and mask head.
    "timm/mask_rcnn_resnetv2_50d_evos_FPN_1x": 50 + 4 + 8 + 1 + 4 + 4,
}


def test_all_are_there():
    found = [p for folder in ("heads", "timm") for p in FOLDER.glob(f"{folder}/*.yaml")]
    assert {str(p.relative_to(FOLDER).with_suffix("")) for p in found} == set(SITES)


@pytest.mark.parametrize("name", SITES)
def test_has_s0_at_every_site(name):
    overrides = ["MODEL.DEVICE", "meta", "MODEL.TIMM.PRETRAINED", "False"]
    with torch.device("meta"):
        model = build_model(load_config(str(FOLDER / f"{name}.yaml"), overrides))
    layers = norm_acts(model)
    assert len(layers) == SITES[name] and {layer.norm_act for layer in layers} == {"EvoNormS0"}
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())
