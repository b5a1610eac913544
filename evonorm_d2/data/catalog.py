"""Read any data set of Detectron2's catalog into COCO's format, to be checked."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from evonorm_runs.errors import UserError

# Detectron2 reads the json_file of data sets of these types itself.
_COCO = ("coco", "coco_panoptic_seg")


@dataclass
class DataSet:
    """A data set.

    Args:
        name: its name in the catalog.
        images: dictionaries with id, file_name (the whole path), width and height.
        annotations: dictionaries with id, image_id, category_id, bbox (x, y, width, height), ...
        classes: their names by category_id; None if it has none.
        from_json: whether Detectron2's loader for COCO reads it, which drops broken polygons.
    """

    name: str
    images: list[dict]
    annotations: list[dict]
    classes: dict[Any, str] | None
    from_json: bool


def read(name: str) -> DataSet:
    """A data set of the catalog.

    Raises:
        UserError: an image or a class is not in COCO's format.
        Exception: an error of any kind, if it can't be read.
    """
    metadata = MetadataCatalog.get(name)
    json_file = metadata.get("json_file")
    if json_file and metadata.get("evaluator_type") in _COCO:
        with PathManager.open(json_file) as file:
            content = json.load(file)
        lists = [dictionaries(name, content, key) for key in ("categories", "images")]
        classes = class_names(name, lists[0])
        # A user's own loader may return some of the classes only.
        if metadata.get("thing_classes", list(classes.values())) == list(classes.values()):
            folder = metadata.get("image_root", "")
            images = [_with_path(name, image, folder) for image in lists[1]]
            annotations = dictionaries(name, {"annotations": [], **content}, "annotations")
            return DataSet(name, images, annotations, classes, True)
    records = DatasetCatalog.get(name)
    if not isinstance(records, list):  # a data set of PyTorch, which may be a stream
        records = []
    images = [{**record, "id": i} for i, record in enumerate(records)]
    annotations = [
        _as_coco(annotation, i, k)
        for i, record in enumerate(records)
        for k, annotation in enumerate(record.get("annotations", ()))
    ]
    names = MetadataCatalog.get(name).get("thing_classes")
    classes = dict(enumerate(names)) if names else None
    return DataSet(name, images, annotations, classes, False)


def same_ids(what: str, items: Iterable[dict]) -> list[str]:
    """A line for each id that several items have; `what` names the items, such as images."""
    counts = Counter(repr(item.get("id")) for item in items)
    return [
        f"{n} {what} have the id {key}: each needs its own" for key, n in counts.items() if n > 1
    ]


def dictionaries(name: str, content: dict, key: str) -> list[dict]:
    """The list under a key of a file in COCO's format."""
    items = content[key]
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise UserError(f"{name}: its {key} should be a list of dictionaries, as in COCO's format")
    return items


def class_names(name: str, categories: list[dict]) -> dict[int, str]:
    """The classes of COCO's `categories`, by id and in its order, as Detectron2 has them."""
    for category in categories:
        if not (isinstance(category.get("id"), int) and isinstance(category.get("name"), str)):
            raise UserError(f"{name}: category {category}: it needs a name, and a number as its id")
    for line in same_ids("categories", categories):
        raise UserError(f"{name}: {line}")
    return {c["id"]: c["name"] for c in sorted(categories, key=lambda c: c["id"])}


def _with_path(name: str, image: dict, folder: str) -> dict:
    fields = {"id": (int, str), "file_name": str, "width": (int, float), "height": (int, float)}
    for key, kinds in fields.items():
        value = image.get(key)
        if not isinstance(value, kinds) or (key in ("width", "height") and not value > 0):
            label = image.get("file_name", image.get("id"))
            what = f"its {key} is {value!r:.80}" if key in image else f"it has no {key}"
            raise UserError(f"{name}: image {label!r}: {what}, but COCO's format needs one")
    return {**image, "file_name": os.path.join(folder, image["file_name"])}


def _as_coco(annotation: dict, image: int, index: int) -> dict:
    """One of Detectron2's annotations, named by its index in its image."""
    box = annotation.get("bbox")
    if annotation.get("bbox_mode") == BoxMode.XYXY_ABS and box is not None and len(box) == 4:
        box = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
    return {**annotation, "bbox": box, "image_id": image, "id": annotation.get("id", index)}
