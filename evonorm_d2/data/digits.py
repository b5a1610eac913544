"""The digits data set: scenes of handwritten digits, written to disk and registered."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

from .drawn import DrawnSet, Scene, default_root, json_file, register, write
from .scenes import SPLITS, STYLE, draw_scene, load_scans

DIGITS = DrawnSet(
    name="digits",
    description="Scenes of handwritten digits",
    license={
        "id": 1,
        "name": "CC BY 4.0: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, "
        "UCI Machine Learning Repository, 1998, doi 10.24432/C50P49; drawn into scenes",
        "url": "https://creativecommons.org/licenses/by/4.0/",
    },
    splits=SPLITS,
    classes=tuple(map(str, range(10))),
    supercategory="digit",
    source="scan",
)


def default_folder() -> Path:
    """`digits` in the folder of Detectron2's data sets: DETECTRON2_DATASETS, or `datasets`."""
    return default_root() / DIGITS.name


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

    def draw(split: str) -> Iterator[Scene]:
        scans = load_scans(split)
        for index in range(counts[split]):
            entropy = np.random.SeedSequence((seed, SPLITS.index(split), index))
            yield draw_scene(np.random.Generator(np.random.PCG64(entropy)), size, scans)

    arguments = {**counts, "size": size, "seed": seed, "style": asdict(STYLE)}
    return write(Path(folder), DIGITS, arguments, draw)


def register_digits(root: str | os.PathLike | None = None) -> None:
    """Register `digits_train` and `digits_val` with Detectron2.

    It may be called before the data exists. Loading data that does not exist raises a
    FileNotFoundError that names the command to make it. In a second call a named root replaces the
    earlier one, and the default changes nothing.

    Args:
        root: the folder that holds `digits`. By default, as for Detectron2's own data sets, it is
            the environment's DETECTRON2_DATASETS, or else `datasets`.
    """
    register(DIGITS, root, _say_how_to_make)


def _say_how_to_make(folder: Path) -> None:
    raise FileNotFoundError(
        f"{json_file(folder, SPLITS[0])} does not exist; "
        f"make the data set with: python tools/make_digits.py --out {folder}"
    )
