"""EvoNorms as modules: parameters, running statistics, a backward pass that keeps only inputs."""

from __future__ import annotations

from functools import partial
from typing import Any, Callable, Optional

import torch
from torch import Tensor, nn

from . import functional as F
from . import ops
from .candidates import CANDIDATES_B, CANDIDATES_S
from .registry import register_norm_act
from .statistics import batch_moments, synchronized, widen


class NormAct(nn.Module):
    """What all norm-acts share: parameters, options, checks, freezing.

    Parameters `weight` (C,) from 1 and `bias` (C,) from 0 unless `affine` is False, and `v` (C,)
    from `v` unless that is None. State dicts load timm's EvoNorms by name.
    """

    _version = 4  # tells our state dicts from BatchNorm's (2), FrozenBatchNorm2d's (3), others (1)
    batch_dependent = False
    like_torch = False  # whether weight and bias mean what they do in BatchNorm or GroupNorm
    norm_act = ""  # the registered name, set by build_norm_act

    def __init__(
        self,
        num_features: int,
        activation: bool = True,
        *,
        v: float | None = None,
        num_groups: int = 32,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        zero_init: bool = False,
        sync: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            known = "num_groups, eps, momentum, affine, zero_init, sync, device, dtype"
            raise TypeError(f"unknown option {', '.join(unknown)}: known are {known}")
        _check("num_features", num_features, isinstance(num_features, int) and num_features > 0)
        _check("num_groups", num_groups, isinstance(num_groups, int) and num_groups > 0)
        _check("eps", eps, isinstance(eps, (int, float)) and eps >= 0)
        _check("momentum", momentum, isinstance(momentum, (int, float)) and 0 <= momentum <= 1)
        self.num_features = num_features
        self.activation = activation
        # Authors' rule (reference release): fewer groups where C is not divisible.
        self.num_groups = max(
            g for g in range(1, min(num_groups, num_features) + 1) if num_features % g == 0
        )
        self.eps = float(eps)
        self.momentum = momentum
        self.zero_init = zero_init
        self.sync = sync
        self.frozen = False
        self._v_init = v
        factory = {"device": device, "dtype": dtype}
        new = lambda: nn.Parameter(torch.empty(num_features, **factory))  # noqa: E731
        self.register_parameter("weight", new() if affine else None)
        self.register_parameter("bias", new() if affine else None)
        self.register_parameter("v", new() if activation and v is not None else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.weight is not None:
            nn.init.constant_(self.weight, 0.0 if self.zero_init else 1.0)
            nn.init.zeros_(self.bias)
        if self.v is not None:
            nn.init.constant_(self.v, self._v_init)

    def freeze(self) -> NormAct:
        """Stop learning, and evaluate from now on whatever mode the model is in."""
        self.requires_grad_(False)
        self.frozen = True
        return self.train(False)

    def train(self, mode: bool = True) -> NormAct:
        return super().train(mode and not self.frozen)

    def extra_repr(self) -> str:
        return f"{self.norm_act}, {self.num_features}, activation={self.activation}"

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        # An affine layer is alike in all; timm's even have a running_var that they do not use.
        has = {k: getattr(self, k, None) is not None for k in ("v", "running_var")}
        foreign = prefix + "running_mean" in state_dict or any(
            (prefix + k in state_dict) != has[k] for k in has if self.activation
        )
        if not self.like_torch and prefix + "weight" in state_dict and foreign:
            # Another norm's weight and bias would fit, silently, and mean something else.
            where = f"{prefix[:-1]}: " if prefix else ""
            raise ValueError(
                f"{where}the checkpoint has another norm's weights here, not those of "
                f"{self.norm_act or 'this layer'}; load one trained with it, or train from scratch"
            )
        # What torch's BatchNorm and timm's affine EvoNorms have, and never use in evaluation.
        unused = "num_batches_tracked" if self.like_torch else "running_var"
        if not hasattr(self, unused) or getattr(self, unused) is None:
            state_dict.pop(prefix + unused, None)
        super()._load_from_state_dict(state_dict, prefix, *args)

    @torch.jit.unused
    def check_input(self, x: Tensor) -> None:
        if torch.jit.is_tracing():  # a trace would record the comparisons
            return
        name, c = self.norm_act or type(self).__name__, self.num_features
        if x.dim() != 4 or x.shape[1] != c:
            raise ValueError(
                f"{name} takes a tensor (N, {c}, H, W), not one of shape {tuple(x.shape)}"
            )
        if not x.is_floating_point():
            raise TypeError(f"{name} takes a floating-point tensor, not {x.dtype}")


class EvoNorm(NormAct):
    """One of the searched layers: y = formula(x) * weight + bias, without another activation.

    Statistics are taken in float32 (float64 for float64 input); the output has the input's dtype.

    Args:
        num_features: C of the input (N, C, H, W).
        activation: False leaves the affine map only (the paper's `nonlinearity=False`, appendix A).
        formula: one of :mod:`evonorm.functional` or :mod:`evonorm.candidates`.
        statistic: what the formula needs of the batch: "" (nothing), "var" or "mean_square". It is
            kept as `running_var` (C,), from 1, for evaluation: biased, with the decay 1 - momentum.
        options: see :func:`evonorm.build_norm_act`.
    """

    def __init__(
        self,
        num_features: int,
        activation: bool = True,
        *,
        formula: Callable[..., Tensor],
        statistic: str = "",
        **options: Any,
    ) -> None:
        super().__init__(num_features, activation, **options)
        self.formula = formula
        self.kind = KINDS.get(formula, "")
        self.statistic = statistic if activation else ""
        self.batch_dependent = bool(self.statistic)
        factory = {k: options.get(k) for k in ("device", "dtype")}
        running = torch.ones(num_features, **factory) if self.statistic else None
        self.register_buffer("running_var", running)

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
            self.check_input(x)
        if weight is None:
            weight = self.weight
        if bias is None:
            bias = self.bias
        if not self.activation:
            return self.affine(x, weight, bias)
        var = self.running_var
        if not torch.jit.is_scripting():
            if self.kind and not (torch.jit.is_tracing() or torch.onnx.is_in_onnx_export()):
                return self._operator(x, weight, bias)
            if self.training and self.batch_dependent:
                var = self._batch_statistic(x)
            return keep_inputs_only(self.evaluate, x, self.v, var, weight, bias)
        return self.evaluate(x, self.v, var, weight, bias)

    def evaluate(
        self,
        x: Tensor,
        v: Optional[Tensor],
        var: Optional[Tensor],
        weight: Optional[Tensor],
        bias: Optional[Tensor],
    ) -> Tensor:
        wide = widen(x)
        # A formula ignores what its layer lacks; x stands in, as TorchScript wants a tensor.
        v_ = wide if v is None else v[:, None, None]
        var_ = wide if var is None else var.to(wide.dtype)[:, None, None]
        y = self.formula(wide, v_, var_, self.num_groups, self.eps)
        y = F.affine(y, weight, bias)
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
        return F.affine(x, weight, bias).to(x.dtype)

    @torch.jit.unused
    def _operator(self, x: Tensor, weight: Optional[Tensor], bias: Optional[Tensor]) -> Tensor:
        var, own = self.running_var, False
        if self.training and self.batch_dependent:
            own = not synchronized(self.sync)
            var = None if own else self._batch_statistic(x)
        y, _, batch = torch.ops.evonorm.forward(
            x, self.v, var, weight, bias, self.num_groups, self.eps, self.kind
        )
        if own and x.numel():
            track(self.running_var, batch[1], self.momentum)
        return y

    @torch.jit.unused
    def _batch_statistic(self, x: Tensor) -> Tensor:
        mean, var, count = batch_moments(x, self.sync)
        if self.statistic == "mean_square":
            var = var + mean.square()
        share = self.momentum * count.clamp(max=1)  # nothing of an empty batch
        track(self.running_var, var, share)
        return var


class EvoNorm2D(EvoNorm):
    """EvoNorm-S0 or B0 with the call signature of the `evonorm2d` project.

    Args:
        input: C of the input (N, C, H, W).
        non_linear: False leaves the affine map only.
        version: "S0" or "B0".
        efficient: S0 with x * sigmoid(x), so without v, as that project's memory-efficient swish.
        momentum: the *decay* of the running variance, 0.9 for torch's 0.1.
        groups: of channels, for S0.
        training: the mode to start in.

    Raises:
        ValueError: another version.
    """

    def __init__(
        self,
        input: int,
        non_linear: bool = True,
        version: str = "S0",
        efficient: bool = False,
        affine: bool = True,
        momentum: float = 0.9,
        eps: float = 1e-5,
        groups: int = 32,
        training: bool = True,
    ) -> None:
        if version not in ("S0", "B0"):
            raise ValueError(f"EvoNorm2D has the versions 'S0' and 'B0', not {version!r}")
        kind = "EvoNormS1" if efficient and version == "S0" else f"EvoNorm{version}"
        options = {"num_groups": groups, "eps": eps, "momentum": 1 - momentum, "affine": affine}
        super().__init__(input, non_linear, **EVONORMS[kind], **options)
        self.norm_act = kind
        self.train(training)


def keep_inputs_only(function: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
    """function(*inputs), keeping nothing but the inputs for the backward pass, which repeats it.

    A compiler or a tracer sees the plain function.
    """
    if (
        not torch.is_grad_enabled()
        or torch.jit.is_tracing()
        or torch.compiler.is_compiling()
        or not any(t is not None and t.requires_grad for t in inputs)
    ):
        return function(*inputs)
    return _KeepInputsOnly.apply(function, *inputs)


class _KeepInputsOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
        ctx.function = function
        ctx.save_for_backward(*inputs)
        return function(*inputs)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        double = torch.is_grad_enabled()
        needs = ctx.needs_input_grad[1:]
        with torch.enable_grad():
            inputs = [
                # Aliases, as an input may depend on another one (the batch variance on x).
                t if t is None else t.view_as(t) if double else t.detach().requires_grad_(need)
                for t, need in zip(ctx.saved_tensors, needs)
            ]
            y = ctx.function(*inputs)
            wanted = [t for t, need in zip(inputs, needs) if need]
            grads = iter(torch.autograd.grad(y, wanted, dy, create_graph=double, allow_unused=True))
        return (None, *(next(grads) if need else None for need in needs))


@torch.no_grad()
def track(running: Tensor, value: Tensor, momentum: float | Tensor) -> None:
    """Move a running statistic by the share `momentum` of the way to `value`."""
    if isinstance(momentum, Tensor):
        momentum = momentum.to(running.dtype)
    running.lerp_(value.detach().to(running.dtype), momentum)


def _check(option: str, value: Any, possible: bool) -> None:
    if not possible:
        right = {"eps": "a number >= 0", "momentum": "a number in [0, 1]"}
        raise ValueError(f"{option}={value!r} should be {right.get(option, 'an integer > 0')}")


_VAR = {"statistic": "var"}
# The formulas that torch.ops.evonorm has, under its names.
KINDS = {getattr(F, f"evonorm_{kind.lower()}"): kind for kind in ops.reference.KINDS}
# Tables 2 and 3 of the paper: what each layer is made of.
EVONORMS: dict[str, dict[str, Any]] = {
    "EvoNormB0": {"formula": F.evonorm_b0, "v": 1.0, **_VAR},
    "EvoNormB1": {"formula": F.evonorm_b1, **_VAR},
    "EvoNormB2": {"formula": F.evonorm_b2, **_VAR},
    "EvoNormS0": {"formula": F.evonorm_s0, "v": 1.0},
    "EvoNormS1": {"formula": F.evonorm_s1},
    "EvoNormS2": {"formula": F.evonorm_s2},
    "RS+rej": {"formula": F.relu_over_batch_rms, "statistic": "mean_square"},
    "Random+rej": {"formula": F.tanh_max_tanh},
}
_WITH_V = (F.evonorm_b0, F.evonorm_s0)
for _candidates, _parts in ((CANDIDATES_B, _VAR), (CANDIDATES_S, {})):
    for _name, _formula in _candidates.items():
        EVONORMS[_name] = {"formula": _formula, "v": 1.0 if _formula in _WITH_V else None, **_parts}
for _name, _parts in EVONORMS.items():
    register_norm_act(_name)(partial(EvoNorm, **_parts))
