"""The paper's tables 2 to 5 and figure 11, each with a small setting and the paper's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evonorm_gan.evaluation.metrics import metric_key
from evonorm_runs.errors import user_errors
from evonorm_runs.folder import read_metrics

from .classification import Figure11, Table2, Table3
from .experiment import Experiment, Metric, number, pick
from .paper import TABLE_4, TABLE_5
from .settling import evaluations
from .table5 import read_run

SCALES = ("small", "paper")
SMALL_IMAGES = 4800  # that a run of table 4 in small trains with
STANDARDIZED = "+WS"  # behind a norm's name in table 4: with weight standardisation


class Table4(Experiment):
    """Mask R-CNN: box and mask AP (section 5.4)."""

    tool = "tools/train_net.py"
    models = ("R-50", "R-101")
    norms = ("BN-ReLU", "EvoNormB0", "GN-ReLU", "EvoNormS0")
    clock = "iteration"
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
            self._in_small()

    def _in_small(self) -> None:
        self.title = f"Table 4 in small: Mask R-CNN on garments, {SMALL_IMAGES} images"
        self.config = "configs/detection/garments/mask_rcnn_garments_GN.yaml"
        self.base_lr = 0.03  # for 4 images
        self.norms = (*self.norms, f"GN-ReLU{STANDARDIZED}", "tanh(v1 * x)")
        self.condition, self.conditions = "ims_per_batch", (8, 2)
        self.held_out = ("DATASETS.TEST", "('garments_val',)")
        self.paper = {(norm, 8): figures for (norm, _), figures in self.paper.items()}
        self.notes = (
            "The paper's rows: R-50-FPN on COCO, 8 images on each worker.",
            "The learning rate is tuned at 8 images per batch, and scaled linearly from there.",
            "+WS: weight standardisation. tanh(v1 * x): DyT, with a v1 for each channel.",
            "Where no activation follows, all but BN have GN.",
            *self.notes,
        )

    def prepare(self) -> None:
        if self.scale == "small":
            from evonorm_d2.data import write_garments

            with user_errors(OSError):
                write_garments()

    def settings(self, norm: str, factor: float, condition: Any) -> list[str]:
        name = norm.removesuffix(STANDARDIZED)
        settings = [x for site in self.sites for x in (f"MODEL.{site}.NORM", name)]
        if name != norm:
            settings += ["MODEL.META_ARCHITECTURE", "WeightStandardizedRCNN"]
        if self.scale == "paper":
            return [*settings, "SOLVER.BASE_LR", number(factor * self.base_lr)]
        settings += ["MODEL.EVONORM.LINEAR", "" if name.startswith("BN") else "GN"]
        images = condition or 4
        steps = SMALL_IMAGES // images
        values = {
            "IMS_PER_BATCH": images,
            "BASE_LR": number(factor * self.base_lr * images / 4),
            "WARMUP_ITERS": 200 // images,
            "STEPS": f"({steps * 3 // 4},{steps * 9 // 10})",
            "MAX_ITER": steps,
            "CHECKPOINT_PERIOD": steps // 6,
        }
        settings += [str(x) for key, value in values.items() for x in (f"SOLVER.{key}", value)]
        return [*settings, "TEST.EVAL_PERIOD", str(steps // 6)]

    def read(self, folder: Path) -> dict[str, float]:
        lines, _ = read_metrics(folder)
        values = {key: value for line in lines for key, value in line.items()}
        return pick(values, self.metrics, folder)

    def describe(self, norm: str, condition: Any = None) -> dict[str, float]:
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
    clock = "step"
    notes = ("IS and FID are each the best of a run's evaluations.",)

    def __init__(self, scale: str, model: str) -> None:
        self.scale = scale
        self.title = "Table 5: the generator of BigGAN-deep on ImageNet at 128x128"
        self.config = "configs/gan/imagenet128.yaml"
        self.lr = (5e-5, 2e-4)
        extractor = "inception-v3-compat"
        if scale == "small":
            self.title = "Table 5 in small: BigGAN-deep on garments, 1200 steps of 16 images"
            self.config = "configs/gan/garments.yaml"
            self.lr = (5e-4, 1e-3)
            extractor = "garments"
            self.notes = (*self.notes, "Their features come from a small classifier of garments.")
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
            settings += ["TEST.EVAL_PERIOD", "200"]
        return settings

    def read(self, folder: Path) -> dict[str, float]:
        run = read_run(folder)
        return {"IS": run.IS, "FID": run.FID}

    def history(self, folder: Path) -> dict[float, float]:
        return evaluations(folder, self.clock, self.metrics[0].title)


TABLES = {
    "table2": Table2,
    "table3": Table3,
    "table4": Table4,
    "table5": Table5,
    "figure11": Figure11,
}
