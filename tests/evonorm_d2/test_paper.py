"""The paper's layout: table 4's parameter counts, and the traits that lead to them."""

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

from evonorm_d2 import resolve
from evonorm_d2.paper import PaperOutputLayers

# 4conv1fc heads and no pretrained weights, as in the paper.
BASE = "Misc/scratch_mask_rcnn_R_50_FPN_3x_gn.yaml"
NORM_KEYS = ("RESNETS.NORM", "FPN.NORM", "RPN.NORM", "ROI_BOX_HEAD.NORM", "ROI_MASK_HEAD.NORM")
LAYOUT = (
    *("MODEL.BACKBONE.NAME", "build_paper_resnet_fpn_backbone"),
    *("MODEL.RPN.HEAD_NAME", "PaperRPNHead"),
    *("MODEL.ROI_HEADS.NAME", "build_paper_roi_heads"),
    *("MODEL.ROI_BOX_HEAD.NAME", "PaperConvFCHead"),
    *("MODEL.ROI_MASK_HEAD.NAME", "PaperConvUpsampleHead"),
)


def count_parameters(cfg):
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(resolve(cfg))
    return sum(p.numel() for p in model.parameters())


def with_norm(cfg, norm, keys=NORM_KEYS):
    cfg.merge_from_list([x for key in keys for x in (f"MODEL.{key}", norm)])
    return cfg


@pytest.mark.parametrize("norm", ["BN", "BN-ReLU", "GN", "GN-ReLU", "EvoNormS0", "EvoNormB0"])
@pytest.mark.parametrize("depth", [50, 101])
def test_parameters_of_table_4(depth, norm, stock_cfg):
    cfg = stock_cfg(BASE, *LAYOUT, "MODEL.ROI_HEADS.NUM_CLASSES", 90)
    cfg.merge_from_list(["MODEL.ROI_BOX_HEAD.NUM_FC", 1, "MODEL.RESNETS.DEPTH", depth])
    evo = norm.startswith("EvoNorm")
    wanted = {50: 46_379_313 if evo else 46_367_089, 101: 65_380_145 if evo else 65_359_217}
    assert count_parameters(with_norm(cfg, norm)) == wanted[depth]


@pytest.mark.parametrize("depth, millions, more", [(50, "45.711", 9_664), (101, "64.703", 18_368)])
def test_parameters_of_the_stock_layout(depth, millions, more, stock_cfg):
    keys = NORM_KEYS[:2] + NORM_KEYS[3:]  # Detectron2 has none in the RPN

    def count(norm):
        cfg = stock_cfg(BASE, "MODEL.RESNETS.DEPTH", depth, "MODEL.ROI_BOX_HEAD.NUM_FC", 1)
        return count_parameters(with_norm(cfg, norm, keys))

    assert f"{count('GN') / 1e6:.3f}" == f"{count('BN') / 1e6:.3f}" == millions
    for norm in ("EvoNormS0", "EvoNormB0"):
        assert count(norm) - count("GN") == more


@pytest.mark.parametrize("norm", ["BN", "GN", "BN-ReLU", "EvoNormS0", "EvoNormB0"])
def test_it_trains_and_evaluates(norm, tiny_cfg, build, batch, train_step):
    width = 32 if norm == "GN" else 8
    model = build(tiny_cfg(norm, *LAYOUT, width=width))
    losses = train_step(model, batch())
    assert all(torch.isfinite(loss) for loss in losses.values())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    with torch.no_grad():
        outputs = model.eval()(batch())
    for output in outputs:
        assert len(output["instances"]) > 0
        assert torch.isfinite(output["instances"].scores).all()


@pytest.mark.parametrize("norm", ["EvoNormS0", "BN", "GN"])
def test_p6_comes_from_p5_before_its_norm(norm, tiny_cfg, build):
    model = build(tiny_cfg(norm, *LAYOUT, width=32))
    fpn = model.backbone.eval()
    for layer in fpn.norms:
        torch.nn.init.uniform_(layer.weight, 0.5, 2.0)
    kept = {}
    fpn.fpn_output5.register_forward_hook(lambda m, x, y: kept.update(p5=y))
    with torch.no_grad():
        features = fpn(torch.randn(2, 3, 64, 64))
        p6 = torch.nn.functional.conv2d(
            kept["p5"], fpn.top_block.p6.weight, fpn.top_block.p6.bias, stride=2, padding=1
        )
        assert features.keys() == {"p2", "p3", "p4", "p5", "p6"}
        torch.testing.assert_close(features["p5"], fpn.norms[3](kept["p5"]))
        torch.testing.assert_close(features["p6"], fpn.norms[4](p6))
    assert not torch.allclose(features["p5"], kept["p5"])


def test_where_norms_and_biases_are(tiny_cfg, build):
    model = build(tiny_cfg("EvoNormS0", *LAYOUT))
    names = {name for name, m in model.named_modules() if getattr(m, "norm_act", "")}
    affine = {name for name in names if not model.get_submodule(name).activation}
    outside = {name for name in names if ".bottom_up." not in name}
    assert outside & affine == {f"backbone.norms.{i}" for i in range(5)}
    assert outside - affine == {
        *(f"proposal_generator.rpn_head.conv.norm.layers.{i}" for i in range(5)),
        *(f"roi_heads.box_head.conv{i}.norm" for i in (1, 2, 3, 4)),
        "roi_heads.box_head.fc_relu1.norm",
        *(f"roi_heads.mask_head.mask_fcn{i}.norm" for i in (1, 2, 3, 4)),
        "roi_heads.mask_head.deconv_relu",
    }
    convs = (torch.nn.Conv2d, torch.nn.ConvTranspose2d, torch.nn.Linear)
    for name, module in model.named_modules():
        if isinstance(module, convs):
            assert (module.bias is None) == (".bottom_up." in name), name
    per_level = [model.get_submodule(n) for n in names if "rpn_head" in n]
    assert len({id(layer.weight) for layer in per_level}) == 5  # of its own, parameters included


def test_unused_classes_are_never_predicted(tiny_cfg, build, batch):
    """COCO's 80 classes among the paper's 90: here two of three."""
    MetadataCatalog.pop("two_classes_train", None)
    MetadataCatalog.get("two_classes_train").thing_classes = ["a", "b"]
    overrides = ("DATASETS.TRAIN", ("two_classes_train",), "TEST.DETECTIONS_PER_IMAGE", 100)
    model = build(tiny_cfg("EvoNormS0", *LAYOUT, *overrides)).eval()
    predictor = model.roi_heads.box_predictor
    assert predictor.cls_score.out_features == 4 and predictor.bbox_pred.out_features == 16
    with torch.no_grad():
        predictor.cls_score.bias[2] += 20  # the unused class would win everywhere
        scores = predictor.predict_probs(
            predictor(torch.randn(5, 32)),
            [Instances((64, 64), proposal_boxes=Boxes(torch.rand(5, 4)))],
        )[0]
        assert scores.shape == (5, 4) and (scores[:, 2] == 0).all()
        assert (scores[:, [0, 1, 3]] > 0).all()
        predicted = torch.cat([x["instances"].pred_classes for x in model(batch())])
    assert set(predicted.tolist()) <= {0, 1}
    MetadataCatalog.pop("two_classes_train")


def test_all_classes_are_used_when_no_data_set_names_them(tiny_cfg, build):
    model = build(tiny_cfg("EvoNormS0", *LAYOUT, "DATASETS.TRAIN", ()))
    assert isinstance(model.roi_heads.box_predictor, PaperOutputLayers)
    assert model.roi_heads.box_predictor.used_classes == 3


def test_the_background_boxes_are_not_read(tiny_cfg, build):
    predictor = build(tiny_cfg("EvoNormS0", *LAYOUT)).roi_heads.box_predictor
    x = torch.randn(2, 32)
    with torch.no_grad():
        scores, deltas = predictor(x)
        assert scores.shape == (2, 4) and deltas.shape == (2, 12)
        torch.testing.assert_close(deltas, predictor.bbox_pred(x)[:, :12])


def test_resolve_leaves_the_layout_alone(tiny_cfg):
    cfg = resolve(tiny_cfg("EvoNormS0", *LAYOUT))
    assert tuple(cfg.MODEL[k.split(".")[1]][k.split(".")[2]] for k in LAYOUT[::2]) == LAYOUT[1::2]
