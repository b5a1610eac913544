"""FCOS from a yaml, which Detectron2 has for LazyConfig only, with any norm in its head."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.backbone import FPN
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.modeling.meta_arch.fcos import FCOS

from .declare import takes_norm_act
from .fpn import KEYS, build_fpn
from .heads import NormActFCOSHead
from .norm import norm_from_config
from .resnet import build_norm_act_resnet_backbone


@takes_norm_act("RETINANET.NORM")
@META_ARCH_REGISTRY.register()
class NormActFCOS(FCOS):
    """FCOS (arXiv:1904.01355) as Detectron2 has it, from the keys of `MODEL.RETINANET`.

    It reads IN_FEATURES, NUM_CLASSES, NUM_CONVS, NORM, PRIOR_PROB, FOCAL_LOSS_ALPHA,
    FOCAL_LOSS_GAMMA, SCORE_THRESH_TEST, TOPK_CANDIDATES_TEST and NMS_THRESH_TEST there. It has no
    anchors, and a box loss of its own.
    """

    @configurable
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        backbone, node = build_backbone(cfg), cfg.MODEL.RETINANET
        shapes = backbone.output_shape()
        levels = [shapes[name] for name in node.IN_FEATURES]
        head = NormActFCOSHead(
            input_shape=levels,
            num_classes=node.NUM_CLASSES,
            conv_dims=[levels[0].channels] * node.NUM_CONVS,
            prior_prob=node.PRIOR_PROB,
            norm=norm_from_config(cfg, node.NORM),
        )
        return {
            "backbone": backbone,
            "head": head,
            "head_in_features": node.IN_FEATURES,
            "num_classes": node.NUM_CLASSES,
            "focal_loss_alpha": node.FOCAL_LOSS_ALPHA,
            "focal_loss_gamma": node.FOCAL_LOSS_GAMMA,
            "test_score_thresh": node.SCORE_THRESH_TEST,
            "test_topk_candidates": node.TOPK_CANDIDATES_TEST,
            "test_nms_thresh": node.NMS_THRESH_TEST,
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }


@takes_norm_act(*KEYS)
@BACKBONE_REGISTRY.register()
def build_norm_act_fcos_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """ResNet with an FPN whose P6 and P7 are made of P5, as Detectron2's FCOS has it."""
    bottom_up = build_norm_act_resnet_backbone(cfg, input_shape)
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    return build_fpn(cfg, bottom_up, LastLevelP6P7(channels, channels, in_feature="p5"))
