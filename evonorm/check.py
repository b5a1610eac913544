"""Find activations that follow a norm-act, which has its own, in what a model executes."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

# PyTorch's operators by the start of their names, without "_"; `hard` is hardtanh, hardswish, ...
_ACTIVATIONS = (
    "relu leaky_relu prelu rrelu elu threshold clamp silu gelu mish hard sigmoid log_sigmoid "
    "softplus tanh".split()
)
# Operators whose output has the values of their input: an activation behind them acts on those.
_PASSES = (
    "max_pool avg_pool adaptive_max_pool upsample constant_pad reflection_pad replication_pad cat "
    "clone contiguous _to_copy".split()
)


class Site(NamedTuple):
    """A place where an activation follows a norm-act."""

    norm_act: str  # path of the norm-act in the model
    activation: str  # "relu_", the operator's name
    module: str  # path of the innermost module that calls it; "" is the model


def check(model: nn.Module, example: Any) -> list[Site]:
    """Run a model once and name each site where an activation follows a norm-act.

    A norm-act has its activation already. A ReLU after it is a mistake that no error tells: it
    cuts what the norm-act lets pass. What is looked at is the operators that run, so whatever the
    model's code calls is seen: modules, functions, in-place ones, also behind pooling, padding,
    upsampling, concatenation and views. An activation after a sum or a convolution is none of
    these. A sigmoid or tanh counts too. A norm-act without its activation, as before an
    addition, is not looked at.

    The model runs without gradients in the mode that it is in; its buffers are put back.

    Args:
        model: any module with norm-acts of :func:`evonorm.build_norm_act`, such as a detector.
        example: what the model takes: one argument, or a tuple of all of them.

    Returns:
        the sites in the order in which they run, each once; none if the model is right.

    Raises:
        ValueError: the model has no norm-act that acts, or none of them runs on the example.
    """
    layers = {path: m for path, m in model.named_modules() if _acts(m)}
    if not layers:
        raise ValueError(f"found no norm-act with an activation in {type(model).__name__}")
    arguments = example if isinstance(example, tuple) else (example,)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    watch = _Watch(model, layers)
    try:
        with torch.no_grad(), watch:
            model(*arguments)
    finally:
        watch.end()
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
    if not watch.called:
        raise ValueError(f"none of {len(layers)} norm-acts ran on the example: give another one")
    return list(dict.fromkeys(watch.sites))


def _acts(module: nn.Module) -> bool:
    named = bool(getattr(module, "norm_act", "")) and not getattr(module, "linear", False)
    return named and getattr(module, "activation", True)


class _Watch(TorchDispatchMode):
    """Follows the memory that norm-acts wrote; an operator that writes into it ends that."""

    def __init__(self, model: nn.Module, layers: dict[str, nn.Module]) -> None:
        super().__init__()
        self.sites: list[Site] = []
        self.called: set[str] = set()
        self.written: dict[int, tuple[str, Tensor]] = {}  # holding a tensor keeps its memory
        self.stack = [""]
        self.inside = 0  # how many norm-acts are running
        self.handles = []
        for path, module in model.named_modules():
            norm_act = path if path in layers else None
            enter, leave = self._hooks(path, norm_act)
            self.handles.append(module.register_forward_pre_hook(enter))
            self.handles.append(module.register_forward_hook(leave))

    def _hooks(self, path: str, norm_act: str | None) -> tuple[Any, Any]:
        def enter(module: nn.Module, inputs: Any) -> None:
            self.stack.append(path)
            self.inside += norm_act is not None

        def leave(module: nn.Module, inputs: Any, output: Any) -> None:
            self.stack.pop()
            self.inside -= norm_act is not None
            if norm_act is not None and not self.inside and isinstance(output, Tensor):
                self.called.add(norm_act)
                self._write(output, norm_act)

        return enter, leave

    def end(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.written.clear()

    def _write(self, x: Tensor, norm_act: str) -> None:
        self.written[x.untyped_storage()._cdata] = (norm_act, x)

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = operator(*args, **(kwargs or {}))
        if self.inside:
            return result
        name = operator.overloadpacket.__name__
        tensors = [x for arg in args for x in (arg if isinstance(arg, (list, tuple)) else [arg])]
        tensors = [x for x in tensors if isinstance(x, Tensor)]
        keys = [x.untyped_storage()._cdata for x in tensors]
        found = [self.written[key][0] for key in keys if key in self.written]
        if found and name.strip("_").startswith(tuple(_ACTIVATIONS)):
            self.sites.append(Site(found[0], name, self.stack[-1]))
        if found and name.startswith(tuple(_PASSES)):
            self._write(result[0] if isinstance(result, tuple) else result, found[0])
        elif found and name.endswith("_") and keys[0] in self.written:
            del self.written[keys[0]]  # it holds something else now, such as a sum
        return result
