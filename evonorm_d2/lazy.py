"""The swap of Detectron2's components for ours in a LazyConfig: by class instead of by name."""

from __future__ import annotations

from typing import Any

from detectron2.config import LazyCall
from detectron2.modeling.backbone import ResNet
from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock
from detectron2.modeling.proposal_generator import StandardRPNHead
from detectron2.utils.registry import _convert_target_to_string, locate
from omegaconf import DictConfig, ListConfig

from evonorm import check_linear, is_norm_act

# Importing them declares the components.
from . import fpn  # noqa: F401
from .declare import is_declared, swaps
from .heads import NormActRPNHead
from .norm import Norm, check_norm

_NORM_ARGUMENTS = ("norm", "conv_norm", "norm1", "norm2")


def resolve_lazy(model: DictConfig, **options: Any) -> DictConfig:
    """Swap stock classes for ours wherever a norm argument names a norm-act, in place.

    Set `norm` or `conv_norm` of a LazyConfig's model (`model.proposal_generator.head.norm` too) to
    a norm-act's name or formula, call this, and instantiate as always.

    Args:
        model: the model's LazyCall node.
        options: of the norm-acts, such as `linear="GN"`; see :func:`evonorm.build_norm_act`.

    Returns:
        model itself.

    Raises:
        ValueError: an unknown norm, a broken formula, or a class in which a ReLU would follow the
            norm-act.
    """
    check_linear(options.get("linear", ""))
    changes = [change for node in _nodes(model) for change in _changes(node, options)]
    for node, key, value in changes:
        node[key] = value
    for node in _nodes(model):
        head = node.get("head")
        target = _class_of(head.get("_target_")) if isinstance(head, DictConfig) else None
        if isinstance(target, type) and issubclass(target, NormActRPNHead):
            head.num_levels = len(node.in_features)
    return model


def _nodes(node: Any) -> list[DictConfig]:
    """A node and all nodes below it."""
    if isinstance(node, ListConfig):
        return [n for child in node._iter_ex(resolve=False) for n in _nodes(child)]
    if not isinstance(node, DictConfig):
        return []
    return [node] + [n for key in node for n in _nodes(node._get_node(key))]


def _changes(node: DictConfig, options: dict[str, Any]) -> list[tuple[DictConfig, str, Any]]:
    """What to set in a node: its class, its block class if it takes one, its norms."""
    target = _class_of(node.get("_target_"))
    norms = {key: node.get(key) for key in _NORM_ARGUMENTS}
    stages = target in (ResNet.make_default_stages, ResNet.make_stage)
    ours = swaps()
    if stages or target in ours or is_declared(target):
        for key, norm in norms.items():
            check_norm(f"{key} of {target.__name__}", norm)
    named = {key: norm for key, norm in norms.items() if is_norm_act(norm)}
    # The stock RPN head has no place for any norm, not even for Detectron2's own.
    if not named and not (target is StandardRPNHead and norms["norm"]):
        return []
    what = "_target_"
    if stages:
        what = "block_class"
        basic = target is ResNet.make_default_stages and node.depth < 50
        target = _class_of(node.get(what)) or (BasicBlock if basic else BottleneckBlock)
    if target not in ours and not is_declared(target):
        key, norm = next(iter(named.items()))
        supported = ", ".join(c.__name__ for c in ours if isinstance(c, type))
        raise ValueError(
            f"{key}={norm!r} of {_name_of(target)}: it has no place for a norm-act, or would put a "
            f"ReLU after it; supported are {supported} and ResNet's stages; "
            "evonorm_d2.takes_norm_act declares one of your own"
        )
    swapped = [(node, key, LazyCall(Norm)(name=norm, **options)) for key, norm in named.items()]
    return [(node, what, ours.get(target, target)), *swapped]


def _class_of(target: Any) -> Any:
    return locate(target) if isinstance(target, str) else target


def _name_of(target: Any) -> str:
    # A class that the file of a LazyConfig makes by type() has no module.
    has_path = hasattr(target, "__module__") and hasattr(target, "__qualname__")
    return _convert_target_to_string(target) if has_path else getattr(target, "__name__", target)
