"""Runs of tools/train_classifier.py."""

from __future__ import annotations

from .kind import Kind, Result

_RESULTS = {
    "accuracy": Result("accuracy", "accuracy", "%", 1, 2, first=True),
    "top5_accuracy": Result("top5_accuracy", "top-5 accuracy", "%", 1, 2, rank=("", 1, "")),
    "train_accuracy": Result("train_accuracy", "accuracy in training", "%", 1, 2, rank=("", 2, "")),
    "val_loss": Result("val_loss", "validation loss", "", -1, 4, rank=("", 3, ""), first=True),
}
KIND = Kind(
    id="classifier",
    title="Classification",
    tool="train_classifier.py",
    config_key="MODEL.WIDTH",
    metrics_key="accuracy",
    find_result=_RESULTS.get,
)
