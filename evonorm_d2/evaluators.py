"""Detectron2's evaluators, by the evaluator_type of a data set."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from typing import Any
from unittest import mock

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    COCOEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
    SemSegEvaluator,
)

from evonorm_runs.errors import UserError


class CurrentLVISEvaluator(LVISEvaluator):
    """Detectron2's, for the package lvis 0.5.3, which uses a name that NumPy 1.24 has removed."""

    def evaluate(self) -> Any:
        with mock.patch.object(np, "float", float, create=True):
            return super().evaluate()


# The evaluators of Detectron2 for each of its types of data sets.
EVALUATORS = {
    "coco": [COCOEvaluator],
    "sem_seg": [SemSegEvaluator],
    "coco_panoptic_seg": [SemSegEvaluator, COCOEvaluator, COCOPanopticEvaluator],
    "lvis": [CurrentLVISEvaluator],
    "cityscapes_instance": [CityscapesInstanceEvaluator],
    "cityscapes_sem_seg": [CityscapesSemSegEvaluator],
    "pascal_voc": [PascalVOCDetectionEvaluator],
}
# The packages that data sets of a type need.
PACKAGES = {
    "lvis": "lvis",
    "cityscapes_instance": "cityscapesscripts",
    "cityscapes_sem_seg": "cityscapesscripts",
}
MAIN_FIGURES = ("AP", "mIoU", "IoU", "PQ")  # of those evaluators: ends of keys


def build_evaluator(cfg: CfgNode, dataset_name: str, folder: str = "inference") -> DatasetEvaluator:
    """Detectron2's evaluators for a data set; results go to this folder in OUTPUT_DIR.

    With several data sets in DATASETS.TEST, each has a folder of its name there.
    """
    folder = os.path.join(cfg.OUTPUT_DIR, folder)
    if len(cfg.DATASETS.TEST) > 1:
        folder = os.path.join(folder, dataset_name)
    kinds = EVALUATORS[MetadataCatalog.get(dataset_name).evaluator_type]
    options: dict[type, dict[str, Any]] = {
        COCOEvaluator: {"output_dir": folder, "kpt_oks_sigmas": cfg.TEST.KEYPOINT_OKS_SIGMAS},
        **dict.fromkeys(
            (COCOPanopticEvaluator, CurrentLVISEvaluator, SemSegEvaluator), {"output_dir": folder}
        ),
    }
    return DatasetEvaluators([kind(dataset_name, **options.get(kind, {})) for kind in kinds])


def check_types(train: Sequence[str], test: Sequence[str]) -> None:
    """Raise UserError for test data that no evaluator is for, or a package that data need."""
    for name in (*train, *test):
        kind = MetadataCatalog.get(name).get("evaluator_type")
        if name in test and kind not in EVALUATORS:
            raise UserError(
                f"DATASETS.TEST: {name} is data of type {kind}; supported are "
                f"{', '.join(EVALUATORS)}"
            )
        package = PACKAGES.get(kind)
        if package and importlib.util.find_spec(package) is None:
            raise UserError(f"DATASETS: {name} is data of type {kind}: `pip install {package}`")
