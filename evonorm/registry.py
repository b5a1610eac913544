"""Names for norm-acts, so that a config, the command line and Python mean the same by one."""

from __future__ import annotations

import difflib
from typing import Any, Callable

from torch import nn

Factory = Callable[..., nn.Module]
_FACTORIES: dict[str, Factory] = {}


def register_norm_act(name: str) -> Callable[[Factory], Factory]:
    """Decorator: makes a norm-act of your own available under `name`, wherever a norm is named.

    The factory (a class or function) is called `factory(num_features, activation=..., **options)`
    with the options of :func:`build_norm_act`, and returns a module (N, C, H, W) -> same shape.
    With `activation=False` the module must be free of activation. A module whose output depends
    on the batch sets `batch_dependent = True` and has a `momentum` for its running statistics.

    Raises:
        ValueError: the name is taken.
    """

    def register(factory: Factory) -> Factory:
        if name in _FACTORIES:
            raise ValueError(f"norm-act {name!r} is registered already: choose another name")
        _FACTORIES[name] = factory
        return factory

    return register


def list_norm_acts() -> list[str]:
    """The registered names, in the order of registration."""
    return list(_FACTORIES)


def build_norm_act(
    name: str, num_features: int, activation: bool = True, **options: Any
) -> nn.Module:
    """Build normalization and activation as one layer.

    Args:
        name: one of :func:`list_norm_acts`.
        num_features: C of the input (N, C, H, W).
        activation: False for a place where no activation follows. An EvoNorm is then the affine
            map x * weight + bias, any other layer its normalization alone.
        options: num_groups=32 (lowered until it divides C), eps=1e-5, momentum=0.1, affine=True,
            zero_init=False (weight starts at 0), sync=False (batch statistics over all ranks),
            device, dtype. A layer ignores those that do not concern it.

    Raises:
        ValueError: unknown name, impossible value.
        TypeError: unknown option.
    """
    if name not in _FACTORIES:
        close = difflib.get_close_matches(str(name), _FACTORIES, n=1, cutoff=0.4)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"unknown norm-act {name!r}: {hint}known are {', '.join(_FACTORIES)}")
    layer = _FACTORIES[name](num_features, activation=activation, **options)
    layer.norm_act = name
    return layer
