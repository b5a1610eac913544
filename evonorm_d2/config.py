"""Config keys of the plugin, and the swap of Detectron2's component names for ours."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import Res5ROIHeads

from evonorm import check_linear, is_norm_act
from evonorm_runs.errors import user_errors

# Importing them registers the components.
from . import fcos, heads, paper, res5, timm_backbone, weight_standardization  # noqa: F401
from .data.annotations import ROI_HEADS
from .declare import is_declared, names_instead_of, names_that_read
from .norm import check_norm
from .timm_backbone import BUILDERS, set_pixels

# For each key: the key that names its component. Components declare what they read.
COMPONENTS = {
    "RESNETS.NORM": "BACKBONE.NAME",
    "FPN.NORM": "BACKBONE.NAME",
    "FPN.PAD_TO": "BACKBONE.NAME",
    "EVONORM.ZERO_INIT_LAST": "BACKBONE.NAME",
    "RPN.NORM": "RPN.HEAD_NAME",
    "ROI_BOX_HEAD.NORM": "ROI_BOX_HEAD.NAME",
    "ROI_MASK_HEAD.NORM": "ROI_MASK_HEAD.NAME",
    "SEM_SEG_HEAD.NORM": "SEM_SEG_HEAD.NAME",
    "RETINANET.NORM": "META_ARCHITECTURE",
    "TIMM.NORM": "BACKBONE.NAME",
}
# For a key that only some of Detectron2's architectures read: their names.
_READ_BY = {
    "RPN.NORM": (*ROI_HEADS, "ProposalNetwork"),
    "ROI_BOX_HEAD.NORM": ROI_HEADS,
    "ROI_MASK_HEAD.NORM": ROI_HEADS,
    "SEM_SEG_HEAD.NORM": ("PanopticFPN", "SemanticSegmentor"),
    "RETINANET.NORM": ("RetinaNet", "NormActRetinaNet", "NormActFCOS"),
}
_ARCHITECTURES = {name for names in _READ_BY.values() for name in names}
# If another key has one of these values, nothing reads a key.
_UNREAD = {
    "RPN.NORM": ("PROPOSAL_GENERATOR.NAME", ("PrecomputedProposals",)),
    "ROI_BOX_HEAD.NORM": ("ROI_HEADS.NAME", ("Res5ROIHeads", "NormActRes5ROIHeads")),
    "ROI_MASK_HEAD.NORM": ("MASK_ON", (False,)),
    "FPN.NORM": (
        "BACKBONE.NAME",
        ("build_resnet_backbone", "build_norm_act_resnet_backbone", "build_timm_backbone"),
    ),
    "RESNETS.NORM": ("BACKBONE.NAME", BUILDERS),
}
# Keys that Detectron2's own components would ignore, whatever the norm is.
_ONLY_OURS = ("RPN.NORM", "FPN.PAD_TO", "EVONORM.ZERO_INIT_LAST")


def add_evonorm_config(cfg: CfgNode) -> CfgNode:
    """Add the plugin's keys to a Detectron2 config, in place, unless they are there.

    MODEL.RPN.NORM: norm of the RPN head's conv; "" for none, as in Detectron2.
    MODEL.FPN.PAD_TO: pad batches to multiples of this many pixels; 0 pads as little as possible.
    MODEL.EVONORM: the options of norm-acts, which :func:`evonorm.build_norm_act` describes. EPS
        None means each layer's own. LINEAR is the norm where no activation follows: "", affine, BN,
        GN, LN or a formula. With ZERO_INIT_LAST the weight of the last norm of each residual branch
        starts at 0. RECOMPUTE computes outputs of EvoNorms again in the backward pass, for less
        memory. Models that are built with :mod:`evonorm_d2.env`, as by train_net.py, read it;
        call :func:`evonorm.recompute` on others.
    MODEL.TIMM: the backbone `build_timm_fpn_backbone`: NAME of the model; PRETRAINED, whether timm
        loads its weights, if MODEL.WEIGHTS is ""; FILE, weights to load instead; OUT_INDICES of its
        features, [] for all of stride 4 and more; NORM, "" for the model's own.
    DATASETS.COCO: data sets of one's own in COCO's format, {name: [annotations.json, images/]}, and
        DATASETS.CLASSES, the names of their classes, which :func:`evonorm_d2.data.own.use_own_data`
        fills in.
    SOLVER.ACCUMULATE: the number of parts that the batch of a step is taken in. SOLVER.EMA_DECAY:
        if not 0, that of a moving average of the weights, which is evaluated. TEST.BEST_METRIC: if
        not "", such as bbox/AP, model_best.pth is the checkpoint with the highest. TEST.PATIENCE:
        if not 0, a run ends after so many evaluations without a better one. train_net.py reads
        these four.
    SOLVER.REFERENCE_IMS_PER_BATCH: if not 0, the images of a step that learning rate and schedule
        are for; :func:`evonorm_d2.solver.scale_to_images` scales them to IMS_PER_BATCH.
    WANDB_PROJECT: if not "", train_net.py logs the run to this project of Weights & Biases too.
    INPUT.LSJ: large-scale jitter: resize by MIN_SCALE to MAX_SCALE, crop or pad to SIZE (pixels).
    """
    if "EVONORM" in cfg.MODEL:
        return cfg
    cfg.MODEL.RPN.NORM = ""
    cfg.MODEL.FPN.PAD_TO = 0
    groups = {"NUM_GROUPS": 32, "GROUP_SIZE": 0}
    options = {"EPS": None, "MOMENTUM": 0.1, "SYNC": False, "LINEAR": "", "ZERO_INIT_LAST": False}
    cfg.MODEL.EVONORM = CfgNode({**groups, **options, "RECOMPUTE": False})
    cfg.MODEL.TIMM = CfgNode({"NAME": "", "PRETRAINED": True, "FILE": "", "OUT_INDICES": []})
    cfg.MODEL.TIMM.NORM = ""
    cfg.SOLVER.ACCUMULATE, cfg.SOLVER.EMA_DECAY, cfg.TEST.BEST_METRIC = 1, 0.0, ""
    cfg.SOLVER.REFERENCE_IMS_PER_BATCH = cfg.TEST.PATIENCE = 0
    cfg.WANDB_PROJECT = ""
    cfg.DATASETS.COCO, cfg.DATASETS.CLASSES = CfgNode(new_allowed=True), []
    cfg.INPUT.LSJ = CfgNode({"ENABLED": False, "MIN_SCALE": 0.1, "MAX_SCALE": 2.0, "SIZE": 1024})
    return cfg


def resolve(cfg: CfgNode) -> CfgNode:
    """Swap the names of stock components for ours wherever a NORM key names a norm-act, in place.

    The config may be frozen. If this raises an error, or is called a second time, it changes
    nothing. A norm-act at a key that nothing reads, such as MODEL.ROI_BOX_HEAD.NORM of a RetinaNet,
    has no effect; the log says so.

    For a backbone of timm's it sets MODEL.PIXEL_MEAN, MODEL.PIXEL_STD and INPUT.FORMAT to those
    that the model was trained with, and says so in the log.

    Returns:
        cfg itself.

    Raises:
        ValueError: an unknown norm, a broken formula, or a component in which a ReLU would follow
            the norm-act.
    """
    changes = {}
    for key, norm in _norm_keys(cfg.MODEL):
        check_norm(f"MODEL.{key}", norm)
        if is_norm_act(norm) and not _unread(cfg, key):
            changes |= _swap(cfg, key, norm)
    if "EVONORM" in cfg.MODEL:
        with user_errors(ValueError, prefix="MODEL.EVONORM.LINEAR: "):
            check_linear(cfg.MODEL.EVONORM.LINEAR)
    for key in _ONLY_OURS if "EVONORM" in cfg.MODEL else ():
        name_key, ours = COMPONENTS[key], names_instead_of(key)
        name = _get(cfg, name_key)
        if _get(cfg, key) and name in ours and not _unread(cfg, key):
            changes[name_key] = ours[name]
    if is_norm_act(cfg.MODEL.RESNETS.NORM):
        changes |= _swap_res5(cfg)
        if not _unread(cfg, "RESNETS.NORM"):
            _warn_if_random_is_frozen(cfg)
    _warn_of_unread(cfg)
    pixels = set_pixels(cfg)
    frozen = cfg.is_frozen()
    cfg.defrost()
    cfg.merge_from_list([x for key, name in changes.items() for x in (f"MODEL.{key}", name)])
    cfg.merge_from_list(pixels)
    if frozen:
        cfg.freeze()
    return cfg


def _norm_keys(node: CfgNode, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from _norm_keys(value, f"{prefix}{key}.")
        elif key == "NORM":
            yield prefix + key, value


def _unread(cfg: CfgNode, key: str) -> str:
    """The other key because of which nothing reads this one; "" if something reads it, or may."""
    architecture = cfg.MODEL.META_ARCHITECTURE
    if architecture in _ARCHITECTURES and architecture not in _READ_BY.get(key, (architecture,)):
        return "META_ARCHITECTURE"
    other, values = _UNREAD.get(key, ("", ()))
    return other if other and _get(cfg, other) in values else ""


def _swap(cfg: CfgNode, key: str, norm: str) -> dict[str, str]:
    readers = names_that_read(key)
    if key not in COMPONENTS:
        if not readers:
            raise ValueError(
                f"MODEL.{key} is {norm}, but no component is declared to read that key"
            )
        return {}  # a key of its own component
    name_key, ours = COMPONENTS[key], names_instead_of(key)
    name = _get(cfg, name_key)
    if name in ours:
        return {name_key: ours[name]}
    if name not in readers:
        raise ValueError(
            f"MODEL.{key} is {norm}, but {name!r} (MODEL.{name_key}) has no place for it, or would "
            f"put a ReLU after it; supported are {', '.join(ours)}; evonorm_d2.takes_norm_act "
            "declares one of your own"
        )
    return {}


def _swap_res5(cfg: CfgNode) -> dict[str, str]:
    """The heads of a C4 model have a stage of the ResNet, with its norm."""
    name = cfg.MODEL.ROI_HEADS.NAME
    if "RCNN" not in cfg.MODEL.META_ARCHITECTURE or name not in ROI_HEADS_REGISTRY:
        return {}
    roi_heads = ROI_HEADS_REGISTRY.get(name)
    if roi_heads is Res5ROIHeads:
        return {"ROI_HEADS.NAME": "NormActRes5ROIHeads"}
    derived = isinstance(roi_heads, type) and issubclass(roi_heads, Res5ROIHeads)
    if derived and not is_declared(roi_heads):
        raise ValueError(
            f"MODEL.RESNETS.NORM is {cfg.MODEL.RESNETS.NORM}, but {name!r} (MODEL.ROI_HEADS.NAME) "
            "would put a ReLU after it; derive it from evonorm_d2.res5.NormActRes5ROIHeads"
        )
    return {}


def _warn_if_random_is_frozen(cfg: CfgNode) -> None:
    if not cfg.MODEL.WEIGHTS and cfg.MODEL.BACKBONE.FREEZE_AT > 0:
        logging.getLogger(__name__).warning(
            "MODEL.WEIGHTS is empty and MODEL.BACKBONE.FREEZE_AT is %d: the first stages stay at "
            "their random start. Set MODEL.BACKBONE.FREEZE_AT 0 to train from scratch",
            cfg.MODEL.BACKBONE.FREEZE_AT,
        )


def _warn_of_unread(cfg: CfgNode) -> None:
    for key, norm in _norm_keys(cfg.MODEL):
        other = _unread(cfg, key) if is_norm_act(norm) else ""
        if other:
            logging.getLogger(__name__).warning(
                "MODEL.%s is %s, but nothing reads it, as MODEL.%s is %s",
                *(key, norm, other, _get(cfg, other)),
            )


def _get(cfg: CfgNode, key: str) -> Any:
    return functools.reduce(CfgNode.__getitem__, key.split("."), cfg.MODEL)
