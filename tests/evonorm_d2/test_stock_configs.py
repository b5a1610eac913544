"""Stock configs with only their NORM keys changed build, train and evaluate."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.layers import deform_conv as d2_deform_conv
from detectron2.modeling import build_backbone
from torchvision.ops import deform_conv2d

from evonorm import build_norm_act, list_norm_acts, register_norm_act, registry
from evonorm_d2 import resolve

PANOPTIC = "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml"
RETINANET = "COCO-Detection/retinanet_R_50_FPN_1x.yaml"
CASCADE = "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml"
HEAD_CONVS = ("MODEL.ROI_BOX_HEAD.NUM_CONV", 2)
RETINANET_KEYS = ("RESNETS.NORM", "FPN.NORM", "RETINANET.NORM")
PANOPTIC_KEYS = ("RESNETS.NORM", "FPN.NORM", "ROI_MASK_HEAD.NORM", "SEM_SEG_HEAD.NORM")


def count(model, name):
    return sum(getattr(m, "norm_act", "") == name for m in model.modules())


def check_training(model, losses):
    assert losses and all(torch.isfinite(loss) for loss in losses.values()), losses
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


@torch.no_grad()
def evaluate(model, images):
    outputs = model.eval()(images)
    assert len(outputs) == len(images)
    for output in outputs:
        assert torch.isfinite(output["instances"].pred_boxes.tensor).all()
        assert torch.isfinite(output["instances"].scores).all()
    return outputs


@pytest.mark.parametrize("norm", list_norm_acts())
def test_mask_rcnn_with_every_norm_act(norm, tiny_cfg, build, batch, train_step):
    model = build(tiny_cfg(norm))
    check_training(model, train_step(model, batch()))
    # Stem, 16 blocks of three, 4 shortcuts; 4 laterals and 4 outputs; the RPN's; two heads' convs.
    per_level = build_norm_act(norm, 1).batch_dependent
    assert count(model, norm) == 53 + 8 + (5 if per_level else 1) + 4 + 4
    evaluate(model, batch())


@pytest.mark.parametrize(
    "path, keys, loss",
    [
        (CASCADE, ("RESNETS.NORM", "FPN.NORM", "ROI_BOX_HEAD.NORM"), "loss_cls_stage2"),
        (RETINANET, RETINANET_KEYS, "loss_cls"),
        (PANOPTIC, PANOPTIC_KEYS, "loss_sem_seg"),
        ("Base-RCNN-DilatedC5.yaml", ("RESNETS.NORM", "ROI_BOX_HEAD.NORM"), "loss_cls"),
    ],
)
@pytest.mark.parametrize("norm", ["EvoNormS0", "EvoNormB0"])
def test_other_detectors(path, keys, loss, norm, tiny_cfg, build, batch, train_step):
    many = ("TEST.DETECTIONS_PER_IMAGE", 100)  # few boxes of an untrained RetinaNet are inside
    model = build(tiny_cfg(norm, *HEAD_CONVS, *many, path=path, keys=keys))
    losses = train_step(model, batch())
    assert loss in losses
    check_training(model, losses)
    assert len(evaluate(model, batch())[0]["instances"]) > 0


def test_norms_may_differ_from_site_to_site(tiny_cfg, build, batch, train_step):
    overrides = ("MODEL.RESNETS.NORM", "BN", "MODEL.FPN.NORM", "", "MODEL.RPN.NORM", "FRN")
    model = build(tiny_cfg("EvoNormS0", *overrides, "MODEL.ROI_MASK_HEAD.NORM", "GN"))
    assert count(model, "EvoNormS0") == 4 and count(model, "FRN") == 1
    check_training(model, train_step(model, batch()))


def stem_of(depth):
    """Keys that Detectron2 wants for its two ResNets of basic blocks."""
    keys = ("MODEL.RESNETS.STEM_OUT_CHANNELS", 64, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64)
    return keys if depth < 50 else ()


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_every_depth_is_detectron2s_with_other_norms(depth, tiny_cfg):
    cfg = tiny_cfg("BN", "MODEL.RESNETS.DEPTH", depth, *stem_of(depth))
    with torch.device("meta"):
        stock = build_backbone(cfg)
        cfg.MODEL.RESNETS.NORM = cfg.MODEL.FPN.NORM = "BN-ReLU"
        ours = build_backbone(resolve(cfg))
    wanted = {k: v.shape for k, v in stock.state_dict().items() if "num_batches" not in k}
    assert {k: v.shape for k, v in ours.state_dict().items()} == wanted


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_every_depth_trains(depth, tiny_cfg):
    cfg = tiny_cfg("EvoNormS0", "MODEL.RESNETS.DEPTH", depth, *stem_of(depth), width=4)
    backbone = build_backbone(resolve(cfg))
    features = backbone(torch.randn(1, 3, 64, 64))
    sum(x.square().mean() for x in features.values()).backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


@pytest.fixture
def differentiable_deform_conv(monkeypatch):
    """torchvision's operator, as Detectron2's has no backward pass on a CPU."""

    def plain(x, offset, weight, stride, padding, dilation, groups, deformable_groups):
        return deform_conv2d(x, offset, weight, None, stride, padding, dilation)

    def modulated(x, offset, mask, weight, bias, stride, padding, dilation, *groups):
        return deform_conv2d(x, offset, weight, bias, stride, padding, dilation, mask)

    monkeypatch.setattr(d2_deform_conv, "deform_conv", plain)
    monkeypatch.setattr(d2_deform_conv, "modulated_deform_conv", modulated)


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("norm", ["EvoNormS0", "EvoNormB0"])
def test_deformable_stages(
    norm, modulated, differentiable_deform_conv, tiny_cfg, build, batch, train_step
):
    stages = ("MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, True, True, True])
    model = build(tiny_cfg(norm, *stages, "MODEL.RESNETS.DEFORM_MODULATED", modulated))
    assert sum("conv2_offset.weight" in name for name, _ in model.named_parameters()) == 4 + 6 + 3
    losses = train_step(model, batch())
    check_training(model, losses)
    evaluate(model, batch())


def test_dilated_and_grouped_stages_have_detectron2s_strides(tiny_cfg):
    overrides = ("MODEL.RESNETS.RES5_DILATION", 2, "MODEL.RESNETS.NUM_GROUPS", 2)
    cfg = tiny_cfg("BN", *overrides, "MODEL.RESNETS.STRIDE_IN_1X1", False)

    def convs(backbone):
        return [
            (name, m.weight.shape, m.stride, m.padding, m.dilation, m.groups)
            for name, m in backbone.named_modules()
            if isinstance(m, torch.nn.Conv2d)
        ]

    with torch.device("meta"):
        shape = ShapeSpec(channels=3)
        cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
        stock = convs(build_backbone(cfg, shape))
        cfg.MODEL.RESNETS.NORM = "EvoNormB0"
        assert convs(build_backbone(resolve_backbone_only(cfg), shape)) == stock


def resolve_backbone_only(cfg):
    for key in ("FPN", "RPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD"):
        cfg.MODEL[key].NORM = ""
    return resolve(cfg)


@pytest.mark.parametrize("norm", ["EvoNormS0", "EvoNormB0", "BN-ReLU", "BN"])
@pytest.mark.parametrize("zero", [False, True])
def test_last_norm_of_a_block_starts_at_zero_on_request(norm, zero, tiny_cfg):
    cfg = tiny_cfg(norm, "MODEL.EVONORM.ZERO_INIT_LAST", zero)
    start = {
        name: float(p.detach().sum())
        for name, p in build_backbone(resolve(cfg)).named_parameters()
        if name.endswith("norm.weight")
    }
    zeros = {name for name, total in start.items() if total == 0}
    last = {name for name in start if name.endswith("conv3.norm.weight")}
    assert len(last) == 16 and zeros == (last if zero else set())


def test_no_norm_has_no_weight_to_start_at_zero(tiny_cfg, build):
    with pytest.raises(ValueError, match="^MODEL.EVONORM.ZERO_INIT_LAST: the norm has no weight"):
        build(tiny_cfg("", "MODEL.EVONORM.ZERO_INIT_LAST", True))


def test_options_reach_the_layers(tiny_cfg, build):
    options = {"NUM_GROUPS": 4, "EPS": 1e-3, "MOMENTUM": 0.25, "SYNC": True}
    overrides = [x for k, v in options.items() for x in (f"MODEL.EVONORM.{k}", v)]
    model = build(tiny_cfg("EvoNormB0", *overrides))
    layers = [m for m in model.modules() if getattr(m, "norm_act", "")]
    assert len(layers) == 53 + 8 + 5 + 4 + 4
    for layer in layers:
        assert layer.num_groups == 4 and layer.eps == 1e-3
        assert layer.momentum == 0.25 and layer.sync


def test_group_size_reaches_the_layers(tiny_cfg, build):
    model = build(tiny_cfg("EvoNormS0", "MODEL.EVONORM.GROUP_SIZE", 4))
    layers = [m for m in model.modules() if getattr(m, "norm_act", "")]
    assert layers and all(layer.num_groups == layer.num_features // 4 for layer in layers)


def test_a_norm_act_of_ones_own(tiny_cfg, build, batch, train_step):
    class Softplus(torch.nn.Module):
        batch_dependent = False

        def __init__(self, num_features, activation=True, **options):
            super().__init__()
            self.activation = activation
            self.scale = torch.nn.Parameter(torch.ones(num_features, 1, 1))

        def forward(self, x):
            x = x * self.scale
            return torch.nn.functional.softplus(x) if self.activation else x

    register_norm_act("Softplus")(Softplus)
    try:
        model = build(tiny_cfg("Softplus"))
        check_training(model, train_step(model, batch()))
        affine = [name for name, m in model.named_modules() if getattr(m, "activation", 1) is False]
    finally:
        del registry._FACTORIES["Softplus"]
    # conv3 of 16 blocks, 4 shortcuts, FPN's 8.
    assert len(affine) == 16 + 4 + 8


@pytest.mark.parametrize("norm", ["EvoNormS0", "BN"])
def test_pad_to_pads_each_batch_to_squares(norm, tiny_cfg, build):
    images = [{"image": torch.zeros(3, 48, 80, dtype=torch.uint8)}]
    for pad_to, shape in ((0, (64, 96)), (128, (128, 128))):
        model = build(tiny_cfg(norm, "MODEL.FPN.PAD_TO", pad_to))
        assert model.preprocess_image(images).tensor.shape[-2:] == shape
    with pytest.raises(ValueError, match="^MODEL.FPN.PAD_TO is 100, not a multiple of 32$"):
        build(tiny_cfg(norm, "MODEL.FPN.PAD_TO", 100))


@pytest.mark.parametrize(
    "overrides, message",
    [
        (("DEPTH", 51), "DEPTH is 51, .*18, 34, 50, 101, 152"),
        (("RES5_DILATION", 3), "RES5_DILATION is 3, not 1 or 2"),
        (("DEPTH", 18), "DEPTH 18 takes RES2_OUT_CHANNELS 64"),
    ],
)
def test_impossible_resnets(overrides, message, tiny_cfg, build):
    key, value = overrides
    with pytest.raises(ValueError, match=message) as error:
        build(tiny_cfg("EvoNormS0", f"MODEL.RESNETS.{key}", value))
    assert "\n" not in str(error.value)
