"""For LazyConfig: the same swap, of classes instead of names."""

from __future__ import annotations

from typing import Any

from detectron2.config import LazyCall
from detectron2.modeling.backbone import FPN, BasicStem, ResNet
from detectron2.modeling.backbone.resnet import (
    BasicBlock,
    BottleneckBlock,
    DeformBottleneckBlock,
)
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from detectron2.modeling.proposal_generator import StandardRPNHead
from detectron2.modeling.roi_heads import FastRCNNConvFCHead, MaskRCNNConvUpsampleHead
from detectron2.utils.registry import _convert_target_to_string, locate
from omegaconf import DictConfig, ListConfig

from .fpn import NormActFPN
from .heads import (
    NormActConvFCHead,
    NormActConvUpsampleHead,
    NormActRetinaNetHead,
    NormActRPNHead,
    NormActSemSegFPNHead,
)
from .norm import Norm, is_norm_act
from .resnet import (
    NormActBasicBlock,
    NormActBottleneckBlock,
    NormActDeformBottleneckBlock,
    NormActStem,
)

_NORM_ARGUMENTS = ("norm", "conv_norm", "norm1", "norm2")
_OURS = {
    BasicStem: NormActStem,
    BasicBlock: NormActBasicBlock,
    BottleneckBlock: NormActBottleneckBlock,
    DeformBottleneckBlock: NormActDeformBottleneckBlock,
    FPN: NormActFPN,
    StandardRPNHead: NormActRPNHead,
    FastRCNNConvFCHead: NormActConvFCHead,
    MaskRCNNConvUpsampleHead: NormActConvUpsampleHead,
    RetinaNetHead: NormActRetinaNetHead,
    SemSegFPNHead: NormActSemSegFPNHead,
}


def resolve_lazy(model: DictConfig, **options: Any) -> DictConfig:
    """Swap stock classes for ours wherever a norm argument names a norm-act, in place.

    Set `norm` or `conv_norm` of a LazyConfig's model (`model.proposal_generator.head.norm` too) to
    a norm-act's name, call this, and instantiate as always.

    Args:
        model: the model's LazyCall node.
        options: the norm-acts' options, see :func:`evonorm.build_norm_act`.

    Returns:
        model itself.

    Raises:
        ValueError: a class in which a ReLU would follow the norm-act.
    """
    nodes = [node for node in _nodes(model) if _named_norms(node)]
    changes = [(node, *_target_and_block(node)) for node in nodes]
    for node, target, block_class in changes:
        node._target_ = target
        if block_class is not None:
            node.block_class = block_class
        for key in _named_norms(node):
            node[key] = LazyCall(Norm)(name=node[key], **options)
    for node in _nodes(model):
        head = node.get("head")
        if isinstance(head, DictConfig) and head.get("_target_") is NormActRPNHead:
            head.num_levels = len(node.in_features)
    return model


def _nodes(node: Any) -> list[DictConfig]:
    """A node and all below it."""
    if isinstance(node, ListConfig):
        return [n for child in node for n in _nodes(child)]
    if not isinstance(node, DictConfig):
        return []
    keys = [key for key in node if not node._is_missing(key)]
    return [node] + [n for key in keys for n in _nodes(node._get_node(key))]


def _named_norms(node: DictConfig) -> list[str]:
    return [key for key in _NORM_ARGUMENTS if is_norm_act(node.get(key))]


def _target_and_block(node: DictConfig) -> tuple[Any, Any]:
    """What to call instead, and the block class to give it, if it takes one."""
    target = node.get("_target_")
    if isinstance(target, str):
        target = locate(target)
    if target is ResNet.make_default_stages:
        default = BasicBlock if node.depth < 50 else BottleneckBlock
        return target, _ours(node, node.get("block_class") or default)
    if target is ResNet.make_stage:
        return target, _ours(node, node.block_class)
    return _ours(node, target), None


def _ours(node: DictConfig, target: Any) -> Any:
    target = locate(target) if isinstance(target, str) else target
    if target in _OURS.values():
        return target
    if target not in _OURS:
        name = target if target is None else _convert_target_to_string(target)
        key = _named_norms(node)[0]
        raise ValueError(
            f"{key}={node[key]!r} of {name}: it has no place for a norm-act, or would put a ReLU "
            f"after it; supported are {', '.join(c.__name__ for c in _OURS)} and ResNet's stages"
        )
    return _OURS[target]
