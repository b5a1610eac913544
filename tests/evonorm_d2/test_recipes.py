"""Every recipe under configs/detection loads, and is the model that its name says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from evonorm_d2.data import register_embedded
from evonorm_d2.norm import norm_acts
from evonorm_d2.run_config import load_config
from evonorm_d2.weight_standardization import WeightStandardizedRCNN
from evonorm_runs.config import flat

FOLDER = Path(__file__).parents[2] / "configs/detection"
OTHERS = ("heads", "one_gpu", "timm")  # see test_head_recipes.py
RECIPES = sorted(
    p
    for p in FOLDER.glob("*/*.yaml")
    if not p.name.startswith("Base") and p.parent.name not in OTHERS
)
NORMS = ("BN", "GN", "EvoNormB0", "EvoNormS0")
# Published or derived from what is published (see the reference counts of table 4): millions of
# parameters in Detectron2's layout with BN or GN; in the paper's layout; what each v adds.
STOCK, PAPER = {50: 45.711, 101: 64.703}, {50: 46.367, 101: 65.359}
V_STOCK, V_PAPER = {50: 9_664, 101: 18_368}, {50: 12_224, 101: 20_928}


def test_all_are_there():
    names = {str(path.relative_to(FOLDER)) for path in RECIPES}
    assert names == {
        *(
            f"stock/mask_rcnn_R_{depth}_FPN_{schedule}_{norm}.yaml"
            for depth in (50, 101)
            for schedule in ("1x", "3x")
            for norm in NORMS
        ),
        *(f"paper/mask_rcnn_R_{depth}_FPN_{norm}.yaml" for depth in (50, 101) for norm in NORMS),
        *(f"lsj/mask_rcnn_R_50_FPN_100ep_LSJ_{norm}.yaml" for norm in NORMS),
        *(f"digits/mask_rcnn_digits_{norm}.yaml" for norm in NORMS),
        "digits/mask_rcnn_digits_from_garments_EvoNormS0.yaml",
        *(f"garments/mask_rcnn_garments_{norm}.yaml" for norm in (*NORMS, "GN_WS", "DyT")),
        *(
            f"imagenet/mask_rcnn_R_50_FPN_{schedule}_{norm}.yaml"
            for schedule in ("1x", "3x")
            for norm in NORMS[1:]
        ),
    }


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_model_is_what_the_name_says(path):
    register_embedded()
    cfg = load_config(str(path), ["MODEL.DEVICE", "meta"])
    with torch.device("meta"):
        model = build_model(cfg)
    norm = path.stem.removesuffix("_WS").rpartition("_")[2]
    evo = norm.startswith("EvoNorm")
    linear = cfg.MODEL.EVONORM.LINEAR
    formula = evo or norm == "DyT"
    # The paper's layout, and backbones that a classifier's weights fit, are affine there.
    affine = path.parent.name in ("paper", "imagenet") or "from_garments" in path.stem
    assert linear == ("GN" if formula and not affine else "")
    assert isinstance(model, WeightStandardizedRCNN) == path.stem.endswith("_WS")
    found = {layer.norm_act for layer in norm_acts(model)}
    known = {"BN": {"BN-ReLU"}, "GN": {"GN"} & found, "DyT": {"tanh(v1 * x)", "GN"}}
    assert found == known.get(norm, {norm, linear} - {""})
    if norm == "GN":
        assert any(isinstance(m, torch.nn.GroupNorm) for m in model.modules())
    if path.parent.name == "imagenet":
        assert isinstance(model.backbone.fpn_output2.norm, torch.nn.GroupNorm)
    depth = 101 if "R_101" in path.stem else 50
    count = sum(p.numel() for p in model.parameters())
    if path.parent.name in ("stock", "imagenet"):
        rpn = 2 * 256 + 256 * evo  # the norm of the RPN, which Detectron2's layout lacks
        assert round((count - rpn - V_STOCK[depth] * evo) / 1e6, 3) == STOCK[depth]
    if path.parent.name == "paper":
        assert round((count - V_PAPER[depth] * evo) / 1e6, 3) == PAPER[depth]


@pytest.mark.parametrize("norm", NORMS[1:])
@pytest.mark.parametrize("schedule", ["1x", "3x"])
def test_a_start_from_imagenet_is_the_same_model(norm, schedule):
    """But for what it starts from, what is frozen, and the ends of blocks, which are affine."""
    name = f"mask_rcnn_R_50_FPN_{schedule}_{norm}.yaml"
    scratch, imagenet = (
        flat(load_config(str(FOLDER / folder / name), ["MODEL.DEVICE", "cpu"]))
        for folder in ("stock", "imagenet")
    )
    differing = {key for key in scratch if scratch[key] != imagenet[key]}
    assert differing - {"INPUT.FORMAT"} == {
        *("MODEL.WEIGHTS", "MODEL.BACKBONE.FREEZE_AT", "MODEL.PIXEL_STD"),
        *(() if norm == "GN" else ("MODEL.PIXEL_MEAN", "MODEL.EVONORM.LINEAR", "MODEL.FPN.NORM")),
    }


def test_schedules():
    def solver(name):
        return load_config(str(FOLDER / name), ["MODEL.DEVICE", "cpu"]).SOLVER

    paper = solver("paper/mask_rcnn_R_101_FPN_EvoNormS0.yaml")  # section 5.4
    assert (paper.IMS_PER_BATCH, paper.BASE_LR, paper.MAX_ITER) == (64, 0.1, 135_000)
    assert (paper.STEPS, paper.WEIGHT_DECAY, paper.MOMENTUM) == ((120_000, 125_000), 4e-5, 0.9)
    one = solver("stock/mask_rcnn_R_101_FPN_1x_GN.yaml")
    three = solver("stock/mask_rcnn_R_101_FPN_3x_GN.yaml")
    assert (one.MAX_ITER, three.MAX_ITER) == (90_000, 270_000)
