"""The paper's reranking at its size (section 5.2): a search's best layers on ImageNet.

ResNet-50, MobileNetV2 and EfficientNet-B0 are trained on nine tenths of ImageNet's training images
and rated on the last tenth, so that ImageNet's validation images are seen by nobody.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from evonorm import slug
from evonorm_runs.errors import UserError, user_errors
from evonorm_runs.folder import read_metrics
from evonorm_runs.grid import Job as Run
from evonorm_runs.grid import failure, finished

from .rerank import Job, Row, summary

NETWORKS = {  # and their configs
    "ResNet-50": "configs/classification/imagenet_resnet50.yaml",
    "MobileNetV2": "configs/classification/imagenet_mobilenet_v2.yaml",
    "EfficientNet-B0": "configs/classification/imagenet_efficientnet_b0.yaml",
}
TOOL = "tools/train_classifier.py"
SHARE = 10  # one image of so many is rated, class by class


def split(train: Path, out: Path) -> None:
    """Make out/train and out/val with links to the images of `train`, which has a folder per class.

    Which tenth of a class is in out/val depends on the names of its images only. Links that are
    there already stay.

    Raises:
        UserError: `train` is no such folder, or the links can't be made.
    """
    with user_errors(OSError):
        classes = sorted(folder for folder in train.iterdir() if folder.is_dir())
        if not classes:
            raise UserError(f"{train}: it holds no folder of a class, such as n01440764")
        for folder in classes:
            names = sorted(path.name for path in folder.iterdir())
            random.Random(0).shuffle(names)
            count = len(names) // SHARE
            for part, own in (("val", names[:count]), ("train", names[count:])):
                (out / part / folder.name).mkdir(parents=True, exist_ok=True)
                for name in own:
                    link = out / part / folder.name / name
                    if not link.is_symlink():
                        link.symlink_to((folder / name).resolve())


def runs(
    layers: Sequence[str], seeds: int, out: Path, overrides: Sequence[str] = ()
) -> dict[Job, Run]:
    """The trainings, each a run of train_classifier.py with a folder below out/runs.

    Args:
        overrides: KEY VALUE ... of all runs.
    """
    found = {}
    for seed in range(seeds):
        for layer in layers:
            for network, config in NETWORKS.items():
                settings = ("MODEL.NORM", layer, "SEED", str(seed), "DATA.ROOT", str(out / "data"))
                folder = out / "runs" / f"{slug(layer)}_{network}_seed{seed}"
                run = Run(folder, TOOL, config, (*settings, *overrides))
                found[Job(layer, network, seed, "val")] = run
    return found


def results(wanted: dict[Job, Run]) -> list[Row]:
    """The rows of the runs that have ended well.

    Raises:
        UserError: none has.
    """
    accuracies = {}
    for job, run in wanted.items():
        if finished(run):
            lines, _ = read_metrics(run.folder)
            accuracies[job] = [line["accuracy"] for line in lines if "accuracy" in line][-1] / 100
    if not accuracies:
        reasons = [reason for run in wanted.values() if (reason := failure(run))]
        raise UserError(f"no run has ended well: {reasons[0] if reasons else 'none was started'}")
    return summary(accuracies)
