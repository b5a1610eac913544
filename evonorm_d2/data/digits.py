"""The digits data set on disk, in COCO's format, and its registration with Detectron2.

digits/annotations/instances_train.json     digits/train/000000000001.png ...
digits/annotations/instances_val.json       digits/val/000000000001.png ...
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as mask_util
from tqdm import tqdm

from evonorm_d2.data.scenes import SPLITS, STYLE, Digit, draw_scene, load_scans

VERSION = 1  # raise it when the same arguments no longer draw the same scenes
NAMES = [str(digit) for digit in range(10)]
LICENSE = {
    "id": 1,
    "name": "CC BY 4.0: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, "
    "UCI Machine Learning Repository, 1998, doi 10.24432/C50P49; drawn into scenes",
    "url": "https://creativecommons.org/licenses/by/4.0/",
}


def default_folder() -> Path:
    """`digits` in the folder of Detectron2's data sets: DETECTRON2_DATASETS, or `datasets`."""
    return Path(os.getenv("DETECTRON2_DATASETS", "datasets")).expanduser() / "digits"


def write_digits(
    folder: str | os.PathLike, train: int = 1200, val: int = 200, size: int = 128, seed: int = 0
) -> bool:
    """Write `train` + `val` scenes of size x size pixels to `folder`.

    The same seed gives the same bytes. Image i of a split depends only on size, seed, split and i,
    so that a larger set begins with the smaller one. The folder appears whole or not at all.

    Returns:
        False if the data set is there already, in which case nothing is done.

    Raises:
        FileExistsError: the folder holds anything else.
        ValueError: a bad argument.
    """
    counts = {"train": train, "val": val}
    for name, value, least in (*((s, counts[s], 1) for s in SPLITS), ("size", size, 64)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    folder = Path(folder)
    arguments = {"version": VERSION, **counts, "size": size, "seed": seed, "style": asdict(STYLE)}
    arguments = json.loads(json.dumps(arguments))  # as they are read back, with lists for tuples
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if all(_arguments_of(folder, split) == arguments for split in SPLITS):
            return False
        raise FileExistsError(
            f"{folder} exists and is not the digits data set with these arguments "
            f"(train {train}, val {val}, size {size}, seed {seed}): remove it or name another"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as aside:
        made = Path(aside) / "digits"
        (made / "annotations").mkdir(parents=True)
        for split in SPLITS:
            coco = _write_split(made / split, split, counts[split], size, seed)
            coco["info"]["arguments"] = arguments
            _json_file(made, split).write_text(json.dumps(coco, separators=(",", ":")) + "\n")
        made.rename(folder)
    return True


def register_digits(root: str | os.PathLike | None = None) -> None:
    """Register `digits_train` and `digits_val` with Detectron2.

    It may be called before the data exists. Loading data that does not exist raises a
    FileNotFoundError that names the command to make it. In a second call a named root replaces the
    earlier one, and the default changes nothing.

    Args:
        root: the folder that holds `digits`. By default, as for Detectron2's own data sets, it is
            the environment's DETECTRON2_DATASETS, or else `datasets`.
    """
    from detectron2.data import DatasetCatalog, MetadataCatalog  # not needed to make the data

    if root is None and all(f"digits_{split}" in DatasetCatalog for split in SPLITS):
        return
    folder = default_folder() if root is None else Path(root) / "digits"
    for split in SPLITS:
        name = f"digits_{split}"
        # Neither catalog lets an entry be changed, only replaced.
        DatasetCatalog.pop(name, None)
        MetadataCatalog.pop(name, None)
        DatasetCatalog.register(name, lambda name=name, split=split: _load(name, folder, split))
        MetadataCatalog.get(name).set(
            json_file=str(_json_file(folder, split)),
            image_root=str(folder / split),
            evaluator_type="coco",
            thing_classes=NAMES,
        )


def _load(name: str, folder: Path, split: str) -> list[dict]:
    from detectron2.data.datasets import load_coco_json

    json_file = _json_file(folder, split)
    if not json_file.is_file():
        raise FileNotFoundError(
            f"{name}: {json_file} does not exist; "
            f"make the data set with: python tools/make_digits.py --out {folder}"
        )
    return load_coco_json(str(json_file), str(folder / split), name)


def _write_split(images_dir: Path, split: str, count: int, size: int, seed: int) -> dict:
    """Write the PNGs of a split; returns its COCO dictionary. All ids start at 1."""
    images_dir.mkdir()
    scans = load_scans(split)
    images, annotations = [], []
    for index in tqdm(range(count), desc=f"digits {split}", unit="image", delay=2):
        entropy = np.random.SeedSequence((seed, SPLITS.index(split), index))
        image, digits = draw_scene(np.random.Generator(np.random.PCG64(entropy)), size, scans)
        file_name = f"{index + 1:012d}.png"
        Image.fromarray(image).save(images_dir / file_name, compress_level=1)  # three times faster
        images.append(
            {"id": index + 1, "license": 1, "file_name": file_name, "height": size, "width": size}
        )
        for digit in digits:
            annotations.append(_annotation(digit, len(annotations) + 1, index + 1))
    return {
        "info": {"description": f"Scenes of handwritten digits, {split}", "version": str(VERSION)},
        "licenses": [LICENSE],
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": label + 1, "name": name, "supercategory": "digit"}
            for label, name in enumerate(NAMES)
        ],
    }


def _annotation(digit: Digit, annotation_id: int, image_id: int) -> dict:
    # RLE: a 0, 6, 8 or 9 has holes, which COCO's polygons cannot express. Detectron2 reads it
    # with INPUT.MASK_FORMAT: bitmask.
    rle = mask_util.encode(np.asfortranarray(digit.mask, dtype=np.uint8))
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": digit.label + 1,
        "bbox": mask_util.toBbox(rle).tolist(),
        "area": int(mask_util.area(rle)),
        "iscrowd": 0,
        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
        "scan": digit.scan,
        "full_area": digit.full_area,
    }


def _arguments_of(folder: Path, split: str) -> dict | None:
    """What the data set in a folder was made with; None if that cannot be told."""
    try:
        return json.loads(_json_file(folder, split).read_text())["info"]["arguments"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _json_file(folder: Path, split: str) -> Path:
    return folder / "annotations" / f"instances_{split}.json"
