"""C4's res5 and FCOS: as Detectron2 with a stock norm, without a ReLU after a norm-act."""

from __future__ import annotations

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import instantiate
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

from evonorm import check
from evonorm_d2 import resolve, resolve_lazy
from evonorm_d2.norm import LevelNorm, norm_acts

C4 = "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml"
C4_KEYS = ("RESNETS.NORM", "RPN.NORM")
RETINANET = "COCO-Detection/retinanet_R_50_FPN_1x.yaml"
FCOS = (
    *("MODEL.META_ARCHITECTURE", "NormActFCOS"),
    *("MODEL.BACKBONE.NAME", "build_norm_act_fcos_resnet_fpn_backbone"),
)
FCOS_KEYS = ("RESNETS.NORM", "FPN.NORM", "RETINANET.NORM")


def c4(tiny_cfg, norm, *overrides):
    return tiny_cfg(norm, *overrides, path=C4, keys=C4_KEYS)


@pytest.mark.parametrize("norm", ["EvoNormS0", "EvoNormB0"])
def test_c4_trains_in_all_its_parts(norm, tiny_cfg, build, batch, train_step):
    model = build(c4(tiny_cfg, norm))
    # Stem, 13 blocks of 3 and 3 shortcuts; RPN; 3 blocks of 3 and a shortcut in the head.
    assert len(norm_acts(model.backbone)) == 1 + 39 + 3
    assert len(norm_acts(model.roi_heads.res5)) == 9 + 1 and len(norm_acts(model)) == 43 + 1 + 10
    losses = train_step(model, batch())
    assert all(loss.isfinite() for loss in losses.values())
    assert all(p.grad is not None for p in model.parameters())
    assert check(model.eval(), batch()) == []


def test_c4_with_bn_relu_is_detectron2s_with_bn(tiny_cfg, build, batch):
    """Same weights, same proposals: what the heads make of them agrees."""
    stock = build_model(tiny_cfg("BN", "MODEL.RPN.NORM", "", path=C4, keys=C4_KEYS)).eval()
    ours = build(tiny_cfg("BN-ReLU", "MODEL.RPN.NORM", "", path=C4, keys=C4_KEYS)).eval()
    ours.load_state_dict(stock.state_dict(), strict=False)
    x = torch.randn(2, stock.roi_heads.res5[0].in_channels, 7, 7)
    with torch.no_grad():
        torch.testing.assert_close(ours.roi_heads.res5(x), stock.roi_heads.res5(x))
        for theirs, mine in zip(stock(batch()), ours(batch())):
            expected, found = theirs["instances"], mine["instances"]
            torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor)
            torch.testing.assert_close(found.scores, expected.scores)


@pytest.mark.parametrize("norm", ["EvoNormS0", "EvoNormB0"])
@pytest.mark.parametrize("training", [True, False])
def test_c4_without_a_roi(norm, training, tiny_cfg, build):
    heads = build(c4(tiny_cfg, norm)).roi_heads.train(training)
    features = torch.randn(1, heads.res5[0].in_channels, 4, 4)
    out = heads._shared_roi_transform([features], [Boxes(torch.zeros(0, 4))])
    assert out.shape[0] == 0
    out.sum().backward()
    none = Instances(
        (64, 64), pred_boxes=Boxes(torch.zeros(0, 4)), pred_classes=torch.zeros(0).long()
    )
    if not training:
        assert len(heads.forward_with_given_boxes({"res4": features}, [none])[0]) == 0


def test_deformable_res5_gets_one_line(tiny_cfg):
    deform = ("MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, False, False, True])
    with pytest.raises(ValueError, match="^MODEL.RESNETS.DEFORM_ON_PER_STAGE: a C4 model"):
        build_model(resolve(c4(tiny_cfg, "EvoNormS0", *deform)))


def fcos(tiny_cfg, norm):
    keys = FCOS_KEYS[1:] if norm == "GN" else FCOS_KEYS  # the ResNet is too narrow for 32 groups
    return tiny_cfg(norm, *FCOS, path=RETINANET, keys=keys)


@pytest.mark.parametrize("norm", ["EvoNormS0", "EvoNormB0", "GN"])
def test_fcos_trains_from_yaml(norm, tiny_cfg, build, batch, train_step):
    model = build(fcos(tiny_cfg, norm))
    losses = train_step(model, batch())
    assert set(losses) == {"loss_fcos_cls", "loss_fcos_loc", "loss_fcos_ctr"}
    assert all(loss.isfinite() for loss in losses.values())
    assert all(p.grad is not None for p in model.parameters())
    relus = [m for m in model.head.modules() if isinstance(m, torch.nn.ReLU)]
    assert len(relus) == (4 if norm == "GN" else 0)
    levels = [m for m in model.head.modules() if isinstance(m, LevelNorm)]
    assert len(levels) == (4 if norm == "EvoNormB0" else 0)
    if norm != "GN":
        assert check(model, batch()) == []
    assert len(model.eval()(batch())) == 2


def lazy_fcos(norm):
    model = model_zoo.get_config("common/models/fcos.py").model
    stem, stages = model.backbone.bottom_up.stem, model.backbone.bottom_up.stages
    stem.norm = stages.norm = model.backbone.norm = model.head.norm = norm
    return model


def test_fcos_in_a_lazy_config_is_the_one_from_yaml(stock_cfg):
    cfg = stock_cfg(RETINANET, *FCOS, "MODEL.DEVICE", "meta", "MODEL.WEIGHTS", "")
    cfg.merge_from_list([x for key in FCOS_KEYS for x in (f"MODEL.{key}", "EvoNormS0")])
    with torch.device("meta"):
        wanted = build_model(resolve(cfg))
        model = instantiate(resolve_lazy(lazy_fcos("EvoNormS0")))
    assert type(model.head).__name__ == "NormActFCOSHead"
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (model, wanted)]
    assert shapes[0] == shapes[1]
    # Each tower's four norm-acts; ResNet-50's 53; the FPN's laterals and outputs of three levels.
    assert len(norm_acts(model)) == 8 + 53 + 6


def test_fcos_with_a_stock_norm_is_detectron2s():
    with torch.device("meta"):
        model = instantiate(resolve_lazy(lazy_fcos("BN")))
    assert type(model.head).__name__ == "FCOSHead" and not norm_acts(model)
