"""The RoI heads of C4 models, whose res5 runs on each RoI, for any norm-act."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.backbone import ResNet
from detectron2.modeling.roi_heads import Res5ROIHeads
from torch import nn

from .declare import takes_norm_act
from .norm import norm_from_config
from .resnet import NormActBottleneckBlock


@takes_norm_act()
@ROI_HEADS_REGISTRY.register()
class NormActRes5ROIHeads(Res5ROIHeads):
    """`Res5ROIHeads` with any norm-act of `MODEL.RESNETS.NORM` in its res5."""

    @classmethod
    def _build_res5_block(cls, cfg: CfgNode) -> tuple[nn.Sequential, int]:
        node = cfg.MODEL.RESNETS
        if node.DEFORM_ON_PER_STAGE[-1]:
            raise ValueError("MODEL.RESNETS.DEFORM_ON_PER_STAGE: a C4 model can't have it in res5")
        channels = 8 * node.RES2_OUT_CHANNELS
        blocks = ResNet.make_stage(
            NormActBottleneckBlock,
            3,
            stride_per_block=[2, 1, 1],
            in_channels=channels // 2,
            bottleneck_channels=8 * node.NUM_GROUPS * node.WIDTH_PER_GROUP,
            out_channels=channels,
            num_groups=node.NUM_GROUPS,
            norm=norm_from_config(cfg, node.NORM),
            stride_in_1x1=node.STRIDE_IN_1X1,
            zero_init_last="EVONORM" in cfg.MODEL and cfg.MODEL.EVONORM.ZERO_INIT_LAST,
        )
        return nn.Sequential(*blocks), channels
