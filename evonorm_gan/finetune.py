"""Training that starts from weights which are there: a checkpoint of a run, or an import."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from evonorm_runs.config import value
from evonorm_runs.errors import UserError, user_errors

from . import checkpoint
from .models import Discriminator, Generator, make_spectral_norm_exact
from .models.port import make_trainable

# What a network's weights or images depend on.
KEYS = ("RESOLUTION", "DIM_Z", "G_CH", "NORM", "NUM_GROUPS", "EPS", "ATTENTION", "BLOCKS")
OF_G = tuple(f"MODEL.{key}" for key in KEYS)
OF_D = ("MODEL.D_CH", "MODEL.D_32_ENDS_AT")


def start_from_weights(
    cfg: CfgNode, G: Generator, average: Generator, D: Discriminator, classes: Sequence[str]
) -> str:
    """Load what the checkpoint at MODEL.INIT holds into the networks of a new run.

    Where it holds one generator only, G and its moving average both begin with it. Class embeddings
    are taken by index if the number of classes is the same, and else by name: classes that it does
    not know begin with the mean of all its embeddings.

    Args:
        classes: the names of the run's classes.

    Returns:
        one line that says what is taken and what is not.

    Raises:
        UserError: there is no such checkpoint, or its networks are others than the config's; or it
            has no discriminator, and SOLVER.FREEZE_D is set.
    """
    path = checkpoint.find_checkpoint(cfg.MODEL.INIT)
    data = checkpoint.load_checkpoint(path)
    own = checkpoint.config_of(data, str(path), cfg.DEVICE)
    with_d = "discriminator" in data
    for key in (*OF_G, *(OF_D if with_d else ())):
        if value(own, key) != value(cfg, key):
            raise UserError(
                f"MODEL.INIT {path} has {key} {value(own, key)!r}, but the config has "
                f"{value(cfg, key)!r}: they should be the same"
            )
    if cfg.SOLVER.FREEZE_D and not with_d:
        raise UserError(
            f"SOLVER.FREEZE_D is {cfg.SOLVER.FREEZE_D}, but MODEL.INIT {path} holds a generator "
            "only: there is no trained discriminator to freeze"
        )
    known = list(data["classes"])
    rows = None if len(known) == len(classes) else _same_names(classes, known)
    with user_errors(*checkpoint.WRONG_STATE, prefix=f"MODEL.INIT {path}: "):
        for network, key in ((G, "generator"), (average, "ema"), (D, "discriminator")):
            state = data.get(key, data["ema"]) if network is not D else data.get(key)
            if state is not None:
                _load(network, state, rows)
    for network in (G, average) if "generator" not in data else ():
        make_trainable(network)
    about = f"starts from {path}" + ("" if with_d else ", a generator; the discriminator is new")
    if rows is not None:
        new = rows.count(None)
        about += (
            f"; it has {len(known)} classes, not {len(classes)}: the embeddings of "
            f"{len(rows) - new} are taken by name, {new} begin with the mean of all"
        )
    return about


def freeze_first_blocks(D: Discriminator, num: int) -> None:
    """Keep the first `num` blocks of D as they are, and what lies before and between them.

    FreezeD: Mo et al., Freeze the Discriminator, 2020 (arXiv:2002.10964).

    Raises:
        UserError: D has fewer blocks.
    """
    if num > len(D.blocks):
        raise UserError(
            f"SOLVER.FREEZE_D is {num}, but the discriminator has {len(D.blocks)} blocks"
        )
    frozen = [D.first, *D.blocks[:num]] if num else []
    if D.attention is not None and D.attention_after < num:
        frozen.append(D.attention)
    for module in frozen:
        module.requires_grad_(False).eval()  # which ends its power iterations


def _same_names(classes: Sequence[str], known: Sequence[str]) -> list[int | None]:
    """Of each class, the index of the known one with its name."""
    index = {name: i for i, name in enumerate(known)}
    return [index.get(name) for name in classes]


def _load(network: nn.Module, state: dict[str, Any], rows: list[int | None] | None) -> None:
    if rows is None:
        network.load_state_dict(state)
        return
    state = dict(state)
    for key in [key for key in state if key.startswith("embedding.")]:
        if key.endswith(("weight", "original")):
            state[key] = _chosen(state[key], rows)
        else:  # of the spectral norm, for another number of rows
            state[key] = network.state_dict()[key]
    network.load_state_dict(state)
    make_spectral_norm_exact(network.embedding)


def _chosen(table: Tensor, rows: Sequence[int | None]) -> Tensor:
    mean = table.mean(0)
    return torch.stack([mean if row is None else table[row] for row in rows])
