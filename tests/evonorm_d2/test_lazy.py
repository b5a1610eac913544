"""resolve_lazy(model): LazyConfig's models, swapped in one call."""

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig, instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.backbone.regnet import RegNet, ResBottleneckBlock, SimpleStem
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from detectron2.modeling.roi_heads import FastRCNNConvFCHead
from omegaconf import OmegaConf

from evonorm_d2 import resolve, resolve_lazy

NAMES = ("mask_rcnn_fpn", "mask_rcnn_c4", "retinanet", "cascade_rcnn", "panoptic_fpn")


def stock(name="mask_rcnn_fpn"):
    return model_zoo.get_config(f"common/models/{name}.py").model


def as_dict(model):
    return OmegaConf.to_container(model, resolve=False)


def set_norms(model, norm, rpn=True):
    bottom_up = model.backbone.bottom_up if "bottom_up" in model.backbone else model.backbone
    bottom_up.stem.norm = bottom_up.stages.norm = norm
    if "bottom_up" in model.backbone:
        model.backbone.norm = norm
    if "proposal_generator" in model and rpn:
        model.proposal_generator.head.norm = norm
    if "roi_heads" in model:
        for head in model.roi_heads.get("box_heads", [model.roi_heads.get("box_head")]):
            if head is not None:
                head.conv_norm = norm
                head.conv_dims, head.fc_dims = [256, 256, 256, 256], [1024]
        if "res5" in model.roi_heads:
            model.roi_heads.res5.norm = norm
        if "mask_head" in model.roi_heads:
            model.roi_heads.mask_head.conv_norm = norm
    elif "head" in model:
        model.head.norm = norm
    if "sem_seg_head" in model:
        model.sem_seg_head.norm = norm
    return model


@pytest.mark.parametrize("norm", ["EvoNormS0", "EvoNormB0", "GN-ReLU"])
def test_the_same_model_as_from_yaml(norm, stock_cfg):
    keys = ("RESNETS.NORM", "FPN.NORM", "RPN.NORM", "ROI_BOX_HEAD.NORM", "ROI_MASK_HEAD.NORM")
    cfg = stock_cfg("Misc/scratch_mask_rcnn_R_50_FPN_3x_gn.yaml", "MODEL.DEVICE", "meta")
    cfg.merge_from_list([x for key in keys for x in (f"MODEL.{key}", norm)])
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = True  # as in the LazyConfig
    lazy = set_norms(stock(), norm)
    lazy.roi_heads.mask_head.conv_dims = [256] * 5
    with torch.device("meta"):
        ours, wanted = instantiate(resolve_lazy(lazy)), build_model(resolve(cfg))

    def described(model):
        shapes = {name: p.shape for name, p in model.named_parameters()}
        strides = {n: m.stride for n, m in model.named_modules() if isinstance(m, torch.nn.Conv2d)}
        kinds = {
            name: (m.norm_act, m.activation)
            for name, m in model.named_modules()
            if getattr(m, "norm_act", "")
        }
        return shapes, strides, kinds

    for a, b in zip(described(ours), described(wanted)):
        assert a == b


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("norm", ["EvoNormS0", "EvoNormB0"])
def test_all_parts_are_swapped(name, norm):
    model = set_norms(stock(name), norm)
    with torch.device("meta"):
        model = instantiate(resolve_lazy(model))
    blocks = 3 * 16 + 4 + 1  # convs, shortcuts and stem of an R-50
    levels = 5 if norm == "EvoNormB0" else 1
    # FPN, RPN, box head, mask head, and what else there is.
    wanted = {
        "mask_rcnn_fpn": blocks + 8 + levels + 4 + 4,
        "mask_rcnn_c4": blocks + 0 + 1 + 0 + 0,
        "retinanet": blocks + 6 + 8 * levels,
        "cascade_rcnn": blocks + 8 + levels + 3 * 4 + 4,
        "panoptic_fpn": blocks + 8 + levels + 4 + 4 + 7,
    }[name]
    layers = [m for m in model.modules() if getattr(m, "norm_act", "")]
    assert len(layers) == wanted and {layer.norm_act for layer in layers} == {norm}
    relus = [n for n, m in model.named_modules() if isinstance(m, torch.nn.ReLU)]
    assert not any("backbone" in n or "subnet" in n or "scale" in n or "rpn" in n for n in relus)


@pytest.mark.parametrize("name", ["mask_rcnn_fpn", "retinanet"])
def test_it_trains(name, batch, train_step):
    model = set_norms(stock(name), "EvoNormB0")
    model.backbone.bottom_up.stages.depth = 18
    model.backbone.bottom_up.stem.out_channels = 64
    if name == "retinanet":
        model.backbone.top_block.in_channels = 512
        model.num_classes = 3
    else:
        model.roi_heads.num_classes = 3
        model.roi_heads.batch_size_per_image = 8
        model.roi_heads.box_head.fc_dims = [32]
        model.roi_heads.box_predictor.input_shape = ShapeSpec(channels=32)
        model.proposal_generator.post_nms_topk = (8, 8)
    del model.backbone.bottom_up.stages.stride_in_1x1  # which basic blocks do not take
    model = instantiate(resolve_lazy(model))
    losses = train_step(model, batch(n=1))
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(p.grad is not None for p in model.parameters())


def test_options_reach_the_layers():
    options = {"num_groups": 8, "eps": 1e-3, "momentum": 0.25, "sync": True}
    model = resolve_lazy(set_norms(stock(), "EvoNormB0"), **options)
    with torch.device("meta"):
        layers = [m for m in instantiate(model).modules() if getattr(m, "norm_act", "")]
    assert len(layers) == 53 + 8 + 5 + 4 + 4
    for layer in layers:
        assert layer.num_groups == 8 and layer.eps == 1e-3
        assert layer.momentum == 0.25 and layer.sync


def test_stock_norms_stay_as_they_are():
    before = as_dict(stock())
    assert as_dict(resolve_lazy(stock())) == before


def test_a_second_call_changes_nothing():
    model = resolve_lazy(set_norms(stock(), "EvoNormB0"))
    before = as_dict(model)
    assert as_dict(resolve_lazy(model)) == before


def test_it_can_be_saved_and_loaded(tmp_path):
    model = resolve_lazy(set_norms(stock(), "EvoNormB0"), eps=1e-3)
    config = OmegaConf.create({"model": model}, flags={"allow_objects": True})
    LazyConfig.save(config, str(tmp_path / "config.yaml"))
    loaded = LazyConfig.load(str(tmp_path / "config.yaml")).model
    with torch.device("meta"):
        a, b = instantiate(model), instantiate(resolve_lazy(loaded))
    assert str(a) == str(b)


def test_only_some_norms():
    model = stock()
    model.proposal_generator.head.norm = "EvoNormS0"
    with torch.device("meta"):
        model = instantiate(resolve_lazy(model))
    layers = [n for n, m in model.named_modules() if getattr(m, "norm_act", "")]
    assert layers == ["proposal_generator.rpn_head.conv.norm"]


def test_a_stock_norm_in_the_rpn_head_which_takes_none_in_detectron2():
    model = stock()
    model.proposal_generator.head.norm = "BN"
    head = instantiate(resolve_lazy(model).proposal_generator.head)
    assert sum(isinstance(m, torch.nn.BatchNorm2d) for m in head.modules()) == 5
    assert isinstance(head.conv.activation, torch.nn.ReLU)


def refused(model):
    before = as_dict(model)
    with pytest.raises(ValueError) as error:
        resolve_lazy(model)
    assert as_dict(model) == before
    assert "\n" not in str(error.value)
    return str(error.value)


def regnet(norm):
    return L(RegNet)(
        stem_class=SimpleStem,
        stem_width=32,
        block_class=ResBottleneckBlock,
        depth=13,
        w_a=31.41,
        w_0=96,
        w_m=2.24,
        group_width=64,
        norm=norm,
        out_features=["s1", "s2", "s3", "s4"],
    )


def test_regnet_is_refused_by_name():
    model = stock()
    model.backbone.norm = "EvoNormS0"
    model.backbone.bottom_up = regnet("EvoNormS0")
    message = refused(model)
    assert "'EvoNormS0'" in message and "RegNet" in message


def test_other_classes_are_refused_by_name():
    class MyHead(FastRCNNConvFCHead):
        pass

    model = set_norms(stock(), "EvoNormS0")
    model.roi_heads.box_head._target_ = MyHead
    assert "MyHead" in refused(model) and "conv_norm" in refused(model)


def test_a_class_without_a_module_is_refused_by_its_name():
    """As Rethinking-BatchNorm's `mask_rcnn_BNhead_shuffle.py` makes one."""
    names = {"base": FastRCNNConvFCHead}
    exec("Head = type(base.__name__ + 'WithShuffle', (base,), {})", names)
    model = set_norms(stock(), "EvoNormS0")
    model.roi_heads.box_head._target_ = names["Head"]
    assert "FastRCNNConvFCHeadWithShuffle" in refused(model)


@pytest.mark.parametrize(
    "norm, meant", [("EvoNromS0", "EvoNormS0"), ("evonorm-b0", "EvoNormB0"), ("BNReLU", "BN-ReLU")]
)
def test_unknown_norms_name_the_closest(norm, meant):
    model = stock()
    model.backbone.norm = norm
    message = refused(model)
    assert norm in message and f"did you mean {meant!r}?" in message


def test_a_head_on_its_own():
    head = L(SemSegFPNHead)(
        input_shape={"p2": ShapeSpec(channels=8, stride=4), "p3": ShapeSpec(channels=8, stride=8)},
        num_classes=3,
        conv_dims=8,
        common_stride=4,
        norm="EvoNormS0",
    )
    head = instantiate(resolve_lazy(head))
    y = head.layers({"p2": torch.randn(1, 8, 8, 8), "p3": torch.randn(1, 8, 4, 4)})
    assert y.shape == (1, 3, 8, 8)
