"""The images of a search: to train on, to score with, and a part that the search never sees.

Each set has the parts "train", "val" and "test", split class by class with a fixed seed:

    garments  the embedded photographs: 8,000, 1,000 and 1,000
    folder    images of one's own, a folder per class: 80 %, 10 % and 10 %
    CIFAR10   and torchvision's other sets, by their names: 90 % and 10 % of the training file;
              "test" is the other file
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from evonorm_runs.errors import UserError, user_errors
from evonorm_runs.images.garments import load_garments

from .evaluation import Data

if TYPE_CHECKING:
    from evonorm_runs.images.sets import ImageSet

SEED = 0  # of the splits
SHARE = 0.1  # of "val", and of a folder's "test"
IN_MEMORY = 2**33  # bytes of a part's images


class Source(NamedTuple):
    """Which images, at which size.

    Attributes:
        name: "garments", "folder" or the name of one of torchvision's sets.
        root: the folder of the images, or of torchvision's files; "" for the garments.
        resolution: pixels of a side, to which images are resized.
    """

    name: str = "garments"
    root: str = ""
    resolution: int = 16


def load_data(source: Source) -> Data:
    """The parts that a search may see.

    Raises:
        UserError: as :func:`load_part`.
    """
    return Data(load_part(source, "train"), load_part(source, "val"))


def load_part(source: Source, part: str) -> tuple[Tensor, Tensor]:
    """Images uint8 (n, 1 or 3, resolution, resolution), and their classes int64 (n,).

    Args:
        part: "train", "val" or "test".

    Raises:
        UserError: the set is not there, too small, too large or damaged.
    """
    if source.name == "garments":
        return load_garments(part, source.resolution)
    images = _open(source, part)
    chosen = _split(source, images, part)
    size = len(chosen) * 3 * source.resolution**2
    if size > IN_MEMORY:
        raise UserError(
            f"DATA: {len(chosen):,} images of {source.resolution}x{source.resolution} take "
            f"{size / 2**30:.0f} GiB, but a search holds them in memory: lower DATA.RESOLUTION"
        )
    pixels = torch.empty(len(chosen), 3, source.resolution, source.resolution, dtype=torch.uint8)
    with user_errors(OSError, prefix="DATA.ROOT: "):
        for place, index in enumerate(chosen.tolist()):
            pixels[place] = images[index][0]
    return pixels, images.labels[chosen]


def count_to_train_on(source: Source) -> int:
    """How many images "train" has. All files of the set are looked for, none is decoded.

    Raises:
        UserError: as :func:`load_part`.
    """
    if source.name == "garments":
        return len(load_garments("train", source.resolution)[1])
    _open(source, "test")
    return len(_split(source, _open(source, "train"), "train"))


def _open(source: Source, part: str) -> ImageSet:
    from evonorm_runs.images.sets import FolderSet, TorchvisionSet  # imports torchvision, slowly

    root = Path(source.root).expanduser()
    if source.name == "folder":
        if not root.is_dir():
            raise UserError(f"DATA.ROOT: there is no folder {root}, which should hold the images")
        images: ImageSet = FolderSet(root, source.resolution)
    else:
        split = "val" if part == "test" else "train"  # its names here for torchvision's two files
        images = TorchvisionSet(source.name, root, split, source.resolution)
    images.remedy = "name another DATA.ROOT"
    return images


def _split(source: Source, images: ImageSet, part: str) -> Tensor:
    """The indices of a part's images, in order."""
    if source.name != "folder" and part == "test":
        return torch.arange(len(images))
    generator = torch.Generator().manual_seed(SEED)
    order = torch.randperm(len(images), generator=generator)
    chosen = []
    for number, name in enumerate(images.classes):
        own = order[images.labels[order] == number]
        if not len(own):
            continue
        held = max(1, round(SHARE * len(own)))
        parts = {"val": own[:held], "train": own[held:]}
        if source.name == "folder":
            parts |= {"test": own[held : 2 * held], "train": own[2 * held :]}
        if not len(parts["train"]):
            raise UserError(
                f"DATA: the class {name!r} of {source.root} has {len(own)} images, too few for a "
                "part to train on, one to score with and one to test with"
            )
        chosen.append(parts[part])
    return torch.cat(chosen).sort().values
