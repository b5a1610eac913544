"""Checkpoints of a run: whole or absent, and loading one runs no code.

A run's folder holds `model_0001000.pth` (the number: steps done), `last_checkpoint` with the name
of the newest, `best_fid.pth` and `best_is.pth`. Each is a dictionary of tensors and plain
containers: `step`, `config` (yaml), `classes` (names), `ema`, and, but for imported weights,
`generator`, `discriminator`, `optimizer_g`, `optimizer_d`, `scaler`, `random`, `data`, `sums`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode

from evonorm_runs.errors import UserError, user_errors
from evonorm_runs.files import PARTIAL, atomic_write, read_checkpoint

from .config import CONFIG_ERRORS, finish_config, get_cfg
from .models import Generator, build_generator

TAG = "last_checkpoint"

# What may differ between a checkpoint and the run that goes on from it, beside DEVICE and
# OUTPUT_DIR; the others would make it another run, or its evaluations not comparable.
MAY_DIFFER = {
    *("SOLVER.MAX_ITER", "SOLVER.LR_G", "SOLVER.LR_D", "SOLVER.AMP", "SOLVER.ACCUMULATE"),
    *("SOLVER.CHANNELS_LAST", "SOLVER.COMPILE", "SOLVER.LOG_PERIOD", "SOLVER.SAMPLE_PERIOD"),
    *("SOLVER.CHECKPOINT_PERIOD", "SOLVER.KEEP", "DATA.ROOT", "DATA.NUM_WORKERS"),
    *("TEST.EVAL_PERIOD", "TEST.BATCH_SIZE", "TEST.INCEPTION_WEIGHTS", "TEST.CACHE_DIR"),
    "TEST.STOP_ON_COLLAPSE",
}


def save_checkpoint(folder: Path, data: dict[str, Any], keep: int) -> Path:
    """Write `data` as the newest checkpoint of a run, then delete all but the last `keep`.

    Whenever the process is killed, the tag names a whole checkpoint.

    Raises:
        UserError: a value in it is not finite; nothing is written or deleted.
    """
    for leftover in folder.glob("*" + PARTIAL):
        leftover.unlink()
    path = folder / f"model_{data['step']:07d}.pth"
    write_checkpoint(path, data)
    with atomic_write(folder / TAG) as file:
        file.write(path.name.encode())
    older = sorted(p for p in folder.glob("model_*.pth") if p.name <= path.name)
    for old in older[:-keep]:
        old.unlink()
    return path


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


def find_checkpoint(path: str | os.PathLike) -> Path:
    """A checkpoint's file: `path` itself, or the newest in a run's folder.

    Raises:
        UserError: there is none.
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.exists():
        raise UserError(f"{path}: there is no such checkpoint or folder")
    tag = path / TAG
    if not tag.is_file():  # killed before the first one was written
        whole = sorted(path.glob("model_*.pth"))
        if not whole:
            raise UserError(f"{path}: there is no checkpoint of a run in this folder")
        return whole[-1]
    newest = path / Path(tag.read_text().strip()).name
    if not newest.is_file():
        raise UserError(f"{tag}: names {newest.name}, which is not there")
    return newest


def load_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """The dictionary in a checkpoint of a run, or of imported weights.

    Raises:
        UserError: not one, damaged, or holding what could run code.
    """
    with user_errors(OSError):
        data = read_checkpoint(path)
    missing = {"step", "config", "classes", "ema"} - data.keys()
    if missing:
        raise UserError(f"{path}: not a checkpoint of train_gan.py; it lacks {sorted(missing)}")
    return data


def load_generator(
    path: str | os.PathLike, ema: bool = True, device: str = "cpu"
) -> tuple[Generator, CfgNode, list[str], int]:
    """The generator of a checkpoint, in evaluation mode.

    Args:
        path: a checkpoint, or a run's folder for its newest.
        ema: the moving average of its weights, not the weights of the last step.

    Returns:
        generator, config (frozen, its DEVICE is `device`), names of classes, steps done.

    Raises:
        UserError: there is no such checkpoint, or it does not fit.
    """
    path = find_checkpoint(path)
    data = load_checkpoint(path)
    cfg = config_of(data, str(path), device)
    key = "ema" if ema else "generator"
    if key not in data:
        raise UserError(f"{path}: holds one set of weights only, which is taken with EMA on")
    generator = build_generator(cfg)
    with user_errors(RuntimeError, prefix=f"{path}: "):
        generator.load_state_dict(data[key])
    return generator.to(device).eval(), cfg, list(data["classes"]), int(data["step"])


def save_generator_only(
    path: str | os.PathLike, generator: Generator, cfg: CfgNode, classes: Sequence[str]
) -> None:
    """Write a generator that was not trained here, to sample from and to evaluate.

    Raises:
        UserError: there is a file of this name.
    """
    path = Path(path)
    if path.exists():
        raise UserError(f"{path} exists: name another file, or delete it first")
    data = {"step": 0, "config": cfg.dump(), "classes": list(classes)}
    with user_errors(OSError):
        write_checkpoint(path, {**data, "ema": generator.state_dict()})


def config_of(data: dict[str, Any], name: str, device: str) -> CfgNode:
    """The config in a checkpoint called `name`, with `device` for its DEVICE; frozen."""
    cfg = get_cfg()
    with user_errors(*CONFIG_ERRORS, prefix=f"{name}: its config: "):
        cfg.merge_from_other_cfg(CfgNode.load_cfg(data["config"]))
    cfg.DEVICE = str(device)
    return finish_config(cfg)


def check_same_run(old: CfgNode, new: CfgNode, path: Path) -> None:
    """Raise UserError if what a checkpoint at `path` had set makes `new` another run."""
    was, now = _flat(old), _flat(new)
    differing = [
        f"{key} {now[key]!r} (was {was[key]!r})"
        for key in sorted(now)
        if now[key] != was[key] and key not in MAY_DIFFER and key not in ("DEVICE", "OUTPUT_DIR")
    ]
    if differing:
        raise UserError(
            f"{path} is of a run with other settings: {', '.join(differing)}; "
            "leave them as they were, or name another OUTPUT_DIR"
        )


def _flat(cfg: CfgNode, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in cfg.items():
        nested = isinstance(value, CfgNode)
        flat.update(_flat(value, f"{prefix}{key}.") if nested else {prefix + key: value})
    return flat


def _tensors(data: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(data, torch.Tensor):
        yield name, data
    elif isinstance(data, dict):
        for key, value in data.items():
            yield from _tensors(value, f"{name}.{key}" if name else str(key))
