"""What a training writes on the way: lines of its log, and grids of samples."""

from __future__ import annotations

import time

from fvcore.common.config import CfgNode

from evonorm_runs import distributed
from evonorm_runs.log import Log, say

from .models import singular_values
from .run import GanRun
from .sampling import class_grid, standing_statistics, write_png

GRID_CLASSES, GRID_COLUMNS = 10, 10


class Timer:
    """Seconds per step, without what is written and evaluated in between."""

    def __init__(self, cfg: CfgNode) -> None:
        self.images = cfg.SOLVER.BATCH_SIZE * cfg.SOLVER.D_STEPS
        self.seconds, self.steps = 0.0, 0

    def start(self) -> None:
        self.began = time.perf_counter()

    def stop(self) -> None:
        self.seconds += time.perf_counter() - self.began
        self.steps += 1

    def pop(self) -> dict[str, float]:
        """Seconds per step, and real images per second, since the last call."""
        seconds = self.seconds / self.steps
        self.seconds, self.steps = 0.0, 0
        return {"time": seconds, "images_per_second": self.images / seconds}


def write_log(run: GanRun, log: Log, timer: Timer) -> None:
    """A line of losses, speed, and singular values of the layers outside of the blocks."""
    solver = run.cfg.SOLVER
    values = {**run.pop_means(), "lr_g": solver.LR_G, "lr_d": solver.LR_D, **timer.pop()}
    shown = ("loss_d", "loss_g", "d_real", "d_fake", "time")
    if solver.ADA:
        values["ada_p"] = run.ada.p
        shown += ("ada_p",)
    line = ", ".join(f"{key} {values[key]:.3f}" for key in shown)
    say(f"step {run.step}: {line}, {values['images_per_second']:.0f} images/s")
    for name, network in (("G", run.G.network), ("D", run.D.network)):
        for layer, value in singular_values(network).items():
            if not layer.startswith("blocks"):
                values[f"singular_value/{name}.{layer}"] = value
    log.write(run.step, values)


def write_samples(run: GanRun) -> None:
    """A grid of the moving average's images: a row per class, the same z in every grid."""
    G = run.averaged()
    test = run.cfg.TEST
    standing_statistics(G, test.STANDING_BATCHES, test.BATCH_SIZE, run.cfg.SEED)
    if distributed.is_main():
        classes = range(min(GRID_CLASSES, run.cfg.MODEL.NUM_CLASSES))
        grid = class_grid(G, classes, GRID_COLUMNS, run.cfg.SEED)
        write_png(run.folder / "samples" / f"{run.step:07d}.png", grid)
