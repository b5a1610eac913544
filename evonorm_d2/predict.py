"""Predictions of a detection run on images of one's own: pictures, and COCO's results."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.engine import DefaultPredictor
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from detectron2.utils.visualizer import ColorMode, Visualizer
from torch import Tensor

from evonorm_runs.config import check_device
from evonorm_runs.errors import UserError, user_errors
from evonorm_runs.images.files import images_of

from .checkpoint import Checkpointer, kept_random_state
from .loader import check_names, loading
from .run_config import load_config

LEAST_SIDE = 400  # smaller images are drawn larger, so that their labels can be read; pixels


class RunPredictor:
    """The detector of a run.

    Args:
        run: OUTPUT_DIR of a training, of which the last checkpoint is taken, or a checkpoint in it.
        device: what the option --device names; "" for a GPU if there is one, else the CPU.

    Attributes:
        checkpoint: the path of the checkpoint.
        model: Detectron2's model, in evaluation mode.

    Raises:
        UserError: not a run of train_net.py, a damaged file, a device that is not there, or a
            model that predicts something else than instances.
    """

    def __init__(self, run: Path, device: str = "") -> None:
        folder = run if run.is_dir() else run.parent
        if not (folder / "config.yaml").is_file():
            raise UserError(f"{run}: not a run of train_net.py, which has a config.yaml")
        if device:
            check_device(device, "--device")
        with user_errors(OSError, ValueError):
            text = (folder / "config.yaml").read_text()
        if "DATASETS:" not in text:
            raise UserError(f"{run}: a run of another tool than train_net.py")
        # The checkpoint has all weights, so a backbone of timm's is not fetched.
        changes = ("MODEL.DEVICE", device, "MODEL.WEIGHTS", "", "MODEL.TIMM.PRETRAINED", "False")
        cfg = load_config(str(folder / "config.yaml"), changes)
        if cfg.INPUT.FORMAT not in ("RGB", "BGR"):
            raise UserError(
                f"{folder / 'config.yaml'}: INPUT.FORMAT is {cfg.INPUT.FORMAT}, but Detectron2's "
                "predictor takes RGB and BGR"
            )
        self.checkpoint = _last_checkpoint(run) if run.is_dir() else run
        name = next(iter([*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN]), "")
        self.metadata = MetadataCatalog.get(name) if name else Metadata()
        self._predictor = DefaultPredictor(cfg)
        self.model = self._predictor.model
        with user_errors(OSError, ValueError):
            Checkpointer(self.model, cfg=cfg).load(str(self.checkpoint))

    def predict(self, image: np.ndarray, threshold: float) -> Instances:
        """The objects with at least this score in an image (H, W, 3) uint8, BGR, on the CPU."""
        found = self._predictor(image).get("instances")
        if found is None:
            raise UserError(f"{self.checkpoint}: its model predicts no instances")
        return found[found.scores >= threshold].to("cpu")

    def input(self, image: np.ndarray) -> Tensor:
        """An image (H, W, 3) uint8, BGR, as the model gets it: (3, H', W') uint8, on its device."""
        if self._predictor.input_format == "RGB":
            image = image[:, :, ::-1]
        resized = self._predictor.aug.get_transform(image).apply_image(image)
        return torch.as_tensor(resized.transpose(2, 0, 1).copy()).to(self.model.device)

    def first_image(self) -> Path:
        """The first image of the run's test set. Raises UserError if it is not at hand."""
        name = self.metadata.get("name")
        if not name:
            raise UserError(f"{self.checkpoint}: its run has no data sets: name an image")
        check_names([name])
        with loading([name]):
            return Path(DatasetCatalog.get(name)[0]["file_name"])

    def picture(self, image: np.ndarray, found: Instances) -> np.ndarray:
        """The objects drawn on the image (H, W, 3) uint8, BGR; returns such an image, RGB."""
        mode = ColorMode.SEGMENTATION if self.metadata.get("thing_colors") else ColorMode.IMAGE
        scale = max(1.0, LEAST_SIDE / max(image.shape[:2]))
        with kept_random_state():
            np.random.seed(0)  # for the visualizer's colours
            drawn = Visualizer(image[:, :, ::-1], self.metadata, scale, mode)
            return drawn.draw_instance_predictions(found).get_image()

    def results(self, found: Instances, image_id: int) -> list[dict[str, Any]]:
        """The objects as COCO's results, with the ids of the data set's categories.

        Where the run's data are not at hand, the ids are 1, 2, ... in the order of the classes.
        """
        ids = self.metadata.get("thing_dataset_id_to_contiguous_id", {})
        category = {index: key for key, index in ids.items()}
        rows = instances_to_coco_json(found, image_id)
        for row in rows:
            row["category_id"] = category.get(row["category_id"], row["category_id"] + 1)
        return rows


def _last_checkpoint(run: Path) -> Path:
    tag = run / "last_checkpoint"
    if not tag.is_file():
        raise UserError(f"{run}: it has no checkpoint yet")
    return run / tag.read_text().strip()


def find_images(paths: Sequence[Path]) -> dict[str, Path]:
    """The images that paths name, files or folders of files, by their names without a suffix.

    Raises:
        UserError: a path that is not there, a folder without images, or two images of one name.
    """
    found: dict[str, Path] = {}
    for path in itertools.chain.from_iterable(map(images_of, paths)):
        other = found.setdefault(path.stem, path)
        if other != path:
            raise UserError(
                f"{other} and {path} would both become {path.stem}.png: predict them into two "
                "folders, with -o"
            )
    return found


def image_ids(names: Sequence[str]) -> list[int]:
    """An id for each name: its number, as COCO's images have it; 1, 2, ... if not all have one."""
    if all(name.isdecimal() for name in names) and len({int(name) for name in names}) == len(names):
        return [int(name) for name in names]
    return list(range(1, len(names) + 1))


def read_bgr(path: Path) -> np.ndarray:
    """An image as Detectron2 reads it, upright: (H, W, 3) uint8, BGR.

    Raises:
        UserError: it can't be read.
    """
    with user_errors(Exception, prefix=f"{path}: "):  # Pillow raises many kinds for a broken file
        return read_image(str(path), format="BGR")
