"""A run's folder: what it holds, who may write to it, and the one reader of its metrics."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import logging
import os
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Callable

import yaml
from fvcore.common.config import CfgNode

from . import distributed, machine
from .config import flat
from .errors import UserError, disk_errors, user_errors
from .files import PARTIAL, atomic_write

METRICS, CONFIG, STARTS, LOCK = "metrics.json", "config.yaml", "starts.json", "run.lock"
Line = dict[str, Any]


def read_metrics(folder: Path) -> tuple[list[Line], int]:
    """The lines of a run's metrics.json, and how many were left out as damaged.

    A process that is killed while it writes leaves half a line.

    Raises:
        OSError: the file can't be read.
    """
    lines: list[Line] = []
    damaged = 0
    if (folder / METRICS).exists() and not (folder / METRICS).is_file():
        raise OSError(f"{folder / METRICS} is not a file")  # reading a FIFO would never end
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


def keep_lines(folder: Path, keep: Callable[[Line], bool]) -> tuple[list[Line], int]:
    """The lines of metrics.json that `keep` accepts, and how many others there were.

    The main process removes the others, and damaged lines, from the file.
    """
    with user_errors(OSError):
        found, damaged = read_metrics(folder) if (folder / METRICS).exists() else ([], 0)
    kept = [line for line in found if keep(line)]
    dropped = len(found) - len(kept) + damaged
    if dropped and distributed.is_main():
        with atomic_write(folder / METRICS) as file:
            file.writelines(dump_line(line) for line in kept)
    return kept, dropped


def dump_line(line: Line) -> bytes:
    """The bytes of a line of metrics.json."""
    return json.dumps(line).encode() + b"\n"


@contextlib.contextmanager
def claimed(
    output_dir: str, checkpoints: Sequence[str], resume: bool, cfg: CfgNode | None = None
) -> Iterator[None]:
    """Make a run's folder and keep other runs out of it. Only the main process does so.

    Args:
        checkpoints: patterns of the checkpoints' names.
        cfg: of the run; a folder whose config.yaml has other keys is another tool's.

    Raises:
        UserError: the folder holds a run and `resume` is not set, or a run of another tool, another
            process works in it, or it can't be made.
    """
    if not output_dir.strip():
        raise UserError("OUTPUT_DIR is empty: name the run's folder")
    if not distributed.is_main():
        yield
        return
    folder = Path(output_dir)
    with user_errors(OSError, prefix="OUTPUT_DIR: "):
        folder.mkdir(parents=True, exist_ok=True)
        lock = _lock(folder)
    try:
        if not resume:
            _refuse_to_overwrite(folder, output_dir, checkpoints)
        elif cfg is not None:
            _refuse_another_tools(folder, cfg)
        for leftover in folder.glob("*" + PARTIAL):
            leftover.unlink()
        yield
    finally:
        # Removed while it is still held, so that nobody locks a file that is gone.
        with contextlib.suppress(OSError):
            (folder / LOCK).unlink()
        lock.close()


def owns_folder(*checkpoints: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator of `train(cfg, resume)`, which keeps OUTPUT_DIR :func:`claimed` meanwhile."""

    def decorate(train: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(train)
        def run(cfg: CfgNode, resume: bool = False) -> Any:
            with claimed(cfg.OUTPUT_DIR, checkpoints, resume, cfg):
                return train(cfg, resume)

        return run

    return decorate


def _lock(folder: Path) -> IO[str]:
    """The open lock file. The lock ends with this process, however that ends."""
    while True:
        file = open(folder / LOCK, "a+")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            file.seek(0)
            owner = file.read().strip() or "another process"
            file.close()
            raise UserError(
                f"OUTPUT_DIR {folder}: {owner} is at work in it; wait for its end, or name "
                "another OUTPUT_DIR"
            ) from error
        except OSError as error:  # some network file systems have no locks
            logging.getLogger(__name__).warning("%s can't be locked: %s", folder, error)
        try:
            same = os.path.samestat(os.fstat(file.fileno()), os.stat(folder / LOCK))
        except FileNotFoundError:
            same = False
        if same:
            break
        file.close()  # its owner removed it in the meantime
    file.truncate(0)
    print(f"process {os.getpid()} on {platform.node()}", file=file, flush=True)
    return file


def _refuse_to_overwrite(folder: Path, output_dir: str, checkpoints: Sequence[str]) -> None:
    kept = sorted(path.name for pattern in checkpoints for path in folder.glob(pattern))
    metrics = folder / METRICS  # empty where a start failed early
    kept += [METRICS] if metrics.exists() and metrics.stat().st_size else []
    kept += [CONFIG] if _is_foreign(folder / CONFIG, output_dir) else []
    if kept:
        raise UserError(
            f"OUTPUT_DIR {output_dir} holds a run ({kept[0]}): "
            "continue it with --resume, or name another OUTPUT_DIR"
        )


def _refuse_another_tools(folder: Path, cfg: CfgNode) -> None:
    try:
        found = yaml.safe_load((folder / CONFIG).read_bytes())
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return  # none, or damaged: it is written anew
    known = flat(CfgNode(found)) if isinstance(found, dict) else {}
    unknown = sorted(known.keys() - flat(cfg).keys())
    if unknown:
        raise UserError(
            f"OUTPUT_DIR {folder} holds a run of another tool ({CONFIG} has {unknown[0]}): name "
            "another OUTPUT_DIR"
        )


def _is_foreign(config: Path, output_dir: str) -> bool:
    """Whether a config is there that an earlier start of this very run can't have written."""
    if not config.exists():
        return False
    try:
        found = yaml.safe_load(config.read_bytes())
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return True
    return not isinstance(found, dict) or found.get("OUTPUT_DIR") != output_dir


def write_start(cfg: CfgNode, step: int) -> None:
    """Write config.yaml, and add a line to starts.json: the step, command, machine and versions.

    Raises:
        UserError: they can't be written.
    """
    about = {"step": step, **machine.about()}
    if not distributed.is_main():
        return
    folder = Path(cfg.OUTPUT_DIR)
    with user_errors(OSError), atomic_write(folder / CONFIG) as file:
        file.write(cfg.dump().encode())
    with disk_errors(folder / STARTS), open(folder / STARTS, "ab") as file:
        file.write(dump_line(about))
