"""Write checkpoints, whole and with finite values only, and check which run one belongs to."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor

from .config import flat
from .errors import UserError
from .files import atomic_write


def write_checkpoint(path: Path, data: dict[str, Any]) -> None:
    """Write one file, replacing an older one as soon as the new one is whole.

    Raises:
        UserError: a value in it is not finite.
    """
    for name, x in _tensors(data):
        if x.is_floating_point() and not torch.isfinite(x).all():
            raise UserError(f"{path} is not written: {name} has values that are not finite")
    with atomic_write(path) as file:
        torch.save(data, file)


def check_same_run(old: CfgNode, new: CfgNode, path: Path, may_differ: Collection[str]) -> None:
    """Raise a UserError if the checkpoint at `path` belongs to a run with other settings.

    Args:
        old: the settings in the checkpoint.
        new: the settings of the run that is to continue from it.
        may_differ: the keys that may differ, in addition to DEVICE, OUTPUT_DIR and WANDB_PROJECT.
    """
    was, now = flat(old), flat(new)
    free = {*may_differ, "DEVICE", "OUTPUT_DIR", "WANDB_PROJECT"}
    differing = [
        f"{key} {now[key]!r} (was {was.get(key)!r})"
        for key in sorted(now)
        if now[key] != was.get(key) and key not in free
    ]
    if differing:
        raise UserError(
            f"{path} is of a run with other settings: {', '.join(differing)}; "
            "leave them as they were, or name another OUTPUT_DIR"
        )


def _tensors(data: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(data, Tensor):
        yield name, data
    elif isinstance(data, dict):
        for key, value in data.items():
            yield from _tensors(value, f"{name}.{key}" if name else str(key))
