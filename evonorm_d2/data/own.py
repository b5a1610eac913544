"""Data sets that a config registers: `DATASETS.COCO: {my_train: [annotations.json, images/]}`."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from evonorm_d2.loader import loading
from evonorm_runs.errors import UserError

from .catalog import class_names, dictionaries
from .check import CLASSES
from .folders import register_folder

# NUM_CLASSES is left to the data if it is Detectron2's default, COCO's number, or 0.
_LEFT = (80, 0)
_ours: set[str] = set()  # the names in Detectron2's catalog that come from here


def use_own_data(cfg: CfgNode) -> CfgNode:
    """Register the data sets of `DATASETS.COCO` with Detectron2, and let them fill in the config.

    In place of a file in COCO's format there may be a folder of Pascal VOC's or YOLO's files.

    Classes are those of the first data set of DATASETS.TRAIN, or of DATASETS.TEST if that is empty.
    If it is one of DATASETS.COCO, `DATASETS.CLASSES` becomes the names of its classes in the order
    of their ids, and NUM_CLASSES of the RoI heads, RetinaNet or FCOS their number, unless the
    config names another one than 80, Detectron2's default, or 0. A file that is missing is left to
    :func:`evonorm_d2.loader.check_names`, so a config that has its classes needs no data.

    Returns:
        cfg itself, changed in place, also if it is frozen.

    Raises:
        UserError: a value that is not a pair of paths, a name that Detectron2 has already, or a
            file that is not in COCO's format or empty.
    """
    own = cfg.DATASETS.get("COCO", {})  # a config without the plugin's keys has none
    first = next(iter([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]), None)
    names = _register(cfg, first, own[first], cfg.DATASETS.CLASSES) if first in own else []
    for name in (name for name in own if name != first):
        _register(cfg, name, own[name], names or cfg.DATASETS.CLASSES)
    if names:
        frozen = cfg.is_frozen()
        cfg.defrost()
        _fill_in(cfg, first, names)
        if frozen:
            cfg.freeze()
    return cfg


def _register(cfg: CfgNode, name: str, value: Any, classes: Sequence[str]) -> list[str]:
    """Register a data set anew; returns the names of its classes, [] if its file is missing.

    Args:
        classes: those of a folder of Pascal VOC's or YOLO's; [] if they are not known.
    """
    key = f"DATASETS.COCO.{name}"
    pair = isinstance(value, (list, tuple)) and [type(x) for x in value] == [str, str]
    if not pair:
        raise UserError(f"{key} is {value!r}, but should be [annotations.json, folder of images]")
    json_file, images = (os.path.expanduser(path) for path in value)
    if name in DatasetCatalog.list() and name not in _ours:
        raise UserError(f"{key}: Detectron2 has a data set of this name: take another name")
    if name in _ours:
        DatasetCatalog.pop(name, None)
        MetadataCatalog.pop(name, None)
    _ours.add(name)
    if Path(json_file).is_dir():
        return register_folder(name, Path(json_file), Path(images), classes)
    register_coco_instances(name, {}, json_file, images)
    metadata = MetadataCatalog.get(name)
    if not Path(json_file).is_file():
        if cfg.DATASETS.CLASSES:
            metadata.thing_classes = list(cfg.DATASETS.CLASSES)
        return []
    with loading([name]):
        content = json.loads(Path(json_file).read_text())
        # Detectron2 predicts on a test set whose file has no annotations, but can't rate none.
        rated = name in cfg.DATASETS.TRAIN or "annotations" in content
        for what in ("images", "categories", *(["annotations"] if rated else [])):
            if not content.get(what):
                raise UserError(f"{key}: {json_file} is empty: it has no {what}")
        categories = dictionaries(name, content, "categories")
        classes = class_names(name, categories)
    metadata.thing_classes = list(classes.values())
    metadata.thing_dataset_id_to_contiguous_id = {x: i for i, x in enumerate(classes)}
    colours = {c["id"]: c.get("color") for c in categories}
    if all(isinstance(c, list) and len(c) == 3 for c in colours.values()):
        metadata.thing_colors = [tuple(colours[x]) for x in classes]
    return metadata.thing_classes


def _fill_in(cfg: CfgNode, name: str, classes: list[str]) -> None:
    known = list(cfg.DATASETS.CLASSES)
    if known and known != classes:
        raise UserError(
            f"DATASETS.CLASSES is {known}, but {name} has {classes}: they belong to different "
            "data; name the data that the classes are of, or remove DATASETS.CLASSES"
        )
    cfg.DATASETS.CLASSES = classes
    node = CLASSES.get(cfg.MODEL.META_ARCHITECTURE)
    if node and cfg.MODEL[node].NUM_CLASSES in _LEFT and len(classes) not in _LEFT:
        cfg.MODEL[node].NUM_CLASSES = len(classes)
        logging.getLogger(__name__).warning(
            "MODEL.%s.NUM_CLASSES is %d, the number of classes of %s", node, len(classes), name
        )
