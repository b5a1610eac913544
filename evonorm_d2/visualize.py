"""A sheet of ground truth and predictions, from the folder of a run."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.visualizer import Visualizer
from torch import Tensor
from torch.nn.functional import pad
from torchvision.utils import make_grid

from evonorm_runs.errors import UserError, user_errors

from .checkpoint import kept_random_state
from .loader import check_names
from .run_config import load_config

RESULTS = "inference/coco_instances_results.json"
SIDE = 400  # longer side of a picture, pixels


def draw_sheet(run: Path, num: int = 8, score_threshold: float = 0.5) -> Tensor:
    """The first images of a run's test set: ground truth on the left, predictions on the right.

    Reads `config.yaml` and what the COCO evaluation saved in the folder; runs no model.

    Args:
        run: OUTPUT_DIR of a training or an evaluation.
        num: how many images; two fit in a row.
        score_threshold: draw predictions with at least this score.

    Returns:
        an RGB image, uint8 (3, H, W).

    Raises:
        UserError: a missing or broken file.
    """
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run}: not the folder of a run, as it has no config.yaml")
    # The run may have had a GPU.
    cfg = load_config(str(run / "config.yaml"), ("MODEL.DEVICE", "cpu"))
    if not cfg.DATASETS.TEST:
        raise UserError(f"{run / 'config.yaml'}: DATASETS.TEST is empty")
    name = cfg.DATASETS.TEST[0]
    check_names([name])
    results = run / RESULTS
    if len(cfg.DATASETS.TEST) > 1:
        results = results.parent / name / results.name
    predictions = _read_predictions(results, score_threshold)
    images = DatasetCatalog.get(name)[:num]
    with kept_random_state():
        np.random.seed(0)  # for the visualizer's colours
        pictures = [
            picture
            for image in images
            for picture in _draw_pair(
                image, predictions[image["image_id"]], MetadataCatalog.get(name)
            )
        ]
    height, width = (max(sizes) for sizes in zip(*(p.shape[1:] for p in pictures)))
    padded = [pad(p, (0, width - p.shape[2], 0, height - p.shape[1])) for p in pictures]
    return make_grid(torch.stack(padded), nrow=2 if len(images) == 1 else 4, padding=4)


def _read_predictions(path: Path, score_threshold: float) -> dict[int, list[dict]]:
    """COCO's results by image."""
    if not path.is_file():
        raise UserError(
            f"{path} does not exist: make it with "
            f"python tools/train_net.py --config-file {path.parents[1] / 'config.yaml'} "
            "--eval-only --resume"
        )
    by_image = defaultdict(list)
    with user_errors(KeyError, TypeError, ValueError, prefix=f"{path}: not COCO's results: "):
        for prediction in json.loads(path.read_text()):
            if prediction["score"] >= score_threshold:
                by_image[prediction["image_id"]].append(prediction)
    return by_image


def _draw_pair(image: dict[str, Any], predictions: list[dict], metadata: Metadata) -> list[Tensor]:
    """Ground truth and predictions drawn on an image, uint8 (3, H, W) each."""
    with user_errors(OSError, ValueError, prefix=f"{image['file_name']}: "):
        pixels = read_image(image["file_name"], format="RGB")
    height, width = pixels.shape[:2]
    scale = SIDE / max(height, width)
    drawn = (
        Visualizer(pixels, metadata, scale).draw_dataset_dict(image),
        Visualizer(pixels, metadata, scale).draw_instance_predictions(
            _instances(predictions, (height, width), metadata)
        ),
    )
    return [torch.from_numpy(d.get_image().copy()).permute(2, 0, 1) for d in drawn]


def _instances(predictions: list[dict], size: tuple[int, int], metadata: Metadata) -> Instances:
    """COCO's results of one image as Detectron2 draws them."""
    boxes = torch.tensor([p["bbox"] for p in predictions]).reshape(-1, 4)
    classes = metadata.thing_dataset_id_to_contiguous_id
    instances = Instances(size)
    instances.pred_boxes = Boxes(BoxMode.convert(boxes, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS))
    instances.scores = torch.tensor([p["score"] for p in predictions])
    instances.pred_classes = torch.tensor([classes[p["category_id"]] for p in predictions])
    if all("segmentation" in p for p in predictions):
        instances.pred_masks = [p["segmentation"] for p in predictions]
    return instances
