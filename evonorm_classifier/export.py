"""What a detector has to know of a classifier that its backbone is taken from."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from evonorm_runs.errors import UserError, user_errors
from evonorm_runs.folder import METRICS, read_metrics

from . import trained
from .data import SETS
from .models import DETECTOR_MODELS


class Trained(NamedTuple):
    """A classifier of a run.

    Attributes:
        weights: its state dict, by the names that a detector's backbone has, and `linear`.
        settings: the keys of a Detectron2 config with this backbone, and their values.
        description: on one line.
        accuracy: in percent, on the validation set; None if the run's log lacks it.
        config: of the run, as yaml.
    """

    weights: dict[str, Tensor]
    settings: dict[str, Any]
    description: str
    accuracy: float | None
    config: str


def read_run(path: Path) -> Trained:
    """The classifier in a folder of train_classifier.py, or in a checkpoint of it.

    Raises:
        UserError: no checkpoint, a damaged one, or one of a model that no detector has.
    """
    file, data, cfg = trained.open_run(path)
    if cfg.MODEL.NAME not in DETECTOR_MODELS:
        raise UserError(
            f"{file}: MODEL.NAME is {cfg.MODEL.NAME}, which no detector has as its backbone; "
            f"train {', '.join(DETECTOR_MODELS)}"
        )
    model = trained.load_model(file, data, cfg)  # the weights of the accuracy
    accuracy = _accuracy(file.parent, data["epoch"])
    epochs = f"{data['epoch']} of {cfg.SOLVER.EPOCHS} epochs"
    images = f"{cfg.DATA.NAME}, {data['data']['classes']} classes"
    return Trained(
        model.state_dict(),
        _settings(cfg, model),
        f"{cfg.MODEL.NAME} of train_classifier.py on {images}, after {epochs}",
        accuracy,
        data["config"],
    )


def _accuracy(folder: Path, epoch: int) -> float | None:
    if not (folder / METRICS).exists():
        return None
    with user_errors(OSError):
        lines = read_metrics(folder)[0]
    return next((x["accuracy"] for x in lines if x.get("epoch") == epoch and "accuracy" in x), None)


def _settings(cfg: Any, model: nn.Module) -> dict[str, Any]:
    """Detectron2's keys and ours. Its names for numbers of channels differ between the depths."""
    images = SETS[cfg.DATA.NAME]
    norm = model.stem.conv1.norm
    settings = {
        "MODEL.RESNETS.DEPTH": model.depth,
        "MODEL.RESNETS.NORM": cfg.MODEL.NORM,
        "MODEL.RESNETS.STEM_OUT_CHANNELS": model.stem.conv1.out_channels,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": model.res2[0].last.out_channels,
        "MODEL.EVONORM.NUM_GROUPS": cfg.MODEL.NUM_GROUPS or 32,
        "MODEL.EVONORM.GROUP_SIZE": cfg.MODEL.EVONORM.GROUP_SIZE,
        "MODEL.EVONORM.LINEAR": cfg.MODEL.LINEAR,
        "INPUT.FORMAT": "RGB",
        "MODEL.PIXEL_MEAN": [round(x, 3) for x in images.pixel_mean],
        "MODEL.PIXEL_STD": [round(x, 3) for x in images.pixel_std],
    }
    if hasattr(norm, "eps"):
        settings["MODEL.EVONORM.EPS"] = norm.eps
    if model.depth >= 50:
        settings["MODEL.RESNETS.WIDTH_PER_GROUP"] = model.res2[0].conv1.out_channels
        settings["MODEL.RESNETS.NUM_GROUPS"] = 1
        settings["MODEL.RESNETS.STRIDE_IN_1X1"] = False
    return settings
