"""Which components take a norm-act: their own declarations, by which configs are judged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Callable, TypeVar

Component = TypeVar("Component", bound=Callable[..., Any])

_KEYS: dict[Any, tuple[str, ...]] = {}  # component -> the keys below MODEL that it reads
_INSTEAD: dict[Any, Any] = {}  # component of Detectron2's -> ours
# A subclass that defines one of these may put a norm or an activation somewhere else.
_BUILDS_OR_CALLS_NORMS = ("__init__", "forward", "layers")


def takes_norm_act(*keys: str, instead_of: Any = None) -> Callable[[Component], Component]:
    """Decorator: declares that a component takes a norm-act, and has no activation behind it.

    :func:`evonorm_d2.resolve` and :func:`evonorm_d2.resolve_lazy` refuse a norm-act in a component
    that is not declared. :func:`evonorm.check` shows whether a declaration is true. Subclasses of
    a declared class count as declared unless they define `__init__`, `forward` or `layers`, where
    norms are built and called.

    In a LazyConfig a declared class gets :class:`evonorm_d2.norm.Norm` as its `norm`, `conv_norm`,
    `norm1` or `norm2`, where that names a norm-act. Detectron2's `get_norm(norm, channels)` builds
    it, `norm.without_activation()` is for a place where no activation follows.

    Args:
        keys: config keys below MODEL where the component reads a norm, such as "RESNETS.NORM". They
            may be of its own, "MY_NET.NORM".
        instead_of: the component of Detectron2's that `resolve` swaps for this one.
    """

    def declare(component: Component) -> Component:
        _KEYS[component] = keys
        if instead_of is not None:
            _INSTEAD[instead_of] = component
        return component

    return declare


def is_declared(component: Any) -> bool:
    """Whether a component, a class or a function, is declared, or derived from one that is."""
    return component in _KEYS or _declared_base(component) is not None


def swaps() -> dict[Any, Any]:
    """Our component for each of Detectron2's."""
    return dict(_INSTEAD)


def names_instead_of(key: str) -> dict[str, str]:
    """The name of our component that reads a key, for each of Detectron2's."""
    return {stock.__name__: ours.__name__ for stock, ours in _INSTEAD.items() if key in _KEYS[ours]}


def names_that_read(key: str) -> set[str]:
    """The names of all declared components that read a key, and of those derived from them."""
    return {name for c, keys in _KEYS.items() if key in keys for name in _names(c)}


def _names(component: Any) -> Iterator[str]:
    yield component.__name__
    for derived in component.__subclasses__() if isinstance(component, type) else ():
        if derived not in _KEYS and is_declared(derived):
            yield from _names(derived)


def _declared_base(component: Any) -> type | None:
    for base in component.__mro__ if isinstance(component, type) else ():
        if base in _KEYS:
            return base
        if any(name in vars(base) for name in _BUILDS_OR_CALLS_NORMS):
            return None
    return None
