"""Runs of tools/train_net.py."""

from __future__ import annotations

import re

from .kind import Kind, Result

# Detectron2's "bbox/AP50"; with several test sets "digits_val/bbox/AP50".
_KEY = re.compile(r"(?:(.+)/)?(bbox|segm|keypoints|sem_seg|panoptic_seg)/(AP(?:50|75)?|mIoU|PQ)")
_OF_CLASS = re.compile(r"(?:(.+)/)?(bbox|segm|keypoints)/AP-(.+)", re.DOTALL)
_TASKS = {
    "bbox": "box ",
    "segm": "mask ",
    "keypoints": "keypoint ",
    "sem_seg": "",
    "panoptic_seg": "",
}


def find_result(key: str) -> Result | None:
    """The result that a key of metrics.json stands for, None if it stands for none."""
    found = _KEY.fullmatch(key)
    if not found:
        return None
    where = f", {found[1]}" if found[1] else ""
    rank = found[1] or "", list(_TASKS).index(found[2]), found[3]
    first = found[3] in ("AP", "mIoU", "PQ")
    title = f"{_TASKS[found[2]]}{found[3]}{where}"
    return Result(key, title, "%", 1, 1, rank=rank, first=first)


def find_class(key: str) -> tuple[str, str] | None:
    """The title and the class of a key that holds the AP of one class, None for other keys."""
    found = _OF_CLASS.fullmatch(key)
    if not found:
        return None
    return f"{_TASKS[found[2]]}AP" + (f", {found[1]}" if found[1] else ""), found[3]


def names_layer(key: str) -> bool:
    """Whether a setting names a component: evonorm_d2.config.resolve swaps these for a layer."""
    return key.startswith("MODEL.") and key.endswith("NAME")


KIND = Kind(
    id="detection",
    title="Detection",
    tool="train_net.py",
    config_key="MODEL.META_ARCHITECTURE",
    metrics_key="total_loss",
    norm_keys=("MODEL.RESNETS.NORM",),
    find_result=find_result,
    find_class=find_class,
    classes_title="AP by class",
    curves={"total_loss": "loss", "lr": "learning rate"},
    more_curves=("loss_",),
    names_layer=names_layer,
    unit="iteration",
    first_step=0,
)
