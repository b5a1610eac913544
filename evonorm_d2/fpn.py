"""FPN and the backbones that use it, for any norm-act."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN
from detectron2.modeling.backbone.fpn import (
    LastLevelMaxPool,
    LastLevelP6P7,
    build_resnet_fpn_backbone,
    build_retinanet_resnet_fpn_backbone,
)
from torch import nn

from .declare import takes_norm_act
from .norm import Norm, as_norm, norm_from_config
from .resnet import build_norm_act_resnet_backbone

KEYS = ("RESNETS.NORM", "FPN.NORM", "FPN.PAD_TO", "EVONORM.ZERO_INIT_LAST")


@takes_norm_act(instead_of=FPN)
class NormActFPN(FPN):
    """`FPN` with any norm-act, in its form without activation, after lateral and output convs.

    Args:
        norm: the name of a norm-act or its formula, a :class:`Norm`, or what `FPN` takes.
        pad_to: pad each batch to multiples of this size in pixels, which gives squares if no image
            is larger. The paper's code base always pads to 1024x1024, and the padding is part of
            the statistics. 0 pads as little as possible.
        others: those of `FPN`.

    Raises:
        ValueError: `pad_to` is no multiple of the largest stride.
    """

    def __init__(self, *args: Any, norm: Any = "", pad_to: int = 0, **kwargs: Any) -> None:
        norm = as_norm(norm)
        if isinstance(norm, Norm):
            norm = norm.without_activation()
        super().__init__(*args, norm=norm, **kwargs)
        if pad_to % self._size_divisibility:
            raise ValueError(
                f"MODEL.FPN.PAD_TO is {pad_to}, not a multiple of {self._size_divisibility}"
            )
        self._size_divisibility = pad_to or self._size_divisibility


@takes_norm_act(*KEYS, instead_of=build_resnet_fpn_backbone)
@BACKBONE_REGISTRY.register()
def build_norm_act_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """`build_resnet_fpn_backbone` for any norm-act in `MODEL.RESNETS.NORM`, `MODEL.FPN.NORM`."""
    return build_fpn(cfg, build_norm_act_resnet_backbone(cfg, input_shape), LastLevelMaxPool())


@takes_norm_act(*KEYS, instead_of=build_retinanet_resnet_fpn_backbone)
@BACKBONE_REGISTRY.register()
def build_norm_act_retinanet_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """`build_retinanet_resnet_fpn_backbone` for any norm-act in the same two keys."""
    bottom_up = build_norm_act_resnet_backbone(cfg, input_shape)
    channels = bottom_up.output_shape()["res5"].channels
    return build_fpn(cfg, bottom_up, LastLevelP6P7(channels, cfg.MODEL.FPN.OUT_CHANNELS))


def build_fpn(cfg: CfgNode, bottom_up: nn.Module, top_block: nn.Module) -> FPN:
    """The FPN of `MODEL.FPN` on a backbone."""
    node = cfg.MODEL.FPN
    return NormActFPN(
        bottom_up,
        node.IN_FEATURES,
        node.OUT_CHANNELS,
        norm=norm_from_config(cfg, node.NORM),
        top_block=top_block,
        fuse_type=node.FUSE_TYPE,
        pad_to=node.get("PAD_TO", 0),
    )
