"""Detectron2's heads for any norm-act, without the ReLU that would follow it."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import (
    META_ARCH_REGISTRY,
    ROI_BOX_HEAD_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
)
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.modeling.meta_arch.fcos import FCOSHead
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from detectron2.modeling.proposal_generator.rpn import RPN_HEAD_REGISTRY, StandardRPNHead
from detectron2.modeling.roi_heads import FastRCNNConvFCHead, MaskRCNNConvUpsampleHead
from torch import nn

from evonorm import is_norm_act

from .declare import takes_norm_act
from .norm import Norm, as_norm, drop_relu, level_norm, norm_from_config


class _NormActConvs:
    """What the RoI heads below share. Their fcs and deconv have no norm, as in the stock heads.

    Args:
        input_shape: of the pooled features.
        conv_norm: the name of a norm-act or its formula, a :class:`Norm`, or what the stock head
            takes.
        others: those of the stock head.
    """

    @configurable
    def __init__(self, input_shape: ShapeSpec, *, conv_norm: Any = "", **kwargs: Any) -> None:
        conv_norm = as_norm(conv_norm)
        super().__init__(input_shape, conv_norm=conv_norm, **kwargs)
        for conv in self.conv_norm_relus:
            drop_relu(conv, conv_norm)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        args = super().from_config(cfg, input_shape)
        return {**args, "conv_norm": norm_from_config(cfg, args["conv_norm"])}


@ROI_BOX_HEAD_REGISTRY.register()
@takes_norm_act("ROI_BOX_HEAD.NORM", instead_of=FastRCNNConvFCHead)
class NormActConvFCHead(_NormActConvs, FastRCNNConvFCHead):
    """`FastRCNNConvFCHead` with any norm-act after its convs."""


@ROI_MASK_HEAD_REGISTRY.register()
@takes_norm_act("ROI_MASK_HEAD.NORM", instead_of=MaskRCNNConvUpsampleHead)
class NormActConvUpsampleHead(_NormActConvs, MaskRCNNConvUpsampleHead):
    """`MaskRCNNConvUpsampleHead` with any norm-act after its convs."""


@RPN_HEAD_REGISTRY.register()
@takes_norm_act("RPN.NORM", instead_of=StandardRPNHead)
class NormActRPNHead(StandardRPNHead):
    """`StandardRPNHead` with a norm, `MODEL.RPN.NORM`, after each hidden conv, which has a bias.

    Args:
        norm: the name of a norm-act or its formula, a :class:`Norm`, or what Detectron2's
            `get_norm` takes.
        num_levels: how many feature levels there are. A norm that depends on the batch has
            statistics for each of them.
        others: those of the stock head.
    """

    @configurable
    def __init__(self, *, norm: Any = "", num_levels: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        norm = as_norm(norm)
        for conv in [self.conv] if hasattr(self.conv, "norm") else self.conv:
            if norm:
                conv.norm = level_norm(norm, conv.out_channels, num_levels)
                drop_relu(conv, norm)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict[str, Any]:
        norm = norm_from_config(cfg, cfg.MODEL.RPN.NORM)
        args = super().from_config(cfg, input_shape)
        return {**args, "norm": norm, "num_levels": len(input_shape)}


@takes_norm_act(instead_of=RetinaNetHead)
class NormActRetinaNetHead(RetinaNetHead):
    """`RetinaNetHead` with any norm-act, which has statistics per level if it depends on the batch.

    Args:
        input_shape: of each feature level.
        norm: as in :class:`NormActRPNHead`.
        others: those of the stock head.
    """

    @configurable
    def __init__(self, *, input_shape: list[ShapeSpec], norm: Any = "", **kwargs: Any) -> None:
        norm = as_norm(norm)
        evo = isinstance(norm, Norm)
        per_level = (lambda c: level_norm(norm, c, len(input_shape))) if evo else norm
        if norm == "GN":  # the stock head also builds one of 1 channel, on which GN's groups fail
            per_level = lambda c: get_norm(norm, c) if c > 1 else None  # noqa: E731
        super().__init__(input_shape=input_shape, norm=per_level, **kwargs)
        for subnet in (self.cls_subnet, self.bbox_subnet) if evo else ():
            for i, layer in enumerate(subnet):
                if isinstance(layer, nn.ReLU):
                    subnet[i] = nn.Identity()

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict[str, Any]:
        args = super().from_config(cfg, input_shape)
        return {**args, "norm": norm_from_config(cfg, args["norm"])}


@takes_norm_act(instead_of=FCOSHead)
class NormActFCOSHead(NormActRetinaNetHead, FCOSHead):
    """`FCOSHead`, likewise: FCOS predicts a centerness beside, from the tower of the boxes."""


@META_ARCH_REGISTRY.register()
@takes_norm_act("RETINANET.NORM", instead_of=RetinaNet)
class NormActRetinaNet(RetinaNet):
    """`RetinaNet` whose head takes any norm-act in `MODEL.RETINANET.NORM`."""

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        if not is_norm_act(cfg.MODEL.RETINANET.NORM):
            return super().from_config(cfg)
        # RetinaNet names the class of its head itself. It builds one without norm, to be replaced.
        without = cfg.clone()
        without.defrost()
        without.MODEL.RETINANET.NORM = ""
        args = super().from_config(without)
        shapes = args["backbone"].output_shape()
        levels = [shapes[name] for name in cfg.MODEL.RETINANET.IN_FEATURES]
        return {**args, "head": NormActRetinaNetHead(cfg, levels)}


@SEM_SEG_HEADS_REGISTRY.register()
@takes_norm_act("SEM_SEG_HEAD.NORM", instead_of=SemSegFPNHead)
class NormActSemSegFPNHead(SemSegFPNHead):
    """`SemSegFPNHead` with any norm-act.

    Args:
        input_shape: of the features by name.
        norm: as `conv_norm` of :class:`NormActConvFCHead`.
        others: those of the stock head.
    """

    @configurable
    def __init__(
        self, input_shape: dict[str, ShapeSpec], *, norm: Any = None, **kwargs: Any
    ) -> None:
        norm = as_norm(norm)
        # As the first argument, the DictConfig of a LazyConfig would be taken for a whole config.
        super().__init__(input_shape=input_shape, norm=norm, **kwargs)
        for head in self.scale_heads:
            for layer in head:
                if hasattr(layer, "norm"):
                    drop_relu(layer, norm)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        args = super().from_config(cfg, input_shape)
        return {**args, "norm": norm_from_config(cfg, args["norm"])}
