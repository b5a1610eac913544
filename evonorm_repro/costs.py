"""What the unfinished runs of a table take: their commands, images and GPU hours."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from evonorm_runs.checkout import ROOT
from evonorm_runs.grid import Job, finished

from .experiment import Experiment
from .reproduction import seed_jobs, tuning_jobs

# Training images by a classifier's DATA.NAME; a folder is taken for ImageNet.
IMAGES = {"folder": 1_281_167, "digits": 1437, "garments": 8000}
USUAL_RATE = 1000.0  # images a second: nobody's measurement, but easy to scale


def describe(
    experiment: Experiment,
    norms: Sequence[str],
    seeds: int,
    out: Path,
    overrides: Sequence[str],
    gpus: int,
    rate: float | None = None,
) -> str:
    """The command of each unfinished run, then how many images they train with, and GPU hours.

    Args:
        gpus: GPUs of each run.
        rate: the images that one GPU trains a second; None if nobody has measured it.

    Raises:
        UserError: a wrong setting; `out` holds runs of other settings.
    """
    tuning = list(tuning_jobs(experiment, norms, out, overrides).values())
    runs = list(seed_jobs(experiment, norms, seeds, out, overrides, {}).values())
    lines, images = [], 0
    for jobs, title in ((tuning, "to choose the learning rate"), (runs, "of the table")):
        left = [job for job in jobs if not finished(job)]
        if not jobs:
            continue
        lines.append(f"# {len(jobs)} runs {title}, {len(jobs) - len(left)} of them finished")
        if jobs is runs and tuning:
            lines.append("# at the config's rate; the runs above choose another for each norm")
        lines += [shlex.join(["python", *job.command(gpus)]) for job in left]
        images += sum(map(trained_images, left))
    return "\n".join([*lines, "", _summary(experiment, images, rate)])


def _summary(experiment: Experiment, images: int, rate: float | None) -> str:
    hours = images / (rate or USUAL_RATE) / 3600
    speed = f"{rate or USUAL_RATE:,g} images a second and GPU"
    measured = "as --images-per-second says"
    if rate is None:
        measured = "a round number, not measured: give yours by --images-per-second"
    title = f"{experiment.title}: {images:,} images to train with, evaluations not counted"
    amount = f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"
    return f"{title}\n{amount} GPU hours at {speed}, {measured}"


def in_full(
    experiment: Experiment, norms: Sequence[str], seeds: int, overrides: Sequence[str]
) -> str:
    """On one line: the table's runs, whether they are finished or not, without those for tuning."""
    jobs = seed_jobs(experiment, norms, seeds, Path(), overrides, {}).values()
    return f"{experiment.title}: {len(jobs)} runs, {sum(map(trained_images, jobs)):,} images"


def trained_images(job: Job) -> int:
    """The images that a run trains with, counted as often as it takes them.

    Raises:
        UserError: a wrong setting.
    """
    pairs = zip(job.settings[::2], job.settings[1::2])
    counted = (x for pair in pairs if pair[0] not in ("SEED", "MODEL.NORM") for x in pair)
    return _images(job.tool, str(ROOT / job.config), tuple(counted))


@cache
def _images(tool: str, file: str, settings: tuple[str, ...]) -> int:
    if tool == "tools/train_classifier.py":
        from evonorm_classifier.config import load_config

        cfg = load_config(file, [*settings, "DEVICE", "cpu"])
        count = IMAGES[cfg.DATA.NAME] * (cfg.DATA.VARIANTS if cfg.DATA.NAME == "digits" else 1)
        step = cfg.SOLVER.IMS_PER_WORKER * cfg.SOLVER.WORKERS
        return cfg.SOLVER.EPOCHS * (count // step) * step
    if tool == "tools/train_net.py":
        from evonorm_d2.run_config import load_config as load_detector

        solver = load_detector(file, [*settings, "MODEL.DEVICE", "cpu"]).SOLVER
        return solver.MAX_ITER * solver.IMS_PER_BATCH
    from evonorm_gan.config import load_config as load_gan

    solver = load_gan(file, [*settings, "DEVICE", "cpu"]).SOLVER
    return solver.MAX_ITER * solver.BATCH_SIZE  # images per step of a network
