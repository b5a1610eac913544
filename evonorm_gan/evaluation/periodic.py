"""Evaluation of a run now and then, its best checkpoints, and whether it has collapsed."""

from __future__ import annotations

from typing import Any

import torch
from fvcore.common.config import CfgNode

from evonorm_runs import distributed
from evonorm_runs.checkpoint import write_checkpoint
from evonorm_runs.log import Log, say

from ..run import GanRun
from .alike import alike
from .metrics import COUNTS, Evaluator, metric_key

LOST = 0.01  # a mean loss of D below this: it tells all images apart


class Evaluation:
    """Evaluates a run's moving average now and then; keeps its best checkpoints."""

    def __init__(self, cfg: CfgNode, dataset: Any, device: torch.device, log: Log) -> None:
        self.cfg, self.log = cfg, log
        # At once, so that nothing it lacks is found out hours later.
        self.evaluator = Evaluator(cfg, dataset, device) if cfg.TEST.EVAL_PERIOD >= 0 else None
        if self.evaluator:
            say("\n".join(self.evaluator.about))
        self.fid, self.inception_score = (
            metric_key(name, cfg.TEST.EXTRACTOR) for name in ("FID", "IS")
        )

    def due(self, step: int) -> bool:
        period = self.cfg.TEST.EVAL_PERIOD
        done = any(line["step"] == step for line in self.log.with_key(self.fid))
        return period >= 0 and step > 0 and due(self.cfg, step, period) and not done

    def __call__(self, run: GanRun) -> None:
        """Evaluate the run as it is now. All processes take part."""
        results = self.evaluator.evaluate(run.averaged(), seed=self.cfg.SEED)
        # The line last: a run killed before it is evaluated again.
        self._keep_best(run, results)
        self.log.write(run.step, results)
        say(f"step {run.step}: {summary(results)}")
        if alike(results):
            say(
                f"step {run.step}: recall is below a twentieth of precision: the images of a class "
                "look alike; a lower SOLVER.LR_G beside SOLVER.LR_D may help"
            )
        if self.collapsed():
            say(
                f"step {run.step}: collapsed: the discriminator's loss is 0 and "
                f"{self.fid} rises; the best checkpoint is {run.folder / 'best_fid.pth'}"
            )

    def _keep_best(self, run: GanRun, results: dict[str, float]) -> None:
        before = self.log.with_key(self.fid)
        state = run.state()
        for name, key, sign in (("fid", self.fid, -1), ("is", self.inception_score, 1)):
            if key not in results:  # timm's models give no IS
                continue
            best = all(sign * results[key] > sign * line[key] for line in before)
            if best and distributed.is_main():
                write_checkpoint(run.folder / f"best_{name}.pth", state)

    def collapsed(self) -> bool:
        return collapsed(self.log.lines, self.fid)

    def last(self) -> dict[str, float]:
        done = self.log.with_key(self.fid)
        return {key: value for key, value in done[-1].items() if key != "step"} if done else {}


def collapsed(lines: list[dict[str, Any]], fid: str) -> bool:
    """Whether D tells all images apart since the last evaluation but one, and FID rose in three.

    Args:
        lines: of the log.
        fid: its key for FID.
    """
    evaluations = [line for line in lines if isinstance(line.get(fid), (int, float))][-3:]
    values = [line[fid] for line in evaluations]
    if len(values) < 3 or not values[0] < values[1] < values[2]:
        return False
    since = evaluations[-2]["step"]
    losses = [line["loss_d"] for line in lines if "loss_d" in line and line["step"] > since]
    return bool(losses) and sum(losses) / len(losses) < LOST


def due(cfg: CfgNode, step: int, period: int) -> bool:
    """Whether what is done every `period` steps (0: never), and at the end, is done now."""
    return step == cfg.SOLVER.MAX_ITER or (period > 0 and step % period == 0)


def summary(results: dict[str, float]) -> str:
    """Results on one line, such as `IS 98.12, FID 8.70`, a remark that all keys make once."""
    shown = {key: value for key, value in results.items() if key not in COUNTS}
    values = ", ".join(f"{key.split(' (')[0]} {value:.4g}" for key, value in shown.items())
    remarks = {f" ({key.split(' (')[1]}" for key in results if " (" in key}
    counts = [results[key] for key in COUNTS if key in results]
    about = "; precision and recall of {} images and {} real ones".format(*counts) if counts else ""
    return values + "".join(sorted(remarks)) + about
