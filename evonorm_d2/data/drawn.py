"""Data sets that are drawn: written once in COCO's format, and registered with Detectron2.

NAME/annotations/instances_train.json     NAME/train/000000000001.png ...
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import numpy as np
from PIL import Image
from pycocotools import mask as mask_util
from tqdm import tqdm

from evonorm_runs.errors import UserError

from .overlap import Item

Scene = tuple[np.ndarray, list[Item]]  # an image (size, size, 3) uint8 RGB, and what is in it


@dataclass(frozen=True)
class DrawnSet:
    """A data set that is drawn.

    Args:
        name: of its folder; Detectron2 knows its splits as NAME_SPLIT.
        description, license, supercategory: as COCO's format has them.
        splits: their names.
        classes: their names.
        source: the annotations' key for the image that an object was made of.
        version: raised when the same arguments no longer draw the same scenes.
    """

    name: str
    description: str
    license: dict
    splits: tuple[str, ...]
    classes: tuple[str, ...]
    supercategory: str
    source: str
    version: int = 1


def default_root() -> Path:
    """The folder of Detectron2's data sets: DETECTRON2_DATASETS, or `datasets`."""
    return Path(os.getenv("DETECTRON2_DATASETS", "datasets")).expanduser()


def write(
    folder: Path,
    kind: DrawnSet,
    arguments: dict[str, Any],
    draw: Callable[[str], Iterable[Scene]],
    digest: str = "",
) -> bool:
    """Write a data set to `folder`, which appears whole or not at all.

    Args:
        arguments: what its scenes depend on.
        draw: the scenes of a split.
        digest: if not "", the SHA-256 of all pixels and annotations that must come out.

    Returns:
        False if the data set is there already, in which case nothing is done.

    Raises:
        FileExistsError: the folder holds anything else.
        UserError: another digest.
    """
    arguments = {"version": kind.version, **arguments}
    arguments = json.loads(json.dumps(arguments))  # as they are read back, with lists for tuples
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        return _check_there(folder, kind, arguments)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as aside:
        made = Path(aside) / kind.name
        (made / "annotations").mkdir(parents=True)
        found = hashlib.sha256()
        for split in kind.splits:
            coco = _write_split(made / split, kind, split, draw(split), found)
            coco["info"]["arguments"] = arguments
            json_file(made, split).write_text(json.dumps(coco, separators=(",", ":")) + "\n")
        if digest and found.hexdigest() != digest:
            raise UserError(
                f"the data set {kind.name} came out with the digest {found.hexdigest()}, not "
                f"{digest}: install numpy, Pillow and scikit-learn as constraints.txt has them"
            )
        try:
            made.rename(folder)
        except OSError:
            if not folder.is_dir() or not any(folder.iterdir()):
                raise
            return _check_there(folder, kind, arguments)  # another process was faster
    return True


def register(
    kind: DrawnSet, root: str | os.PathLike | None, missing: Callable[[Path], Any]
) -> None:
    """Register the splits of a data set with Detectron2, before or after it is made.

    In a second call a named root replaces the earlier one, and the default changes nothing.

    Args:
        root: the folder that holds the data set's; None for :func:`default_root`.
        missing: called with the data set's folder when a split is loaded that is not there. It
            makes the data, or raises an error that says how to.
    """
    from detectron2.data import DatasetCatalog, MetadataCatalog  # not needed to make the data

    names = {split: f"{kind.name}_{split}" for split in kind.splits}
    if root is None and all(name in DatasetCatalog for name in names.values()):
        return
    folder = (default_root() if root is None else Path(root)) / kind.name
    for split, name in names.items():
        # Neither catalog lets an entry be changed, only replaced.
        DatasetCatalog.pop(name, None)
        MetadataCatalog.pop(name, None)

        def load(name: str = name, split: str = split) -> list[dict]:
            from detectron2.data.datasets import load_coco_json

            if not json_file(folder, split).is_file():
                missing(folder)
            return load_coco_json(str(json_file(folder, split)), str(folder / split), name)

        DatasetCatalog.register(name, load)
        MetadataCatalog.get(name).set(
            json_file=str(json_file(folder, split)),
            image_root=str(folder / split),
            evaluator_type="coco",
            thing_classes=list(kind.classes),
        )


def json_file(folder: Path, split: str) -> Path:
    return folder / "annotations" / f"instances_{split}.json"


def _check_there(folder: Path, kind: DrawnSet, arguments: dict) -> bool:
    """False if a folder holds the data set with these arguments; else a FileExistsError."""
    if all(_arguments_of(folder, split) == arguments for split in kind.splits):
        return False
    told = (f"{key} {value}" for key, value in arguments.items() if not isinstance(value, dict))
    raise FileExistsError(
        f"{folder} exists and is not the {kind.name} data set with these arguments "
        f"({', '.join(told)}): remove it or name another"
    )


def _arguments_of(folder: Path, split: str) -> dict | None:
    """What the data set in a folder was made with; None if that cannot be told."""
    try:
        return json.loads(json_file(folder, split).read_text())["info"]["arguments"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_split(
    folder: Path, kind: DrawnSet, split: str, scenes: Iterable[Scene], digest: Any
) -> dict:
    """Write the PNGs of a split; returns its COCO dictionary. All ids start at 1.

    Args:
        digest: a hash, which takes in pixels and annotations.
    """
    folder.mkdir()
    images, annotations = [], []
    for number, (image, items) in enumerate(
        tqdm(scenes, f"{kind.name} {split}", unit="image", delay=2), 1
    ):
        file_name = f"{number:012d}.png"
        Image.fromarray(image).save(folder / file_name, compress_level=1)  # three times faster
        height, width = image.shape[:2]
        fields = {"file_name": file_name, "height": height, "width": width}
        images.append({"id": number, "license": 1, **fields})
        own = [_annotation(item, kind.source) for item in items]
        first = len(annotations) + 1
        annotations += [{"id": i, "image_id": number, **a} for i, a in enumerate(own, first)]
        digest.update(image.tobytes())
        digest.update(json.dumps(own).encode())
    categories = [
        {"id": label, "name": name, "supercategory": kind.supercategory}
        for label, name in enumerate(kind.classes, 1)
    ]
    return {
        "info": {"description": f"{kind.description}, {split}", "version": str(kind.version)},
        "licenses": [kind.license],
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }


def _annotation(item: Item, source: str) -> dict:
    # RLE: an 8, or what an arm covers, has holes, which COCO's polygons cannot express. Detectron2
    # reads it with INPUT.MASK_FORMAT: bitmask.
    rle = mask_util.encode(np.asfortranarray(item.mask, dtype=np.uint8))
    return {
        "category_id": item.label + 1,
        "bbox": mask_util.toBbox(rle).tolist(),
        "area": int(mask_util.area(rle)),
        "iscrowd": 0,
        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
        source: item.source,
        "full_area": item.full_area,
    }
