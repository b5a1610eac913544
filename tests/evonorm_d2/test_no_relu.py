"""Where norm-acts act: no ReLU after one, none lost where Detectron2 has one, none before a sum."""

import re

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import CycleBatchNormList, ShapeSpec
from detectron2.modeling.roi_heads import build_box_head
from torch.nn import BatchNorm2d
from torch.utils._python_dispatch import TorchDispatchMode

from evonorm import check
from evonorm_d2 import resolve
from evonorm_d2.heads import NormActConvUpsampleHead, NormActRetinaNetHead, NormActRPNHead
from evonorm_d2.resnet import (
    NormActBasicBlock,
    NormActBottleneckBlock,
    NormActDeformBottleneckBlock,
    NormActStem,
)

HEAD_CONVS = ("MODEL.ROI_BOX_HEAD.NUM_CONV", 2)
DEFORMABLE = ("MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, False, False, True])
BASIC = ("MODEL.RESNETS.DEPTH", 18, *("MODEL.RESNETS.STEM_OUT_CHANNELS", 64))
PAPER = (
    *("MODEL.BACKBONE.NAME", "build_paper_resnet_fpn_backbone"),
    *("MODEL.RPN.HEAD_NAME", "PaperRPNHead"),
    *("MODEL.ROI_HEADS.NAME", "build_paper_roi_heads"),
    *("MODEL.ROI_BOX_HEAD.NAME", "PaperConvFCHead"),
    *("MODEL.ROI_MASK_HEAD.NAME", "PaperConvUpsampleHead"),
)
RETINANET = "COCO-Detection/retinanet_R_50_FPN_1x.yaml"
FCOS = (
    *("MODEL.META_ARCHITECTURE", "NormActFCOS"),
    *("MODEL.BACKBONE.NAME", "build_norm_act_fcos_resnet_fpn_backbone"),
)
DETECTORS = {
    "mask": (HEAD_CONVS, {}),
    "basic blocks": ((*BASIC, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64), {}),
    "deformable": (DEFORMABLE, {}),
    "cascade": (
        (*HEAD_CONVS, "MODEL.ROI_BOX_HEAD.NUM_FC", 1),
        {"path": "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml"},
    ),
    "retinanet": (
        (),
        {
            "path": RETINANET,
            "keys": ("RESNETS.NORM", "FPN.NORM", "RETINANET.NORM"),
        },
    ),
    "panoptic": (
        HEAD_CONVS,
        {
            "path": "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml",
            "keys": ("RESNETS.NORM", "FPN.NORM", "ROI_BOX_HEAD.NORM", "SEM_SEG_HEAD.NORM"),
        },
    ),
    "c4": (
        (),
        {
            "path": "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml",
            "keys": ("RESNETS.NORM", "RPN.NORM"),
        },
    ),
    "fcos": (FCOS, {"path": RETINANET, "keys": ("RESNETS.NORM", "FPN.NORM", "RETINANET.NORM")}),
    "paper": (PAPER, {}),
}
ACTIVATIONS = ("relu", "threshold", "clamp", "leaky", "elu", "silu", "gelu", "hard", "sigmoid")


class Watch(TorchDispatchMode):
    """Notes each activation function that is applied to the very output of a watched module."""

    def __init__(self, model, watched):
        super().__init__()
        self.outputs, self.called, self.activated, self.negative = {}, [], [], 0
        self.inside = 0
        for name, module in model.named_modules():
            if watched(module):
                module.register_forward_pre_hook(self.enter)
                module.register_forward_hook(lambda m, x, y, name=name: self.leave(name, y))

    def enter(self, *_):
        self.inside += 1

    def leave(self, name, y):
        self.inside -= 1
        if not self.inside:
            self.called.append(name)
            self.negative += bool((y < 0).any())
            self.outputs[y.data_ptr()] = (name, y)  # holding y keeps its memory from reuse

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if not self.inside:
            for x in args:
                if isinstance(x, torch.Tensor) and x.data_ptr() in self.outputs:
                    if name.startswith(ACTIVATIONS):
                        self.activated.append(self.outputs[x.data_ptr()][0])
                    elif name.endswith("_") and x is args[0]:
                        del self.outputs[x.data_ptr()]  # has become another value, such as a sum
        return function(*args, **(kwargs or {}))


def acts(module):
    return getattr(module, "norm_act", "") and module.activation


def watch(model, images, watched):
    with torch.no_grad(), Watch(model.train(), watched) as seen:
        model(images)
    return seen


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("norm", ["EvoNormS0", "EvoNormB0"])
def test_no_activation_acts_on_a_norm_acts_output(norm, detector, tiny_cfg, build, batch):
    overrides, where = DETECTORS[detector]
    seen = watch(build(tiny_cfg(norm, *overrides, **where)), batch(), acts)
    assert not seen.activated
    assert seen.negative > 0.9 * len(seen.called) > 15


@pytest.mark.parametrize("detector", [name for name in DETECTORS if name != "paper"])
def test_norm_acts_act_where_detectron2_has_a_relu_after_a_norm(detector, tiny_cfg, build, batch):
    """Found in the stock detector by the same watch, which shows that it sees ReLUs."""
    overrides, where = DETECTORS[detector]
    no_rpn = ("MODEL.RPN.NORM", "")
    stock = build(tiny_cfg("BN", *overrides, *no_rpn, **where))
    wanted = watch(stock, batch(), lambda m: isinstance(m, (BatchNorm2d, CycleBatchNormList)))
    ours = build(tiny_cfg("BN-ReLU", *overrides, *no_rpn, **where))
    seen = watch(ours, batch(), acts)
    assert len(wanted.activated) > 16
    # Layers of our own for each level of a shared head.
    called = [re.sub(r"\.layers\.\d", "", name) for name in seen.called]
    assert called == wanted.activated


# Blocks against the table of sites, written out with the formulas.


def conv(x, layer, **kwargs):
    return F.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation)


def act(x, norm):
    """y = x sigmoid(v x) / std_g * weight + bias"""
    n, c, h, w = x.shape
    g = x.reshape(n, norm.num_groups, -1)
    std = torch.sqrt(g.var(-1, unbiased=False, keepdim=True) + 1e-5)
    y = (g / std).reshape(x.shape) * torch.sigmoid(norm.v[:, None, None] * x)
    return affine(y, norm)


def affine(x, norm):
    return x * norm.weight[:, None, None] + norm.bias[:, None, None]


def randomize(module):
    for parameter in module.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, mean=0.5)
    return module


X = torch.randn(2, 8, 10, 10, generator=torch.Generator().manual_seed(3))


def test_stem():
    stem = randomize(NormActStem(8, 12, "EvoNormS0"))
    expected = F.max_pool2d(act(conv(X, stem.conv1), stem.conv1.norm), 3, 2, 1)
    torch.testing.assert_close(stem(X), expected)


@pytest.mark.parametrize("channels, stride", [(8, 1), (12, 2)])
def test_basic_block(channels, stride):
    block = randomize(NormActBasicBlock(8, channels, stride=stride, norm="EvoNormS0"))
    y = act(conv(X, block.conv1), block.conv1.norm)
    y = affine(conv(y, block.conv2), block.conv2.norm)
    short = X if stride == 1 else affine(conv(X, block.shortcut), block.shortcut.norm)
    torch.testing.assert_close(block(X.clone()), F.relu(y + short))


@pytest.mark.parametrize("channels, stride", [(8, 1), (12, 2)])
def test_bottleneck_block(channels, stride):
    block = NormActBottleneckBlock(
        8, channels, bottleneck_channels=4, stride=stride, norm="EvoNormS0"
    )
    randomize(block)
    y = act(conv(X, block.conv1), block.conv1.norm)
    y = act(conv(y, block.conv2), block.conv2.norm)
    y = affine(conv(y, block.conv3), block.conv3.norm)
    short = X if stride == 1 else affine(conv(X, block.shortcut), block.shortcut.norm)
    torch.testing.assert_close(block(X.clone()), F.relu(y + short))


def test_deform_block_without_offsets_is_the_bottleneck_block():
    # The offsets' conv starts at zero, so that the deformable conv is a plain one.
    options = {"bottleneck_channels": 4, "norm": "EvoNormS0"}
    deform = randomize(NormActDeformBottleneckBlock(8, 12, **options))
    torch.nn.init.zeros_(deform.conv2_offset.bias)
    plain = NormActBottleneckBlock(8, 12, **options)
    plain.load_state_dict({k: v for k, v in deform.state_dict().items() if "offset" not in k})
    with torch.no_grad():
        torch.testing.assert_close(deform(X.clone()), plain(X.clone()))


def test_box_head(tiny_cfg):
    cfg = resolve(tiny_cfg("EvoNormS0", *HEAD_CONVS))
    head = randomize(build_box_head(cfg, ShapeSpec(channels=8, height=7, width=7)))
    x = torch.randn(3, 8, 7, 7)
    y = act(conv(x, head.conv1), head.conv1.norm)
    y = act(conv(y, head.conv2), head.conv2.norm).flatten(1)
    y = F.relu(F.linear(y, head.fc1.weight, head.fc1.bias))
    torch.testing.assert_close(head(x), y)


def test_mask_head():
    head = NormActConvUpsampleHead(
        ShapeSpec(channels=8, height=6, width=6),
        num_classes=3,
        conv_dims=[8, 8],
        conv_norm="EvoNormS0",
    )
    randomize(head)
    x = torch.randn(3, 8, 6, 6)
    y = act(conv(x, head.mask_fcn1), head.mask_fcn1.norm)
    y = F.relu(F.conv_transpose2d(y, head.deconv.weight, head.deconv.bias, stride=2))
    torch.testing.assert_close(head.layers(x), conv(y, head.predictor))


def test_rpn_head():
    head = randomize(NormActRPNHead(in_channels=8, num_anchors=3, norm="EvoNormS0", num_levels=2))
    levels = [torch.randn(2, 8, 6, 6), torch.randn(2, 8, 3, 3)]
    for x, logits, deltas in zip(levels, *head(levels)):
        y = act(conv(x, head.conv), head.conv.norm)
        torch.testing.assert_close(logits, conv(y, head.objectness_logits))
        torch.testing.assert_close(deltas, conv(y, head.anchor_deltas))


def test_rpn_head_keeps_its_relu_after_a_stock_norm():
    head = NormActRPNHead(in_channels=32, num_anchors=3, norm="GN", num_levels=1)
    x = torch.randn(2, 32, 6, 6)
    y = F.relu(F.group_norm(conv(x, head.conv), 32, head.conv.norm.weight, head.conv.norm.bias))
    torch.testing.assert_close(head([x])[0][0], conv(y, head.objectness_logits))


def test_retinanet_head():
    head = NormActRetinaNetHead(
        input_shape=[ShapeSpec(channels=8)],
        num_classes=2,
        num_anchors=1,
        conv_dims=[8, 8],
        norm="EvoNormS0",
    )
    randomize(head)
    x = torch.randn(2, 8, 6, 6)
    y = x
    for layer in head.cls_subnet:
        if isinstance(layer, torch.nn.Conv2d):
            y = conv(y, layer)
        elif hasattr(layer, "v"):
            y = act(y, layer)
    torch.testing.assert_close(head([x])[0][0], conv(y, head.cls_score))


@pytest.mark.parametrize("training", [True, False])
def test_check_says_the_same_of_a_detector(training, tiny_cfg, build, batch):
    model = build(tiny_cfg("EvoNormS0", *HEAD_CONVS)).train(training)
    assert check(model, batch()) == []
    model.backbone.bottom_up.stem.relu = torch.nn.ReLU()  # as in Detectron2's own stem
    model.roi_heads.box_head.conv1.activation = F.relu_
    assert check(model, batch()) == [
        ("backbone.bottom_up.stem.conv1.norm", "relu", "backbone.bottom_up.stem.relu"),
        ("roi_heads.box_head.conv1.norm", "relu_", "roi_heads.box_head.conv1"),
    ]
