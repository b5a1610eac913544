"""What a NORM key means here: a norm-act with its options, or one of Detectron2's own norms."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import get_norm
from torch import Tensor, nn

from evonorm import build_norm_act, check_norm_act, is_norm_act
from evonorm.base import NormAct


def check_norm(where: str, norm: Any) -> None:
    """Raise a ValueError if `norm`, found at `where`, is neither a norm-act nor a stock norm."""
    if not isinstance(norm, str) or _is_stock(norm):
        return
    try:
        check_norm_act(norm)
    except ValueError as error:
        others = "" if is_norm_act(norm) else ", and Detectron2's own, such as BN and GN"
        raise ValueError(f"{where}: {error}{others}") from None


def _is_stock(norm: str) -> bool:
    try:
        get_norm(norm, 32)
    except KeyError:
        return False
    return True


class Norm:
    """A norm-act with its options, as a function of the channels for `get_norm`.

    Args:
        name: of a registered norm-act, or a formula.
        activation: False for a place where no activation follows.
        options: see :func:`evonorm.build_norm_act`.
    """

    def __init__(self, name: str, activation: bool = True, **options: Any) -> None:
        self.name, self.activation, self.options = name, activation, options

    def __call__(self, channels: int) -> nn.Module:
        layer = build_norm_act(self.name, channels, self.activation, **self.options)
        layer.refuse_unknown = True  # such weights mostly come from BatchNorm
        return layer

    def without_activation(self) -> Norm:
        return Norm(self.name, False, **self.options)

    def __repr__(self) -> str:
        return f"Norm({self.name!r}, activation={self.activation}, {self.options})"


def as_norm(norm: Any) -> Any:
    """A :class:`Norm` for a name or a formula; other names and callables stay as they are."""
    return Norm(norm) if is_norm_act(norm) else norm


def norm_from_config(cfg: CfgNode, norm: str) -> Any:
    """As :func:`as_norm`, with the options of `MODEL.EVONORM`."""
    if not is_norm_act(norm):
        return norm
    if "EVONORM" not in cfg.MODEL:
        return Norm(norm)
    node = cfg.MODEL.EVONORM
    options = {
        "num_groups": node.NUM_GROUPS,
        "momentum": node.MOMENTUM,
        "sync": node.SYNC,
        "linear": node.LINEAR,
    }
    if node.get("GROUP_SIZE", 0):
        options["group_size"] = node.GROUP_SIZE
    if node.EPS is not None:
        options["eps"] = node.EPS
    return Norm(norm, **options)


def without_activation(norm: Any, channels: int) -> nn.Module | None:
    """The norm for a place where no activation follows."""
    return get_norm(norm.without_activation() if isinstance(norm, Norm) else norm, channels)


def drop_relu(conv: nn.Module, norm: Any) -> None:
    """Take the ReLU off a Detectron2 `Conv2d` whose norm is a norm-act."""
    if isinstance(norm, Norm):
        del conv.activation
        conv.activation = None


class LevelNorm(nn.Module):
    """The norm of a head that feature levels share, with statistics per level.

    It must be called once per level, in their order, like Detectron2's `CycleBatchNormList`.

    Args:
        norm: what `get_norm` takes.
        channels: C of the input.
        num_levels: how many levels there are.
        shared: whether the levels share their parameters.
    """

    def __init__(self, norm: Any, channels: int, num_levels: int, shared: bool = True) -> None:
        super().__init__()
        self.layers = nn.ModuleList(get_norm(norm, channels) for _ in range(num_levels))
        self.level = 0
        for layer in list(self.layers)[1:] if shared else ():
            for name, parameter in self.layers[0].named_parameters():
                owner, _, leaf = name.rpartition(".")
                setattr(layer.get_submodule(owner), leaf, parameter)

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for i, layer in enumerate(self.layers):
            if i == self.level:
                out = layer(x)
        self.level = (self.level + 1) % len(self.layers)
        return out


def level_norm(norm: Any, channels: int, num_levels: int) -> nn.Module:
    """The norm of a head that levels share, a :class:`LevelNorm` if it depends on the batch."""
    layer = get_norm(norm, channels)
    batch_norm = isinstance(layer, nn.modules.batchnorm._BatchNorm)
    if batch_norm or getattr(layer, "batch_dependent", False):
        return LevelNorm(norm, channels, num_levels)
    return layer


def norm_acts(module: nn.Module) -> list[nn.Module]:
    """All norm-acts in a module."""
    return [m for m in module.modules() if getattr(m, "norm_act", "")]


def freeze_norm_acts(module: nn.Module) -> None:
    """Freeze the norm-acts in a module; a frozen one evaluates, as Detectron2's frozen BN does."""
    for layer in norm_acts(module):
        layer.requires_grad_(False)
        if isinstance(layer, NormAct):
            layer.freeze()
