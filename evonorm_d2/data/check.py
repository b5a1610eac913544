"""Data sets against a config: what would end in a traceback, or in another model than meant.

Detectron2 copes with some faults itself: in training it drops polygons of two points and boxes
without an area, and clips boxes to the image. Those are told, not refused.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import logging
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager
from tqdm import tqdm

from evonorm_d2.loader import check_names, loading
from evonorm_runs.errors import UserError, one_line

SAMPLE = 16  # images of each data set that are read before training
_COCO = ("coco", "coco_panoptic_seg")  # Detectron2 reads the json_file of these data sets itself
_ROI_HEADS = ("GeneralizedRCNN", "PanopticFPN")
# The key that holds the number of classes, for each architecture that has one.
_CLASSES = {
    **dict.fromkeys(_ROI_HEADS, "ROI_HEADS"),
    **dict.fromkeys(("RetinaNet", "NormActRetinaNet"), "RETINANET"),
}


class Finding(NamedTuple):
    """Something wrong with a data set.

    Args:
        kind: in a few words; findings of a kind are alike.
        line: what is wrong, where, what would be right.
        refused: False if Detectron2 copes with it.
    """

    kind: str
    line: str
    refused: bool = True


def check_data(cfg: CfgNode, train: Sequence[str], test: Sequence[str]) -> None:
    """Check data sets before they are used, their images by a sample. Warns of what is not refused.

    Raises:
        UserError: the first fault that would end the run, or let it train something else.
    """
    found: dict[str, list[Finding]] = {}
    for finding in find_faults(cfg, train, test):
        found.setdefault(finding.kind, []).append(finding)
    for alike in sorted(found.values(), key=lambda alike: not alike[0].refused):
        more = f" (and {len(alike) - 1} more like it)" if len(alike) > 1 else ""
        if alike[0].refused:
            raise UserError(f"{alike[0].line}{more}; tools/check_data.py lists all")
        logging.getLogger(__name__).warning("%s%s", alike[0].line, more)


def find_faults(
    cfg: CfgNode, train: Sequence[str], test: Sequence[str], every_image: bool = False
) -> Iterator[Finding]:
    """Whatever is wrong with the data sets of a config.

    Args:
        train, test: the names of the data sets, mostly DATASETS.TRAIN and DATASETS.TEST.
        every_image: whether to read all images, or a few.

    Raises:
        UserError: a data set that can't be loaded at all.
    """
    check_names([*train, *test])
    first: DataSet | None = None
    for name in dict.fromkeys([*train, *test]):
        with loading([name]), _without_collector():
            data = read(name)
            yield from _class_faults(cfg, data, first)
            rules = _Rules.of(cfg, data, name in train, name in test)
            yield from rules.faults()
            yield from _annotation_faults(data, rules)
            yield from _image_faults(cfg, data, every_image)
        first = first or data


@dataclass
class DataSet:
    """A data set as COCO's format has it.

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

    def where(self, annotation: dict, image: dict) -> str:
        return f"{self.name}: annotation {annotation.get('id')} of {image.get('file_name')}: "


def read(name: str) -> DataSet:
    """A data set of the catalog."""
    metadata = MetadataCatalog.get(name)
    json_file = metadata.get("json_file")
    if json_file and metadata.get("evaluator_type") in _COCO:
        with PathManager.open(json_file) as file:
            content = json.load(file)
        categories = sorted(content["categories"], key=lambda category: category["id"])
        classes = {category["id"]: category["name"] for category in categories}
        # A loader of somebody's own may take some of the classes only.
        if metadata.get("thing_classes", list(classes.values())) == list(classes.values()):
            folder = metadata.get("image_root", "")
            images = [_with_path(name, image, folder) for image in content["images"]]
            return DataSet(name, images, content.get("annotations", []), classes, True)
    records = DatasetCatalog.get(name)
    if not isinstance(records, list):  # a data set of PyTorch, which may be a stream
        records = []
    images = [{**record, "id": i} for i, record in enumerate(records)]
    annotations = [
        _as_coco(annotation, i, k)
        for i, record in enumerate(records)
        for k, annotation in enumerate(record.get("annotations", ()))
    ]
    classes = MetadataCatalog.get(name).get("thing_classes")
    return DataSet(name, images, annotations, classes and dict(enumerate(classes)), False)


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Halves the time for COCO, whose millions of lists the collector would search for cycles."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _with_path(name: str, image: dict, folder: str) -> dict:
    for key in ("id", "file_name", "width", "height"):
        if key not in image:
            label = image.get("file_name", image.get("id"))
            raise UserError(f"{name}: image {label}: it has no {key}, which COCO's format needs")
    return {**image, "file_name": os.path.join(folder, image["file_name"])}


def _as_coco(annotation: dict, image: int, index: int) -> dict:
    """An annotation of Detectron2's, called by its index in its image."""
    box = annotation.get("bbox")
    if annotation.get("bbox_mode") == BoxMode.XYXY_ABS and box is not None and len(box) == 4:
        box = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
    return {**annotation, "bbox": box, "image_id": image, "id": annotation.get("id", index)}


# Classes


def _class_faults(cfg: CfgNode, data: DataSet, first: DataSet | None) -> Iterator[Finding]:
    node = _CLASSES.get(cfg.MODEL.META_ARCHITECTURE)
    if node is None or data.classes is None:
        return
    names = list(data.classes.values())
    key, count = f"MODEL.{node}.NUM_CLASSES", cfg.MODEL[node].NUM_CLASSES
    # The paper's heads have outputs for classes that no data set has.
    spare = node == "ROI_HEADS" and cfg.MODEL.ROI_HEADS.NAME == "build_paper_roi_heads"
    if len(names) > count or (len(names) < count and not spare):
        yield Finding(
            "number of classes",
            f"{data.name}: it has {len(names)} classes ({_listed(names)}), but {key} is {count}: "
            f"set {key} {len(names)}",
        )
    elif first and first.classes and names != list(first.classes.values()):
        yield Finding(
            "names of classes",
            f"{data.name}: its classes ({_listed(names)}) are not those of {first.name} "
            f"({_listed(list(first.classes.values()))}): one model needs the same ones in the same "
            "order; set DATASETS.TRAIN and DATASETS.TEST to data sets that have them",
        )


def _listed(names: list) -> str:
    return ", ".join([*map(repr, names[:3]), *["..."][: len(names) > 3]])


# Annotations


@dataclass
class _Rules:
    """What a config wants of the annotations of a data set."""

    data: DataSet
    train: bool  # whether it is trained on
    test: bool  # whether COCO's evaluation reads it
    masks: bool  # whether each object needs a mask
    mask_format: str  # of INPUT.MASK_FORMAT; "" if masks are not read
    keypoints: int  # how many each object needs

    @classmethod
    def of(cls, cfg: CfgNode, data: DataSet, train: bool, test: bool) -> _Rules:
        roi_heads = cfg.MODEL.META_ARCHITECTURE in _ROI_HEADS
        return cls(
            data,
            train,
            test and data.from_json,
            roi_heads and cfg.MODEL.MASK_ON,
            cfg.INPUT.MASK_FORMAT if cfg.MODEL.MASK_ON else "",
            cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS if cfg.MODEL.KEYPOINT_ON else 0,
        )

    def faults(self) -> Iterator[Finding]:
        """What is wrong with the data set as a whole."""
        if not self.keypoints or not (self.train or self.test):
            return
        metadata = MetadataCatalog.get(self.data.name)
        where = f"{self.data.name}: MODEL.KEYPOINT_ON is True, but "
        names = metadata.get("keypoint_names")
        without = [a for a in self.data.annotations if a.get("keypoints") is None]
        if self.data.annotations and len(without) == len(self.data.annotations):
            yield Finding(
                "keypoints", f"{where}no annotation has keypoints: set MODEL.KEYPOINT_ON False"
            )
        elif self.train and (names is None or metadata.get("keypoint_flip_map") is None):
            yield Finding(
                "metadata of keypoints",
                f"{where}its metadata lack keypoint_names or keypoint_flip_map: set both in "
                f"MetadataCatalog.get({self.data.name!r}), or set MODEL.KEYPOINT_ON False",
            )
        elif names and len(names) != self.keypoints:
            key = "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS"
            yield Finding(
                "number of keypoints",
                f"{self.data.name}: its metadata name {len(names)} keypoints, but {key} is "
                f"{self.keypoints}: set {key} {len(names)}",
            )

    def annotation(self, annotation: dict, image: dict) -> Iterator[tuple[str, str, bool]]:
        """Faults of an annotation: kind, what is wrong, whether it is refused."""
        trained = self.train and not annotation.get("iscrowd", 0)  # Detectron2 drops crowds
        if not (trained or self.test):
            return
        fault = _box_fault(annotation.get("bbox"), image)
        if fault:
            yield fault
        segmentation = annotation.get("segmentation")
        if self.masks and not _is_there(segmentation):
            yield (
                "segmentation",
                "it has no segmentation, but MODEL.MASK_ON is True: "
                "set MODEL.MASK_ON False, or give each object a mask",
                True,
            )
        elif trained and self.mask_format and _is_there(segmentation):
            yield from self._mask(segmentation, image)
        if self.test:
            for key in ("area", "iscrowd"):
                if key not in annotation:
                    yield key, f"it has no {key}, which COCO's evaluation needs", True

    def _mask(self, segmentation: Any, image: dict) -> Iterator[tuple[str, str, bool]]:
        if isinstance(segmentation, dict):
            yield from self._rle(segmentation, image)
            return
        good = [polygon for polygon in segmentation if _is_polygon(polygon)]
        if len(good) < len(segmentation):
            # With polygons left, or none, Detectron2's loader for COCO goes on without this one.
            yield (
                "polygons",
                "a polygon of its segmentation has not three points or more, each of two numbers"
                + (": Detectron2 leaves it out" if self.data.from_json else ""),
                not self.data.from_json,
            )
        if not all(map(_finite, good)):
            yield "coordinates", "a polygon of its segmentation holds something not finite", True

    def _rle(self, rle: dict, image: dict) -> Iterator[tuple[str, str, bool]]:
        size, wanted = rle.get("size"), [image.get("height"), image.get("width")]
        if self.mask_format == "polygon":
            yield (
                "RLE",
                "its mask is RLE, but INPUT.MASK_FORMAT is polygon: set INPUT.MASK_FORMAT bitmask",
                True,
            )
        elif None not in wanted and list(size or ()) != wanted:
            yield (
                "size of RLE",
                f"its mask is RLE of height and width {size}, but the image has {wanted}",
                True,
            )
        elif sum(_runs(rle.get("counts"))) != size[0] * size[1]:
            # Its decoder would leave the rest of the mask as the memory was.
            yield "counts of RLE", "the counts of its RLE do not add up to height times width", True


def _runs(counts: Any) -> list[int]:
    """The lengths of the runs in RLE of COCO's, a list or a compressed string; [] if it is broken.

    Of a string each character holds 5 bits and says whether another one follows, and each length
    but the first three is the difference to the last but one.
    """
    if not isinstance(counts, (str, bytes)):
        good = isinstance(counts, list) and all(isinstance(x, int) and x >= 0 for x in counts)
        return counts if good else []
    runs: list[int] = []
    value = bits = 0
    for character in counts.encode() if isinstance(counts, str) else counts:
        value |= (character - 48 & 31) << bits
        bits += 5
        if not character - 48 & 32:
            value -= (character - 48 >> 4 & 1) << bits  # the sign
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value = bits = 0
    return runs if min(runs, default=0) >= 0 and not bits else []


def _annotation_faults(data: DataSet, rules: _Rules) -> Iterator[Finding]:
    images = {image["id"]: image for image in data.images}
    with_keypoints = set()
    if rules.keypoints:
        with_keypoints = {a.get("image_id") for a in data.annotations if a.get("keypoints")}
    for annotation in data.annotations:
        image = images.get(annotation.get("image_id"))
        if image is None:
            line = f"{data.name}: annotation {annotation.get('id')}: there is no image with the id "
            yield Finding("image_id", f"{line}{annotation.get('image_id')!r}", False)
            continue
        where = functools.partial(data.where, annotation, image)
        category = annotation.get("category_id")
        if data.classes is not None and category not in data.classes:
            yield Finding("category_id", f"{where()}its category_id {category!r} is of no class")
        for kind, what, refused in rules.annotation(annotation, image):
            yield Finding(kind, where() + what, refused)
        if image["id"] in with_keypoints:
            yield from _keypoint_faults(annotation, rules, where)
    # Detectron2 takes COCO 2014's minival, which holds some twice.
    if data.from_json and "minival" not in MetadataCatalog.get(data.name).json_file:
        yield from _same_ids(data, "image", data.images)
        yield from _same_ids(data, "annotation", data.annotations)


def _keypoint_faults(annotation: dict, rules: _Rules, where: Any) -> Iterator[Finding]:
    points = annotation.get("keypoints") or []
    trained = rules.train and not annotation.get("iscrowd", 0)
    if trained and len(points) != 3 * rules.keypoints:
        yield Finding(
            "keypoints of an annotation",
            f"{where()}it has {len(points)} numbers for keypoints, but should have "
            f"{3 * rules.keypoints}, three times MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS, as others "
            "in this image have keypoints",
        )
    elif rules.test and "num_keypoints" not in annotation:
        yield Finding(
            "num_keypoints", f"{where()}it has no num_keypoints, which COCO's evaluation needs"
        )


def _same_ids(data: DataSet, what: str, items: list[dict]) -> Iterator[Finding]:
    counts = Counter(item.get("id") for item in items)
    for key, count in counts.items() if len(counts) < len(items) else ():
        if count > 1:
            line = f"{data.name}: {count} {what}s have the id {key!r}: each needs its own"
            yield Finding(f"id of {what}", line)


def _box_fault(box: Any, image: dict) -> tuple[str, str, bool] | None:
    """What is wrong with a box (x, y, width, height)."""
    try:
        x, y, w, h = box
        finite = math.isfinite(x + y + w + h)
    except (TypeError, ValueError, OverflowError):
        finite = False
    if not finite:
        what = f"its bbox is {box!r:.80}, but should be four finite numbers, x, y, width, height"
        return "bbox", what, True
    width, height = image.get("width") or math.inf, image.get("height") or math.inf
    size = f"in an image of width {width} and height {height}"
    if w < 0 or h < 0:
        what = f"its bbox is {box!r:.80}, but width and height should not be negative"
        return "sides of bbox", what, True
    if not (w and h):
        return (
            "empty bbox",
            f"its bbox is {box!r:.80}, without an area: it is not trained on",
            False,
        )
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        what = f"its bbox is {box!r:.80} (x, y, width, height), outside {size[3:]}"
        return "place of bbox", what, True
    if min(x, y, width - x - w, height - y - h) < -1:
        what = f"its bbox is {box!r:.80} (x, y, width, height) {size}: it is clipped"
        return "end of bbox", what, False
    return None


def _is_there(segmentation: Any) -> bool:
    return segmentation is not None and len(segmentation) > 0


def _is_polygon(polygon: Any) -> bool:
    return hasattr(polygon, "__len__") and len(polygon) >= 6 and len(polygon) % 2 == 0


def _finite(polygon: Iterable) -> bool:
    try:
        return math.isfinite(sum(polygon))
    except (TypeError, OverflowError):
        return False


# Images


def _image_faults(cfg: CfgNode, data: DataSet, every_image: bool) -> Iterator[Finding]:
    images = data.images
    if not every_image and len(images) > SAMPLE:
        images = [images[i * len(images) // SAMPLE] for i in range(SAMPLE)]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as threads:
        faults = threads.map(functools.partial(_image_fault, cfg.INPUT.FORMAT), images)
        progress = tqdm(faults, data.name, len(images), disable=not every_image)
        for image, fault in zip(images, progress):
            if fault:
                yield Finding("image", f"{data.name}: {image['file_name']}: {fault}")


def _image_fault(pixel_format: str, image: dict) -> str | None:
    try:
        height, width = read_image(image["file_name"], format=pixel_format).shape[:2]
    except Exception as error:  # Pillow raises many kinds for a broken file
        return one_line(error)
    said = image.get("width", width), image.get("height", height)
    if said != (width, height):
        return (
            f"it is {width} pixels wide and {height} high (as its EXIF orientation has it), but "
            f"its annotation says {said[0]} and {said[1]}"
        )
    return None
