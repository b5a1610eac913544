"""What a run writes down: JSON lines, TensorBoard, Weights & Biases, a progress bar."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode
from tqdm import tqdm

from . import distributed
from .errors import disk_errors
from .folder import METRICS, Line, dump_line, keep_lines
from .wandb_run import start_wandb


def say(line: str) -> None:
    """Print a line, above the progress bar if there is one; in the main process only."""
    if distributed.is_main():
        tqdm.write(line)
        sys.stdout.flush()


def progress(steps: range, total: int, images: int) -> Iterable[int]:
    """The steps, of `images` images each, with a progress bar if stderr is a terminal."""
    hidden = not (distributed.is_main() and sys.stderr.isatty())
    scale = {"unit": " images", "unit_scale": images}
    return tqdm(steps, initial=steps.start - 1, total=total, disable=hidden, **scale)


def _done(line: Line, step: int) -> bool:
    """Whether a line is of one of the first `step` steps; not if it names none."""
    found = line.get("step")
    return isinstance(found, (int, float)) and found <= step


class Log:
    """The JSON lines of a run that has done `step` steps.

    A process that was killed may have left lines of later steps. They are removed, since these
    steps are done again.

    Args:
        cfg: the run's config, whose WANDB_PROJECT is read; None for no Weights & Biases.

    Attributes:
        lines: all lines as dictionaries, in every process.
    """

    def __init__(self, folder: Path, step: int, cfg: CfgNode | None = None) -> None:
        self.path = folder / METRICS
        self.lines, dropped = keep_lines(folder, lambda line: _done(line, step))
        if not distributed.is_main():
            return
        if dropped:
            say(f"{self.path}: removed {dropped} lines of steps after {step}, which come again")
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self.board = SummaryWriter(str(folder), purge_step=step + 1)
        self.wandb = start_wandb(cfg, folder) if cfg is not None else None

    def write(self, step: int, values: dict[str, float]) -> None:
        """Add a line, and its values to TensorBoard and Weights & Biases."""
        line = {"step": step, **values}
        self.lines.append(line)
        if not distributed.is_main():
            return
        with disk_errors(self.path):
            with open(self.path, "ab") as file:
                file.write(dump_line(line))
            for key, value in values.items():
                self.board.add_scalar(key, value, step)
            self.board.flush()
        if self.wandb:
            self.wandb.log(values, step=step)

    def with_key(self, key: str) -> list[dict[str, Any]]:
        """The lines that have a number under this key."""
        return [line for line in self.lines if isinstance(line.get(key), (int, float))]

    def close(self) -> None:
        if distributed.is_main():
            self.board.close()
            if self.wandb:
                self.wandb.finish()
