"""The layer of a formula, with its running statistics and, where there is one, its operator."""

from __future__ import annotations

from typing import Any, Callable, Optional

import torch
from torch import Tensor, nn

from . import ops
from .base import NormAct, affine, keep_inputs_only, looked_at, track, transformed
from .expression import Node
from .formula import read_formula
from .formulas import FORMULAS
from .program import Evaluation, Program
from .recomputation import offer
from .statistics import batch_moments, synchronized, widen

# The formulas that torch.ops.evonorm computes, with their names there.
FUSED = {read_formula(FORMULAS[f"EvoNorm{kind}"]): kind for kind in ops.reference.KINDS}


class EvoNorm(NormAct):
    """y = formula(x) * weight + bias, without another activation, as the paper's layers.

    Parameters, beside weight and bias: `v` (C,) from 1 where the formula has v1, `v0` (C,) from 0
    where it has v0. Buffers, for evaluation: what an aggregation over the batch had in training, as
    a moving average with the decay 1 - momentum: the mean, from 0; the biased variance for a std
    and the mean square for an rms, from 1. That of `std_b(x)`, or of `rms_b(x)` without it, is
    `running_var` (C,); those of all others together are `running_rest` (K, C), in the order of
    `Formula.batch`.

    Statistics are taken in float32 (float64 for float64 input); the output has the input's dtype.
    Training keeps the inputs only.

    Args:
        num_features: C of the input (N, C, H, W).
        activation: False leaves the affine map only (the paper's `nonlinearity=False`, appendix A).
        formula: in the language of :mod:`evonorm.formula`.
        options: see :func:`evonorm.build_norm_act`.

    Raises:
        FormulaError: a broken formula.
    """

    def __init__(
        self, num_features: int, activation: bool = True, *, formula: str, **options: Any
    ) -> None:
        parsed = read_formula(formula)
        super().__init__(
            num_features,
            activation,
            v=1.0 if "v1" in parsed.vectors else None,
            v0=0.0 if "v0" in parsed.vectors else None,
            **options,
        )
        self.formula = parsed
        self.norm_act = formula
        self.function = self.formula.function
        self.kind = FUSED.get(self.formula, "")
        self._batch = self.formula.batch if activation else []
        self.batch_dependent = bool(self._batch)
        usual_first = bool(self._batch) and self._batch[0].text in ("std_b(x)", "rms_b(x)")
        rest = self._batch[1:] if usual_first else self._batch
        new = {k: options.get(k) for k in ("device", "dtype")}
        usual = torch.ones(num_features, **new) if usual_first else None
        self.register_buffer("running_var", usual)
        self._first_rest = [0.0 if node.op == "mean_b" else 1.0 for node in rest]
        self.register_buffer(
            "running_rest", torch.empty(len(rest), num_features, **new) if rest else None
        )
        self.reset_running_stats()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if "running_var" in self._buffers:  # not while the parameters are made
            self.reset_running_stats()

    def reset_running_stats(self) -> None:
        """Set the running statistics to their first values."""
        if self.running_var is not None:
            nn.init.ones_(self.running_var)
        if self.running_rest is not None:
            for row, first in zip(self.running_rest, self._first_rest):
                nn.init.constant_(row, first)

    def trained_as(self) -> str:
        return str(self.formula) if self.activation else "affine"

    def forward(
        self,
        x: Tensor,
        weight: Optional[Tensor] = None,
        bias: Optional[Tensor] = None,
    ) -> Tensor:
        """Apply the layer to x (N, C, H, W).

        Args:
            weight, bias: instead of the layer's own, (C,) or (N, C) for one per sample.

        Raises:
            ValueError: wrong rank or number of channels.
            TypeError: x is not of a floating-point dtype.
        """
        if not torch.jit.is_scripting():
            self.check_input(x, weight, bias)
        if weight is None:
            weight = self.weight
        if bias is None:
            bias = self.bias
        if not self.activation:
            return self.affine(x, weight, bias)
        if not torch.jit.is_scripting():
            traced = torch.jit.is_tracing() or torch.onnx.is_in_onnx_export()
            if self.kind and not (traced or transformed()):
                return self._operator(x, weight, bias)
            return self._keep_inputs_only(x, weight, bias)
        return self.evaluate(x, self.v, self.v0, self.running_statistics(), weight, bias)

    def running_statistics(self) -> list[Tensor]:
        """Those of evaluation, (C,) each, in the order of `Formula.batch`."""
        statistics: list[Tensor] = []
        usual, rest = self.running_var, self.running_rest
        if usual is not None:
            statistics.append(usual)
        if rest is not None:
            statistics.extend(rest.unbind(0))
        return statistics

    def evaluate(
        self,
        x: Tensor,
        v: Optional[Tensor],
        v0: Optional[Tensor],
        statistics: list[Tensor],
        weight: Optional[Tensor],
        bias: Optional[Tensor],
    ) -> Tensor:
        wide = widen(x)
        # A formula ignores what its layer lacks; x stands in, as TorchScript wants a tensor.
        v_ = wide if v is None else v.to(wide.dtype)[:, None, None]
        v0_ = wide if v0 is None else v0.to(wide.dtype)[:, None, None]
        batch = [s.to(wide.dtype)[:, None, None] for s in statistics]
        y = self.function(wide, v0_, v_, batch, self.num_groups, self.eps)
        y = affine(y, weight, bias)
        if x.dtype == torch.float16:  # a large constant over sqrt(eps) would be infinite
            y = y.clamp(-65504, 65504)
        return y.to(x.dtype)

    def affine(self, x: Tensor, weight: Optional[Tensor], bias: Optional[Tensor]) -> Tensor:
        if weight is not None and bias is not None:
            mixed = weight.dtype == torch.float32 and x.dtype != torch.float64
            alike = weight.dtype == bias.dtype and (weight.dtype == x.dtype or mixed)
            if alike and weight.dim() + bias.dim() == 2:
                # PyTorch's kernel for a BatchNorm in evaluation: one pass, and so the gradients.
                mean, var = torch.zeros_like(weight), torch.ones_like(weight)
                return torch.batch_norm(x, weight, bias, mean, var, False, 0.0, 0.0, False)
        return affine(x, weight, bias).to(x.dtype)

    @torch.jit.unused
    def _operator(self, x: Tensor, weight: Optional[Tensor], bias: Optional[Tensor]) -> Tensor:
        var, own = self.running_var, False
        if self.training and self.batch_dependent:
            own = not synchronized(self.sync)
            var = None if own else self._batch_statistics(x)[0]
        y, _, batch = torch.ops.evonorm.forward(
            x, self.v, var, weight, bias, self.num_groups, self.eps, self.kind
        )
        if own and x.numel():
            track(self.running_var, batch[1], self.momentum)
        return offer(y, self._output, x, self.v, var, weight, bias)

    def _output(self, *tensors: Any) -> Tensor:
        return torch.ops.evonorm.forward(*tensors, self.num_groups, self.eps, self.kind)[0]

    @torch.jit.unused
    def _keep_inputs_only(
        self, x: Tensor, weight: Optional[Tensor], bias: Optional[Tensor]
    ) -> Tensor:
        if self.training and self.batch_dependent:
            statistics = self._batch_statistics(x)
        else:
            statistics = self.running_statistics()

        def evaluate(x: Tensor, *rest: Any) -> Tensor:
            v, v0, weight, bias, *statistics = rest
            return self.evaluate(x, v, v0, statistics, weight, bias)

        inputs = (x, self.v, self.v0, weight, bias, *statistics)
        return self._evaluated(self.formula.program, evaluate, *inputs)

    def _evaluated(
        self, program: Program | None, function: Callable[..., Tensor], *inputs: Tensor | None
    ) -> Tensor:
        """function(*inputs), by its program where that is possible; training keeps the inputs."""
        if program is None or looked_at() or not ops.evaluates(*inputs):
            return offer(keep_inputs_only(function, *inputs), function, *inputs)
        evaluation = Evaluation(function, program, self.num_groups, self.eps)
        return offer(evaluation.run(*inputs), evaluation.forward, *inputs)

    @torch.jit.unused
    def _batch_statistics(self, x: Tensor) -> list[Tensor]:
        """What each aggregation over the batch has of x, (C,) each; the running ones follow it."""
        found: list[Tensor] = []
        moments: dict[Node, tuple[Tensor, Tensor, Tensor]] = {}
        for node, inner, running in zip(
            self._batch, self.formula.inner_functions, self.running_statistics()
        ):
            argument = node.inputs[0]
            if argument not in moments:
                moments[argument] = self._moments(inner, x, found)
            mean, var, count = moments[argument]
            value = {"mean_b": mean, "std_b": var}.get(node.op)
            found.append(var + mean.square() if value is None else value)
            share = self.momentum * count.clamp(max=1)  # nothing of an empty batch
            track(running, found[-1], share)
        return found

    def _moments(self, inner: Any, x: Tensor, found: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance and number of values of what an aggregation is taken of."""
        if inner is None:
            return batch_moments(x, self.sync)

        def of_inner(x: Tensor, v: Any, v0: Any, *statistics: Tensor) -> Tensor:
            wide = widen(x)
            v_, v0_ = (wide if p is None else p.to(wide.dtype)[:, None, None] for p in (v, v0))
            batch = [s[:, None, None] for s in statistics]
            y = inner(wide, v0_, v_, batch, self.num_groups, self.eps)
            mean, var, count = batch_moments(y, self.sync)
            return torch.stack([mean, var, count.expand_as(mean)])

        mean, var, count = keep_inputs_only(of_inner, x, self.v, self.v0, *found)
        return mean, var, count[0].detach()

    def __getstate__(self) -> dict[str, Any]:
        # Generated functions can't be pickled; the formula makes them again.
        return {k: value for k, value in self.__dict__.items() if k != "function"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.function = self.formula.function
