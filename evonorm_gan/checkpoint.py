"""Checkpoints of a run: whole or absent, and loading one runs no code.

A run's folder holds `model_0001000.pth` (the number: steps done), `last_checkpoint` with the name
of the newest, `best_fid.pth` and `best_is.pth`. Each is a dictionary of tensors and plain
containers: `step`, `config` (yaml), `classes` (names), `ema`, and, but for imported weights,
`generator`, `discriminator`, `optimizer_g`, `optimizer_d`, `scaler`, `lecam`, `ada`, `random`,
`data`, `sums`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from evonorm_runs.checkpoint import write_checkpoint
from evonorm_runs.config import flat, merge_saved
from evonorm_runs.errors import UserError, user_errors
from evonorm_runs.files import atomic_write, read_checkpoint

from .config import finish_config, get_cfg
from .models import Generator, build_generator, make_spectral_norm_exact

TAG = "last_checkpoint"
# What loading a state raises that is not one.
WRONG_STATE = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)

# What may differ between a checkpoint and the run that goes on from it, beside DEVICE and
# OUTPUT_DIR; the others would make it another run, or its evaluations not comparable.
MAY_DIFFER = {
    *("SOLVER.MAX_ITER", "SOLVER.LR_G", "SOLVER.LR_D", "SOLVER.AMP", "SOLVER.ACCUMULATE"),
    *("SOLVER.CHANNELS_LAST", "SOLVER.COMPILE", "SOLVER.LOG_PERIOD", "SOLVER.SAMPLE_PERIOD"),
    *("SOLVER.CHECKPOINT_PERIOD", "SOLVER.KEEP", "DATA.ROOT", "DATA.NUM_WORKERS"),
    *("DATA.DOWNLOAD", "DATA.IN_MEMORY", "TEST.EXTRACTOR_WEIGHTS"),
    *("TEST.EVAL_PERIOD", "TEST.BATCH_SIZE", "TEST.INCEPTION_WEIGHTS", "TEST.CACHE_DIR"),
    *("MODEL.RECOMPUTE", "MODEL.INIT", "TEST.STOP_ON_COLLAPSE"),
}


def save_checkpoint(folder: Path, data: dict[str, Any], keep: int) -> Path:
    """Write `data` as the newest checkpoint of a run, then delete all but the last `keep`.

    Whenever the process is killed, the tag names a whole checkpoint.

    Raises:
        UserError: a value in it is not finite; nothing is written or deleted.
    """
    path = folder / f"model_{data['step']:07d}.pth"
    write_checkpoint(path, data)
    with atomic_write(folder / TAG) as file:
        file.write(path.name.encode())
    older = sorted(p for p in folder.glob("model_*.pth") if p.name <= path.name)
    for old in older[:-keep]:
        old.unlink()
    return path


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
    with user_errors(OSError, ValueError, prefix=f"{tag}: not the name of a checkpoint: "):
        newest = path / Path(tag.read_text(encoding="utf-8").strip()).name
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
    kinds = {"step": int, "config": str, "classes": list, "ema": dict}
    for key, kind in kinds.items():
        if not isinstance(data[key], kind):
            raise UserError(f"{path}: damaged: its {key} is no {kind.__name__}")
    if data["step"] < 0:
        raise UserError(f"{path}: damaged: its step is {data['step']}")
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
    with user_errors(*WRONG_STATE, prefix=f"{path}: "):
        generator.load_state_dict(data[key])
    if ema and "generator" in data:  # imported weights keep the estimates they were released with
        make_spectral_norm_exact(generator)
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


def keep_discriminator(cfg: CfgNode, path: Path | None) -> CfgNode:
    """`cfg` with the MODEL.D_32_ENDS_AT of the run that `path` is of, if it names none.

    Args:
        path: the checkpoint that a run goes on from, or starts from; None if there is none.
    """
    if path is None or cfg.MODEL.RESOLUTION != 32 or cfg.MODEL.D_32_ENDS_AT is not None:
        return cfg
    old = config_of(load_checkpoint(path), str(path), cfg.DEVICE)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.D_32_ENDS_AT = old.MODEL.D_32_ENDS_AT
    cfg.freeze()
    return cfg


def config_of(data: dict[str, Any], name: str, device: str) -> CfgNode:
    """The config in a checkpoint called `name`, with `device` for its DEVICE; frozen."""
    cfg = merge_saved(get_cfg(), data["config"], name)
    held = flat(CfgNode.load_cfg(data["config"]))
    # What a file means that is older than a key.
    if "TEST.TRUNCATE_BY" not in held and "generator" not in data:
        cfg.TEST.TRUNCATE_BY = "scale"  # imported, with the port's statistics
    if "MODEL.D_32_ENDS_AT" not in held and cfg.MODEL.RESOLUTION == 32:
        cfg.MODEL.D_32_ENDS_AT = 4
    cfg.DEVICE = str(device)
    return finish_config(cfg)
