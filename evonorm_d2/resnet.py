"""ResNet for any norm-act, with no ReLU after it and no activation before an addition."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import BasicStem, ResNet
from detectron2.modeling.backbone.resnet import (
    BasicBlock,
    BottleneckBlock,
    DeformBottleneckBlock,
    build_resnet_backbone,
)
from torch import Tensor, nn

from .declare import takes_norm_act
from .norm import Norm, as_norm, freeze_norm_acts, norm_from_config, without_activation

BLOCKS_PER_STAGE = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


class _NormActBlock:
    """What the residual blocks below share. `relu` follows a norm unless the norm is a norm-act.

    Args:
        norm: the name of a norm-act or its formula, a :class:`Norm`, or what Detectron2's
            `get_norm` takes.
        zero_init_last: whether the weight of the last norm starts at 0.
        others: those of the stock block.
    """

    last = "conv3"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        norm: Any = "BN",
        zero_init_last: bool = False,
        **kwargs: Any,
    ) -> None:
        norm = as_norm(norm)
        super().__init__(in_channels, out_channels, norm=norm, **kwargs)
        self.relu = _relu_after(norm)
        last = getattr(self, self.last)
        for conv in (last, self.shortcut):
            if conv is not None and isinstance(norm, Norm):
                conv.norm = without_activation(norm, conv.out_channels)
        if zero_init_last:
            if getattr(last.norm, "weight", None) is None:
                raise ValueError("MODEL.EVONORM.ZERO_INIT_LAST: the norm has no weight to zero")
            nn.init.zeros_(last.norm.weight)

    def freeze(self) -> nn.Module:
        super().freeze()
        freeze_norm_acts(self)
        return self


def _relu_after(norm: Any) -> nn.Module:
    return nn.Identity() if isinstance(norm, Norm) else nn.ReLU(inplace=True)


@takes_norm_act(instead_of=BasicStem)
class NormActStem(BasicStem):
    """`BasicStem` with any norm-act after its conv.

    Args:
        in_channels, out_channels: of the 7x7 conv.
        norm: the name of a norm-act or its formula, a :class:`Norm`, or what Detectron2's
            `get_norm` takes.
    """

    def __init__(self, in_channels: int = 3, out_channels: int = 64, norm: Any = "BN") -> None:
        norm = as_norm(norm)
        super().__init__(in_channels, out_channels, norm)
        self.relu = _relu_after(norm)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv1(x))
        return F.max_pool2d(x, kernel_size=3, stride=2, padding=1)

    def freeze(self) -> nn.Module:
        super().freeze()
        freeze_norm_acts(self)
        return self


@takes_norm_act(instead_of=BasicBlock)
class NormActBasicBlock(_NormActBlock, BasicBlock):
    """`BasicBlock` with any norm-act after conv1, without activation after conv2 and shortcut."""

    last = "conv2"

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(self.relu(self.conv1(x)))
        out += x if self.shortcut is None else self.shortcut(x)
        return F.relu_(out)


@takes_norm_act(instead_of=BottleneckBlock)
class NormActBottleneckBlock(_NormActBlock, BottleneckBlock):
    """`BottleneckBlock` with any norm-act after conv1 and conv2, without activation elsewhere."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.conv1(x))
        out = self.relu(self.conv2(out))
        out = self.conv3(out)
        out += x if self.shortcut is None else self.shortcut(x)
        return F.relu_(out)


@takes_norm_act(instead_of=DeformBottleneckBlock)
class NormActDeformBottleneckBlock(_NormActBlock, DeformBottleneckBlock):
    """`DeformBottleneckBlock`, likewise. The deformable conv2 applies its norm itself."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.conv1(x))
        offset = self.conv2_offset(out)
        if self.deform_modulated:
            offset_y, offset_x, mask = torch.chunk(offset, 3, dim=1)
            out = self.conv2(out, torch.cat((offset_y, offset_x), dim=1), mask.sigmoid())
        else:
            out = self.conv2(out, offset)
        out = self.conv3(self.relu(out))
        out += x if self.shortcut is None else self.shortcut(x)
        return F.relu_(out)


@takes_norm_act("RESNETS.NORM", "EVONORM.ZERO_INIT_LAST", instead_of=build_resnet_backbone)
@BACKBONE_REGISTRY.register()
def build_norm_act_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """`build_resnet_backbone` for any norm-act in `MODEL.RESNETS.NORM`, with the same keys.

    Raises:
        ValueError: a combination that Detectron2's ResNet does not have.
    """
    node = cfg.MODEL.RESNETS
    norm = norm_from_config(cfg, node.NORM)
    zero_init_last = "EVONORM" in cfg.MODEL and cfg.MODEL.EVONORM.ZERO_INIT_LAST
    basic = node.DEPTH in (18, 34)
    _check_resnet(node, basic)
    # The modules are built in Detectron2's order, so that a seed gives the same weights.
    stem = NormActStem(input_shape.channels, node.STEM_OUT_CHANNELS, norm)
    stages = []
    in_channels, out_channels = node.STEM_OUT_CHANNELS, node.RES2_OUT_CHANNELS
    for i, num_blocks in enumerate(BLOCKS_PER_STAGE[node.DEPTH]):
        dilation = node.RES5_DILATION if i == 3 else 1
        stride = 1 if i == 0 or dilation == 2 else 2
        kwargs = {"norm": norm, "zero_init_last": zero_init_last}
        block_class = NormActBasicBlock
        if not basic:
            block_class = NormActBottleneckBlock
            kwargs |= {
                "bottleneck_channels": node.NUM_GROUPS * node.WIDTH_PER_GROUP * 2**i,
                "stride_in_1x1": node.STRIDE_IN_1X1,
                "dilation": dilation,
                "num_groups": node.NUM_GROUPS,
            }
            if node.DEFORM_ON_PER_STAGE[i]:
                block_class = NormActDeformBottleneckBlock
                kwargs["deform_modulated"] = node.DEFORM_MODULATED
                kwargs["deform_num_groups"] = node.DEFORM_NUM_GROUPS
        stages.append(
            ResNet.make_stage(
                block_class,
                num_blocks,
                stride_per_block=[stride] + [1] * (num_blocks - 1),
                in_channels=in_channels,
                out_channels=out_channels,
                **kwargs,
            )
        )
        in_channels, out_channels = out_channels, out_channels * 2
    freeze_at = cfg.MODEL.BACKBONE.FREEZE_AT
    return ResNet(stem, stages, out_features=node.OUT_FEATURES, freeze_at=freeze_at)


def _check_resnet(node: CfgNode, basic: bool) -> None:
    if node.DEPTH not in BLOCKS_PER_STAGE:
        raise ValueError(f"MODEL.RESNETS.DEPTH is {node.DEPTH}, not one of {[*BLOCKS_PER_STAGE]}")
    if node.RES5_DILATION not in (1, 2):
        raise ValueError(f"MODEL.RESNETS.RES5_DILATION is {node.RES5_DILATION}, not 1 or 2")
    if basic and (
        node.RES2_OUT_CHANNELS != 64
        or node.STEM_OUT_CHANNELS != 64
        or any(node.DEFORM_ON_PER_STAGE)
        or node.RES5_DILATION != 1
        or node.NUM_GROUPS != 1
    ):
        raise ValueError(
            f"MODEL.RESNETS.DEPTH {node.DEPTH} takes RES2_OUT_CHANNELS 64, STEM_OUT_CHANNELS 64, "
            "RES5_DILATION 1, NUM_GROUPS 1 and no DEFORM_ON_PER_STAGE"
        )
