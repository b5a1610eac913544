"""Swap the normalizations of an existing model, with the activations after them, for norm-acts."""

from __future__ import annotations

from collections import defaultdict
from itertools import chain
from typing import Any, NamedTuple

from torch import fx, nn

from .registry import build_norm_act, check_norm_act
from .timm_layers import EVONORMS, inner_activation, is_evonorm, own_options
from .tracing import NORMS, Tracer, activation_after, trace, without


class Swap(NamedTuple):
    """What :func:`convert` did at one place."""

    module: str  # path in the model
    replaced: str  # "BatchNorm2d + ReLU"
    activation: bool  # whether an activation went


class Conversion(list):
    """What :func:`convert` did with a model: a list of its :class:`Swap`, and what it left.

    Attributes:
        kept: path -> class of each normalization that it does not swap, such as LayerNorm.
        refused: path -> why it can't be swapped, with `partly=True` only.
    """

    def __init__(self, swaps: list[Swap], kept: dict[str, str], refused: dict[str, str]) -> None:
        super().__init__(swaps)
        self.kept, self.refused = kept, refused

    def __str__(self) -> str:
        lines = [f"swapped {swap.module} ({swap.replaced})" for swap in self]
        lines += [f"kept {path} ({kind})" for path, kind in self.kept.items()]
        lines += [f"refused {why}" for why in self.refused.values()]
        count = f"{len(self)} swapped, {len(self.kept)} kept, {len(self.refused)} refused"
        return "\n".join([*lines, count])


class _Site(NamedTuple):
    """A norm, and the activation that goes with it."""

    norm: nn.Module
    replaced: str
    activation: bool
    call: fx.Node | None = None  # of an activation outside of the norm, to be taken out


def convert(
    model: nn.Module, name: str = "", *, partly: bool = False, **options: Any
) -> Conversion:
    """Swap each BatchNorm2d, SyncBatchNorm and GroupNorm of a model for a norm-act, in place.

    Where an activation and nothing else follows, both become `build_norm_act(name, C)`; where none
    does, the norm becomes `build_norm_act(name, C, activation=False)`. What follows is read from
    a torch.fx trace of the forward pass. timm's BatchNormAct2d and GroupNormAct hold an activation,
    or none. timm's EvoNorms (and its FRN) become ours. One that is `name` keeps its weights,
    groups, eps and momentum; with `name=""` all of them do, and nothing else is swapped.

    Any other layer starts fresh, with the options given here rather than those of the norm (eps,
    momentum, groups); it keeps the norm's device, dtype, train or eval mode, and synchronization
    over ranks. An activation module that is used after norms only becomes an Identity. Otherwise
    (torchvision's residual blocks use one after the sum too) the block that calls it becomes a
    torch.fx.GraphModule: its forward pass as traced, without those calls and with the optional
    arguments that the model gives it. Its children, parameters and state-dict keys stay; its other
    attributes, hooks and context managers do not.

    Args:
        model: such as torchvision's ResNet, MobileNetV2, MNASNet and EfficientNet, or timm's.
        name: one of :func:`evonorm.list_norm_acts`, a formula, or "".
        partly: whether a norm that can't be swapped is left as it is, rather than an error.
        options: see :func:`evonorm.build_norm_act`; `linear` among them.

    Returns:
        what was swapped, in the order of the model's modules; its `kept` and `refused` are what was
        not, and its `str()` says all of it, a line each.

    Raises:
        ValueError: no such norm in the model, unknown name or impossible option, or a norm of
            which it can't be told whether an activation follows (sigmoid and tanh may be gates, so
            they count as unknown). The model is then as it was.
        TypeError: unknown option.
    """
    if name:
        check_norm_act(name)
    sites = {p: _evonorm_site(m) for p, m in model.named_modules() if is_evonorm(m)}
    norms = {p: m for p, m in model.named_modules() if name and isinstance(m, NORMS)}
    if not sites and not norms:
        kinds = ", ".join(kind.__name__ for kind in NORMS) + " and " if name else ""
        raise ValueError(f"found none of {kinds}timm's EvoNorms in {type(model).__name__}")
    refused: dict[str, str] = {}
    traced = None
    try:
        traced = trace(model) if norms else None
    except ValueError as error:
        if not partly:
            raise
        refused = dict.fromkeys(norms, str(error))
    if traced is not None:
        found, refused = _sites(norms, traced)
        sites |= found
    blocks = _rewritten(model, sites, refused, traced)
    if refused and not partly:
        raise ValueError(_summary(refused, len(norms)))
    paths = [path for path, _ in model.named_modules() if path in sites]
    new = {sites[path].norm: _build(model, sites[path], name, options) for path in paths}
    new.update(blocks)
    swaps = [Swap(path, sites[path].replaced, sites[path].activation) for path in paths]
    _replace(model, new)
    if traced is not None:
        try:
            trace(model)
        except ValueError as error:
            _replace(model, {ours: old for old, ours in new.items()})
            raise ValueError(f"the model would not run after the swap: {error}") from error
    return Conversion(swaps, _kept(model, refused), refused)


def _summary(refused: dict[str, str], total: int) -> str:
    first = next(iter(refused.values()))
    if total == 1:
        return first
    return f"{first} ({len(refused)} of {total} norms are refused; partly=True would leave them)"


def _evonorm_site(layer: nn.Module) -> _Site:
    return _Site(layer, type(layer).__name__, layer.apply_act)


def _sites(norms: dict[str, nn.Module], traced: Tracer) -> tuple[dict[str, _Site], dict[str, str]]:
    """The norms with their activations; and for those of which it can't be told, why."""
    nodes = list(traced.graph.nodes)
    sites, refused = {}, {}
    for path, norm in norms.items():
        try:
            call = activation_after(path, norm, nodes)
        except ValueError as error:
            refused[path] = str(error)
            continue
        activation = call.meta["name"] if call else inner_activation(norm)
        replaced = type(norm).__name__ + (f" + {activation}" if activation else "")
        sites[path] = _Site(norm, replaced, bool(activation), call)
    return sites, refused


def _rewritten(
    model: nn.Module, sites: dict[str, _Site], refused: dict[str, str], traced: Tracer | None
) -> dict[nn.Module, nn.Module]:
    """What stands for the activations of the sites, or for the blocks that call them.

    A site whose block can't be rewritten moves to `refused`, and it is tried again without it.
    """
    nodes = list(traced.graph.nodes) if traced else []
    while True:
        new: dict[nn.Module, nn.Module] = {}
        removed = [site.call for site in sites.values() if site.call is not None]
        kept = {node.target for node in nodes if node not in removed}
        by_owner = defaultdict(list)
        for node in removed:
            if node.op == "call_module" and node.target not in kept:
                new[model.get_submodule(node.target)] = nn.Identity()
            else:
                by_owner[node.meta["owner"]].append(node)
        again = False
        for owner, calls in by_owner.items():
            try:
                new[model.get_submodule(owner)] = without(calls, model, traced)
            except ValueError as error:
                again = True
                for node in calls:
                    refused[node.meta["norm"]] = str(error)
                    del sites[node.meta["norm"]]
        if not again:
            return new


def _build(model: nn.Module, site: _Site, name: str, options: dict[str, Any]) -> nn.Module:
    norm, activation = site.norm, site.activation
    like = next(chain(norm.parameters(), norm.buffers(), model.parameters()), None)
    own = {} if like is None else {"device": like.device, "dtype": like.dtype}
    ours, without_activation = EVONORMS.get(type(norm).__name__, ("", ""))
    if is_evonorm(norm) and name in ("", ours):
        return _loaded(norm, ours, without_activation, {**own, **own_options(norm), **options})
    if isinstance(norm, nn.SyncBatchNorm):
        own["sync"] = True
    channels = norm.num_channels if isinstance(norm, nn.GroupNorm) else len(norm.weight)
    return build_norm_act(name, channels, activation, **{**own, **options}).train(norm.training)


def _loaded(norm: nn.Module, ours: str, linear: str, options: dict[str, Any]) -> nn.Module:
    """Our layer for one of timm's, with its weights."""
    options = {"linear": linear, **options}
    layer = build_norm_act(ours, len(norm.weight), norm.apply_act, **options)
    state = norm.state_dict()
    if "tau" in state:  # FRN's threshold
        state["v"] = state.pop("tau")
    layer.load_state_dict(state)
    for parameter in layer.parameters():
        parameter.requires_grad_(norm.weight.requires_grad)
    return layer.train(norm.training)


def _kept(model: nn.Module, refused: dict[str, str]) -> dict[str, str]:
    """The normalizations in the model that are neither norm-acts nor refused."""
    return {
        path: type(module).__name__
        for path, module in model.named_modules()
        if "norm" in type(module).__name__.lower()
        and not hasattr(module, "norm_act")
        and not any(True for child in module.children() for _ in child.parameters())
        and path not in refused
    }


def _replace(parent: nn.Module, new: dict[nn.Module, nn.Module]) -> None:
    """Put the new modules for the old ones, under all names that these have."""
    for key, child in parent._modules.items():
        if child is not None:
            parent._modules[key] = new.get(child, child)
            _replace(parent._modules[key], new)
