"""Stock norms in our components are stock Detectron2, bit for bit."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead

from evonorm_d2.declare import swaps
from evonorm_d2.heads import NormActRetinaNetHead

CONFIGS = {
    "mask": "Misc/scratch_mask_rcnn_R_50_FPN_3x_gn.yaml",
    "cascade": "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml",
    "retinanet": "COCO-Detection/retinanet_R_50_FPN_1x.yaml",
    "panoptic": "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml",
    "dilated": "Base-RCNN-DilatedC5.yaml",
}
OURS = {
    "MODEL.BACKBONE.NAME": {
        "build_resnet_backbone": "build_norm_act_resnet_backbone",
        "build_resnet_fpn_backbone": "build_norm_act_resnet_fpn_backbone",
        "build_retinanet_resnet_fpn_backbone": "build_norm_act_retinanet_resnet_fpn_backbone",
    },
    "MODEL.RPN.HEAD_NAME": {"StandardRPNHead": "NormActRPNHead"},
    "MODEL.ROI_BOX_HEAD.NAME": {"FastRCNNConvFCHead": "NormActConvFCHead", "": ""},
    "MODEL.ROI_MASK_HEAD.NAME": {"MaskRCNNConvUpsampleHead": "NormActConvUpsampleHead"},
    "MODEL.SEM_SEG_HEAD.NAME": {"SemSegFPNHead": "NormActSemSegFPNHead"},
    "MODEL.META_ARCHITECTURE": {
        "RetinaNet": "NormActRetinaNet",
        "GeneralizedRCNN": "GeneralizedRCNN",
        "PanopticFPN": "PanopticFPN",
    },
}
NORMS = ("RESNETS", "FPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD", "RETINANET", "SEM_SEG_HEAD")
PAIRS = {
    "mask": ["BN", "GN", "FrozenBN", "SyncBN", "naiveSyncBN", "LN", ""],
    "retinanet": ["BN", "GN", "SyncBN", ""],
    "panoptic": ["BN", "GN", ""],
    "cascade": ["BN", "GN"],
    "dilated": ["FrozenBN"],
}
NOT_IN_RELEASE_0_6 = {("mask", "LN"), ("retinanet", "GN")}


def with_our_components(cfg):
    cfg = cfg.clone()
    for key, names in OURS.items():
        *path, leaf = key.split(".")
        node = cfg
        for part in path:
            node = node[part]
        node[leaf] = names.get(node[leaf], node[leaf])
    return cfg


def check_identical(cfg, build, batch, train_step):
    stock, ours = build(cfg), build(with_our_components(cfg))
    # NormActRetinaNet leaves RetinaNetHead in place for these.
    replaced = {c for c in swaps() if isinstance(c, type)} - {RetinaNetHead}
    assert {type(m) for m in stock.modules()} & replaced
    assert not {type(m) for m in ours.modules()} & replaced

    def same(a, b):
        assert list(a) == list(b)  # names in the same order
        for name in a:
            assert torch.equal(a[name], b[name]), name

    same(stock.state_dict(), ours.state_dict())  # the same start from the same seed
    # RetinaNet's loss is a TorchScript, whose first runs would differ from its later ones.
    with torch.jit.optimized_execution(False):
        same(train_step(stock, batch()), train_step(ours, batch()))
    grads = [{n: p.grad for n, p in m.named_parameters() if p.requires_grad} for m in (stock, ours)]
    same(*grads)
    assert all(torch.isfinite(grad).all() for grad in grads[0].values())
    same(stock.state_dict(), ours.state_dict())  # running statistics moved alike
    with torch.no_grad():
        for a, b in zip(stock.eval()(batch()), ours.eval()(batch())):
            for field, value in a["instances"].get_fields().items():
                value, other = (getattr(x, "tensor", x) for x in (value, b["instances"].get(field)))
                assert torch.equal(value, other), field
            assert a.keys() == b.keys()


@pytest.mark.parametrize("detector, norm", [(d, norm) for d in PAIRS for norm in PAIRS[d]])
def test_bit_identical(detector, norm, tiny_cfg, build, batch, train_step):
    overrides = [x for key in NORMS for x in (f"MODEL.{key}.NORM", norm)]
    convs = ("MODEL.ROI_BOX_HEAD.NUM_CONV", 1)
    cfg = tiny_cfg(None, *overrides, *convs, path=CONFIGS[detector], width=32)
    if (detector, norm) in NOT_IN_RELEASE_0_6:
        try:
            build_model(cfg)
        except (KeyError, ValueError) as error:
            pytest.skip(f"the installed Detectron2 can't build it: {error!r}")
    check_identical(cfg, build, batch, train_step)


@pytest.mark.parametrize("norm", ["BN", "GN", "SyncBN", ""])
def test_bit_identical_retinanet_heads(norm):
    shapes = [ShapeSpec(channels=32)] * 3
    features = [torch.randn(2, 32, size, size) for size in (8, 4, 2)]
    outputs, grads = [], []
    for head_class in (RetinaNetHead, NormActRetinaNetHead):
        torch.manual_seed(5)
        try:
            head = head_class(
                input_shape=shapes, num_classes=3, num_anchors=2, conv_dims=[32, 32], norm=norm
            )
        except ValueError as error:
            assert head_class is RetinaNetHead and norm == "GN"
            pytest.skip(f"the installed Detectron2 can't build it: {error}")
        y = head(features)
        sum(x.square().sum() for part in y for x in part).backward()
        outputs.append([x for part in y for x in part])
        grads.append([p.grad for p in head.parameters()])
    for a, b in zip(outputs[0] + grads[0], outputs[1] + grads[1]):
        assert torch.equal(a, b)
    assert len(grads[0]) == len(grads[1]) > 0


@pytest.mark.parametrize(
    "overrides",
    [
        ("DEPTH", 18, "RES2_OUT_CHANNELS", 64, "STEM_OUT_CHANNELS", 64),
        ("STRIDE_IN_1X1", False, "NUM_GROUPS", 2, "WIDTH_PER_GROUP", 16),
        ("DEPTH", 101, "WIDTH_PER_GROUP", 4),
    ],
)
def test_bit_identical_resnets(overrides, tiny_cfg, build, batch, train_step):
    pairs = list(zip(overrides[::2], overrides[1::2]))
    cfg = tiny_cfg("BN", *(x for key, value in pairs for x in (f"MODEL.RESNETS.{key}", value)))
    cfg.MODEL.RPN.NORM = ""  # Detectron2 has no such key
    check_identical(cfg, build, batch, train_step)


def test_bit_identical_while_stages_are_frozen(tiny_cfg, build, batch, train_step):
    cfg = tiny_cfg("BN", "MODEL.BACKBONE.FREEZE_AT", 3, "MODEL.RPN.NORM", "")
    check_identical(cfg, build, batch, train_step)


@torch.no_grad()
def test_bn_relu_is_stock_bn_and_relu(tiny_cfg, build, batch, train_step):
    """The norm-act of that name, at all NORM keys, against stock BN with the same weights."""
    stock = build(tiny_cfg("BN", "MODEL.RPN.NORM", ""))
    ours = build(tiny_cfg("BN-ReLU", "MODEL.RPN.NORM", ""))
    state = {k: v for k, v in stock.state_dict().items() if "num_batches_tracked" not in k}
    ours.load_state_dict(state, strict=True)
    for mode in (True, False):
        images = torch.randn(2, 3, 64, 64)
        a, b = (m.backbone.train(mode)(images) for m in (stock, ours))
        for level in a:
            torch.testing.assert_close(a[level], b[level])
