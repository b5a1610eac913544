"""The recipes of other heads than Mask R-CNN's, of timm's backbones, and for one GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model

from evonorm_d2.norm import norm_acts
from evonorm_d2.run_config import load_config

FOLDER = Path(__file__).parents[2] / "configs/detection"
# How many norm-acts the model has.
FPN, TOWERS = 53 + 8 + 1, 2 * 4  # R-50, laterals and outputs, RPN
SITES = {
    "heads/faster_rcnn_R_50_C4_1x_EvoNormS0": 43 + 1 + 10,  # res5 is in the heads
    "heads/mask_rcnn_R_50_C4_1x_EvoNormS0": 43 + 1 + 10,
    "heads/cascade_mask_rcnn_R_50_FPN_1x_EvoNormS0": FPN + 3 * 4 + 4,  # three box heads
    "heads/panoptic_fpn_R_50_1x_EvoNormS0": FPN + 4 + 4 + (1 + 1 + 2 + 3),
    "heads/retinanet_R_50_FPN_1x_EvoNormS0": 53 + 6 + TOWERS,
    "heads/fcos_R_50_FPN_1x_EvoNormS0": 53 + 6 + TOWERS,
    **{f"one_gpu/mask_rcnn_R_50_FPN_1x_EvoNormS0_{n}im": FPN + 4 + 4 for n in (1, 2, 4)},
    # timm's 50 (its final norm is not a feature's), 4 for the levels; RPN, box and mask head.
    "timm/mask_rcnn_resnetv2_50d_evos_FPN_1x": 50 + 4 + 1 + 4 + 4,
}


def test_all_are_there():
    found = [
        p for folder in ("heads", "one_gpu", "timm") for p in FOLDER.glob(f"{folder}/[!B]*.yaml")
    ]
    assert {str(p.relative_to(FOLDER).with_suffix("")) for p in found} == set(SITES)


@pytest.mark.parametrize("name", SITES)
def test_has_s0_at_every_site(name):
    overrides = ["MODEL.DEVICE", "meta", "MODEL.TIMM.PRETRAINED", "False"]
    with torch.device("meta"):
        model = build_model(load_config(str(FOLDER / f"{name}.yaml"), overrides))
    layers = norm_acts(model)
    assert len(layers) == SITES[name]
    assert {layer.norm_act for layer in layers if layer.activation} == {"EvoNormS0"}
    if name.startswith("timm"):  # an EvoNorm's affine form is what its weights are of
        levels = [m for m in model.backbone.modules() if isinstance(m, torch.nn.GroupNorm)]
        assert len(levels) == 8 and {layer.norm_act for layer in layers} == {"EvoNormS0"}
    else:
        assert {layer.norm_act for layer in layers if not layer.activation} == {"GN"}
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())


@pytest.mark.parametrize("images", [1, 2, 4])
def test_one_gpus_schedule_is_scaled_by_the_linear_rule(images):
    """As many epochs, a learning rate in proportion to the images; else the recipe of 16 images."""
    stock = FOLDER / "stock/mask_rcnn_R_50_FPN_1x_EvoNormS0.yaml"
    recipe = FOLDER / f"one_gpu/{stock.stem}_{images}im.yaml"
    one, sixteen = (load_config(str(path), ["MODEL.DEVICE", "cpu"]) for path in (recipe, stock))
    factor = 16 // images
    assert one.SOLVER.IMS_PER_BATCH == images
    assert one.SOLVER.BASE_LR == pytest.approx(0.02 / factor, rel=1e-12)
    assert one.SOLVER.MAX_ITER * images == 90_000 * 16
    assert tuple(x * images for x in one.SOLVER.STEPS) == (60_000 * 16, 80_000 * 16)
    assert one.SOLVER.WARMUP_ITERS * images == 1_000 * 16
    scaled = ["SOLVER.IMS_PER_BATCH", images, "SOLVER.REFERENCE_IMS_PER_BATCH", 16]
    by_key = load_config(str(stock), ["MODEL.DEVICE", "cpu", *map(str, scaled)])
    assert set(differences(one, by_key)) == {"SOLVER.REFERENCE_IMS_PER_BATCH"}
    assert set(differences(one, sixteen)) == {
        f"SOLVER.{key}"
        for key in "IMS_PER_BATCH BASE_LR MAX_ITER STEPS WARMUP_ITERS CHECKPOINT_PERIOD".split()
    }


@pytest.mark.parametrize(
    ("ours", "stock"),
    [
        ("faster_rcnn_R_50_C4_1x", "COCO-Detection/faster_rcnn_R_50_C4_1x"),
        ("mask_rcnn_R_50_C4_1x", "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x"),
        ("cascade_mask_rcnn_R_50_FPN_1x", "Misc/cascade_mask_rcnn_R_50_FPN_1x"),
        ("panoptic_fpn_R_50_1x", "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x"),
        ("retinanet_R_50_FPN_1x", "COCO-Detection/retinanet_R_50_FPN_1x"),
    ],
)
def test_is_detectron2s_recipe_but_for_norm_and_start(ours, stock):
    cfg, theirs = load_config(str(FOLDER / f"heads/{ours}_EvoNormS0.yaml")), get_cfg()
    theirs.merge_from_file(model_zoo.get_config_file(f"{stock}.yaml"))
    differ = set(differences(cfg, theirs))
    norms = {key for key in differ if key.endswith(("NORM", "NAME"))}
    start = "WEIGHTS PIXEL_STD DEVICE BACKBONE.FREEZE_AT RESNETS.STRIDE_IN_1X1".split()
    # From scratch the box head has four convs and one fc, as Detectron2's own such recipes.
    box = "NUM_CONV NUM_FC".split()
    allowed = {f"MODEL.{key}" for key in start} | {f"MODEL.ROI_BOX_HEAD.{key}" for key in box}
    allowed |= {"MODEL.META_ARCHITECTURE"} if "retinanet" in ours else set()
    unread = {"MODEL.ROI_MASK_HEAD.NUM_CONV", "MODEL.ROI_HEADS.IN_FEATURES"}
    unread |= {key for key in differ if key.startswith(("MODEL.RPN", "MODEL.ROI"))}
    allowed |= unread if "retinanet" in ours else set()
    assert differ - norms - allowed == set()


def differences(ours, theirs, prefix=""):
    for key, value in theirs.items():
        if isinstance(value, CfgNode):
            yield from differences(ours[key], value, f"{prefix}{key}.")
        elif not same(ours[key], value):
            yield prefix + key


def same(one, two):
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(same, one, two))
    return one == pytest.approx(two, rel=1e-6) if isinstance(one, float) else one == two
