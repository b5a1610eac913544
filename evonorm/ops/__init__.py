"""The EvoNorms as operators, `torch.ops.evonorm.forward` and its backward pass.

:mod:`.reference` says what they compute and is what runs where a device has no kernel of its own.
`cpu.cpp` holds the kernels for the CPU, which setup.py builds where there is a compiler, and with
them `cpu_autograd.cpp`, which makes a call cheaper. `cuda.py` runs the kernels for NVIDIA GPUs,
which need Triton. PyTorch for NVIDIA GPUs brings Triton along.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any, Optional

import torch
from torch import Tensor

from . import reference

_PARAMETERS = "Tensor? v, Tensor? var, Tensor? weight, Tensor? bias"
_OPTIONS = "int groups, float eps, str kind"
_LIBRARY = torch.library.Library("evonorm", "DEF")
_LIBRARY.define(f"forward(Tensor x, {_PARAMETERS}, {_OPTIONS}) -> (Tensor, Tensor, Tensor)")
_LIBRARY.define(
    f"backward(Tensor dy, Tensor x, {_PARAMETERS}, Tensor stats, Tensor batch_stats, {_OPTIONS})"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_LIBRARY.define(f"formula(Tensor x, {_PARAMETERS}, {_OPTIONS}) -> Tensor")  # for second derivatives
_FORMULA = "Tensor? v0, Tensor? v1, Tensor? weight, Tensor? bias, Tensor? statistics"
_PROGRAM = "int[] steps, float[] numbers, int groups, float eps"
_LIBRARY.define(f"formula_forward(Tensor x, {_FORMULA}, {_PROGRAM}) -> Tensor")
_LIBRARY.define(
    f"formula_backward(Tensor dy, Tensor x, {_FORMULA}, {_PROGRAM}) -> (Tensor, Tensor)"
)
_LIBRARY.impl("formula", reference.formula, "CompositeImplicitAutograd")
_LIBRARY.impl("forward", reference.forward, "CompositeExplicitAutograd")
_LIBRARY.impl("backward", reference.backward, "CompositeExplicitAutograd")


@torch.library.register_fake("evonorm::forward")
def _(
    x: Tensor,
    v: Optional[Tensor],
    var: Optional[Tensor],
    weight: Optional[Tensor],
    bias: Optional[Tensor],
    groups: int,
    eps: float,
    kind: str,
) -> tuple[Tensor, Tensor, Tensor]:
    n, c = x.shape[:2]
    statistic = torch.promote_types(x.dtype, torch.float32)
    return (
        torch.empty_like(x, memory_format=reference._memory_format(x)),
        x.new_empty((2, n, c if kind[0] == "B" else groups), dtype=statistic),
        x.new_empty((2, c if kind[0] == "B" and var is None else 0), dtype=statistic),
    )


@torch.library.register_fake("evonorm::backward")
def _(
    dy: Tensor,
    x: Tensor,
    v: Optional[Tensor],
    var: Optional[Tensor],
    weight: Optional[Tensor],
    bias: Optional[Tensor],
    *rest: Any,
) -> tuple[Tensor, ...]:
    dx = torch.empty_like(x, memory_format=reference._memory_format(x))
    grads = (
        x.new_empty(0, dtype=torch.float32) if p is None else p.new_empty(p.shape)
        for p in (v, var, weight, bias)
    )
    return (dx, *grads)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.groups, ctx.eps, ctx.kind = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *output[1:])


def _differentiate(ctx: Any, dy: Optional[Tensor], *_: None) -> tuple[Optional[Tensor], ...]:
    if dy is None:
        return (None,) * 8
    *tensors, stats, batch_stats = ctx.saved_tensors
    options = (ctx.groups, ctx.eps, ctx.kind)
    needs = ctx.needs_input_grad[:5]
    if torch.is_grad_enabled():  # for a second derivative
        # Aliases, as an input may depend on another one (the batch variance on x).
        tensors = [None if t is None else t.view_as(t) for t in tensors]
        wanted = [t for t, need in zip(tensors, needs) if need]
        y = reference.formula(*tensors, *options)
        found = iter(torch.autograd.grad(y, wanted, dy, create_graph=True, allow_unused=True))
        grads = [next(found) if need else None for need in needs]
    else:
        grads = torch.ops.evonorm.backward(dy, *tensors, stats, batch_stats, *options)
        grads = [grad if need else None for grad, need in zip(grads, needs)]
    return (*grads, None, None, None)


torch.library.register_autograd("evonorm::forward", _differentiate, setup_context=_save)


def evaluates(*tensors: Optional[Tensor]) -> bool:
    """Whether formula_forward takes x (N, C, H, W) and what follows it: vectors (C,) or None."""
    x = tensors[0]
    return (
        _formulas
        and type(x) in (Tensor, torch.nn.Parameter)
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and x[:1].numel() <= LARGEST
        and all(t is None or (t.dim() == 1 and t.dtype == x.dtype) for t in tensors[1:])
        and torch._C._len_torch_dispatch_stack() == 0  # who looks at operations sees plain ones
    )


LARGEST = 2**20  # values of a sample that formula_forward takes: more do not fit into a cache


def _load() -> bool:
    """Load the kernels for the CPU that setup.py built, unless EVONORM_REFERENCE=1 is set."""
    if os.environ.get("EVONORM_REFERENCE") == "1":
        return False
    for file in Path(__file__).parent.glob("_cpu.*"):
        try:
            torch.ops.load_library(file)
            return True
        except OSError as error:
            warnings.warn(
                f"evonorm's CPU kernels don't load with torch {torch.__version__}, so the slower "
                f"reference runs; reinstall evonorm to rebuild them ({error})",
                stacklevel=2,
            )
    return False


_NATIVE = _load()
# Not where what was built is older.
_formulas = torch._C._dispatch_has_kernel_for_dispatch_key("evonorm::formula_forward", "CPU")


@cache
def _gpu() -> ModuleType:
    """The module that runs on GPUs. It is imported at the first call, since Triton loads slowly."""
    if not torch.version.cuda or os.environ.get("EVONORM_REFERENCE") == "1":
        return reference
    with suppress(ImportError):
        from . import cuda

        try:
            if torch.cuda.is_available():
                cuda.probe()
            return cuda
        except Exception as error:  # no compiler, no Python.h, a GPU that Triton doesn't know
            line = next(iter(str(error).splitlines()), type(error).__name__)
            warnings.warn(
                f"Triton {cuda.VERSION} can't compile, so GPUs run evonorm's slower "
                f"reference; it needs a C compiler and Python's headers ({line})",
                stacklevel=2,
            )
    return reference


_LIBRARY.impl("forward", lambda *inputs: _gpu().forward(*inputs), "CUDA")
_LIBRARY.impl("backward", lambda *inputs: _gpu().backward(*inputs), "CUDA")


def backends() -> dict[str, str]:
    """What runs the operators, by device."""
    capability = torch.backends.cpu.get_cpu_capability()
    return {
        "cpu": f"native, {capability}" if _NATIVE else "reference",
        "cuda": "reference" if _gpu() is reference else f"triton {_gpu().VERSION}",
    }


@contextmanager
def reference_only() -> Iterator[None]:
    """A context in which CPUs and GPUs run the reference, for tests and benchmarks."""
    global _formulas
    before, _formulas = _formulas, False
    library = torch.library.Library("evonorm", "IMPL")
    for name, key in product(("forward", "backward"), ("CPU", "CUDA")):
        library.impl(name, getattr(reference, name), key, allow_override=True)
    try:
        yield
    finally:
        library._destroy()
        _formulas = before
