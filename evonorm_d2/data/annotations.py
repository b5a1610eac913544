"""The annotations of a data set against a config."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from .catalog import DataSet, same_ids

# Architectures that predict masks and keypoints.
ROI_HEADS = ("GeneralizedRCNN", "PanopticFPN", "WeightStandardizedRCNN")


class Fault(NamedTuple):
    """Something wrong with an annotation.

    Args:
        kind: a few words, the same for faults that are alike.
        what: what is wrong, and what would be right.
        refused: False if Detectron2 copes with it.
    """

    kind: str
    what: str
    refused: bool = True


@dataclass
class Rules:
    """What a config wants of the annotations of a data set."""

    data: DataSet
    train: bool  # whether it is trained on
    test: bool  # whether COCO's evaluation reads it
    masks: bool  # whether each object needs a mask
    mask_format: str  # of INPUT.MASK_FORMAT; "" if masks are not read
    keypoints: int  # how many each object needs

    @classmethod
    def of(cls, cfg: CfgNode, data: DataSet, train: bool, test: bool) -> Rules:
        roi_heads = cfg.MODEL.META_ARCHITECTURE in ROI_HEADS
        return cls(
            data,
            train,
            test and data.from_json,
            roi_heads and cfg.MODEL.MASK_ON,
            cfg.INPUT.MASK_FORMAT if cfg.MODEL.MASK_ON else "",
            cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS if cfg.MODEL.KEYPOINT_ON else 0,
        )

    def faults(self) -> Iterator[Fault]:
        """All faults: those of the annotations as a whole, then of each annotation, then of ids."""
        if self.keypoints and (self.train or self.test):
            yield from self._keypoint_metadata()
        images = {image["id"]: image for image in self.data.images}
        with_keypoints = set()
        if self.keypoints:
            with_keypoints = {
                a.get("image_id") for a in self.data.annotations if a.get("keypoints")
            }
        for annotation in self.data.annotations:
            image = _find(images, annotation.get("image_id"))
            label = f"annotation {annotation.get('id')}"
            if image is None:
                what = f"{label}: no image has its image_id {_shown(annotation.get('image_id'))}"
                yield Fault("image_id", what, "image_id" not in annotation)
                continue
            for kind, what, refused in self._annotation(annotation, image):
                yield Fault(kind, f"{label} of {image['file_name']}: {what}", refused)
            if image["id"] in with_keypoints:
                for kind, what, refused in self._keypoints(annotation):
                    yield Fault(kind, f"{label} of {image['file_name']}: {what}", refused)
        # Detectron2 takes COCO 2014's minival, which holds some twice.
        if self.data.from_json and "minival" not in MetadataCatalog.get(self.data.name).json_file:
            for line in same_ids("images", self.data.images):
                yield Fault("id of an image", line)
            for line in same_ids("annotations", self.data.annotations):
                yield Fault("id of an annotation", line)

    def _keypoint_metadata(self) -> Iterator[Fault]:
        metadata = MetadataCatalog.get(self.data.name)
        where = "MODEL.KEYPOINT_ON is True, but "
        names = metadata.get("keypoint_names")
        without = [a for a in self.data.annotations if a.get("keypoints") is None]
        if self.data.annotations and len(without) == len(self.data.annotations):
            yield Fault(
                "keypoints", f"{where}no annotation has keypoints: set MODEL.KEYPOINT_ON False"
            )
        elif self.train and (names is None or metadata.get("keypoint_flip_map") is None):
            yield Fault(
                "metadata of keypoints",
                f"{where}its metadata lack keypoint_names or keypoint_flip_map: set both in "
                f"MetadataCatalog.get({self.data.name!r}), or set MODEL.KEYPOINT_ON False",
            )
        elif names and len(names) != self.keypoints:
            key = "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS"
            yield Fault(
                "number of keypoints",
                f"its metadata name {len(names)} keypoints, but {key} is "
                f"{self.keypoints}: set {key} {len(names)}",
            )

    def _annotation(self, annotation: dict, image: dict) -> Iterator[Fault]:
        classes, category = self.data.classes, annotation.get("category_id")
        if classes is not None and _find(classes, category) is None:
            yield Fault("category_id", f"its category_id {_shown(category)} is of no class")
        crowd = annotation.get("iscrowd", 0)
        if crowd not in (0, 1):
            yield Fault("iscrowd", f"its iscrowd is {_shown(crowd)}, but should be 0 or 1")
            return
        segmentation = annotation.get("segmentation")
        if not _is_segmentation(segmentation):
            shown = _shown(segmentation)
            what = f"its segmentation is {shown}, but should be a list of polygons or RLE"
            yield Fault("form of segmentation", what)
            return
        if self.data.from_json:
            yield from self._for_coco(annotation)
        trained = self.train and not crowd  # Detectron2 leaves crowds out
        if not (trained or self.test):
            return
        yield from _box(annotation.get("bbox"), image)
        if self.masks and not segmentation:
            yield Fault(
                "segmentation",
                "it has no segmentation, but MODEL.MASK_ON is True: "
                "set MODEL.MASK_ON False, or give each object a mask",
            )
        elif self.mask_format and segmentation and isinstance(segmentation, list):
            yield from self._polygons(segmentation)
        elif self.mask_format and segmentation and trained:
            yield from self._rle(segmentation, image)

    def _for_coco(self, annotation: dict) -> Iterator[Fault]:
        """Faults on which Detectron2's loader for COCO, or COCO's evaluation, fails."""
        if not isinstance(annotation.get("id"), (int, str)):
            yield Fault("id", "it has no id that is a number")
        if annotation.get("ignore", 0):
            yield Fault("ignore", "it is to be ignored, which Detectron2 can't do: remove it")
        if self.test:
            area = annotation.get("area")
            if not isinstance(area, (int, float)):
                what = f"its area is {_shown(area)}, but COCO's evaluation needs a number"
                yield Fault("area", what)
            if "iscrowd" not in annotation:
                yield Fault("no iscrowd", "it has no iscrowd, which COCO's evaluation needs")

    def _polygons(self, polygons: list) -> Iterator[Fault]:
        good = [polygon for polygon in polygons if len(polygon) >= 6 and len(polygon) % 2 == 0]
        if len(good) < len(polygons):
            # Detectron2's loader for COCO leaves it out, and the object too if none is left.
            yield Fault(
                "polygons",
                "a polygon of its segmentation has not three points or more, each of two numbers"
                + (": Detectron2 leaves it out" if self.data.from_json else ""),
                # COCO's evaluation reads four numbers of the first polygon.
                not self.data.from_json or (self.test and len(polygons[0]) < 4),
            )
        if not all(map(_finite, good)):
            what = "a polygon of its segmentation holds something else than finite numbers"
            yield Fault("coordinates", what)

    def _rle(self, rle: dict, image: dict) -> Iterator[Fault]:
        size, wanted = rle.get("size"), [image.get("height"), image.get("width")]
        if self.mask_format == "polygon":
            what = (
                "its mask is RLE, but INPUT.MASK_FORMAT is polygon: set INPUT.MASK_FORMAT bitmask"
            )
            yield Fault("RLE", what)
        elif None not in wanted and list(size or ()) != wanted:
            what = f"its mask is RLE of height and width {size}, but the image has {wanted}"
            yield Fault("size of RLE", what)
        elif sum(_runs(rle.get("counts"))) != size[0] * size[1]:
            # COCO's decoder would not write the rest of the mask, which would be random memory.
            what = "the counts of its RLE do not add up to height times width"
            yield Fault("counts of RLE", what)

    def _keypoints(self, annotation: dict) -> Iterator[Fault]:
        points = annotation.get("keypoints") or []
        trained = self.train and not annotation.get("iscrowd", 0)
        if trained and len(points) != 3 * self.keypoints:
            yield Fault(
                "keypoints of an annotation",
                f"it has {len(points)} numbers for keypoints, but needs {3 * self.keypoints}, "
                "three times MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS, as others in its image have",
            )
        elif self.test and "num_keypoints" not in annotation:
            yield Fault("num_keypoints", "it has no num_keypoints, which COCO's evaluation needs")


def _box(box: Any, image: dict) -> Iterator[Fault]:
    """What is wrong with a box (x, y, width, height)."""
    try:
        x, y, w, h = box
        finite = math.isfinite(x + y + w + h)
    except (TypeError, ValueError, OverflowError):
        finite = False
    if not finite:
        what = f"its bbox is {_shown(box)}, but should be four finite numbers, x, y, width, height"
        yield Fault("bbox", what)
        return
    width, height = image.get("width") or math.inf, image.get("height") or math.inf
    size = f"in an image of width {width} and height {height}"
    if w < 0 or h < 0:
        what = f"its bbox is {_shown(box)}, but width and height should not be negative"
        yield Fault("sides of bbox", what)
        return
    if not (w and h):
        what = f"its bbox is {_shown(box)}, without an area: it is not trained on"
        yield Fault("empty bbox", what, False)
        return
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        what = f"its bbox is {_shown(box)} (x, y, width, height), outside {size[3:]}"
        yield Fault("place of bbox", what)
    elif min(x, y, width - x - w, height - y - h) < -1:
        what = f"its bbox is {_shown(box)} (x, y, width, height) {size}: it is clipped"
        yield Fault("end of bbox", what, False)


def _runs(counts: Any) -> list[int]:
    """The lengths of the runs in RLE of COCO's, a list or a compressed string; [] if it is broken.

    Each character of a string holds 5 bits and says whether another one follows. Each length after
    the first three is stored as the difference to the length two before it.
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


def _find(table: dict, key: Any) -> Any:
    """The value of a key in a table, None if it is not there. The key may have any type."""
    try:
        return table.get(key)
    except TypeError:  # such as a list
        return None


def _shown(value: Any) -> str:
    return " ".join(repr(value)[:80].split())


def _is_segmentation(segmentation: Any) -> bool:
    if isinstance(segmentation, list):
        return all(hasattr(x, "__len__") and not isinstance(x, (str, dict)) for x in segmentation)
    return segmentation is None or isinstance(segmentation, dict)


def _finite(polygon: Any) -> bool:
    try:
        return math.isfinite(sum(polygon))
    except (TypeError, OverflowError):
        return False
