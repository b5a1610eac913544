"""What all norm-acts share: parameters, options, checks, freezing, and whose weights they load."""

from __future__ import annotations

from typing import Any, Callable, Optional

import torch
from torch import Tensor, nn


class NormAct(nn.Module):
    """Normalization and activation of (N, C, H, W) as one module; the base of all of them.

    Parameters `weight` (C,) from 1 and `bias` (C,) from 0 unless `affine` is False; `v` and `v0`
    (C,) from the values given, unless those are None. State dicts load timm's EvoNorms by name.
    """

    _version = 4  # tells our state dicts from BatchNorm's (2), FrozenBatchNorm2d's (3), others (1)
    batch_dependent = False
    like_torch = False  # whether weight and bias mean what they do in BatchNorm or GroupNorm
    linear = False  # whether a formula stands where no activation follows
    norm_act = ""  # the name or the formula that it was built by, set by build_norm_act
    # Whether weights that do not say what they were trained with are refused, if they may be
    # another norm's. timm's do not say it.
    refuse_unknown = False

    def __init__(
        self,
        num_features: int,
        activation: bool = True,
        *,
        v: float | None = None,
        v0: float | None = None,
        num_groups: int = 32,
        group_size: int = 0,
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
            known = "num_groups, group_size, eps, momentum, affine, zero_init, sync, linear, "
            known += "device, dtype"
            raise TypeError(f"unknown option {', '.join(unknown)}: known are {known}")
        _check("num_features", num_features, isinstance(num_features, int) and num_features > 0)
        _check("num_groups", num_groups, isinstance(num_groups, int) and num_groups > 0)
        _check("group_size", group_size, isinstance(group_size, int) and group_size >= 0)
        _check("eps", eps, isinstance(eps, (int, float)) and eps >= 0)
        _check("momentum", momentum, isinstance(momentum, (int, float)) and 0 <= momentum <= 1)
        self.num_features = num_features
        self.activation = activation
        # Authors' rule (reference release): fewer groups where C is not divisible.
        self.num_groups = _divisor(num_features, num_groups)
        if group_size:  # as timm's layers count: so many channels in a group, whatever C is
            self.num_groups = num_features // _divisor(num_features, group_size)
        self.eps = float(eps)
        self.momentum = momentum
        self.zero_init = zero_init
        self.sync = sync
        self.frozen = False
        vectors = {"v": v, "v0": v0} if activation else {"v": None, "v0": None}
        self._first_values = {name: value for name, value in vectors.items() if value is not None}

        def new(wanted: bool) -> nn.Parameter | None:
            if not wanted:
                return None
            return nn.Parameter(torch.empty(num_features, device=device, dtype=dtype))

        self.register_parameter("weight", new(affine))
        self.register_parameter("bias", new(affine))
        for name in vectors:
            self.register_parameter(name, new(name in self._first_values))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.weight is not None:
            nn.init.constant_(self.weight, 0.0 if self.zero_init else 1.0)
            nn.init.zeros_(self.bias)
        for name, value in self._first_values.items():
            nn.init.constant_(getattr(self, name), value)

    def freeze(self) -> NormAct:
        """Stop learning, and evaluate from now on whatever mode the model is in."""
        self.requires_grad_(False)
        self.frozen = True
        return self.train(False)

    def train(self, mode: bool = True) -> NormAct:
        return super().train(mode and not self.frozen)

    def extra_repr(self) -> str:
        return f"{self.norm_act}, {self.num_features}, activation={self.activation}"

    def trained_as(self) -> str:
        """What its weights belong to, as its state dicts say it; "" if it has no name."""
        return self.norm_act if self.activation else self.norm_act.partition("-")[0]

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if hasattr(destination, "_metadata"):
            destination._metadata[prefix[:-1]]["norm_act"] = self.trained_as()

    def _load_from_state_dict(
        self, state_dict: dict, prefix: str, local_metadata: dict, *args: Any
    ) -> None:
        if prefix + "weight" in state_dict:
            # Another norm's weight and bias would fit, silently, and mean something else.
            why = self._foreign(state_dict, prefix, local_metadata)
            if why:
                where = f"{prefix[:-1]}: " if prefix else ""
                raise ValueError(f"{where}the checkpoint {why}, or train from scratch")
        # What torch's BatchNorm and timm's affine EvoNorms have, and never use in evaluation.
        unused = "num_batches_tracked" if self.like_torch else "running_var"
        if getattr(self, unused, None) is None:
            state_dict.pop(prefix + unused, None)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def _foreign(self, state_dict: dict, prefix: str, local_metadata: dict) -> str:
        """Why the weights are not this layer's; "" if they are, or may be."""
        name, own = self.norm_act or "this layer", self.trained_as()
        writer = local_metadata.get("norm_act", "")
        same_norm = self.like_torch and writer.partition("-")[0] == own.partition("-")[0]
        if writer and own and writer != own and not same_norm:
            return (
                f"has another norm's weights here, not those of {name} but of {writer}; "
                "load one trained with it"
            )
        # An affine layer is alike in all; timm's even have a running_var that they do not use.
        keys = ("v", "v0", "running_var") if self.activation else ()
        other = any(
            (prefix + k in state_dict) != (getattr(self, k, None) is not None) for k in keys
        )
        if not self.like_torch and (other or prefix + "running_mean" in state_dict):
            return f"has another norm's weights here, not those of {name}; load one trained with it"
        # Keys tell nothing of a layer without v. Where v elsewhere shows whose weights they are,
        # the writer need not say so here as well.
        silent = local_metadata.get("version") != self._version
        silent = silent and (self.activation or "version" in local_metadata)
        if self.refuse_unknown and silent and self.v is None and not self.like_torch:
            return (
                f"does not say that it was trained with {name}, and another norm's weights would "
                "mean something else; load one that was"
            )
        return ""

    @torch.jit.unused
    def check_input(
        self, x: Tensor, weight: Optional[Tensor] = None, bias: Optional[Tensor] = None
    ) -> None:
        if torch.jit.is_tracing():  # a trace would record the comparisons
            return
        name, c = self.norm_act or type(self).__name__, self.num_features
        if x.dim() != 4 or x.shape[1] != c:
            raise ValueError(
                f"{name} takes a tensor (N, {c}, H, W), not one of shape {tuple(x.shape)}"
            )
        if not x.is_floating_point():
            raise TypeError(f"{name} takes a floating-point tensor, not {x.dtype}")
        compiling = torch.compiler.is_compiling()  # to compare samples would fix their number
        for what, given in (("weight", weight), ("bias", bias)):
            if given is None:
                continue
            right = given.dim() in (1, 2) and given.shape[-1] == c
            if not right or (given.dim() == 2 and not compiling and len(given) != len(x)):
                raise ValueError(
                    f"{name}: {what} should have the shape ({c},) or ({x.shape[0]}, {c}), "
                    f"not {tuple(given.shape)}"
                )


def affine(x: Tensor, weight: Optional[Tensor], bias: Optional[Tensor]) -> Tensor:
    """x * weight + bias; (C,) is per channel, (N, C) per sample and channel, None leaves it out."""
    if weight is not None:
        x = x * weight[..., None, None]
    if bias is not None:
        x = x + bias[..., None, None]
    return x


def transformed() -> bool:
    """Whether torch.func (vmap, grad, jvp) transforms what runs, for which operations are plain."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def keep_inputs_only(function: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
    """function(*inputs), keeping nothing but the inputs for the backward pass, which repeats it.

    A compiler, a tracer or a transform of torch.func sees the plain function.
    """
    if looked_at() or not differentiated(*inputs):
        return function(*inputs)
    return KeepInputsOnly.apply(function, *inputs)


def looked_at() -> bool:
    """Whether a compiler, a tracer or a transform of torch.func looks at what runs."""
    return torch.compiler.is_compiling() or transformed() or torch.jit.is_tracing()


def differentiated(*inputs: Tensor | None) -> bool:
    """Whether there will be a backward pass to any of the inputs."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)


class KeepInputsOnly(torch.autograd.Function):
    """See :func:`keep_inputs_only`."""

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


def track(running: Tensor, value: Tensor, momentum: float | Tensor) -> None:
    """Move a running statistic by the share `momentum` of the way to `value`."""
    if isinstance(momentum, Tensor):
        momentum = momentum.to(running.dtype)
    running.lerp_(value.detach().to(running.dtype), momentum)


def _divisor(number: int, limit: int) -> int:
    """The largest divisor of a number that is not above the limit."""
    return max(d for d in range(1, min(limit, number) + 1) if number % d == 0)


def _check(option: str, value: Any, possible: bool) -> None:
    if not possible:
        right = {"eps": "a number >= 0", "momentum": "a number in [0, 1]"}
        right["group_size"] = "an integer >= 0"
        raise ValueError(f"{option}={value!r} should be {right.get(option, 'an integer > 0')}")
