"""What a machine with PyTorch and no other package of ours needs to train a GAN for some steps."""

from __future__ import annotations

import importlib.util
import sys
from ast import literal_eval
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any


class CfgNode(dict):
    """A config's keys as attributes. Unlike fvcore's it checks no types."""

    __getattr__ = dict.__getitem__
    __setattr__ = dict.__setitem__

    def merge_from_file(self, file: str, allow_unsafe: bool = False) -> None:
        import yaml

        read = yaml.safe_load(Path(file).read_text())
        if base := read.pop("_BASE_", None):
            self.merge_from_file(str(Path(file).parent / base))
        self._merge(read)

    def merge_from_list(self, pairs: Sequence[str]) -> None:
        for key, text in zip(pairs[::2], pairs[1::2]):
            *above, last = key.split(".")
            node = self
            for part in above:
                node = node[part]
            node._merge({last: text})

    def _merge(self, read: dict[str, Any]) -> None:
        for key, value in read.items():
            if key not in self:
                raise KeyError(f"there is no key {key}")
            if isinstance(self[key], CfgNode):
                self[key]._merge(value)
            else:
                self[key] = _parsed(value)

    def freeze(self) -> None:
        """fvcore's would refuse changes from now on."""


def _parsed(value: Any) -> Any:
    """As yacs reads values: text that is a Python literal is what it says."""
    try:
        return literal_eval(value) if isinstance(value, str) else value
    except (SyntaxError, ValueError):
        return value


def stand_in() -> bool:
    """Let `evonorm_gan.steps` be imported without fvcore.

    Returns:
        whether it is missing, so that :class:`CfgNode` is in the place of its own.
    """
    if importlib.util.find_spec("fvcore") is not None:
        return False
    for name in ("fvcore", "fvcore.common", "fvcore.common.config"):
        sys.modules[name] = ModuleType(name)
    sys.modules["fvcore.common.config"].CfgNode = CfgNode
    return True
