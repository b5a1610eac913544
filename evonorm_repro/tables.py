"""The paper's tables 2 to 5, each with a small setting and the paper's."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from evonorm_gan.evaluation.metrics import metric_key
from evonorm_runs.errors import UserError
from evonorm_runs.folder import read_metrics

from .experiment import Experiment, Metric
from .paper import TABLE_2, TABLE_3, TABLE_4, TABLE_5
from .table5 import read_run

SCALES = ("small", "paper")


class Table4(Experiment):
    """Mask R-CNN: box and mask AP (section 5.4)."""

    tool = "tools/train_net.py"
    models = ("R-50", "R-101")
    norms = ("BN-ReLU", "EvoNormB0", "GN-ReLU", "EvoNormS0")
    baselines = ("BN-ReLU", "GN-ReLU")
    metrics = tuple(
        Metric(f"{task}/{ap}", f"{name} {ap}", compared=ap == "AP")
        for task, name in (("bbox", "box"), ("segm", "mask"))
        for ap in ("AP", "AP50", "AP75")
    )
    sites = ("RESNETS", "FPN", "RPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD")
    notes = ("MAdds are of one image of 1024x1024 pixels.",)

    def __init__(self, scale: str, model: str) -> None:
        self.scale = scale
        rows = TABLE_4[model].items()
        keys = [metric.key for metric in self.metrics] + ["MAdds (B)", "Params (M)"]
        self.paper = {(norm, None): dict(zip(keys, row.split())) for norm, row in rows}
        self.title = f"Table 4: Mask R-CNN {model}-FPN on COCO"
        self.config = f"configs/detection/paper/mask_rcnn_{model.replace('-', '_')}_FPN_GN.yaml"
        self.base_lr = 0.1
        if scale == "small":
            self.title = "Table 4 in small: Mask R-CNN on digits, 600 iterations of 4 images"
            self.config = "configs/detection/digits/mask_rcnn_digits_GN.yaml"
            self.base_lr = 0.03
            self.short = ("SOLVER.MAX_ITER", "150", "SOLVER.STEPS", "(110,135)")
            self.notes = ("The paper's rows: R-50-FPN on COCO.", *self.notes)

    def prepare(self) -> None:
        if self.scale == "small":
            from evonorm_d2.data import default_folder, write_digits

            write_digits(default_folder())

    def settings(self, norm: str, factor: float, condition: Any) -> list[str]:
        settings = [x for site in self.sites for x in (f"MODEL.{site}.NORM", norm)]
        settings += ["SOLVER.BASE_LR", number(factor * self.base_lr)]
        if self.scale == "small":
            settings += ["SOLVER.MAX_ITER", "600", "SOLVER.STEPS", "(450,540)"]
        return settings

    def read(self, folder: Path) -> dict[str, float]:
        lines, _ = read_metrics(folder)
        values = {key: value for line in lines for key, value in line.items()}
        return pick(values, self.metrics, folder)

    def describe(self, norm: str) -> dict[str, float]:
        from evonorm_d2.analysis import analyze
        from evonorm_d2.run_config import load_config
        from evonorm_runs.checkout import ROOT

        settings = [*self.settings(norm, 1.0, None), "MODEL.DEVICE", "meta"]
        total = analyze(load_config(str(ROOT / self.config), settings))["total"]
        return {"MAdds (B)": total.madds / 1e9, "Params (M)": total.parameters / 1e6}


class Table5(Experiment):
    """BigGAN-deep: IS and FID at peak (section 5.5)."""

    tool = "tools/train_gan.py"
    models = ("BigGAN-deep",)
    norms = ("BN-ReLU", "EvoNormB0", "GN-ReLU", "LN-ReLU", "PixelNorm-ReLU", "EvoNormS0")
    baselines = ("BN-ReLU", "GN-ReLU")
    median_and_best = True
    notes = ("IS and FID are each the best of a run's evaluations.",)

    def __init__(self, scale: str, model: str) -> None:
        self.scale = scale
        self.title = "Table 5: the generator of BigGAN-deep on ImageNet at 128x128"
        self.config = "configs/gan/imagenet128.yaml"
        self.lr = (5e-5, 2e-4)
        extractor = "inception-v3-compat"
        if scale == "small":
            self.title = "Table 5 in small: BigGAN-deep on digits, 300 steps of 16 images"
            self.config = "configs/gan/digits.yaml"
            self.lr = (1e-3, 5e-4)
            self.short = ("SOLVER.MAX_ITER", "120")
            extractor = "digits"
            self.notes = (*self.notes, "Those of digits come from a small classifier of digits.")
        self.metrics = (
            Metric("FID", metric_key("FID", extractor), 2, higher=False),
            Metric("IS", metric_key("IS", extractor), 2),
        )
        self.paper = {
            (layer.split(" ")[0], None): {"IS": score, "FID": distance}
            for layer, (score, distance) in TABLE_5.items()
        }

    def settings(self, norm: str, factor: float, condition: Any) -> list[str]:
        lr_g, lr_d = (number(factor * lr) for lr in self.lr)
        settings = ["MODEL.NORM", norm, "SOLVER.LR_G", lr_g, "SOLVER.LR_D", lr_d]
        if self.scale == "small":
            settings += ["SOLVER.MAX_ITER", "300", "SOLVER.SAMPLE_PERIOD", "100"]
            settings += ["SOLVER.CHECKPOINT_PERIOD", "150", "TEST.EVAL_PERIOD", "100"]
        return settings

    def read(self, folder: Path) -> dict[str, float]:
        run = read_run(folder)
        return {"IS": run.IS, "FID": run.FID}


# The models of tables 2 and 3, and their configs at the paper's size.
CLASSIFIERS = {
    "preact_resnet": "imagenet_resnet50",
    "preact_resnet101": "imagenet_resnet101",
    "mobilenet_v2": "imagenet_mobilenet_v2",
    "mnasnet_b1": "imagenet_mnasnet_b1",
    "efficientnet_b0": "imagenet_efficientnet_b0_rmsprop",
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
    factors = (0.5, 1.0, 2.0, 4.0, 8.0)
    table = 0

    def __init__(self, scale: str, model: str) -> None:
        self.config = f"configs/classification/{CLASSIFIERS[model]}.yaml"
        self.title = f"Table {self.table}: {model} on ImageNet"
        self.base_lr = RATES.get((self.table, model), 0.1)
        if scale == "small":
            self.base_lr = 0.1
            name = {"preact_resnet": "digits"}.get(model, f"digits_{model}")
            self.config = f"configs/classification/{name}.yaml"
            self.title = f"Table {self.table} in small: {model} on digits"
            self.notes = (*self.notes, "The paper's figures: ImageNet.")

    def settings(self, norm: str, factor: float, condition: Any) -> list[str]:
        settings = ["MODEL.NORM", norm, "SOLVER.BASE_LR", number(factor * self.base_lr)]
        if condition:
            settings += ["SOLVER.IMS_PER_WORKER", str(condition)]
        return settings

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


class Table2(Classification):
    """Accuracy of layers with batch statistics, and of random and searched baselines."""

    table = 2
    paper_models = ("preact_resnet101", "mnasnet_b1", "efficientnet_b0", "efficientnet_b5")
    norms = (
        *("BN-ReLU", "BN-PReLU", "BN-Swish-1", "BN-Swish", "Random+rej", "RS+rej"),
        *("EvoNormB0", "EvoNormB1", "EvoNormB2"),
    )
    baselines = ("BN-ReLU", "BN-Swish-1")

    def __init__(self, scale: str, model: str) -> None:
        super().__init__(scale, model)
        rows = TABLE_2[model].items()
        self.paper = {(norm, None): {"accuracy": cell} for norm, cell in rows}


TABLES = {"table2": Table2, "table3": Table3, "table4": Table4, "table5": Table5}


def number(value: float) -> str:
    """A number as text for a config, where 1.0 is a float and 1 is not."""
    return repr(float(f"{value:g}"))


def pick(values: dict[str, float], metrics: tuple[Metric, ...], folder: Path) -> dict[str, float]:
    """The metrics among a run's last values. A value is not finite if COCO had nothing to rate."""
    missing = [metric.key for metric in metrics if metric.key not in values]
    if missing:
        raise UserError(f"{folder}/metrics.json: no {missing[0]} in it")
    return {metric.key: values.get(metric.key, math.nan) for metric in metrics}
