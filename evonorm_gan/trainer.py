"""Training of BigGAN-deep: one loop, to be read from `train` downwards.

Brock et al. 2019 (arXiv:1809.11096), with the settings of section 5.5 of the EvoNorm paper.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode
from torch import Tensor

from evonorm_runs import distributed, stop
from evonorm_runs.errors import UserError
from evonorm_runs.folder import owns_folder, write_start
from evonorm_runs.log import Log, progress, say

from . import ada, checkpoint
from .augment import changes
from .data import describe, open_dataset, train_batches
from .evaluation.periodic import Evaluation, due
from .run import GanRun
from .run_log import Timer, write_log, write_samples
from .steps import discriminator_step, generator_step, update_average


@distributed.process_flags()
@owns_folder("*.pth")
@stop.on_sigterm()
def train(cfg: CfgNode, resume: bool | Path = False) -> dict[str, float]:
    """Train, and evaluate the moving average; everything is written to OUTPUT_DIR.

    A run that was killed and resumed equals an uninterrupted one bit for bit, on a CPU. A step's
    draws are a function of the seed and the step, whatever the number of processes.

    Args:
        resume: from the last checkpoint in OUTPUT_DIR, if there is one; or from the one at this
            path, there or in another run's folder.

    Returns:
        the results of the last evaluation, in every process; empty if there was none.

    Raises:
        UserError: a config, data set, image or checkpoint that is wrong or missing; divergence.
        Stopped: by SIGTERM, after a step whose checkpoint is written.
    """
    device = distributed.init(cfg.DEVICE)
    last = check_run(cfg, resume)
    dataset = open_dataset(cfg)
    cfg = checkpoint.keep_discriminator(cfg, last or weights_to_start_from(cfg))
    run = GanRun(cfg, device, list(dataset.classes), len(dataset))
    if last:
        run.load(last)
        if isinstance(resume, Path):
            run.save()  # so that it is the last one in OUTPUT_DIR
    elif cfg.MODEL.INIT:
        say(run.start_from_weights())
    say(describe(dataset))
    say(str(run))
    log = Log(run.folder, run.step, cfg)
    evaluation = Evaluation(cfg, dataset, device, log)
    write_start(cfg, run.step)
    if last and evaluation.due(run.step):  # killed before its end
        evaluation(run)

    batches = real_batches(cfg, dataset, run.step * cfg.SOLVER.D_STEPS)
    timer = Timer(cfg)
    steps = range(run.step + 1, cfg.SOLVER.MAX_ITER + 1)
    for step in progress(steps, cfg.SOLVER.MAX_ITER, timer.images):
        timer.start()
        for i in range(cfg.SOLVER.D_STEPS):
            discriminator_step(run, step, i, *next(batches))
        generator_step(run, step)
        update_average(run, step)
        timer.stop()
        run.step = step

        if due(cfg, step, cfg.SOLVER.LOG_PERIOD):
            write_log(run, log, timer)
        if due(cfg, step, cfg.SOLVER.SAMPLE_PERIOD):
            write_samples(run)
        if due(cfg, step, cfg.SOLVER.CHECKPOINT_PERIOD) or evaluation.due(step):
            run.save()
        if evaluation.due(step):
            evaluation(run)
            if cfg.TEST.STOP_ON_COLLAPSE and evaluation.collapsed():
                break
        if step < cfg.SOLVER.MAX_ITER and stop.asked():
            run.save()
            raise stop.Stopped(f"stopped by SIGTERM after step {step}; continue with --resume")
    log.close()
    return evaluation.last()


def real_batches(cfg: CfgNode, dataset: Any, start: int) -> Iterator[tuple[Tensor, Tensor]]:
    """This rank's batches for the discriminator, from the run's batch `start` on."""
    ranks = distributed.world_size()
    return train_batches(
        *(dataset, cfg.SOLVER.BATCH_SIZE // ranks, cfg.SEED, start, distributed.rank(), ranks),
        num_workers=cfg.DATA.NUM_WORKERS,
        flip=cfg.DATA.FLIP,
        random_crop=cfg.DATA.RANDOM_CROP,
    )


def check_run(cfg: CfgNode, resume: bool | Path = False) -> Path | None:
    """The checkpoint to go on from, None for a new run.

    Args:
        resume: as :func:`train`.

    Raises:
        UserError: what would go wrong later on.
    """
    folder, solver, ranks = Path(cfg.OUTPUT_DIR), cfg.SOLVER, distributed.world_size()
    if solver.BATCH_SIZE % (ranks * solver.ACCUMULATE):
        raise UserError(
            f"SOLVER.BATCH_SIZE {solver.BATCH_SIZE} can't be divided by {ranks} processes times "
            f"SOLVER.ACCUMULATE {solver.ACCUMULATE}"
        )
    changes(solver.DIFF_AUGMENT)  # raises for an unknown one
    ada.kinds(solver.ADA_AUGMENT)
    begun = any(folder.glob("*.pth"))
    if isinstance(resume, Path):
        chosen = checkpoint.find_checkpoint(resume)
        if begun and chosen.resolve().parent != folder.resolve():
            raise UserError(
                f"OUTPUT_DIR {folder} holds another run than {chosen}: name a new OUTPUT_DIR, or a "
                "checkpoint of that folder"
            )
        return chosen
    if not begun and solver.FREEZE_D and not cfg.MODEL.INIT:
        raise UserError(
            f"SOLVER.FREEZE_D is {solver.FREEZE_D}, but there is no MODEL.INIT (--init) with a "
            "trained discriminator"
        )
    return checkpoint.find_checkpoint(folder) if begun else None


def weights_to_start_from(cfg: CfgNode) -> Path | None:
    """The checkpoint at MODEL.INIT; None if a new run begins with random weights."""
    return checkpoint.find_checkpoint(cfg.MODEL.INIT) if cfg.MODEL.INIT else None
