"""Training with less memory: outputs of norm-acts are computed again, not kept.

A norm-act keeps its input for its backward pass, and the convolution after it keeps its output.
The output is a function of the input, so one of the two is enough.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Callable

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

_MARK = "_evonorm_again"  # of an output: how to compute it again
_depth = 0  # of contexts that are open


@contextmanager
def recompute_outputs() -> Iterator[None]:
    """A context for a forward pass: what follows an EvoNorm keeps no output of it.

    The backward pass computes the output again from the layer's input, equal to the bit. That costs
    a second forward pass of the layer for each operation that needs its output. It serves layers of
    :class:`evonorm.EvoNorm`, so of any name or formula, with DDP, AMP and accumulation; compiled,
    traced and TorchScript code is not changed by it. Other saved-tensor hooks around it do not see
    what is saved within it.
    """
    global _depth
    _depth += 1
    try:
        with saved_tensors_hooks(_pack, _unpack):
            yield
    finally:
        _depth -= 1


def recompute(model: nn.Module) -> nn.Module:
    """Let a model's forward passes in training run within :func:`recompute_outputs`, in place.

    Returns:
        the model itself.
    """
    context = _OfModel()
    model.register_forward_pre_hook(context.enter)
    model.register_forward_hook(context.leave, always_call=True)
    return model


class _OfModel:
    """The contexts of a model's passes; one that is deep-copied with its model has its own."""

    def __init__(self) -> None:
        self.open: list[Any] = []

    def enter(self, model: nn.Module, inputs: Any) -> None:
        context = recompute_outputs() if model.training and torch.is_grad_enabled() else None
        self.open.append(context)
        if context is not None:
            context.__enter__()

    def leave(self, model: nn.Module, inputs: Any, output: Any) -> None:
        context = self.open.pop() if self.open else None
        if context is not None:
            context.__exit__(None, None, None)


class _Again:
    """How to compute a tensor again: a function and its inputs, without their graph."""

    def __init__(self, function: Callable[..., Tensor], *inputs: Tensor | None) -> None:
        self.function = function
        self.inputs = [_pack(t) if t is None else _pack(t, t.detach()) for t in inputs]

    @torch.no_grad()
    def __call__(self) -> Tensor:
        return self.function(*map(_unpack, self.inputs))


def offer(y: Tensor, function: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
    """Say that y is function(*inputs), which whatever saves y within a context may use.

    Among the inputs may be outputs of norm-acts. Returns y.
    """
    if _depth and y.requires_grad and not torch.compiler.is_compiling():
        setattr(y, _MARK, (_Again(function, *inputs), y._version))
    return y


def _pack(tensor: Tensor | None, otherwise: Tensor | None = None) -> Tensor | _Again | None:
    again, version = getattr(tensor, _MARK, (None, None))
    if again is not None and version == tensor._version:
        return again
    return tensor if otherwise is None else otherwise


def _unpack(packed: Tensor | _Again | None) -> Tensor | None:
    return packed() if isinstance(packed, _Again) else packed
