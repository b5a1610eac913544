"""The paper's tables 2 and 3 and figure 11: image classifiers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from evonorm_runs.folder import read_metrics

from .experiment import Experiment, Metric, number, pick
from .paper import TABLE_2, TABLE_3

# The models of tables 2 and 3, and their configs at the paper's size.
CLASSIFIERS = {
    "preact_resnet": "imagenet_resnet50",
    "preact_resnet101": "imagenet_resnet101",
    "mobilenet_v2": "imagenet_mobilenet_v2",
    "mnasnet_b1": "imagenet_mnasnet_b1",
    "efficientnet_b0": "imagenet_efficientnet_b0",
    "efficientnet_b5": "imagenet_efficientnet_b5",
}
# Learning rates for 256 images that are not 0.1 (section 5.1), by table and model.
RATES = {
    (2, "efficientnet_b0"): 0.016,
    (2, "efficientnet_b5"): 0.016,
    (3, "mobilenet_v2"): 0.03,
}


class Classification(Experiment):
    """Accuracy of image classifiers (section 5.1)."""

    tool = "tools/train_classifier.py"
    models = ("preact_resnet", "mobilenet_v2")
    metrics = (Metric("accuracy", "accuracy (%)"),)
    clock = "epoch"
    factors = (0.5, 1.0, 2.0, 4.0, 8.0)
    what, table = "Table", 0

    def __init__(self, scale: str, model: str) -> None:
        self.scale = scale
        self.config = f"configs/classification/{CLASSIFIERS[model]}.yaml"
        self.title = f"{self.what} {self.table}: {model} on ImageNet"
        self.base_lr = RATES.get((self.table, model), 0.1)
        if scale == "small":
            self.base_lr = 0.1
            name = {"preact_resnet": "garments"}.get(model, f"garments_{model}")
            self.config = f"configs/classification/{name}.yaml"
            self.held_out = ("TEST.SPLIT", "val")
            self.title = f"{self.what} {self.table} in small: {model} on garments"
            self.notes = (*self.notes, "The paper's figures: ImageNet.")

    def settings(self, norm: str, factor: float, condition: Any) -> list[str]:
        settings = ["MODEL.NORM", norm, "SOLVER.BASE_LR", number(factor * self.base_lr)]
        if condition:
            settings += ["SOLVER.IMS_PER_WORKER", str(condition)]
        return [*settings, "TEST.SPLIT", "test"] if self.scale == "small" else settings

    def read(self, folder: Path) -> dict[str, float]:
        values = {key: value for line in read_metrics(folder)[0] for key, value in line.items()}
        return pick(values, self.metrics, folder)


class Table3(Classification):
    """Accuracy against images per worker, for layers without batch statistics, and BN."""

    table = 3
    norms = ("BN-ReLU", "GN-ReLU", "GN-Swish", "FRN", "EvoNormS0", "EvoNormS1", "EvoNormS2")
    baselines = ("BN-ReLU", "GN-ReLU")
    condition = "ims_per_worker"
    conditions = (128, 64, 32, 16, 8, 4, 2)
    in_small = (128, 32, 8, 2)
    notes = (
        "The learning rate is tuned at 128 images per worker, and scaled linearly from there.",
    )

    def __init__(self, scale: str, model: str) -> None:
        super().__init__(scale, model)
        self.paper = {
            (norm, images): {"accuracy": cell}
            for norm, row in TABLE_3[model].items()
            for images, cell in zip(self.conditions, row.split())
        }
        if scale == "small":
            self.conditions = self.in_small


class Table2(Classification):
    """Accuracy of layers with batch statistics, and of random and searched baselines."""

    table = 2
    models = tuple(CLASSIFIERS)
    norms = (
        *("BN-ReLU", "BN-PReLU", "BN-Swish-1", "BN-Swish"),
        *("Random", "Random+rej", "RS+rej", "EvoNormB0", "EvoNormB1", "EvoNormB2"),
    )
    baselines = ("BN-ReLU", "BN-Swish-1")

    def __init__(self, scale: str, model: str) -> None:
        super().__init__(scale, model)
        rows = TABLE_2[model].items()
        self.paper = {(norm, None): {"accuracy": cell} for norm, cell in rows}


class Figure11(Classification):
    """Accuracy of MobileNetV2 of three widths against its parameters and MAdds (section 5.7)."""

    what, table = "Figure", 11
    models = ("mobilenet_v2",)
    norms = ("BN-ReLU", "EvoNormB0")
    baselines = ("BN-ReLU",)
    condition = "width"
    conditions = (0.9, 1.0, 1.1)
    notes = (
        "Widths are multiples of the model's. Its figures in the paper are table 2's of width 1.",
        "MAdds are of the convolutions and the last layer, for one image; norms count nothing.",
    )

    def __init__(self, scale: str, model: str) -> None:
        super().__init__(scale, model)
        self.width = 0.35 if scale == "small" else 1.0  # the configs'
        rows = {norm: TABLE_2[model][norm] for norm in self.norms}
        self.paper = {(norm, 1.0): {"accuracy": cell} for norm, cell in rows.items()}

    def settings(self, norm: str, factor: float, condition: Any) -> list[str]:
        width = number(self.width * (condition or 1.0))
        return [*super().settings(norm, factor, None), "MODEL.WIDTH", width]

    def describe(self, norm: str, condition: Any = None) -> dict[str, float]:
        from evonorm_classifier.config import load_config
        from evonorm_classifier.models import build_model
        from evonorm_runs.checkout import ROOT

        settings = [*self.settings(norm, 1.0, condition), "DEVICE", "cpu"]
        cfg = load_config(str(ROOT / self.config), settings)
        with torch.device("meta"):
            model = build_model(cfg, 10 if self.scale == "small" else 1000).eval()
            image = torch.zeros(1, 3, cfg.INPUT.SIZE, cfg.INPUT.SIZE)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(image)
        parameters = sum(p.numel() for p in model.parameters())
        return {"Params (M)": parameters / 1e6, "MAdds (M)": counter.get_total_flops() / 2e6}
