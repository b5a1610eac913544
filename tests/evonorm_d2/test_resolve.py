"""resolve(cfg): which names it swaps, what it refuses, and that it changes nothing else."""

import logging

import pytest
from detectron2.config import get_cfg
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import Res5ROIHeads

from evonorm import list_norm_acts
from evonorm_d2 import add_evonorm_config, resolve

C4 = "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml"
RETINANET = "COCO-Detection/retinanet_R_50_FPN_1x.yaml"
PANOPTIC = "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml"

SWAPS = {
    "RESNETS.NORM": ("BACKBONE.NAME", "build_norm_act_resnet_fpn_backbone"),
    "FPN.NORM": ("BACKBONE.NAME", "build_norm_act_resnet_fpn_backbone"),
    "RPN.NORM": ("RPN.HEAD_NAME", "NormActRPNHead"),
    "ROI_BOX_HEAD.NORM": ("ROI_BOX_HEAD.NAME", "NormActConvFCHead"),
    "ROI_MASK_HEAD.NORM": ("ROI_MASK_HEAD.NAME", "NormActConvUpsampleHead"),
    "SEM_SEG_HEAD.NORM": ("SEM_SEG_HEAD.NAME", "NormActSemSegFPNHead"),
}


def flat(node, prefix=""):
    out = {}
    for key, value in node.items():
        nested = hasattr(value, "items")
        out.update(flat(value, f"{prefix}{key}.") if nested else {prefix + key: value})
    return out


def changed(before, after):
    before, after = flat(before), flat(after)
    assert before.keys() == after.keys()
    return {key: after[key] for key in after if before[key] != after[key]}


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("key", SWAPS)
def test_a_norm_key_swaps_the_component_that_reads_it_and_nothing_else(key, stock_cfg):
    cfg = stock_cfg(PANOPTIC, f"MODEL.{key}", "EvoNormS0", "MODEL.BACKBONE.FREEZE_AT", 0)
    before = cfg.clone()
    assert resolve(cfg) is cfg
    name_key, ours = SWAPS[key]
    assert changed(before, cfg) == {f"MODEL.{name_key}": ours}


@pytest.mark.parametrize(
    "path, norm_key, name_key, ours",
    [
        (RETINANET, "RETINANET.NORM", "META_ARCHITECTURE", "NormActRetinaNet"),
        (
            RETINANET,
            "FPN.NORM",
            "BACKBONE.NAME",
            "build_norm_act_retinanet_resnet_fpn_backbone",
        ),
        (
            "Base-RCNN-DilatedC5.yaml",
            "RESNETS.NORM",
            "BACKBONE.NAME",
            "build_norm_act_resnet_backbone",
        ),
    ],
)
def test_components_of_other_detectors(path, norm_key, name_key, ours, stock_cfg):
    cfg = stock_cfg(path, f"MODEL.{norm_key}", "EvoNormB0")
    before = cfg.clone()
    assert changed(before, resolve(cfg)) == {f"MODEL.{name_key}": ours}


@pytest.mark.parametrize("norm", ["BN", "GN", "FrozenBN"])
def test_a_stock_norm_in_the_rpn_head_which_takes_none_in_detectron2(norm, stock_cfg):
    cfg = stock_cfg(PANOPTIC, "MODEL.RPN.NORM", norm)
    before = cfg.clone()
    assert changed(before, resolve(cfg)) == {"MODEL.RPN.HEAD_NAME": "NormActRPNHead"}


@pytest.mark.parametrize("key, value", [("FPN.PAD_TO", 128), ("EVONORM.ZERO_INIT_LAST", True)])
def test_keys_that_detectron2_would_ignore_hold_for_stock_norms_too(key, value, stock_cfg):
    cfg = stock_cfg("Base-RCNN-FPN.yaml", f"MODEL.{key}", value)
    before = cfg.clone()
    backbone = "build_norm_act_resnet_fpn_backbone"
    assert changed(before, resolve(cfg)) == {"MODEL.BACKBONE.NAME": backbone}
    cfg.MODEL.BACKBONE.NAME = "my_own_backbone"  # which may read them
    before = cfg.clone()
    assert not changed(before, resolve(cfg))


def test_a_second_call_changes_nothing(tiny_cfg):
    cfg = resolve(tiny_cfg("EvoNormS0"))
    before = cfg.dump()
    assert resolve(cfg).dump() == before


def test_a_frozen_config_stays_frozen(tiny_cfg):
    cfg = tiny_cfg("EvoNormS0")
    cfg.freeze()
    assert resolve(cfg).is_frozen() and cfg.MODEL.RPN.is_frozen()
    assert cfg.MODEL.RPN.HEAD_NAME == "NormActRPNHead"
    cfg = tiny_cfg("EvoNormS0")
    assert not resolve(cfg).is_frozen() and not cfg.MODEL.is_frozen()


@pytest.mark.parametrize("norm", ["BN", "GN", "FrozenBN", "SyncBN", "naiveSyncBN", ""])
@pytest.mark.parametrize("path", ["Misc/cascade_mask_rcnn_R_50_FPN_3x.yaml", C4, PANOPTIC])
def test_a_config_of_stock_norms_stays_as_it_is(norm, path, stock_cfg):
    keys = ("RESNETS", "FPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD", "SEM_SEG_HEAD", "RETINANET")
    cfg = stock_cfg(path, *(x for key in keys for x in (f"MODEL.{key}.NORM", norm)))
    before = cfg.dump()
    assert resolve(cfg).dump() == before


def test_a_config_without_the_plugins_keys(caplog):
    cfg = get_cfg()
    before = cfg.dump()
    assert resolve(cfg).dump() == before


def test_the_plugins_keys_are_added_once_and_change_no_other(stock_cfg):
    stock, cfg = get_cfg(), add_evonorm_config(get_cfg())
    added = flat(cfg).keys() - flat(stock).keys()
    assert {"MODEL.RPN.NORM", "MODEL.EVONORM.NUM_GROUPS", "MODEL.EVONORM.SYNC"} <= added
    assert all(flat(cfg)[key] == value for key, value in flat(stock).items())
    assert cfg.MODEL.RPN.NORM == ""  # as in Detectron2
    cfg.MODEL.EVONORM.EPS = 0.5
    assert add_evonorm_config(cfg).MODEL.EVONORM.EPS == 0.5


def lines_of(caplog):
    """What the plugin logged."""
    return [r.getMessage() for r in caplog.records if r.name.startswith("evonorm_d2")]


def refused(cfg):
    """The message of the refusal, which must leave the config alone."""
    before = cfg.dump()
    with pytest.raises(ValueError) as error:
        resolve(cfg)
    assert cfg.dump() == before
    return one_line(error)


@pytest.mark.parametrize("norm", list_norm_acts()[::5])
def test_res5_heads_are_swapped_with_their_backbone(norm, stock_cfg):
    cfg = resolve(stock_cfg(C4, "MODEL.RESNETS.NORM", norm))
    assert cfg.MODEL.ROI_HEADS.NAME == "NormActRes5ROIHeads"
    assert cfg.MODEL.BACKBONE.NAME == "build_norm_act_resnet_backbone"
    before = cfg.dump()
    assert resolve(cfg).dump() == before


def test_other_res5_heads_are_refused(stock_cfg):
    @ROI_HEADS_REGISTRY.register()
    class OtherRes5(Res5ROIHeads):
        pass

    message = refused(
        stock_cfg(C4, "MODEL.RESNETS.NORM", "EvoNormS0", "MODEL.ROI_HEADS.NAME", "OtherRes5")
    )
    assert message.startswith("MODEL.RESNETS.NORM is EvoNormS0, but 'OtherRes5' (MODEL.ROI_HEADS.N")
    assert "NormActRes5ROIHeads" in message


@pytest.mark.parametrize(
    "name_key, name, norm_key",
    [
        ("BACKBONE.NAME", "build_resnet_deeplab_backbone", "RESNETS.NORM"),
        ("BACKBONE.NAME", "build_regnet_fpn_backbone", "FPN.NORM"),
        ("RPN.HEAD_NAME", "MyRPNHead", "RPN.NORM"),
        ("ROI_BOX_HEAD.NAME", "MyBoxHead", "ROI_BOX_HEAD.NORM"),
        ("ROI_MASK_HEAD.NAME", "PointRendMaskHead", "ROI_MASK_HEAD.NORM"),
        ("SEM_SEG_HEAD.NAME", "DeepLabV3PlusHead", "SEM_SEG_HEAD.NORM"),
        ("META_ARCHITECTURE", "MyRetinaNet", "RETINANET.NORM"),
    ],
)
def test_other_components_are_refused_by_name(name_key, name, norm_key, stock_cfg):
    cfg = stock_cfg(PANOPTIC, f"MODEL.{norm_key}", "EvoNormS0", f"MODEL.{name_key}", name)
    message = refused(cfg)
    assert f"MODEL.{norm_key} is EvoNormS0" in message
    assert repr(name) in message and f"(MODEL.{name_key})" in message
    cfg.merge_from_list([f"MODEL.{norm_key}", "GN"])  # what it does with GN is its own affair
    resolve(cfg)


def test_a_norm_key_that_no_component_of_ours_reads_is_refused(stock_cfg):
    cfg = stock_cfg()
    cfg.MODEL.MY_HEAD = type(cfg)({"NORM": "EvoNormS0"})
    assert refused(cfg).startswith("MODEL.MY_HEAD.NORM is EvoNormS0, but no component")


@pytest.mark.parametrize(
    "norm, meant",
    [("EvoNromS0", "EvoNormS0"), ("evonorm-b0", "EvoNormB0"), ("BNReLU", "BN-ReLU")],
)
@pytest.mark.parametrize("key", [*SWAPS, "RETINANET.NORM"])
def test_an_unknown_norm_names_the_closest_and_the_known(norm, meant, key, stock_cfg):
    message = refused(stock_cfg(PANOPTIC, f"MODEL.{key}", norm))
    assert message.startswith(f"MODEL.{key}: ") and norm in message
    assert f"did you mean {meant!r}?" in message
    assert all(name in message for name in list_norm_acts() if "/" not in name)


def test_nothing_is_swapped_when_one_of_several_keys_is_refused(tiny_cfg):
    assert "MyBoxHead" in refused(tiny_cfg("EvoNormS0", "MODEL.ROI_BOX_HEAD.NAME", "MyBoxHead"))


FAST = "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"


@pytest.mark.parametrize(
    "path, key, other, read",
    [
        (RETINANET, "ROI_BOX_HEAD.NORM", "META_ARCHITECTURE is RetinaNet", "RETINANET.NORM"),
        (RETINANET, "ROI_MASK_HEAD.NORM", "META_ARCHITECTURE is RetinaNet", "RETINANET.NORM"),
        (RETINANET, "RPN.NORM", "META_ARCHITECTURE is RetinaNet", "RETINANET.NORM"),
        (RETINANET, "SEM_SEG_HEAD.NORM", "META_ARCHITECTURE is RetinaNet", "RETINANET.NORM"),
        (PANOPTIC, "RETINANET.NORM", "META_ARCHITECTURE is PanopticFPN", "SEM_SEG_HEAD.NORM"),
        (FAST, "SEM_SEG_HEAD.NORM", "META_ARCHITECTURE is GeneralizedRCNN", "RPN.NORM"),
        (FAST, "ROI_MASK_HEAD.NORM", "MASK_ON is False", "ROI_BOX_HEAD.NORM"),
        (C4, "ROI_BOX_HEAD.NORM", "ROI_HEADS.NAME is Res5ROIHeads", "ROI_MASK_HEAD.NORM"),
        ("Base-RCNN-DilatedC5.yaml", "FPN.NORM", "BACKBONE.NAME is build_resnet_b", "RPN.NORM"),
        ("COCO-Detection/rpn_R_50_FPN_1x.yaml", "ROI_BOX_HEAD.NORM", "META_ARCH", "RPN.NORM"),
    ],
)
def test_a_key_that_nothing_reads_is_warned_of_and_changes_nothing(
    path, key, other, read, stock_cfg, caplog
):
    cfg = stock_cfg(path, f"MODEL.{key}", "EvoNormS0")
    before = cfg.clone()
    with caplog.at_level(logging.WARNING, logger="evonorm_d2"):
        assert not changed(before, resolve(cfg))
    (line,) = lines_of(caplog)
    assert line.startswith(f"MODEL.{key} is EvoNormS0, but nothing reads it, as MODEL.{other}")
    caplog.clear()
    cfg = stock_cfg(path, f"MODEL.{read}", "EvoNormS0")
    before = cfg.clone()
    assert changed(before, resolve(cfg)) and not lines_of(caplog)


def test_the_key_that_is_to_blame_is_named(stock_cfg):
    """All five keys on a detector whose mask head can't take them."""
    norms = ("RESNETS", "FPN", "RPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD")
    cfg = stock_cfg(C4, *(x for key in norms for x in (f"MODEL.{key}.NORM", "EvoNormS0")))
    cfg.MODEL.ROI_MASK_HEAD.NAME = "PointRendMaskHead"
    assert refused(cfg).startswith("MODEL.ROI_MASK_HEAD.NORM is EvoNormS0, but 'PointRendMaskHead'")


@pytest.mark.parametrize("freeze_at, weights, warns", [(2, "", 1), (0, "", 0), (2, "x.pth", 0)])
def test_a_frozen_random_stem_is_warned_of(freeze_at, weights, warns, stock_cfg, caplog):
    cfg = stock_cfg("Base-RCNN-FPN.yaml", "MODEL.RESNETS.NORM", "EvoNormS0")
    cfg.merge_from_list(["MODEL.BACKBONE.FREEZE_AT", freeze_at, "MODEL.WEIGHTS", weights])
    with caplog.at_level(logging.WARNING, logger="evonorm_d2"):
        resolve(cfg)
    lines = lines_of(caplog)
    assert len(lines) == warns
    assert all("MODEL.BACKBONE.FREEZE_AT is 2" in line for line in lines)
