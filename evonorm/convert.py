"""Swap the normalizations of an existing model, with the activations after them, for norm-acts."""

from __future__ import annotations

import copy
import inspect
from collections import defaultdict
from itertools import chain
from typing import Any, Callable, NamedTuple

from torch import fx, nn

from .registry import build_norm_act

NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, nn.GroupNorm)

# What may take a norm's output: modules, functions, methods, in lower case and without "_".
ACTIVATIONS = "relu relu6 leakyrelu prelu rrelu elu celu selu gelu silu mish hardswish".split()
ENDS = "conv1d conv2d conv3d convtranspose2d linear output".split()
SUMS = "add iadd sub isub mul imul".split()  # an activation after one acts on the sum
PASSES = (  # an activation after one may be the norm's
    "identity dropout dropout2d stochasticdepth cat flatten mean interpolate upsample "
    "maxpool2d avgpool2d adaptivemaxpool2d adaptiveavgpool2d".split()
)


class Swap(NamedTuple):
    """What :func:`convert` did at one place."""

    module: str  # path in the model
    replaced: str  # "BatchNorm2d + ReLU"
    activation: bool  # whether an activation went


def convert(model: nn.Module, name: str, **options: Any) -> list[Swap]:
    """Swap each BatchNorm2d, SyncBatchNorm and GroupNorm of a model for a norm-act, in place.

    Where an activation and nothing else follows, both become `build_norm_act(name, C)`; where none
    does, the norm becomes `build_norm_act(name, C, activation=False)`. What follows is read from
    a torch.fx trace of the forward pass.

    A layer starts fresh, with the options given here rather than those of the norm (eps, momentum,
    groups); it keeps the norm's device, dtype, train or eval mode, and synchronization over ranks.
    An activation module that is used after norms only becomes an Identity. Otherwise (torchvision's
    residual blocks use one after the sum too) the block that calls it becomes a
    torch.fx.GraphModule: its forward pass as traced, without those calls and with the optional
    arguments that the model gives it. Its children, parameters and state-dict keys stay; its other
    attributes, hooks and context managers do not.

    Args:
        model: such as torchvision's ResNet, MobileNetV2, MNASNet and EfficientNet.
        name: one of :func:`evonorm.list_norm_acts`, or a formula.
        options: see :func:`evonorm.build_norm_act`; `linear` among them.

    Returns:
        what was swapped, in the order of the model's modules.

    Raises:
        ValueError: no such norm in the model, unknown name or impossible option, or a norm of
            which it can't be told whether an activation follows (sigmoid and tanh may be gates, so
            they count as unknown). The model is then as it was.
        TypeError: unknown option.
    """
    norms = {path: m for path, m in model.named_modules() if isinstance(m, NORMS)}
    if not norms:
        kinds = ", ".join(kind.__name__ for kind in NORMS)
        raise ValueError(f"found none of {kinds} in {type(model).__name__}")
    trace = _trace(model)
    nodes = list(trace.graph.nodes)
    activations = {path: _activation_after(path, norm, nodes) for path, norm in norms.items()}
    new: dict[nn.Module, nn.Module] = {}
    swaps = []
    for path, norm in norms.items():
        activation = activations[path]
        new[norm] = _build(model, norm, name, activation is not None, options)
        followed = "" if activation is None else f" + {activation.meta['name']}"
        swaps.append(Swap(path, type(norm).__name__ + followed, activation is not None))

    removed = [node for node in activations.values() if node is not None]
    kept = {node.target for node in nodes if node not in removed}
    by_owner = defaultdict(list)
    for node in removed:
        if node.op == "call_module" and node.target not in kept:
            new[model.get_submodule(node.target)] = nn.Identity()
        else:
            by_owner[node.meta["owner"]].append(node)
    for owner, calls in by_owner.items():
        new[model.get_submodule(owner)] = _without(calls, model, trace)
    _replace(model, new)
    return swaps


class _Tracer(fx.Tracer):
    """Notes what each module's forward calls, step by step.

    Follows the calls into all modules but PyTorch's own, norms and norm-acts; if `flat`, into none.
    """

    def __init__(self, flat: bool = False) -> None:
        super().__init__()
        self.flat = flat
        self.stack = [""]  # paths of the modules being called; after an error, where it was
        self.steps: defaultdict[str, list[str]] = defaultdict(list)  # names by path
        self.flags: dict[str, dict[str, Any]] = {}  # arguments that are None or a bool, by path

    def is_leaf_module(self, m: nn.Module, path: str) -> bool:
        known = isinstance(m, NORMS) or hasattr(m, "norm_act")
        return self.flat or known or super().is_leaf_module(m, path)

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
        if kind == "call_module":
            owner = self.stack[-2]
            name = self.steps[owner][-1]
        elif kind not in ("placeholder", "output"):
            self.steps[owner].append(name)
        kind = name.lower().replace("_", "")
        node.meta.update(owner=owner, step=len(self.steps[owner]), name=name, kind=kind)
        return node


def _trace(
    module: nn.Module, path: str = "", flat: bool = False, flags: dict[str, Any] | None = None
) -> _Tracer:
    """Trace a forward pass, which must do the same in training and in evaluation."""
    # In a copy that shares the tensors, as the model's code may leave something in its attributes.
    shared = {id(t): t for t in chain(module.parameters(), module.buffers())}
    tracers = []
    try:
        for mode in (True, False):
            tracers.append(_Tracer(flat))
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


def _activation_after(path: str, norm: nn.Module, nodes: list[fx.Node]) -> fx.Node | None:
    """The call of the activation that alone takes the norm's output; None if none takes it."""
    unsure = f"{path}: can't tell whether an activation follows this {type(norm).__name__}, "
    if type(norm) not in NORMS:
        raise ValueError(unsure + "as a class derived from PyTorch's may hold one")
    calls = [node for node in nodes if (node.op, node.target) == ("call_module", path)]
    if len(calls) != 1:
        raise ValueError(unsure + f"as it is called {len(calls)} times in a forward pass")
    call = calls[0]
    while [user.meta["kind"] for user in call.users] == ["identity"]:
        call = next(iter(call.users))
    users = list(call.users)
    if [user.args[:1] for user in users] == [(call,)] and users[0].meta["kind"] in ACTIVATIONS:
        users[0].meta["norm"] = path
        return users[0]
    for user in users:  # grows by those behind
        kind, name = user.meta["kind"], user.meta["name"]
        if kind in ACTIVATIONS:
            raise ValueError(unsure + f"as {name} takes its output, but not alone or not as it is")
        if kind in PASSES:
            users += [u for u in user.users if u not in users]
        elif kind not in ENDS and not (kind in SUMS and len(user.all_input_nodes) > 1):
            raise ValueError(unsure + f"as nothing is known of {name}, which takes its output")
    return None


def _build(
    model: nn.Module, norm: nn.Module, name: str, activation: bool, options: dict[str, Any]
) -> nn.Module:
    channels = norm.num_channels if isinstance(norm, nn.GroupNorm) else norm.num_features
    like = next(chain(norm.parameters(), norm.buffers(), model.parameters()), None)
    own = {} if like is None else {"device": like.device, "dtype": like.dtype}
    if isinstance(norm, nn.SyncBatchNorm):
        own["sync"] = True
    return build_norm_act(name, channels, activation, **{**own, **options}).train(norm.training)


def _without(calls: list[fx.Node], model: nn.Module, trace: _Tracer) -> nn.Module:
    """The module whose forward makes these calls, as a GraphModule that does not make them."""
    norm, name, owner = (calls[0].meta[key] for key in ("norm", "name", "owner"))
    block = model.get_submodule(owner)
    refusal = ValueError(
        f"{norm}: can't take out the {name} after it, which {owner or type(block).__name__} calls; "
        "use an activation module of its own for it"
    )
    if not owner:  # nothing holds the model, so that it can't be replaced
        raise refusal
    alone = _trace(block, owner, flat=True, flags=trace.flags.get(owner))
    same = alone.steps[""] == trace.steps[owner]  # or it is called twice, or with other arguments
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


def _replace(parent: nn.Module, new: dict[nn.Module, nn.Module]) -> None:
    """Put the new modules for the old ones, under all names that these have."""
    for key, child in parent._modules.items():
        if child is not None:
            parent._modules[key] = new.get(child, child)
            _replace(parent._modules[key], new)
