"""Names for norm-acts, so that a config, the command line and Python mean the same by one.

A norm-act is named by a registered name, by a name of :data:`evonorm.formulas.FORMULAS`, or by a
formula itself.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from functools import partial
from typing import Any, Callable

from torch import nn

from .formula import Formula, looks_like_formula, read_formula
from .formulas import FORMULAS
from .layers import EvoNorm

Factory = Callable[..., nn.Module]
_FACTORIES: dict[str, Factory] = {
    name: partial(EvoNorm, formula=text) for name, text in FORMULAS.items()
}
# What `linear` may name beside "affine" and formulas, and whose form without activation it is.
_STOCK = {"BN": "BN-ReLU", "GN": "GN-ReLU", "LN": "LN-ReLU"}


def register_norm_act(name: str) -> Callable[[Factory], Factory]:
    """Decorator: makes a norm-act of your own available under `name`, wherever a norm is named.

    The factory (a class or function) is called `factory(num_features, activation=..., **options)`
    with the options of :func:`build_norm_act`, and returns a module (N, C, H, W) -> same shape.
    With `activation=False` the module must be free of activation. A module whose output depends
    on the batch sets `batch_dependent = True` and has a `momentum` for its running statistics.

    Raises:
        ValueError: the name is taken, or reads as a formula.
    """

    def register(factory: Factory) -> Factory:
        if name in _FACTORIES:
            raise ValueError(f"norm-act {name!r} is registered already: choose another name")
        if looks_like_formula(name):
            raise ValueError(f"norm-act {name!r} reads as a formula: choose another name")
        _FACTORIES[name] = factory
        return factory

    return register


def list_norm_acts() -> list[str]:
    """The names, in the order of registration."""
    return list(_FACTORIES)


def is_norm_act(name: Any) -> bool:
    """Whether `name` names a norm-act: it is a registered name, or meant as a formula.

    A formula may still be broken: :func:`check_norm_act` tells.
    """
    return isinstance(name, str) and (name in _FACTORIES or looks_like_formula(name))


def check_norm_act(name: str) -> None:
    """Raise a ValueError of one line if `name` is an unknown name or a broken formula."""
    if name in _FACTORIES:
        return
    if is_norm_act(name):
        read_formula(name)
        return
    lower = {known.lower(): known for known in _FACTORIES}
    lower |= {stock.lower(): with_relu for stock, with_relu in _STOCK.items()}
    close = difflib.get_close_matches(str(name).lower(), lower, n=1, cutoff=0.6)
    hint = f"did you mean {lower[close[0]]!r}? " if close else ""
    shown = [known for known in _FACTORIES if known not in FORMULAS or "/" not in known]
    raise ValueError(
        f"unknown norm-act {name!r}: {hint}known are {', '.join(shown)}, "
        "EvoNormB/1 to EvoNormB/10 and EvoNormS/1 to EvoNormS/10"
    )


def formula_of(name: str) -> Formula | None:
    """The formula that a name stands for; None if it stands for none, as a baseline's name."""
    if name in FORMULAS or (name not in _FACTORIES and is_norm_act(name)):
        return read_formula(FORMULAS.get(name, name))
    return None


def slug(name: str) -> str:
    """A short name for a file or folder. Two norm-acts never share one."""
    if name in _FACTORIES or not is_norm_act(name):
        return name.replace("/", "-")
    canonical = str(read_formula(name))
    words = "_".join(re.findall(r"[\w.]+", canonical))[:32].rstrip("_.")
    return f"{words}-{hashlib.sha256(canonical.encode()).hexdigest()[:8]}"


def build_norm_act(
    name: str, num_features: int, activation: bool = True, *, linear: str = "", **options: Any
) -> nn.Module:
    """Build normalization and activation as one layer.

    Args:
        name: one of :func:`list_norm_acts`, or a formula, as :mod:`evonorm.formula` describes it.
        num_features: C of the input (N, C, H, W).
        activation: False for a place where no activation follows, such as before an addition.
        linear: what stands there. "" is the layer without its activation: of an EvoNorm or a
            formula the affine map x * weight + bias, as in the paper, of any other layer its
            normalization. "affine" is that map, "BN", "GN" and "LN" are these norms; anything else
            is a formula, such as "(x - mean_g(x)) / std_g(x)".
        options: num_groups=32 (lowered until it divides C), or group_size=n for groups of n
            channels (lowered likewise), eps=1e-5, momentum=0.1, affine=True, zero_init=False
            (weight starts at 0), sync=False (batch statistics over all ranks), device, dtype. A
            layer ignores those that do not concern it.

    Raises:
        ValueError: unknown name, broken formula, impossible value.
        TypeError: unknown option.
    """
    check_norm_act(name)
    check_linear(linear)
    if linear and not activation:
        return _build_linear(linear, num_features, options)
    factory = _FACTORIES.get(name) or partial(EvoNorm, formula=name)
    layer = factory(num_features, activation=activation, **options)
    layer.norm_act = name
    if not hasattr(layer, "activation"):  # a layer of one's own, such as a Sequential
        layer.activation = activation
    return layer


def check_linear(linear: str) -> None:
    """Raise a ValueError of one line if `linear` is nothing that :func:`build_norm_act` takes."""
    if linear in ("", "affine", *_STOCK):
        return
    if not isinstance(linear, str) or not looks_like_formula(linear):
        known = ", ".join(_STOCK)
        raise ValueError(f'linear={linear!r} should be "", affine, {known} or a formula')
    read_formula(linear)


def _build_linear(linear: str, num_features: int, options: dict[str, Any]) -> nn.Module:
    if linear == "affine":
        layer: nn.Module = EvoNorm(num_features, activation=False, formula="x", **options)
    elif linear in _STOCK:
        layer = _FACTORIES[_STOCK[linear]](num_features, activation=False, **options)
    else:
        layer = EvoNorm(num_features, formula=linear, **options)
        layer.linear = True
    layer.norm_act = linear
    return layer
