"""A run's folder: what it holds, and the one reader of its metrics."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from . import distributed
from .errors import UserError, user_errors
from .files import atomic_write

METRICS, CONFIG = "metrics.json", "config.yaml"


def read_metrics(folder: Path) -> tuple[list[dict[str, Any]], int]:
    """The lines of a run's metrics.json, and how many were left out as damaged.

    A process that is killed while it writes leaves half a line.

    Raises:
        OSError: the file can't be read.
    """
    lines: list[dict[str, Any]] = []
    damaged = 0
    for text in (folder / METRICS).read_bytes().splitlines():
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            line = None
        if isinstance(line, dict):
            lines.append(line)
        else:
            damaged += 1
    return lines, damaged


def prepare(folder: Path, checkpoints: Iterable[str], resume: bool) -> bool:
    """Make a run's folder; returns whether one of the checkpoints is in it, to go on from.

    Args:
        checkpoints: patterns of their names.

    Raises:
        UserError: it holds a run and `resume` is not set, or there can't be such a folder.
    """
    held = sorted(path.name for pattern in checkpoints for path in folder.glob(pattern))
    kept = [*held, *(name for name in (METRICS, CONFIG) if (folder / name).exists())]
    if kept and not resume:
        raise UserError(
            f"OUTPUT_DIR {folder} holds a run ({kept[0]}): "
            "continue it with --resume, or name another OUTPUT_DIR"
        )
    with user_errors(OSError, prefix="OUTPUT_DIR: "):
        folder.mkdir(parents=True, exist_ok=True)
    return bool(held)


def write_config(cfg: CfgNode) -> None:
    """Write config.yaml in OUTPUT_DIR, in the main process.

    Raises:
        UserError: it can't be written.
    """
    if distributed.is_main():
        with user_errors(OSError), atomic_write(Path(cfg.OUTPUT_DIR, CONFIG)) as file:
            file.write(cfg.dump().encode())
