"""Any model of timm that gives features, as a backbone: MODEL.TIMM in a yaml, a class elsewhere."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone import FPN
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from torch import Tensor, nn

from evonorm import NormAct, build_norm_act, convert
from evonorm_runs.errors import UserError, one_line

from .declare import takes_norm_act
from .fpn import build_fpn
from .norm import Norm, as_norm, freeze_norm_acts, norm_acts, norm_from_config

BUILDERS = ("build_timm_backbone", "build_timm_fpn_backbone", "build_timm_retinanet_fpn_backbone")
_STAGES = {2: "stem", 4: "res2", 8: "res3", 16: "res4", 32: "res5", 64: "res6"}
_KEYS = ("TIMM.NORM", "FPN.NORM", "FPN.PAD_TO")


@takes_norm_act()
class TimmBackbone(Backbone):
    """The features of a timm model, named as a ResNet's are: stride 4 is "res2", 32 is "res5".

    timm's EvoNorms become ours, with their weights. Behind a model with pre-activation, whose
    features are sums without a norm, each feature gets a norm-act of the model's kind, a new one.

    Args:
        name: of the model, such as "resnetv2_50d_evos.ah_in1k".
        pretrained: whether timm loads its public weights, which needs a network once.
        file: weights to load instead, from this file, without a network.
        out_indices: of timm's features; () is all of stride 4 and more.
        norm: "" keeps the model's norms. A norm-act's name, formula or :class:`Norm` swaps them for
            that by :func:`evonorm.convert`; then they start fresh, also in a pretrained model.
        freeze_at: what the features of stride 2**freeze_at and less depend on does not train; 2 is
            up to "res2", as in Detectron2's ResNet. 0 is nothing.
        in_channels: of the images.

    Raises:
        UserError: timm is not installed or has no such model, weights or features, or a norm can't
            be swapped.
    """

    def __init__(
        self,
        name: str,
        *,
        pretrained: bool = True,
        file: str = "",
        out_indices: tuple[int, ...] = (),
        norm: Any = "",
        freeze_at: int = 0,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.body, chosen = _create(name, pretrained, file, tuple(out_indices), in_channels)
        info = self.body.feature_info
        reductions, channels = info.reduction(), info.channels()
        self._indices = chosen
        self._out_features = [_STAGES.get(reductions[i], f"s{reductions[i]}") for i in chosen]
        if len(set(self._out_features)) < len(chosen):
            strides = ", ".join(str(reductions[i]) for i in chosen)
            raise UserError(
                f"MODEL.TIMM.NAME {name}: its features {list(chosen)} have the strides {strides}; "
                "choose one of each stride by MODEL.TIMM.OUT_INDICES"
            )
        self._out_feature_strides = {
            feature: reductions[i] for feature, i in zip(self._out_features, chosen)
        }
        self._out_feature_channels = {
            feature: channels[i] for feature, i in zip(self._out_features, chosen)
        }
        self._swap_norms(name, as_norm(norm))
        kind = _pre_activation_norm(self.body)
        self.level_norms = nn.ModuleList(
            build_norm_act(kind[0], channels[i], **kind[1]) for i in chosen if kind
        )
        self._freeze([i for i, r in enumerate(reductions) if r <= 2**freeze_at and freeze_at > 0])

    def _swap_norms(self, name: str, norm: Any) -> None:
        log = logging.getLogger(__name__)
        try:
            if isinstance(norm, Norm):
                done = convert(self.body, norm.name, **norm.options)
                log.info("%s: %d norms are %s now, with new weights", name, len(done), norm.name)
            elif any(type(m).__name__.startswith("EvoNorm2d") for m in self.body.modules()):
                done = convert(self.body)
                log.info("%s: %d EvoNorms of timm's run as ours", name, len(done))
        except ValueError as error:
            raise UserError(f"MODEL.TIMM.NORM for {name}: {one_line(error)}") from error
        for layer in norm_acts(self.body) if isinstance(norm, Norm) else ():
            layer.refuse_unknown = True

    def _freeze(self, below: list[int]) -> None:
        """Freeze what the features below depend on, and what no feature at all depends on."""
        parameters = [p for p in self.body.parameters() if p.requires_grad]
        modes = [(m, m.training) for m in self.body.modules()]
        size = self.body.default_cfg["input_size"] if _fixed_size(self.body) else (0, 64, 64)
        first = next(m for m in self.body.modules() if isinstance(m, nn.Conv2d))
        features = self.body.eval()(torch.zeros(1, first.in_channels, *size[1:]))
        for module, mode in modes:
            module.training = mode

        def needed(indices: list[int]) -> set[int]:
            total = sum(features[i].float().sum() for i in indices)
            grads = torch.autograd.grad(total, parameters, retain_graph=True, allow_unused=True)
            return {id(p) for p, grad in zip(parameters, grads) if grad is not None}

        used = needed(list(self._indices))
        frozen = needed(below) if below else set()
        for parameter in parameters:
            parameter.requires_grad_(id(parameter) in used - frozen)
        _freeze_norms(self.body, frozen)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.body(x)
        chosen = [features[i] for i in self._indices]
        if str(getattr(self.body, "output_fmt", "")).endswith("NHWC"):
            chosen = [y.permute(0, 3, 1, 2) for y in chosen]
        for i, norm in enumerate(self.level_norms):
            chosen[i] = norm(chosen[i])
        return dict(zip(self._out_features, chosen))


def _create(
    name: str, pretrained: bool, file: str, out_indices: tuple[int, ...], in_channels: int
) -> tuple[nn.Module, tuple[int, ...]]:
    """timm's model with all features up to the last one chosen, and the indices chosen."""
    timm = _timm()
    if file and not os.path.isfile(file):
        raise UserError(f"MODEL.TIMM.FILE {file}: there is no such file")
    options: dict[str, Any] = {"features_only": True, "in_chans": in_channels}
    if file:
        options["pretrained_cfg_overlay"] = {"file": file}
    try:
        with torch.device("meta"):
            info = timm.create_model(name, **options).feature_info
        strides = info.reduction()
        chosen = out_indices or tuple(i for i, stride in enumerate(strides) if stride >= 4)
        options["out_indices"] = tuple(range(max(chosen) + 1))
        wanted = pretrained or bool(file)
        return timm.create_model(name, pretrained=wanted, **options), chosen
    except Exception as error:  # timm has no errors of its own, nor have those that load for it
        what = f"FILE {file}" if file else f"PRETRAINED {pretrained}, OUT_INDICES {out_indices}"
        raise UserError(f"MODEL.TIMM.NAME {name} ({what}): {one_line(error)}") from error


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise UserError("MODEL.TIMM needs the package timm: pip install timm") from error
    return timm


def _fixed_size(body: nn.Module) -> bool:
    return body.default_cfg.get("fixed_input_size", False)


def _pre_activation_norm(body: nn.Module) -> tuple[str, dict[str, Any]] | None:
    """The norm-act that a model with pre-activation has, and its options; None for other models."""
    if not any(type(m).__name__.startswith(("PreAct", "PreBottleneck")) for m in body.modules()):
        return None
    layers = [m for m in body.modules() if isinstance(m, NormAct) and m.activation]
    if layers:
        options = {"num_groups": layers[-1].num_groups, "eps": layers[-1].eps}
        return layers[-1].norm_act, options
    grouped = any(isinstance(m, nn.GroupNorm) for m in body.modules())
    return ("GN-ReLU" if grouped else "BN-ReLU"), {}


def _freeze_norms(module: nn.Module, frozen: set[int]) -> None:
    """Freeze the norms whose parameters are frozen, as Detectron2 does: they only evaluate then."""
    from timm.layers import freeze_batch_norm_2d

    for key, child in module.named_children():
        own = [id(p) for p in child.parameters(recurse=False)]
        if isinstance(child, nn.modules.batchnorm._BatchNorm) and own and frozen.issuperset(own):
            module._modules[key] = freeze_batch_norm_2d(child)
        elif getattr(child, "norm_act", "") and frozen.issuperset(own):
            freeze_norm_acts(child)
        else:
            _freeze_norms(child, frozen)


def pixels_of(name: str) -> dict[str, Any]:
    """What a timm model was trained on: `pixel_mean`, `pixel_std` (0 to 255), `input_format`."""
    if not name:
        raise UserError("MODEL.TIMM.NAME is empty: name a model of timm")
    config = _timm().get_pretrained_cfg(name)
    if config is None:
        raise UserError(f"MODEL.TIMM.NAME {name}: timm has no such model")
    mean, std = ([255 * x for x in numbers] for numbers in (config.mean, config.std))
    return {"pixel_mean": mean, "pixel_std": std, "input_format": "RGB"}


def set_pixels(cfg: CfgNode) -> list[Any]:
    """The keys that must have other values for the timm model, with these, in one list."""
    if cfg.MODEL.BACKBONE.NAME not in BUILDERS:
        return []
    pixels = pixels_of(cfg.MODEL.TIMM.NAME)
    if len(cfg.MODEL.PIXEL_MEAN) != len(pixels["pixel_mean"]):
        return []
    new = {
        "MODEL.PIXEL_MEAN": [round(x, 3) for x in pixels["pixel_mean"]],
        "MODEL.PIXEL_STD": [round(x, 3) for x in pixels["pixel_std"]],
        "INPUT.FORMAT": pixels["input_format"],
    }
    old = [cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD, cfg.INPUT.FORMAT]
    if [*map(list, old[:2]), old[2]] == list(new.values()):
        return []
    logging.getLogger(__name__).info(
        "%s sets %s", cfg.MODEL.TIMM.NAME, ", ".join(f"{key} {value}" for key, value in new.items())
    )
    return [x for pair in new.items() for x in pair]


@takes_norm_act("TIMM.NORM")
@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """The timm model of `MODEL.TIMM` without FPN. MODEL.WEIGHTS stands for timm's own weights."""
    node = cfg.MODEL.TIMM
    return TimmBackbone(
        node.NAME,
        pretrained=node.PRETRAINED and not cfg.MODEL.WEIGHTS,
        file="" if cfg.MODEL.WEIGHTS else node.FILE,
        out_indices=node.OUT_INDICES,
        norm=norm_from_config(cfg, node.NORM),
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        in_channels=input_shape.channels,
    )


@takes_norm_act(*_KEYS)
@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """The timm model of `MODEL.TIMM` with an FPN, and P6 by pooling, as Mask R-CNN takes it."""
    return build_fpn(cfg, build_timm_backbone(cfg, input_shape), LastLevelMaxPool())


@takes_norm_act(*_KEYS)
@BACKBONE_REGISTRY.register()
def build_timm_retinanet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """The same with P6 and P7 by convs, as RetinaNet takes it."""
    bottom_up = build_timm_backbone(cfg, input_shape)
    channels = bottom_up.output_shape()["res5"].channels
    return build_fpn(cfg, bottom_up, LastLevelP6P7(channels, cfg.MODEL.FPN.OUT_CHANNELS))
