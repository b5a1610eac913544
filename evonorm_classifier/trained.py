"""A classifier of a run of train_classifier.py: its config, weights and classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from PIL import Image
from torch import nn

from evonorm_runs.config import check_device, merge_saved
from evonorm_runs.errors import UserError, user_errors
from evonorm_runs.files import read_checkpoint
from evonorm_runs.folder import CONFIG
from evonorm_runs.images.decode import open_image, to_rgb

from .config import get_cfg
from .data import SETS
from .models import build_model
from .run import CHECKPOINT


def is_run(path: Path) -> bool:
    """Whether this is a folder of train_classifier.py, or a checkpoint in one."""
    config = (path if path.is_dir() else path.parent) / CONFIG
    if not config.is_file():
        return False
    with user_errors(OSError, ValueError):
        return "IMS_PER_WORKER:" in config.read_text()  # no other trainer has this key


def open_run(path: Path) -> tuple[Path, dict[str, Any], CfgNode]:
    """The checkpoint of a folder of train_classifier.py, or a checkpoint itself.

    Returns:
        its file, its content and its config.

    Raises:
        UserError: no checkpoint, or a damaged one.
    """
    file = path / CHECKPOINT if path.is_dir() else path
    if path.is_dir() and not file.exists():
        raise UserError(f"{path}: not a run of train_classifier.py, which has a {CHECKPOINT}")
    with user_errors(OSError):
        data = read_checkpoint(file)
    if {"epoch", "config", "data", "model"} - data.keys():
        raise UserError(f"{file}: not a checkpoint of train_classifier.py")
    return file, data, merge_saved(get_cfg(), data["config"], str(file))


def load_model(file: Path, data: dict[str, Any], cfg: CfgNode) -> nn.Module:
    """The model of a checkpoint, with the averaged weights if there are such, as evaluated.

    Raises:
        UserError: the weights do not fit.
    """
    model = build_model(cfg, data["data"]["classes"])
    with user_errors(RuntimeError, ValueError, prefix=f"{file}: "):
        model.load_state_dict(data.get("averaged", data["model"]))
    return model


class RunClassifier:
    """The classifier of a run, for images of one's own.

    Args:
        path: a folder of train_classifier.py, or a checkpoint of it.
        device: what the option --device names; "" for a GPU if there is one, else the CPU.

    Attributes:
        classes: the names of the classes; their numbers, where an older run did not note them.

    Raises:
        UserError: no checkpoint, a damaged one, or a device that is not there.
    """

    def __init__(self, path: Path, device: str = "") -> None:
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        check_device(device, "--device")
        file, data, cfg = open_run(path)
        images, numbers = SETS[cfg.DATA.NAME], map(str, range(data["data"]["classes"]))
        self.classes = data.get("names") or getattr(images, "classes", None) or list(numbers)
        self._device, self._prepare = torch.device(device), images.prepare(cfg)
        self._model = load_model(file, data, cfg).to(self._device).eval()

    @torch.no_grad()
    def predict(self, path: Path, most: int) -> list[tuple[str, float]]:
        """The `most` likely classes of an image file with their probabilities, the best first.

        The image is cut as those of the run's evaluation are.

        Raises:
            UserError: it can't be read.
        """
        image = self._prepare(_read(path))[None].to(self._device)
        found = self._model(image).float().softmax(1)[0].topk(min(most, len(self.classes)))
        names = [self.classes[i] for i in found.indices.tolist()]
        return list(zip(names, found.values.tolist()))


def _read(path: Path) -> Image.Image:
    with user_errors(Exception, prefix=f"{path}: "), open_image(path) as file:
        return to_rgb(file)
