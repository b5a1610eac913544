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
INDEXED, OPEN = 4096, 128  # shards whose index a process keeps, and that it keeps open


@functools.lru_cache(maxsize=INDEXED)
def read_index(path: Path) -> Tensor:
    """Where the images and their labels are in a tar, in its order: int64 (n, 4).

    A row has the first byte and the size of the image, then those of the label.

    Raises:
        UserError: it can't be read, or an image lacks its label.
    """
    found: dict[str, dict[str, tuple[int, int]]] = {}
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
    rows = [(*parts["image"], *parts[LABEL]) for parts in found.values()]
    return torch.tensor(rows, dtype=torch.int64).view(-1, 4)


class OpenShard:
    """A file that is read at any place, by this process and by those forked from it."""

    def __init__(self, path: Path) -> None:
        self.file = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "file"):
            os.close(self.file)

    def read(self, first: int, size: int) -> bytes:
        return os.pread(self.file, size, first)


open_shard = functools.lru_cache(maxsize=OPEN)(OpenShard)


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
            most = len(read_index(self.files[0]))
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

    def __getitem__(self, i: int) -> tuple[Any, int]:
        which, number = self.place(i)
        file, expected = self.files[which], self.counts[which]
        index = read_index(file)
        if len(index) != expected:
            raise UserError(
                f"{file} holds {len(index)} images, but should hold {expected}, as all "
                "shards but the last hold equally many; set the number of images to 0 to count them"
            )
        first, size, label_first, label_size = index[number].tolist()
        shard = open_shard(file)
        data, label = shard.read(first, size), shard.read(label_first, label_size)
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
