"""What a detector costs: parameters, multiply-adds (MAdds) and activations, part by part.

The rules are those of the paper's table 4. Each conv and fc counts in the graph that trains on one
image. Every norm counts 2 per element, with or without an activation. One multiply-add counts as
one. Biases, additions, activations without a norm, resizing and pooling count nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, Callable

import torch
from detectron2.config import CfgNode
from detectron2.layers import DeformConv, ModulatedDeformConv, ShapeSpec, batch_norm
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch import GeneralizedRCNN, ProposalNetwork, SemanticSegmentor
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.utils import analysis
from fvcore.nn.jit_handles import get_shape
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from evonorm_runs.errors import user_errors

IMAGE_SIZE = 1024  # pixels, both sides: the paper's (section 5.4)
META_ARCHITECTURES = (GeneralizedRCNN, ProposalNetwork, RetinaNet, SemanticSegmentor)
_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    batch_norm.FrozenBatchNorm2d,
    getattr(batch_norm, "LayerNorm", nn.LayerNorm),  # Detectron2 0.6 has none
)


@dataclass(frozen=True)
class Complexity:
    """Counts of a model or a part of one.

    Attributes:
        parameters: learnable values, frozen or not; one that is shared counts once.
        conv_madds: multiply-adds of convs, fcs and other matrix products.
        norm_madds: 2 per element of each norm's output.
        activations: elements in the outputs of convs, fcs and other matrix products.
    """

    parameters: int
    conv_madds: int
    norm_madds: int
    activations: int

    @property
    def madds(self) -> int:
        return self.conv_madds + self.norm_madds


def count_flops(module: nn.Module, inputs: Any) -> Complexity:
    """Count one call of a model, or of a part of one, in evaluation mode.

    Args:
        module: on any device. On "meta" nothing is computed, so it takes no time.
        inputs: a tuple of arguments, or the only argument.
    """
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)
    return _count([module], partial(module, *arguments))


def analyze(cfg: CfgNode) -> dict[str, Complexity]:
    """Count the detector of a config, as it trains on one image of 1024x1024 pixels.

    The box head sees MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE regions, mask and keypoint heads
    POSITIVE_FRACTION of them. Nothing is computed: it takes neither a GPU nor weights.

    Args:
        cfg: after :func:`evonorm_d2.config.resolve`; it stays as it is.

    Returns:
        the parts' counts by name, and under "total" their sum.

    Raises:
        ValueError: a component that is unknown, or that there is no rule for.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"), user_errors(AssertionError, KeyError, prefix="no model: "):
        model = build_model(cfg)
    if not isinstance(model, META_ARCHITECTURES):
        known = ", ".join(c.__name__ for c in META_ARCHITECTURES)
        raise ValueError(
            f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}, which can't be counted; "
            f"{known} and their subclasses can"
        )
    parts = list(_parts(model))
    counted = {id(p) for _, modules, _ in parts for m in modules for p in m.parameters()}
    for name, parameter in model.named_parameters():
        if id(parameter) not in counted:
            raise ValueError(f"{name} belongs to no part of the model that can be counted")
    counts = {name: _count(modules, run) for name, modules, run in parts}
    fields = [[getattr(c, f) for c in counts.values()] for f in Complexity.__dataclass_fields__]
    return {**counts, "total": Complexity(*map(sum, fields))}


class FlopCountAnalysis(analysis.FlopCountAnalysis):
    """Detectron2's (and so fvcore's) `FlopCountAnalysis` with the counting of this module.

    Detectron2's own class counts 0 per element of an EvoNorm, 5 of GN, and nothing for a deformable
    conv. Here norms appear as the operator "norm". Each submodule is counted too, so the model is
    traced on a real device.

    Args:
        model, inputs: as for Detectron2's class.
    """

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        super().__init__(model, inputs)
        self.set_op_handle(**dict.fromkeys(_UNCOUNTED, _count_nothing))
        self.set_op_handle("aten::alias_copy", _count_mark)
        # The arguments are input, offset, [mask], weight, ...
        for name, place in (("_DeformConv", 2), ("_ModulatedDeformConv", 3)):
            self.set_op_handle(f"prim::PythonOp.{name}", partial(_count_deformable, place))

    def _analyze(self) -> Any:
        with _norms_replaced(self._model, _mark):
            return super()._analyze()


class _Activations(TorchDispatchMode):
    """Adds up the outputs of those operators that PyTorch has a FLOP formula for."""

    elements = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.elements += (out[0] if isinstance(out, tuple) else out).numel()
        return out


def _count(modules: list[nn.Module], run: Callable[[], Any]) -> Complexity:
    whole = nn.ModuleList(modules)
    was_training = [m for m in whole.modules() if m.training]
    deformable = [m for m in whole.modules() if isinstance(m, (DeformConv, ModulatedDeformConv))]
    normed: list[int] = []

    def uncounted(forward: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        with _disable_current_modes():  # the counters
            output = forward(*args, **kwargs)
        normed.append(output.numel())
        return output

    for conv in deformable:
        conv.forward = partial(_plain_conv, conv)
    whole.eval()
    flops, activations = FlopCounterMode(display=False), _Activations()
    try:
        # In inference mode a linear or a matmul would pass as one operator without a formula.
        with torch.inference_mode(False), torch.no_grad(), _norms_replaced(whole, uncounted):
            with flops, activations:
                run()
    finally:
        for m in was_training:
            m.training = True
        for conv in deformable:
            del conv.forward
    parameters = sum(p.numel() for p in whole.parameters())
    # PyTorch counts a multiply-add as two.
    conv_madds = flops.get_total_flops() // 2
    return Complexity(parameters, conv_madds, 2 * sum(normed), activations.elements)


def _norms(module: nn.Module) -> list[nn.Module]:
    """The outermost norms in a module, as a norm may be made of others."""
    if isinstance(module, _NORMS) or getattr(module, "norm_act", ""):
        return [module]
    return list(dict.fromkeys(norm for child in module.children() for norm in _norms(child)))


def _plain_conv(conv: nn.Module, x: Tensor, *offset_and_mask: Tensor) -> Tensor:
    """A plain conv with the same MAdds, since Detectron2's deformable convs don't run on "meta"."""
    x = nn.functional.conv2d(
        x, conv.weight, None, conv.stride, conv.padding, conv.dilation, conv.groups
    )
    x = x if conv.norm is None else conv.norm(x)
    return x if conv.activation is None else conv.activation(x)


def _parts(model: nn.Module) -> Iterator[tuple[str, list[nn.Module], Callable[[], Any]]]:
    """The name, the modules and a call of each part of a detector on "meta"."""
    shapes = model.backbone.output_shape()
    features = {
        name: _empty(1, s.channels, IMAGE_SIZE // s.stride, IMAGE_SIZE // s.stride)
        for name, s in shapes.items()
    }
    image = _empty(1, len(model.pixel_mean), IMAGE_SIZE, IMAGE_SIZE)
    yield "backbone", [model.backbone], partial(model.backbone, image)
    rpn = getattr(model, "proposal_generator", None)
    if rpn is not None:
        levels = [features[name] for name in rpn.in_features]
        yield "RPN head", [rpn], partial(rpn.rpn_head, levels)
    if hasattr(model, "roi_heads"):
        yield from _roi_parts(model.roi_heads, shapes)
    if hasattr(model, "sem_seg_head"):
        yield "sem seg head", [model.sem_seg_head], _layers(model.sem_seg_head, features)
    if isinstance(model, RetinaNet):
        levels = [features[name] for name in model.head_in_features]
        yield "RetinaNet head", [model.head], partial(model.head, levels)


def _roi_parts(
    roi: nn.Module, shapes: dict[str, ShapeSpec]
) -> Iterator[tuple[str, list[nn.Module], Callable[[], Any]]]:
    if not isinstance(roi, StandardROIHeads):
        raise ValueError(
            f"MODEL.ROI_HEADS.NAME is {type(roi).__name__}, which can't be counted; "
            "StandardROIHeads, CascadeROIHeads and their subclasses can"
        )

    def regions(kind: str, number: int) -> Tensor:
        channels = shapes[getattr(roi, f"{kind}_in_features")[0]].channels
        return _empty(number, channels, *getattr(roi, f"{kind}_pooler").output_size)

    cascade = isinstance(roi.box_head, nn.ModuleList)
    heads = list(roi.box_head) if cascade else [roi.box_head]
    predictors = list(roi.box_predictor) if cascade else [roi.box_predictor]
    boxes = regions("box", roi.batch_size_per_image)
    run = lambda: [p(h(boxes)) for h, p in zip(heads, predictors)]  # noqa: E731
    yield "box head", [*heads, *predictors], run
    for kind in ("mask", "keypoint"):
        if getattr(roi, f"{kind}_on"):
            head = getattr(roi, f"{kind}_head")
            positive = int(roi.batch_size_per_image * roi.positive_fraction)
            yield f"{kind} head", [head], _layers(head, regions(kind, positive))


def _layers(head: nn.Module, x: Any) -> Callable[[], Any]:
    """A call of the head without its loss."""
    if not hasattr(head, "layers"):
        raise ValueError(f"{type(head).__name__} can't be counted: it has no method `layers`")
    return partial(head.layers, x)


def _empty(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


@contextmanager
def _norms_replaced(module: nn.Module, replacement: Callable[..., Tensor]) -> Iterator[None]:
    """A context in which each outermost norm computes `replacement(its forward, *inputs)`."""
    norms = _norms(module)
    for norm in norms:
        norm.forward = partial(replacement, norm.forward)
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def _mark(forward: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """A norm's output, which a trace shows as one operator that nothing else uses."""
    mark = torch.ops.aten.alias_copy(x)
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)
    try:
        return mark.copy_(forward(x, *args, **kwargs))
    finally:
        torch._C._set_tracing_state(state)


def _count_mark(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    return Counter({"norm": 2 * prod(get_shape(outputs[0]))})


def _count_deformable(weight: int, inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    per_output = prod(get_shape(inputs[weight])[1:])
    return Counter({"conv": per_output * prod(get_shape(outputs[0]))})


def _count_nothing(inputs: list[Any], outputs: list[Any]) -> int:
    return 0


# What fvcore would count in addition to convs and matrix products.
_UNCOUNTED = [
    f"aten::{name}"
    for name in ("adaptive_avg_pool2d", "grid_sampler", "upsample_bilinear2d", "upsample_nearest2d")
]
