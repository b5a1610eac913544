"""Folders of Pascal VOC's .xml files or YOLO's .txt files as a data set, read by globox."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import ExifTags, Image

from evonorm_runs.errors import UserError, user_errors
from evonorm_runs.images.files import SUFFIXES

CLASS_FILES = ("classes.txt", "data.yaml")  # of YOLO, beside the labels or up to two folders above


def register_folder(name: str, labels: Path, images: Path, classes: Sequence[str]) -> list[str]:
    """Register boxes in Pascal VOC's or YOLO's format with Detectron2.

    There are no masks. An image without a file of labels is an image without objects in YOLO's
    format, and left out in Pascal VOC's.

    Args:
        labels: a folder of .xml files, or of .txt files with a line "class x y width height" for
            each object, in fractions of the image.
        images: the folder of the images, which have the names of those files.
        classes: all classes in their order; [] for those in CLASS_FILES for YOLO's, or those that
            are found, sorted.

    Returns:
        the names of the classes.

    Raises:
        UserError: globox is missing, a broken file, an image that is missing, or another class.
    """
    try:
        import globox  # noqa: F401
    except ImportError as error:
        raise UserError(f"{labels}: reading such a folder needs `pip install globox`") from error
    read = _read_voc if any(labels.glob("*.xml")) else _read_yolo
    if read is _read_yolo and not any(labels.glob("*.txt")):
        raise UserError(f"{labels}: there is no file of labels (.xml or .txt) in it")
    with user_errors(OSError):
        found = {p.stem: p for p in sorted(images.iterdir()) if p.suffix.lower() in SUFFIXES}
    annotations = list(read(labels, found))
    if not annotations:
        raise UserError(f"{images}: there is no image in it")
    names = list(classes or _names_of_files(labels, read)) or _found_names(annotations, read)
    index = {label: i for i, label in enumerate(names)}
    if read is _read_yolo:
        index = {str(i): i for i in range(len(names))}
    records = [_record(i, path, a, index) for i, (path, a) in enumerate(annotations)]
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(
        thing_classes=names, evaluator_type="coco", image_root=str(images)
    )
    return names


def _read_voc(labels: Path, images: dict[str, Path]) -> Iterator[tuple[Path, Any]]:
    """An image's path and globox's Annotation for each file."""
    from globox import Annotation

    for file in sorted(labels.glob("*.xml")):
        with user_errors(Exception, prefix=f"{file}: not in Pascal VOC's format: "):
            annotation = Annotation.from_pascal_voc(file)
        path = images.get(file.stem) or images.get(Path(annotation.image_id).stem)
        if path is None:
            raise UserError(f"{file}: there is no image {annotation.image_id}")
        yield path, annotation


def _read_yolo(labels: Path, images: dict[str, Path]) -> Iterator[tuple[Path, Any]]:
    from globox import Annotation

    for stem, path in images.items():
        file = labels / f"{stem}.txt"
        with user_errors(Exception, prefix=f"{path}: "):
            size = _size(path)
        if not file.is_file():
            yield path, Annotation(path.name, size)
            continue
        with user_errors(Exception, prefix=f"{file}: not boxes in YOLO's format: "):
            yield path, Annotation.from_yolo_v5(file, image_size=size, image_id=path.name)


def _size(path: Path) -> tuple[int, int]:
    """Width and height of an image as it is read: upright."""
    with Image.open(path) as image:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        return image.size[::-1] if turned else image.size


def _names_of_files(labels: Path, read: Any) -> list[str]:
    folders = (labels, labels.parent, labels.parent.parent) if read is _read_yolo else ()
    for file in (folder / name for folder in folders for name in CLASS_FILES):
        if file.is_file():
            with user_errors(
                OSError, ValueError, AttributeError, yaml.YAMLError, prefix=f"{file}: "
            ):
                if file.suffix == ".txt":
                    return [line.strip() for line in file.read_text().splitlines() if line.strip()]
                names = yaml.safe_load(file.read_text()).get("names") or []
                return [str(x) for x in (names.values() if isinstance(names, dict) else names)]
    return []


def _found_names(annotations: list[tuple[Path, Any]], read: Any) -> list[str]:
    found = {box.label for _, annotation in annotations for box in annotation.boxes}
    if read is _read_voc:
        return sorted(found)
    numbers = [int(label) for label in found if label.isdecimal()]
    return [str(i) for i in range(max(numbers, default=-1) + 1)]


def _record(i: int, path: Path, annotation: Any, index: dict[str, int]) -> dict[str, Any]:
    """One of Detectron2's dictionaries."""
    for box in annotation.boxes:
        if box.label not in index:
            raise UserError(
                f"{path.name}: its class {box.label} is none of {', '.join(index)}: name all "
                "classes in their order in DATASETS.CLASSES"
            )
    return {
        "file_name": str(path),
        "image_id": i,
        "width": annotation.image_width,
        "height": annotation.image_height,
        "annotations": [
            {
                "bbox": list(box.ltwh),
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": index[box.label],
                "iscrowd": 0,
            }
            for box in annotation.boxes
        ],
    }
