"""Where activations follow norms, by a torch.fx trace; and a block without some of its calls."""

from __future__ import annotations

import copy
import inspect
import sys
from collections import defaultdict
from itertools import chain
from typing import Any, Callable

from torch import fx, nn

from .timm_layers import inner_activation, is_evonorm, is_known_norm

NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, nn.GroupNorm)

# What may take a norm's output: modules, functions, methods, in lower case and without "_".
ACTIVATIONS = (
    "relu relu6 leakyrelu prelu rrelu elu celu selu gelu silu mish hardswish "
    "swish hardmish gelutanh quickgelu".split()
)
ENDS = "conv1d conv2d conv2dsame conv3d convtranspose2d linear matmul norm output".split()
SUMS = "add iadd sub isub mul imul".split()  # an activation after one acts on the sum
PASSES = (  # an activation after one may be the norm's
    "identity dropout dropout2d stochasticdepth droppath cat flatten mean interpolate upsample pad "
    "maxpool2d avgpool2d adaptivemaxpool2d adaptiveavgpool2d getitem split chunk transpose permute "
    "reshape view contiguous expand expandas squeeze unsqueeze".split()
)
SHAPES = "size dim numel".split()  # what a shape is asked by takes no values


class Tracer(fx.Tracer):
    """Notes what each module's forward calls, step by step.

    Follows the calls into all modules but PyTorch's own, norms and norm-acts; if `flat`, into none.
    """

    def __init__(self, flat: bool = False) -> None:
        timm = sys.modules.get("timm.layers")  # what timm itself does not trace
        names = timm.get_notrace_functions() if timm else []
        super().__init__(autowrap_functions=tuple(f for f in names if callable(f)))
        self.untraced = tuple(timm.get_notrace_modules()) if timm else ()
        self.flat = flat
        self.stack = [""]  # paths of the modules being called; after an error, where it was
        self.steps: defaultdict[str, list[str]] = defaultdict(list)  # names by path
        self.flags: dict[str, dict[str, Any]] = {}  # arguments that are None or a bool, by path

    def is_leaf_module(self, m: nn.Module, path: str) -> bool:
        if self.flat or _is_norm(m) or super().is_leaf_module(m, path):
            return True
        untraced = isinstance(m, self.untraced) or type(m).__name__ == "DropPath"
        return untraced and not any(map(_is_norm, m.modules()))

    def create_args_for_root(
        self, root_fn: Callable, is_module: bool, concrete_args: dict[str, Any] | None = None
    ) -> tuple[Callable, list]:
        result = super().create_args_for_root(root_fn, is_module, concrete_args)
        flags = {f"{name}_1": name for name in concrete_args or ()}  # torch.fx renames these
        for node in self.graph.nodes:  # and asserts that they stay the same, which is no step
            node.meta["step"] = 0
            if node.op == "placeholder":
                node.target = flags.get(node.target, node.target)
        self.steps.clear()
        return result

    def call_module(self, m: nn.Module, forward: Callable, args: tuple, kwargs: dict) -> Any:
        self.steps[self.stack[-1]].append(type(m).__name__)
        self.stack.append(self.path_of_module(m))
        given = inspect.signature(m.forward).bind(*args, **kwargs)
        given.apply_defaults()
        self.flags[self.stack[-1]] = {
            name: value
            for name, value in given.arguments.items()
            if value is None or isinstance(value, bool)
        }
        result = super().call_module(m, forward, args, kwargs)
        self.stack.pop()
        return result

    def create_node(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(kind, target, *args, **kwargs)
        owner, name = self.stack[-1], getattr(target, "__name__", str(target).rpartition(".")[2])
        norm = False
        if kind == "call_module":
            owner = self.stack[-2]
            name = self.steps[owner][-1]
            norm = _is_norm(self.root.get_submodule(target))
        elif kind not in ("placeholder", "output"):
            self.steps[owner].append(name)
        kind = "norm" if norm else name.lower().replace("_", "")
        node.meta.update(owner=owner, step=len(self.steps[owner]), name=name, kind=kind)
        return node


def trace(
    module: nn.Module, path: str = "", flat: bool = False, flags: dict[str, Any] | None = None
) -> Tracer:
    """Trace a forward pass, which must do the same in training and in evaluation.

    Raises:
        ValueError: torch.fx can't trace it, or it does something else in training.
    """
    # In a copy that shares the tensors, as the model's code may leave something in its attributes.
    shared = {id(t): t for t in chain(module.parameters(), module.buffers())}
    tracers = []
    try:
        for mode in (True, False):
            tracers.append(Tracer(flat))
            twin = copy.deepcopy(module, dict(shared))
            twin.train(mode)
            tracers[-1].trace(twin, flags)
    except Exception as error:  # the model's code may raise anything when it is run on symbols
        where = ".".join(filter(None, (path, tracers[-1].stack[-1]))) or type(module).__name__
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{where}: can't tell where activations follow norms, as torch.fx can't trace it: {why}"
        ) from error
    one, two = tracers
    # A flat graph becomes code: it must agree to the last argument, such as dropout's `training`.
    if one.steps != two.steps or (flat and str(one.graph) != str(two.graph)):
        raise ValueError(
            f"{path or type(module).__name__}: can't tell where activations follow norms, as it "
            "does not do the same in training and in evaluation"
        )
    return one


def activation_after(path: str, norm: nn.Module, nodes: list[fx.Node]) -> fx.Node | None:
    """The call of the activation that alone takes the norm's output; None if none takes it.

    Raises:
        ValueError: it can't be told, or the norm holds an activation and another one follows.
    """
    unsure = f"{path}: can't tell whether an activation follows this {type(norm).__name__}, "
    if type(norm) not in NORMS and not is_known_norm(norm):
        raise ValueError(unsure + "as a class derived from PyTorch's may hold one")
    inner = inner_activation(norm)
    if inner and inner.lower() not in ACTIVATIONS:
        raise ValueError(unsure + f"as nothing is known of {inner}, which it holds")
    calls = [node for node in nodes if (node.op, node.target) == ("call_module", path)]
    if len(calls) != 1:
        raise ValueError(unsure + f"as it is called {len(calls)} times in a forward pass")
    call = calls[0]
    while [user.meta["kind"] for user in call.users] == ["identity"]:
        call = next(iter(call.users))
    users = [user for user in call.users if not _asks_shape(user)]
    alone = [user.args[:1] for user in users] == [(call,)]
    if alone and users[0].meta["kind"] in ACTIVATIONS and not inner:
        users[0].meta["norm"] = path
        return users[0]
    for user in users:  # grows by those behind
        kind, name = user.meta["kind"], user.meta["name"]
        if kind in ACTIVATIONS:
            how = f"beside the {inner} that it holds" if inner else "but not alone or not as it is"
            raise ValueError(unsure + f"as {name} takes its output, {how}")
        if kind in PASSES:
            users += [u for u in user.users if u not in users and not _asks_shape(u)]
        elif inner or kind in ENDS or (kind in SUMS and len(user.all_input_nodes) > 1):
            continue
        else:
            raise ValueError(unsure + f"as nothing is known of {name}, which takes its output")
    return None


def _asks_shape(node: fx.Node) -> bool:
    asks = node.meta["kind"] == "getattr" and node.args[1] in ("shape", "ndim", "dtype", "device")
    return asks or node.meta["kind"] in SHAPES


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, NORMS) or hasattr(module, "norm_act") or is_evonorm(module)


def without(calls: list[fx.Node], model: nn.Module, traced: Tracer) -> nn.Module:
    """The module whose forward makes these calls, as a GraphModule that does not make them.

    Raises:
        ValueError: it can't be rewritten.
    """
    norm, name, owner = (calls[0].meta[key] for key in ("norm", "name", "owner"))
    block = model.get_submodule(owner)
    refusal = ValueError(
        f"{norm}: can't take out the {name} after it, which {owner or type(block).__name__} calls; "
        "use an activation module of its own for it"
    )
    if not owner:  # nothing holds the model, so that it can't be replaced
        raise refusal
    alone = trace(block, owner, flat=True, flags=traced.flags.get(owner))
    same = alone.steps[""] == traced.steps[owner]  # or it is called twice, or with other arguments
    if not same or "_tensor_constant0" in alone.steps[""]:  # a tensor made in its forward
        raise refusal
    steps = {node.meta["step"] for node in calls}
    graph, copies = fx.Graph(), {}
    for node in alone.graph.nodes:
        skip = node.op not in ("placeholder", "output") and node.meta["step"] in steps
        copies[node] = copies[node.args[0]] if skip else graph.node_copy(node, copies.get)
    result = fx.GraphModule(block, graph, type(block).__name__)
    if result.state_dict().keys() != block.state_dict().keys():  # it has parameters without use
        raise refusal
    return result
