"""A run of a detector: training or evaluation from a config, and its results on one line."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.evaluation import verify_results
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from torch import nn

from evonorm_runs import stop
from evonorm_runs.errors import UserError, disk_errors, one_line, user_errors
from evonorm_runs.folder import METRICS, dump_line, keep_lines

from .best import EnoughEvaluations
from .checkpoint import Checkpointer
from .evaluators import MAIN_FIGURES
from .trainer import Trainer


def train(cfg: CfgNode, resume: bool = False) -> dict[str, Any]:
    """Train and evaluate; everything is written to OUTPUT_DIR.

    Args:
        resume: continue from the last checkpoint in OUTPUT_DIR, if there is one.

    Returns:
        the results of the last evaluation, {"bbox": {"AP": ...}, ...}, per data set if there are
        several, and empty in all processes but the first.

    Raises:
        UserError: a config, data set, image or checkpoint that is wrong or missing; divergence; a
            disk that is full.
        Stopped: by SIGTERM, after an iteration whose checkpoint is written.
    """
    logging.getLogger("detectron2.engine.train_loop").addFilter(_without_user_errors)
    folder = Path(cfg.OUTPUT_DIR)
    with stop.on_sigterm(), disk_errors(folder):
        done = Checkpointer(nn.Module(), str(folder)).done() if resume else 0
        # Lines after the last checkpoint of a run that was killed are written again.
        keep_lines(folder, lambda line: line.get("iteration", done) < done)
        with _setting_up():
            trainer = Trainer(cfg)
            trainer.resume_or_load(resume)
        if done >= trainer.max_iter and not (folder / "model_final.pth").exists():
            trainer.checkpointer.save("model_final", iteration=done - 1)  # killed before it was
        with contextlib.suppress(EnoughEvaluations):
            trainer.train()
    return trainer._last_eval_results


def evaluate(cfg: CfgNode, resume: bool = False) -> dict[str, Any]:
    """Evaluate MODEL.WEIGHTS and append the results to metrics.json in OUTPUT_DIR.

    Args:
        resume: evaluate the last checkpoint in OUTPUT_DIR instead, if there is one.

    Returns, raises: as :func:`train`.
    """
    with _setting_up():
        model = Trainer.build_model(cfg)
        checkpointer = Checkpointer(model, save_dir=cfg.OUTPUT_DIR, cfg=cfg)
        rest = checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    results = Trainer.test(cfg, model)
    if cfg.TEST.AUG.ENABLED:
        results.update(Trainer.test_augmented(cfg, model))
    if comm.is_main_process():
        line = {"iteration": rest.get("iteration", 0), **flatten_results_dict(results)}
        path = Path(cfg.OUTPUT_DIR, METRICS)
        with disk_errors(path), open(path, "ab") as file:
            file.write(dump_line(line))
        verify_results(cfg, results)
    return results


def summary(results: dict[str, Any]) -> str:
    """The main figures in results on one line, such as `box AP 43.6, mask AP 39.4`."""
    names = {"bbox": "box", "segm": "mask"}
    return ", ".join(
        f"{' '.join(names.get(part, part) for part in key.split('/'))} {value:.1f}"
        for key, value in flatten_results_dict(results).items()
        if key.rpartition("/")[2] in MAIN_FIGURES
    )


@contextlib.contextmanager
def _setting_up() -> Iterator[None]:
    """What Detectron2 raises for a config or checkpoint that does not fit becomes a UserError."""
    try:
        with user_errors(AssertionError, OSError, ValueError):  # its asserts check configs
            yield
    except KeyError as error:
        if "registry" in str(error):  # a component's name
            raise UserError(one_line(error)) from error
        raise


def _without_user_errors(record: logging.LogRecord) -> bool:
    """Detectron2 logs each exception with its traceback; for a UserError its line is enough."""
    told = (UserError, FloatingPointError, EnoughEvaluations)
    return not (record.exc_info and isinstance(record.exc_info[1], told))
