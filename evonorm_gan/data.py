"""The images a GAN is trained on: opening a data set, and its endless stream of batches."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from fvcore.common.config import CfgNode
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from evonorm_runs import distributed
from evonorm_runs.errors import UserError, printable
from evonorm_runs.images.digits import make_digits
from evonorm_runs.images.garments import CLASSES, load_garments
from evonorm_runs.images.sets import (
    Crop,
    DecodedSet,
    FolderSet,
    Hdf5Set,
    ImageSet,
    MemorySet,
    ZipSet,
    open_torchvision,
)

from .config import EMBEDDED, get_cfg


def _digits(split: str, resolution: int) -> MemorySet:
    return MemorySet(*make_digits(split, resolution), [str(digit) for digit in range(10)])


def _garments(split: str, resolution: int) -> MemorySet:
    images, labels = load_garments(split, resolution)
    return MemorySet(images.expand(-1, 3, -1, -1).contiguous(), labels, CLASSES)


_OPEN = {"digits": _digits, "garments": _garments}  # each of EMBEDDED


def open_dataset(cfg: CfgNode, split: str = "train") -> ImageSet:
    """The data set that DATA.NAME and DATA.ROOT name, at MODEL.RESOLUTION.

    DATA.NAME is "digits" or "garments", the name of a data set of torchvision's, or "" for what is
    at DATA.ROOT: a folder per class, a zip of that, or an HDF5 file. `ds[i]` is
    (uint8 (3, R, R), int).

    Args:
        split: "train", or "val" for the embedded sets and those of torchvision's that have one.

    Raises:
        UserError: no such data set or split, or its number of classes is not MODEL.NUM_CLASSES.
    """
    ds = _open(cfg, split)
    if len(ds.classes) != cfg.MODEL.NUM_CLASSES:
        raise UserError(
            f"{cfg.DATA.NAME or cfg.DATA.ROOT} has {_classes(ds)}, "
            f"but MODEL.NUM_CLASSES is {cfg.MODEL.NUM_CLASSES}"
        )
    if cfg.DATA.RANDOM_CROP and split == "train" and not isinstance(ds, DecodedSet):
        raise UserError(
            f"DATA.RANDOM_CROP: {cfg.DATA.NAME or cfg.DATA.ROOT} holds images that are cropped "
            "already; set it to 0, or DATA.ROOT to a folder or .zip of whole images"
        )
    if cfg.DATA.IN_MEMORY and ds.images is None:
        return hold_in_memory(ds, cfg.DATA.NUM_WORKERS)
    return ds


def hold_in_memory(ds: ImageSet, num_workers: int = 0) -> MemorySet:
    """The same images, all decoded now: 3 R R bytes each, in this process.

    Raises:
        UserError: they do not fit the machine's memory, or one is damaged.
    """
    size = len(ds) * 3 * ds.resolution**2
    if size > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
        raise UserError(
            f"DATA.IN_MEMORY: {len(ds)} images of {ds.resolution}x{ds.resolution} are "
            f"{size / 2**30:,.0f} GiB, more than this machine's memory; set it to False"
        )
    images = torch.empty(len(ds), 3, ds.resolution, ds.resolution, dtype=torch.uint8)
    labels, done = torch.empty(len(ds), dtype=torch.int64), 0
    hidden = None if distributed.is_main() else True
    with tqdm(total=len(ds), desc="into memory", unit="img", disable=hidden) as bar:
        for some, classes in DataLoader(ds, 64, num_workers=num_workers):
            at = slice(done, done + len(some))
            images[at], labels[at] = some, classes
            done += len(some)
            bar.update(len(some))
    return MemorySet(images, labels, ds.classes)


def _open(cfg: CfgNode, split: str) -> ImageSet:
    name, root, resolution = cfg.DATA.NAME, Path(cfg.DATA.ROOT).expanduser(), cfg.MODEL.RESOLUTION
    if split not in ("train", "val"):
        raise UserError(f"a data set has the splits train and val, not {split!r}")
    if name in EMBEDDED:
        if cfg.DATA.ROOT != get_cfg().DATA.ROOT:
            raise UserError(
                f"DATA.ROOT is {root}, but DATA.NAME {name} reads none: set DATA.NAME ''"
            )
        return _OPEN[name](split, resolution)
    if name:
        arguments = (name, root, split, resolution, cfg.DATA.SKIP_CORRUPT)
        if not cfg.DATA.DOWNLOAD:
            return open_torchvision(*arguments)
        for turn in range(distributed.world_size()):
            if turn == distributed.rank():  # the first one on each disk downloads it
                found = open_torchvision(*arguments, download=True)
            distributed.barrier()
        return found
    if split == "val":
        raise UserError(f"{root} has no validation split; only sets opened by DATA.NAME have one")
    return open_images(root, resolution, cfg.DATA.SKIP_CORRUPT)


def open_images(
    root: Path, resolution: int, skip_corrupt: bool, key: str = "DATA.ROOT"
) -> ImageSet:
    """The folder, .zip or .h5 at `root`, which a config names by `key`.

    Raises:
        UserError: there is none, or it holds no such data set.
    """
    if not root.exists():
        raise UserError(f"{key}: {root} does not exist; it may be a folder, a .zip or an .h5")
    if not root.is_dir() and not root.is_file():
        raise UserError(f"{key}: {root} is neither a folder nor a regular file")
    if root.suffix in (".h5", ".hdf5"):
        return Hdf5Set(root, resolution)
    kind = ZipSet if root.suffix == ".zip" else FolderSet
    return kind(root, resolution, skip_corrupt)


def describe(ds: ImageSet) -> str:
    """One line: classes, images, and images per class."""
    counts = torch.bincount(ds.labels, minlength=len(ds.classes))
    low, high = int(counts.min()), int(counts.max())
    per_class = str(low) if low == high else f"{low} to {high}"
    size = f"{ds.resolution}x{ds.resolution}"
    return f"{_classes(ds)}, {len(ds)} images of {size}, {per_class} per class"


def _classes(ds: ImageSet) -> str:
    first = printable(", ".join(ds.classes[:3])) + (", ..." if len(ds.classes) > 3 else "")
    return f"{len(ds.classes)} class{'es' * (len(ds.classes) != 1)} ({first})"


def to_float(images: Tensor) -> Tensor:
    """Images uint8 in [0, 255] as float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def train_batches(
    ds: ImageSet,
    batch_size: int,
    seed: int,
    start: int = 0,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    flip: bool = True,
    random_crop: float = 0.0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """An endless iterator over batches: images uint8 (batch_size, 3, R, R), labels (batch_size,).

    Batch k of a process is a function of (seed, k, rank, world_size), so starting at batch `start`
    gives what an uninterrupted iterator gives there. The set is in a new order in every epoch, and
    batches go on across its end. The processes' k-th batches together are the k-th batch of one
    process with a batch_size of world_size * batch_size.

    Args:
        batch_size: per process.
        num_workers: processes that decode images; none are needed for a set in memory.
        flip: mirror each image with probability 1/2.
        random_crop: take a square at a random place of each image, its side this share of the short
            side, from a set of images that are decoded; 0: the images as they are in the set.
    """
    chosen = _BatchIndices(len(ds), batch_size, seed, start, rank, world_size)
    if random_crop:
        chosen, ds = _with_crops(chosen, random_crop), _CroppedImages(ds)
    if ds.images is not None:
        batches = ((ds.images[indices], ds.labels[indices]) for indices in chosen)
    else:
        # The loader seeds its workers from this generator, not from the global one.
        generator = torch.Generator().manual_seed(_mix(seed, "workers"))
        batches = DataLoader(ds, batch_sampler=chosen, num_workers=num_workers, generator=generator)
    for k, (images, labels) in enumerate(batches, start):
        if flip:
            # Drawn for all processes, like the images' order.
            generator = torch.Generator().manual_seed(_mix(seed, "flip", k))
            mirrored = torch.rand(world_size, batch_size, generator=generator)[rank] < 0.5
            images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        yield images, labels


class _BatchIndices:
    """For each batch of a process, the indices of its images (batch_size,)."""

    def __init__(
        self, num: int, batch_size: int, seed: int, start: int, rank: int, world_size: int
    ) -> None:
        self.num, self.batch_size, self.seed = num, batch_size, seed
        self.start, self.rank, self.world_size = start, rank, world_size
        self.first = (start * world_size + rank) * batch_size
        self.step = world_size * batch_size

    def __iter__(self) -> Iterator[list[int]]:
        epoch, order = -1, []
        position = self.first
        while True:
            indices = []
            for p in range(position, position + self.batch_size):
                if p // self.num != epoch:
                    epoch = p // self.num
                    generator = torch.Generator().manual_seed(_mix(self.seed, "order", epoch))
                    order = torch.randperm(self.num, generator=generator).tolist()
                indices.append(order[p % self.num])
            yield indices
            position += self.step


def _with_crops(chosen: _BatchIndices, side: float) -> Iterator[list[tuple[int, Crop]]]:
    """The indices, each with the crop of its image; drawn for all processes, like their order."""
    for k, indices in enumerate(chosen, chosen.start):
        generator = torch.Generator().manual_seed(_mix(chosen.seed, "crop", k))
        shape = (chosen.world_size, chosen.batch_size, 2)
        places = torch.rand(shape, generator=generator, dtype=torch.float64)[chosen.rank]
        yield [(index, Crop(side, *place)) for index, place in zip(indices, places.tolist())]


class _CroppedImages(Dataset):
    """A data set's images by index and crop."""

    images = None  # they are not in memory

    def __init__(self, ds: DecodedSet) -> None:
        self.ds = ds

    def __getitem__(self, key: tuple[int, Crop]) -> tuple[Tensor, int]:
        return self.ds.cropped(*key)


def _mix(*parts: object) -> int:
    """A seed from parts, such that nearby parts give unrelated seeds."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little") >> 1
