"""Images in tar files, the shards of WebDataset, which are read nearly from end to end.

A shard holds for each image KEY.jpg (or .jpeg, .png, .webp) and KEY.cls, the number of its class as
text, as webdataset's ShardWriter writes them. https://github.com/webdataset/webdataset describes
the format; a shard's index comes from Python's tarfile, so any image can be read alone, and an
epoch's order is known before it begins.
"""

from __future__ import annotations

import bisect
import functools
import io
import itertools
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from evonorm_runs.errors import UserError, user_errors

IMAGES = (".jpg", ".jpeg", ".png", ".webp")
LABEL = ".cls"
OPEN = 64  # shards that a process keeps open


Place = tuple[int, int]  # of a file in a tar: where its bytes begin, and how many they are


def read_index(path: Path) -> list[tuple[Place, Place]]:
    """The places of the images and of their labels, in the order of the file.

    Raises:
        UserError: it can't be read, or an image lacks its label.
    """
    found: dict[str, dict[str, Place]] = {}
    with user_errors(OSError, tarfile.TarError, prefix=f"{path}: "):
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                key, _, suffix = name.partition(".")
                kind = f".{suffix.lower()}"
                if member.isfile() and kind in (*IMAGES, LABEL):
                    place = member.offset_data, member.size
                    key = f"{folder}/{key}" if folder else key
                    found.setdefault(key, {})[LABEL if kind == LABEL else "image"] = place
    for key, parts in found.items():
        if len(parts) < 2:
            lacks = f"{LABEL} file" if LABEL not in parts else f"image ({', '.join(IMAGES)})"
            raise UserError(f"{path}: {key} has no {lacks}")
    return [(parts["image"], parts[LABEL]) for parts in found.values()]


class Shard:
    """An open shard. It raises the errors of :func:`read_index`."""

    def __init__(self, path: Path) -> None:
        self.places = read_index(path)
        with user_errors(OSError):
            self.file = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "file"):
            os.close(self.file)

    def read(self, index: int) -> tuple[bytes, bytes]:
        """The bytes of an image and of its label."""
        image, label = (os.pread(self.file, size, at) for at, size in self.places[index])
        return image, label


open_shard = functools.lru_cache(maxsize=OPEN)(Shard)


class ShardImages(Dataset):
    """The images and labels in FOLDER/*.tar, in the order of the files' names.

    Args:
        num: the number of images, where all shards but the last hold equally many; 0: all shards
            are looked through to count them.
        key: the setting that holds `num`.
        transform: from an RGB image to what is returned beside its label.

    Raises:
        UserError: there are no shards, or they can't hold that many images.
    """

    def __init__(
        self,
        folder: Path,
        num: int,
        key: str,
        classes: list[str],
        transform: Callable[[Image.Image], Any],
    ) -> None:
        self.files, self.classes, self.transform = sorted(folder.glob("*.tar")), classes, transform
        if not self.files:
            raise UserError(f"DATA.ROOT: {folder} should hold shards, *.tar")
        if num:
            most = len(open_shard(self.files[0]).places)
            rest = num - (len(self.files) - 1) * most
            if not 0 < rest <= max(most, 1):
                raise UserError(
                    f"{key} is {num}, but {len(self.files)} shards with {most} images in all but "
                    f"the last do not hold so many; 0 counts them"
                )
            counts = [*[most] * (len(self.files) - 1), rest]
        else:
            counts = [len(read_index(file)) for file in self.files]
        self.counts, self.ends = counts, list(itertools.accumulate(counts))

    def __len__(self) -> int:
        return self.ends[-1]

    def place(self, index: int) -> tuple[int, int]:
        """The number of an image's shard, and the image's number in it."""
        shard = bisect.bisect_right(self.ends, index)
        return shard, index - self.ends[shard] + self.counts[shard]

    def __getitem__(self, index: int) -> tuple[Any, int]:
        which, number = self.place(index)
        file, expected = self.files[which], self.counts[which]
        shard = open_shard(file)
        if len(shard.places) != expected:
            raise UserError(
                f"{file} holds {len(shard.places)} images, but should hold {expected}, as all "
                "shards but the last hold equally many; set the number of images to 0 to count them"
            )
        data, label = shard.read(number)
        if not label.strip().isdigit() or int(label) >= len(self.classes):
            raise UserError(
                f"{file}: image {number}: its class is {label[:20]!r}, but should be a number "
                f"below {len(self.classes)}"
            )
        return self.transform(Image.open(io.BytesIO(data)).convert("RGB")), int(label)


def read_classes(root: Path) -> list[str]:
    """The names of the classes in ROOT/classes.txt, a line each, in the order of their numbers."""
    file = root / "classes.txt"
    with user_errors(OSError, ValueError, prefix="DATA.ROOT: "):
        classes = file.read_text().splitlines()
    if not classes:
        raise UserError(f"DATA.ROOT: {file} is empty, but should name a class in each line")
    return classes


def nearly_sequential(ends: list[int], cfg: CfgNode, generator: torch.Generator) -> Tensor:
    """An epoch's order of images, in which each worker reads some shards after each other.

    The shards are shuffled. Each worker gets a part of their images, and those of a part are
    shuffled within blocks of DATA.SHUFFLE images.

    Args:
        ends: the number of images up to the end of each shard.

    Returns:
        indices, of the workers' batches in turn, as :func:`.data.worker_batches` takes them; what
        is left over after the last whole step is left out.
    """
    n, workers = cfg.SOLVER.IMS_PER_WORKER, cfg.SOLVER.WORKERS
    shards = [torch.arange(*span) for span in zip([0, *ends], ends)]
    turn = torch.randperm(len(shards), generator=generator).tolist()
    mixed = torch.cat([shards[i] for i in turn])
    steps = len(mixed) // (n * workers)
    blocks = [
        block[torch.randperm(len(block), generator=generator)]
        for part in mixed[: steps * n * workers].view(workers, -1)
        for block in part.split(cfg.DATA.SHUFFLE)
    ]
    return torch.cat(blocks).view(workers, steps, n).transpose(0, 1).flatten()
