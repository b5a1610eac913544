"""A run in Weights & Biases, beside TensorBoard, if its config names a project: WANDB_PROJECT."""

from __future__ import annotations

import importlib.util
import secrets
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from .config import flat
from .errors import UserError, user_errors
from .files import atomic_write

ID = "wandb_id"  # the file of a run's folder with the run's id there, so that it goes on


def check_wandb(cfg: CfgNode) -> None:
    """Raise a UserError if WANDB_PROJECT is set and the package is missing."""
    if cfg.WANDB_PROJECT and importlib.util.find_spec("wandb") is None:
        raise UserError(
            f"WANDB_PROJECT is {cfg.WANDB_PROJECT}, but the package wandb is not installed: "
            "`pip install wandb`, or leave the key empty"
        )


def start_wandb(cfg: CfgNode, folder: Path) -> Any:
    """The folder's run in Weights & Biases, a `wandb.Run`; None if WANDB_PROJECT is empty.

    It is called as the folder, goes on where the folder's run does, and holds the config. Weights &
    Biases reads its own variables, such as WANDB_MODE=offline and WANDB_API_KEY.

    Raises:
        UserError: the package is missing, or refuses.
    """
    if not cfg.WANDB_PROJECT:
        return None
    check_wandb(cfg)
    import wandb

    if not (folder / ID).exists():
        with atomic_write(folder / ID) as file:
            file.write(secrets.token_hex(4).encode())
    with user_errors(wandb.Error, prefix=f"WANDB_PROJECT {cfg.WANDB_PROJECT}: "):
        return wandb.init(
            project=cfg.WANDB_PROJECT,
            name=folder.name,
            id=(folder / ID).read_text(),
            resume="allow",
            dir=str(folder),
            config=flat(cfg),
            allow_val_change=True,  # such as a larger SOLVER.MAX_ITER
        )
