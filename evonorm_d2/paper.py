"""Mask R-CNN in the layout of the paper's code base, inferred from the Params of its table 4.

It differs from Detectron2's layout in this: the RPN, the box head's fc and the mask head's deconv
have norms, P6 comes from a strided conv, the FPN has norms on P2 to P6 only, convs with a norm have
a bias too, and box regression and masks have outputs for the background.
"""

from __future__ import annotations

from types import FunctionType
from typing import Any

import fvcore.nn.weight_init as weight_init
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    ROI_BOX_HEAD_REGISTRY,
    ROI_HEADS_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
)
from detectron2.modeling.backbone import FPN
from detectron2.modeling.proposal_generator.rpn import RPN_HEAD_REGISTRY
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, StandardROIHeads
from detectron2.structures import Instances
from torch import Tensor, nn

from .declare import takes_norm_act
from .fpn import NormActFPN
from .heads import NormActConvFCHead, NormActConvUpsampleHead, NormActRPNHead
from .norm import LevelNorm, Norm, as_norm, drop_relu, norm_from_config, without_activation
from .resnet import build_norm_act_resnet_backbone


def _renamed(method: Any, name: str) -> Any:
    """A copy of an inherited method with a name of its own, as TorchScript knows no super()."""
    return FunctionType(method.__code__, method.__globals__, name)


class LastLevelP6(nn.Module):
    """P6 from P5, by a 3x3 conv with stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.num_levels = 1
        self.in_feature = "p5"
        self.p6 = nn.Conv2d(channels, channels, 3, 2, 1)
        weight_init.c2_xavier_fill(self.p6)

    def forward(self, p5: Tensor) -> list[Tensor]:
        return [self.p6(p5)]


class PaperFPN(NormActFPN):
    """FPN whose convs have biases and no norm; a norm without activation on each of P2 to P6.

    Args:
        bottom_up, in_features, out_channels, others: those of `FPN`.
        norm: the name of a norm-act or its formula, a :class:`Norm`, or what Detectron2's
            `get_norm` takes.
    """

    def __init__(
        self,
        bottom_up: nn.Module,
        in_features: list[str],
        out_channels: int,
        *,
        norm: Any = "",
        **kwargs: Any,
    ) -> None:
        top_block = LastLevelP6(out_channels)
        super().__init__(bottom_up, in_features, out_channels, top_block=top_block, **kwargs)
        norm = as_norm(norm)
        self.norms = nn.ModuleList(
            without_activation(norm, out_channels) or nn.Identity() for _ in self._out_features
        )

    before_norms = _renamed(NormActFPN.forward, "before_norms")

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.before_norms(x)
        for i, norm in enumerate(self.norms):
            name = self._out_features[i]
            features[name] = norm(features[name])
        return features


@takes_norm_act("RESNETS.NORM", "FPN.NORM")
@BACKBONE_REGISTRY.register()
def build_paper_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """ResNet with :class:`PaperFPN`, from the keys of `build_resnet_fpn_backbone`."""
    node = cfg.MODEL.FPN
    return PaperFPN(
        build_norm_act_resnet_backbone(cfg, input_shape),
        node.IN_FEATURES,
        node.OUT_CHANNELS,
        norm=norm_from_config(cfg, node.NORM),
        fuse_type=node.FUSE_TYPE,
        pad_to=node.PAD_TO,
    )


@takes_norm_act("RPN.NORM")
@RPN_HEAD_REGISTRY.register()
class PaperRPNHead(NormActRPNHead):
    """RPN head with a norm of its own, parameters included, for each level."""

    @configurable
    def __init__(self, *, norm: Any = "", num_levels: int = 1, **kwargs: Any) -> None:
        super().__init__(norm=norm, num_levels=num_levels, **kwargs)
        norm = as_norm(norm)
        for conv in [self.conv] if hasattr(self.conv, "norm") else self.conv:
            if norm:
                conv.norm = LevelNorm(norm, conv.out_channels, num_levels, shared=False)


def _add_norms(convs: list[nn.Module], norm: Any) -> None:
    """Give norms to convs that were built without one, and therefore have a bias."""
    for conv in convs:
        conv.norm = get_norm(norm, conv.out_channels)
        drop_relu(conv, norm)


@takes_norm_act("ROI_BOX_HEAD.NORM")
@ROI_BOX_HEAD_REGISTRY.register()
class PaperConvFCHead(NormActConvFCHead):
    """Box head with a norm after its convs and its fcs, all with biases."""

    @configurable
    def __init__(self, input_shape: ShapeSpec, *, conv_norm: Any = "", **kwargs: Any) -> None:
        super().__init__(input_shape, **kwargs)
        norm = as_norm(conv_norm)
        _add_norms(self.conv_norm_relus, norm)
        for i, fc in enumerate(self.fcs, 1):
            setattr(self, f"fc_relu{i}", _NormedVector(norm, fc.out_features))


class _NormedVector(nn.Module):
    """Norm and activation of (N, C) vectors, as maps of one pixel."""

    def __init__(self, norm: Any, channels: int) -> None:
        super().__init__()
        self.norm = get_norm(norm, channels)
        self.relu = nn.Identity() if isinstance(norm, Norm) else nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        if self.norm is not None:
            x = self.norm(x[:, :, None, None]).flatten(1)
        return self.relu(x)


@takes_norm_act("ROI_MASK_HEAD.NORM")
@ROI_MASK_HEAD_REGISTRY.register()
class PaperConvUpsampleHead(NormActConvUpsampleHead):
    """Mask head with a norm after its convs and its deconv, all with biases."""

    @configurable
    def __init__(self, input_shape: ShapeSpec, *, conv_norm: Any = "", **kwargs: Any) -> None:
        super().__init__(input_shape, **kwargs)
        norm = as_norm(conv_norm)
        _add_norms(self.conv_norm_relus, norm)
        deconv_norm = get_norm(norm, self.deconv.out_channels)
        if isinstance(norm, Norm):
            self.deconv_relu = deconv_norm
        elif deconv_norm is not None:
            self.deconv_relu = nn.Sequential(deconv_norm, nn.ReLU())

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        args = super().from_config(cfg, input_shape)
        if not cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK:
            args["num_classes"] += 1
        return args


class PaperOutputLayers(FastRCNNOutputLayers):
    """Box predictor that regresses a box for the background as well, which nothing reads.

    Args:
        used_classes: how many of the foreground classes the data set has. The paper has 90 outputs
            for COCO's 80 classes; the others never have an example and are not predicted.
        others: those of `FastRCNNOutputLayers`.
    """

    @configurable
    def __init__(self, input_shape: ShapeSpec, *, used_classes: int, **kwargs: Any) -> None:
        super().__init__(input_shape, **kwargs)
        self.used_classes = used_classes
        box = self.bbox_pred
        self.bbox_pred = _WithBackground(
            box.in_features, box.out_features, len(self.box2box_transform.weights)
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        args = super().from_config(cfg, input_shape)
        data_sets = cfg.DATASETS.TRAIN
        names = MetadataCatalog.get(data_sets[0]).get("thing_classes") if data_sets else None
        return {**args, "used_classes": len(names or range(args["num_classes"]))}

    all_probs = _renamed(FastRCNNOutputLayers.predict_probs, "all_probs")

    def predict_probs(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> list[Tensor]:
        used = predictions[0].new_ones([self.num_classes + 1])
        used[self.used_classes : self.num_classes] = 0
        return [probs * used for probs in self.all_probs(predictions, proposals)]


class _WithBackground(nn.Linear):
    """Linear layer that computes `background` more outputs, as in the paper, and drops them."""

    def __init__(self, in_features: int, out_features: int, background: int) -> None:
        super().__init__(in_features, out_features + background)
        self.background = background
        nn.init.normal_(self.weight, std=0.001)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)[:, : -self.background]


@ROI_HEADS_REGISTRY.register()
def build_paper_roi_heads(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> StandardROIHeads:
    """`StandardROIHeads` with :class:`PaperOutputLayers`."""
    heads = StandardROIHeads(cfg, input_shape)
    heads.box_predictor = PaperOutputLayers(cfg, heads.box_head.output_shape)
    return heads
