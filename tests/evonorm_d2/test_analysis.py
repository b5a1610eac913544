"""The counts, against published ones, closed forms, and fvcore as a second counter."""

from __future__ import annotations

from pathlib import Path

import detectron2.layers.deform_conv as deform_conv
import pytest
import torch
import torchvision
from detectron2.config import get_cfg
from detectron2.layers import DeformConv, ModulatedDeformConv, get_norm
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, build_model
from torch import nn

from evonorm import build_norm_act, list_norm_acts
from evonorm_d2 import add_evonorm_config, resolve
from evonorm_d2.analysis import Complexity, FlopCountAnalysis, analyze, count_flops
from tests.evonorm.unnamed import UNNAMED

CONFIGS = Path(__file__).resolve().parents[2] / "configs/detection"
DETECTRON2_NORMS = ["BN", "SyncBN", "FrozenBN", "GN"]
RETINANET = [
    *("MODEL.META_ARCHITECTURE", "RetinaNet"),
    *("MODEL.BACKBONE.NAME", "build_retinanet_resnet_fpn_backbone"),
    *("MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"]),
    *("MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"]),
    *("MODEL.RETINANET.NORM", "EvoNormS0"),
]


def config(*overrides, base="stock/mask_rcnn_R_50_FPN_1x_GN.yaml"):
    cfg = add_evonorm_config(get_cfg())
    cfg.merge_from_file(str(CONFIGS / base), allow_unsafe=False)
    cfg.merge_from_list(list(overrides))
    return resolve(cfg)


def meta(*shape):
    return torch.empty(shape, device="meta")


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v2", "vit_b_16"])
def test_published_counts_of_torchvision(name):
    with torch.device("meta"):
        model = torchvision.models.get_model(name)
    published = list(torchvision.models.get_model_weights(name))[0].meta
    counts = count_flops(model, meta(1, 3, 224, 224))
    assert counts.parameters == published["num_params"]
    assert round(counts.conv_madds / 1e9, 3) == published["_ops"]


# pycls, MODEL_ZOO.md, "acts (M)"
@pytest.mark.parametrize(
    ("name", "millions"), [("resnet50", 11.1), ("resnet101", 16.2), ("efficientnet_b0", 6.7)]
)
def test_published_activations(name, millions):
    with torch.device("meta"):
        model = torchvision.models.get_model(name)
    assert round(count_flops(model, meta(1, 3, 224, 224)).activations / 1e6, 1) == millions


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (nn.Conv2d(6, 8, 3, stride=2, groups=2), (2, 6, 9, 9), (224, 2 * 8 * 16 * 27, 256)),
        (nn.ConvTranspose2d(6, 8, 2, stride=2), (2, 6, 5, 5), (200, 2 * 25 * 6 * 8 * 4, 1600)),
        (nn.Linear(6, 8), (2, 6), (56, 96, 16)),
        (nn.Linear(6, 8, bias=False), (2, 5, 6), (48, 480, 80)),
    ],
    ids=["grouped conv", "deconv", "fc", "fc on a sequence"],
)
@pytest.mark.parametrize("inference_mode", [False, True])
def test_closed_forms(layer, shape, expected, inference_mode):
    parameters, madds, activations = expected
    with torch.inference_mode(inference_mode):
        counts = count_flops(layer, torch.zeros(shape))
    assert counts == Complexity(parameters, madds, 0, activations)


def conv_and_norm(name, activation=True):
    norm = get_norm(name, 32) if name in DETECTRON2_NORMS else build_norm_act(name, 32, activation)
    return nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), norm)


@pytest.mark.parametrize("activation", [True, False])
@pytest.mark.parametrize("name", DETECTRON2_NORMS + list_norm_acts() + UNNAMED)
def test_every_norm_counts_2_per_element_in_both_counters(name, activation):
    model = conv_and_norm(name, activation)
    x = torch.zeros(2, 3, 5, 7)
    elements = 2 * 32 * 5 * 7
    counts = count_flops(model, x)
    assert (counts.conv_madds, counts.norm_madds) == (27 * elements, 2 * elements)
    fvcore = FlopCountAnalysis(model, x)
    assert fvcore.by_operator() == {"conv": 27 * elements, "norm": 2 * elements}
    assert fvcore.total("model.1") == 2 * elements
    assert not fvcore.unsupported_ops()


@pytest.mark.parametrize("name", ["BN", "BN-Swish", "EvoNormB0"])
def test_counting_leaves_the_model_as_it_was(name):
    model = conv_and_norm(name)
    model[0].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    count_flops(model, torch.randn(2, 3, 5, 5))
    FlopCountAnalysis(model.eval(), torch.randn(2, 3, 5, 5)).total()
    model[1].train()
    with pytest.raises(RuntimeError):
        count_flops(model, torch.randn(2, 4, 5, 5))
    assert [m.training for m in model] == [False, True]
    assert not any(m._forward_hooks or "forward" in vars(m) for m in model)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_a_norm_made_of_norms_counts_once_and_a_shared_one_with_each_call():
    class Outer(nn.Module):
        norm_act = "Outer"

        def __init__(self):
            super().__init__()
            self.inner = nn.BatchNorm2d(4)

        def forward(self, x):
            return self.inner(x)

    norm = Outer()
    counts = count_flops(nn.Sequential(norm, norm), torch.zeros(1, 4, 3, 3))
    assert counts == Complexity(8, 0, 2 * 2 * 36, 0)


def test_matrix_products_inside_of_a_norm_count_nothing_beside_its_2_per_element():
    class Whitening(nn.Conv2d):
        norm_act = "Whitening"

    model = nn.Sequential(nn.Conv2d(3, 8, 1), Whitening(8, 8, 1), nn.Conv2d(8, 4, 1))
    x = torch.zeros(1, 3, 5, 5)
    convs, norm = 25 * (3 * 8 + 8 * 4), 2 * 25 * 8
    counts = count_flops(model, x)
    assert (counts.conv_madds, counts.norm_madds) == (convs, norm)
    assert counts.activations == 25 * (8 + 4)
    assert FlopCountAnalysis(model, x).by_operator() == {"conv": convs, "norm": norm}


def test_a_whole_model_on_an_image_in_both_counters():
    torch.manual_seed(0)
    cfg = config("MODEL.RESNETS.DEPTH", 50, "MODEL.RPN.POST_NMS_TOPK_TEST", 20)
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg).eval()
    inputs = [{"image": torch.rand(3, 64, 96)}]
    assert count_flops(model, inputs).madds == FlopCountAnalysis(model, inputs).total() > 1e9


@pytest.mark.parametrize("norm", ["EvoNormS0", "GN"])
def test_the_backbone_in_both_counters(norm):
    cfg = config(base=f"paper/mask_rcnn_R_50_FPN_{norm}.yaml")
    cfg.MODEL.DEVICE = "cpu"
    backbone = build_model(cfg).backbone.eval()
    fvcore = FlopCountAnalysis(backbone, torch.zeros(1, 3, 128, 128)).by_operator()
    part = analyze(cfg)["backbone"]
    # All of it is proportional to the number of pixels.
    assert (64 * fvcore["conv"], 64 * fvcore["norm"]) == (part.conv_madds, part.norm_madds)


def test_roi_heads_see_the_regions_that_the_config_says():
    full, half = analyze(config()), analyze(config("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 256))
    convs = sum(4 * 49 * 256 * 256 * 9 for _ in range(512))
    fcs = 512 * (49 * 256 * 1024 + 1024 * (81 + 320))
    assert full["box head"].conv_madds == convs + fcs == 2 * half["box head"].conv_madds
    assert full["box head"].norm_madds == 2 * 512 * 4 * 256 * 49
    masks = 128 * (196 * (4 * 9 * 256 * 256 + 4 * 256 * 256) + 784 * 256 * 80)
    assert full["mask head"].conv_madds == masks == 2 * half["mask head"].conv_madds
    fewer = analyze(config("MODEL.ROI_HEADS.POSITIVE_FRACTION", 0.125))["mask head"]
    assert 2 * fewer.conv_madds == masks
    assert full["backbone"] == half["backbone"]
    # 45.711 M: Detectron2's own scratch_mask_rcnn_R_50_FPN_3x_gn, whose RPN head has no norm
    assert round((full["total"].parameters - 2 * 256) / 1e6, 3) == 45.711


def test_rpn_head_sees_all_levels():
    pixels = sum(side * side for side in (256, 128, 64, 32, 16))
    head = analyze(config())["RPN head"]
    assert head.conv_madds == pixels * 256 * (9 * 256 + 3 + 12)
    assert head.activations == pixels * (256 + 3 + 12)


def test_cascade_has_three_box_heads():
    overrides = ("MODEL.ROI_HEADS.NAME", "CascadeROIHeads")
    agnostic = ("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True)
    counts = analyze(config(*overrides, *agnostic))
    one = analyze(config(*agnostic))
    assert counts["box head"] == Complexity(
        *(3 * getattr(one["box head"], f) for f in Complexity.__dataclass_fields__)
    )
    assert counts["mask head"] == one["mask head"]


def test_retinanet():
    counts = analyze(config(*RETINANET))
    assert list(counts) == ["backbone", "RetinaNet head", "total"]
    pixels = sum(side * side for side in (128, 64, 32, 16, 8))
    head = counts["RetinaNet head"]
    # The head's 3 anchors here: one size, three aspect ratios.
    assert head.conv_madds == pixels * 9 * 256 * (8 * 256 + 3 * 80 + 3 * 4)
    assert head.norm_madds == 2 * pixels * 8 * 256


@pytest.mark.parametrize("norm", ["GN", "EvoNormB0"])
def test_panoptic_fpn_and_semantic_segmentation(norm):
    overrides = ("MODEL.META_ARCHITECTURE", "PanopticFPN", "MODEL.SEM_SEG_HEAD.NORM", norm)
    head = analyze(config(*overrides))["sem seg head"]
    sides = {"p2": [256], "p3": [128], "p4": [64, 128], "p5": [32, 64, 128]}
    convs = [s[i] ** 2 * (128 if i else 256) for s in sides.values() for i in range(len(s))]
    assert head.conv_madds == 9 * 128 * sum(convs) + 256**2 * 128 * 54
    assert head.norm_madds == 2 * 128 * sum(side**2 for s in sides.values() for side in s)
    alone = analyze(config("MODEL.META_ARCHITECTURE", "SemanticSegmentor", *overrides[2:]))
    assert alone["sem seg head"] == head
    assert list(alone) == ["backbone", "sem seg head", "total"]


def test_keypoint_head_and_proposals_alone():
    keypoints = config("MODEL.KEYPOINT_ON", True, "MODEL.MASK_ON", False)
    assert list(analyze(keypoints))[2:] == ["box head", "keypoint head", "total"]
    proposals = analyze(config("MODEL.META_ARCHITECTURE", "ProposalNetwork"))
    assert list(proposals) == ["backbone", "RPN head", "total"]


def test_total_is_the_sum_of_the_parts():
    counts = analyze(config())
    total = counts.pop("total")
    for field in (*Complexity.__dataclass_fields__, "madds"):
        assert getattr(total, field) == sum(getattr(c, field) for c in counts.values())


@pytest.mark.parametrize("modulated", [False, True])
def test_deformable_convs_count_as_plain_ones_with_their_offsets(modulated):
    deformable = ("MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, False, False, True])
    try:
        counts = analyze(config(*deformable, "MODEL.RESNETS.DEFORM_MODULATED", modulated))
    except ImportError as error:
        pytest.skip(str(error))
    per_place = 27 if modulated else 18
    # Three blocks at 32x32; the other convs are those of the plain model.
    offsets = 3 * 32**2 * 9 * 512 * per_place
    assert counts["backbone"].conv_madds == analyze(config())["backbone"].conv_madds + offsets


@pytest.mark.parametrize("modulated", [False, True])
def test_deformable_convs_in_fvcore(modulated, monkeypatch):
    # Detectron2's operator for it needs its compiled part, the modulated one a GPU: a stand-in
    # with the same arguments leaves the same node in the trace.
    function = deform_conv._ModulatedDeformConv if modulated else deform_conv._DeformConv
    place = 3 if modulated else 2
    plain = lambda ctx, *args: nn.functional.conv2d(args[0], args[place], padding=1)  # noqa: E731
    monkeypatch.setattr(function, "forward", staticmethod(plain))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            kind = ModulatedDeformConv if modulated else DeformConv
            self.conv = kind(4, 6, 3, padding=1, bias=modulated)
            self.offset = nn.Conv2d(4, 18, 1)
            self.mask = nn.Conv2d(4, 9, 1)

        def forward(self, x):
            return self.conv(x, self.offset(x), *([self.mask(x)] if modulated else []))

    model = Model()
    x = torch.zeros(2, 4, 5, 5)
    outputs = 2 * 25
    expected = outputs * (9 * 4 * 6 + 4 * (27 if modulated else 18))
    assert FlopCountAnalysis(model, x).total() == expected
    assert count_flops(model, x).madds == expected


def test_the_config_stays_as_it_is():
    cfg = config()
    before = cfg.dump()
    cfg.freeze()
    analyze(cfg)
    assert cfg.is_frozen()
    assert cfg.dump() == before


@META_ARCH_REGISTRY.register()
class RCNNWithMore(GeneralizedRCNN):
    """Has a part that no rule is for."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.more = nn.Linear(2, 3)


@META_ARCH_REGISTRY.register()
class SomethingElse(nn.Module):
    def __init__(self, cfg):
        super().__init__()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("MODEL.META_ARCHITECTURE", "SomethingElse"), "META_ARCHITECTURE is SomethingElse, which"),
        (("MODEL.META_ARCHITECTURE", "RCNNWithMore"), "more.weight belongs to no part"),
        (("MODEL.META_ARCHITECTURE", "Unknown"), "no model.*Unknown"),
        (("MODEL.ROI_HEADS.NAME", "Unknown"), "no model.*Unknown"),
        (
            (
                *("MODEL.BACKBONE.NAME", "build_resnet_backbone"),
                *("MODEL.RESNETS.OUT_FEATURES", ["res4"]),
                *("MODEL.ANCHOR_GENERATOR.SIZES", [[32, 64]]),
                *("MODEL.ROI_HEADS.NAME", "Res5ROIHeads"),
                *("MODEL.ROI_HEADS.IN_FEATURES", ["res4"]),
                *("MODEL.RPN.IN_FEATURES", ["res4"]),
                *("MODEL.MASK_ON", False),
            ),
            "ROI_HEADS.NAME is Res5ROIHeads, which",
        ),
    ],
)
def test_what_cannot_be_counted_is_named(overrides, message):
    with pytest.raises(ValueError, match=message) as error:
        analyze(config(*overrides))
    assert "\n" not in str(error.value)
