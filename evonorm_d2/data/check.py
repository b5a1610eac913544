"""Check data sets against a config: find what would end in a traceback, or in a wrong model.

Detectron2 copes with some faults itself: in training it drops polygons of two points and boxes
without an area, and clips boxes to the image. Such faults are reported, not refused.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from detectron2.config import CfgNode
from detectron2.data.detection_utils import read_image
from tqdm import tqdm

from evonorm_d2.loader import check_names, loading
from evonorm_runs.errors import UserError, one_line

from .annotations import ROI_HEADS, Rules
from .catalog import DataSet, read

SAMPLE = 16  # images of each data set that are read before training
# The key that holds the number of classes, for each architecture that has one.
CLASSES = {
    **dict.fromkeys(ROI_HEADS, "ROI_HEADS"),
    **dict.fromkeys(("RetinaNet", "NormActRetinaNet", "NormActFCOS"), "RETINANET"),
}


class Finding(NamedTuple):
    """Something wrong with a data set.

    Args:
        kind: a few words, the same for findings that are alike.
        line: what is wrong, where, and what would be right.
        refused: False if Detectron2 copes with it.
    """

    kind: str
    line: str
    refused: bool = True


def check_data(cfg: CfgNode, train: Sequence[str], test: Sequence[str]) -> None:
    """Check data sets, and a few of their images, before a run. Warns of what is not refused.

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
    """All faults in the data sets of a config.

    Args:
        train, test: the names of the data sets, mostly DATASETS.TRAIN and DATASETS.TEST.
        every_image: whether to read all images, or only a few.

    Raises:
        UserError: a data set can't be loaded at all.
    """
    check_names([*train, *test])
    first: DataSet | None = None
    for name in dict.fromkeys([*train, *test]):
        with loading([name]):
            with _without_collector():
                data = read(name)
                yield from _class_faults(cfg, data, first)
                rules = Rules.of(cfg, data, name in train, name in test)
                for kind, what, refused in rules.faults():
                    yield Finding(kind, f"{name}: {what}", refused)
            yield from _image_faults(cfg, data, every_image)
        first = first or data


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Stop the garbage collector, which would search COCO's millions of lists: half the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _class_faults(cfg: CfgNode, data: DataSet, first: DataSet | None) -> Iterator[Finding]:
    node = CLASSES.get(cfg.MODEL.META_ARCHITECTURE)
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


def _image_faults(cfg: CfgNode, data: DataSet, every_image: bool) -> Iterator[Finding]:
    images = data.images
    if not every_image and len(images) > SAMPLE:
        images = [images[i * len(images) // SAMPLE] for i in range(SAMPLE)]
    threads = ThreadPoolExecutor(max_workers=os.cpu_count())
    try:
        faults = threads.map(functools.partial(_image_fault, cfg.INPUT.FORMAT), images)
        progress = tqdm(faults, data.name, len(images), disable=not every_image)
        for image, fault in zip(images, progress):
            if fault:
                yield Finding("image", f"{data.name}: {image['file_name']}: {fault}")
    finally:
        threads.shutdown(cancel_futures=True)


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
