"""The images a classifier is trained on, and the batches of a run's workers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Callable

import torch
from fvcore.common.config import CfgNode
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from evonorm_runs.errors import UserError, user_errors
from evonorm_runs.images.digits import VARIANTS, make_digits
from evonorm_runs.images.garments import CLASSES, load_garments
from evonorm_runs.random_state import mix

from .config import get_cfg
from .shards import ShardImages, nearly_sequential, read_classes

Batches = Iterator[tuple[Tensor, Tensor]]
Prepare = Callable[[Image.Image], Tensor]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's colours


def open_data(cfg: CfgNode) -> tuple[Any, Any]:
    """The training set that DATA names, and TEST.SPLIT's; each has `len`, `classes`, `batches`.

    Raises:
        UserError: the data is not there, or the two sets have different classes.
    """
    if cfg.DATA.NAME in ("digits", "garments"):
        if cfg.DATA.ROOT != get_cfg().DATA.ROOT:
            what = f"DATA.ROOT is {cfg.DATA.ROOT}, but DATA.NAME {cfg.DATA.NAME} reads none"
            raise UserError(f"{what}: set DATA.NAME folder")
        if cfg.INPUT.AUGMENT:
            raise UserError("INPUT.AUGMENT is for DATA.NAME folder and shards: set it to ''")
    if cfg.DATA.NAME == "garments":
        return tuple(GarmentsSet(cfg, part) for part in ("train", cfg.TEST.SPLIT))
    if cfg.DATA.NAME == "digits":
        if cfg.TEST.SPLIT == "test":
            raise UserError("TEST.SPLIT is test, but the digits have train and val only")
        images, labels = make_digits("train", cfg.INPUT.SIZE)
        chosen = torch.arange(len(labels)) % VARIANTS["train"] < cfg.DATA.VARIANTS
        train = DigitsSet(images[chosen], labels[chosen])
        return train, DigitsSet(*make_digits("val", cfg.INPUT.SIZE))
    kind = SETS[cfg.DATA.NAME]
    train, other = (kind(cfg, split) for split in ("train", cfg.TEST.SPLIT))
    if train.classes != other.classes:
        differing = sorted(set(train.classes) ^ set(other.classes))
        raise UserError(
            f"{cfg.DATA.ROOT}: train and {cfg.TEST.SPLIT} differ in classes, as in {differing[0]!r}"
        )
    return train, other


class DigitsSet:
    """Images uint8 (n, 3, R, R) and labels (n,), held in memory."""

    classes = [str(digit) for digit in range(10)]
    pixel_mean = pixel_std = (127.5, 127.5, 127.5)  # of the values 0 to 255, for R, G and B

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images.float() / 127.5 - 1, labels

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, chosen: Iterable[list[int]], seed: int) -> Batches:
        """Images float32 (n, 3, R, R) in [-1, 1] and labels (n,) for each list of indices."""
        for indices in chosen:
            yield self.images[indices], self.labels[indices]

    @staticmethod
    def prepare(cfg: CfgNode) -> Prepare:
        """What makes float32 (3, SIZE, SIZE), as of the validation set, of an RGB image."""
        return _resized(cfg)


class GarmentsSet:
    """The embedded photographs of garments, enlarged to SIZE; the three channels are alike."""

    classes = list(CLASSES)
    pixel_mean, pixel_std = DigitsSet.pixel_mean, DigitsSet.pixel_std

    def __init__(self, cfg: CfgNode, part: str) -> None:
        self.images, self.labels = load_garments(part)
        self.size = cfg.INPUT.SIZE

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, chosen: Iterable[list[int]], seed: int) -> Batches:
        """As :meth:`DigitsSet.batches`."""
        for indices in chosen:
            images = self.images[indices].float() / 127.5 - 1
            size = (self.size, self.size)
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
            yield images.expand(-1, 3, -1, -1).contiguous(), self.labels[indices]

    @staticmethod
    def prepare(cfg: CfgNode) -> Prepare:
        """As :meth:`DigitsSet.prepare`; colours become grey."""
        from torchvision import transforms as T  # slow to import

        return T.Compose([T.Grayscale(3), _resized(cfg)])


def _resized(cfg: CfgNode) -> Prepare:
    from torchvision import transforms as T  # slow to import

    size = (cfg.INPUT.SIZE, cfg.INPUT.SIZE)
    return T.Compose([T.ToTensor(), T.Resize(size, antialias=True), T.Normalize(0.5, 0.5)])


class FolderSet:
    """Images ROOT/SPLIT/CLASS/IMAGE, cropped and mirrored at random for training."""

    pixel_mean, pixel_std = (tuple(255 * x for x in values) for values in (MEAN, STD))

    def __init__(self, cfg: CfgNode, split: str) -> None:
        from torchvision import transforms as T  # slow to import

        transform = self.prepare(cfg)
        if split == "train":
            how = T.InterpolationMode(cfg.INPUT.INTERPOLATION)
            cut = [T.RandomResizedCrop(cfg.INPUT.SIZE, interpolation=how)]
            cut.append(T.RandomHorizontalFlip())
            options = {"interpolation": T.InterpolationMode.BILINEAR, "fill": [128, 128, 128]}
            extra = {"autoaugment": T.AutoAugment, "randaugment": T.RandAugment}
            if cfg.INPUT.AUGMENT:
                cut.append(extra[cfg.INPUT.AUGMENT](**options))
            transform = T.Compose([*cut, T.ToTensor(), T.Normalize(MEAN, STD)])
        self.images = self._open(cfg, split, transform)
        self.classes = self.images.classes
        self.options = {
            "num_workers": cfg.DATA.NUM_WORKERS,
            "pin_memory": cfg.DEVICE.startswith("cuda"),
        }

    def _open(self, cfg: CfgNode, split: str, transform: Prepare) -> Any:
        from torchvision.datasets import ImageFolder  # slow to import

        folder = Path(cfg.DATA.ROOT).expanduser() / split
        if not folder.exists():
            raise UserError(f"DATA.ROOT: there is no {folder}; it holds a folder per class")
        with user_errors(OSError, prefix="DATA.ROOT: "):
            return ImageFolder(str(folder), transform)

    def where(self, index: int) -> str:
        """What a message says of where an image is."""
        return self.images.samples[index][0]

    @staticmethod
    def prepare(cfg: CfgNode) -> Prepare:
        """As :meth:`DigitsSet.prepare`: the centre, as INPUT says."""
        from torchvision import transforms as T  # slow to import

        size, padding = cfg.INPUT.SIZE, cfg.INPUT.CROP_PADDING
        around = size + padding if padding else round(size * 256 / 224)
        cut = [T.Resize(around, T.InterpolationMode(cfg.INPUT.INTERPOLATION)), T.CenterCrop(size)]
        return T.Compose([*cut, T.ToTensor(), T.Normalize(MEAN, STD)])

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, chosen: Iterable[list[int]], seed: int) -> Batches:
        """As :meth:`DigitsSet.batches`. An image's crop is a function of the seed and the image."""
        # The loader seeds its processes from this generator, not from the global one.
        generator = torch.Generator().manual_seed(seed)
        options = {**self.options, "generator": generator, "batch_sampler": chosen}
        return iter(torch.utils.data.DataLoader(self.drawn(seed), **options))

    def drawn(self, seed: int) -> torch.utils.data.Dataset:
        """The images and labels one by one, with an epoch's random transforms."""
        return _Drawn(self, seed)


class ShardSet(FolderSet):
    """The images in the shards ROOT/SPLIT/*.tar; ROOT/classes.txt names their classes."""

    def _open(self, cfg: CfgNode, split: str, transform: Prepare) -> ShardImages:
        root, key = Path(cfg.DATA.ROOT).expanduser(), f"{split.upper()}_IMAGES"
        num, classes = cfg.DATA.get(key, 0), read_classes(root)  # of "test" there is no such key
        return ShardImages(root / split, num, f"DATA.{key}", classes, transform)

    def where(self, index: int) -> str:
        """As :meth:`FolderSet.where`."""
        shard, number = self.images.place(index)
        return f"{self.images.files[shard]}: image {number}"

    def order(self, cfg: CfgNode, generator: torch.Generator) -> Tensor:
        """An epoch's order for :func:`worker_batches`."""
        return nearly_sequential(self.images.ends, cfg, generator)


class _Drawn(torch.utils.data.Dataset):
    """Images whose random transforms do not depend on which process makes them, or when."""

    def __init__(self, images: FolderSet, seed: int) -> None:
        self.set, self.seed = images, seed

    def __len__(self) -> int:
        return len(self.set)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        where = f"{self.set.where(index)}: "
        with torch.random.fork_rng(devices=[]), user_errors(OSError, prefix=where):
            torch.manual_seed(seed_of(self.seed, index))
            return self.set.images[index]


SETS = {"digits": DigitsSet, "garments": GarmentsSet, "folder": FolderSet, "shards": ShardSet}
Order = Callable[[CfgNode, torch.Generator], Tensor]


def worker_batches(
    num: int, epoch: int, cfg: CfgNode, rank: int, world_size: int, order: Order | None = None
) -> Iterator[list[int]]:
    """The indices of a process's batches in an epoch, in the order of the steps and workers.

    Process r of P takes the workers from r * WORKERS / P on. The epoch's order of the `num` images
    and each worker's share of it do not depend on the number of processes; the images left over
    after the last whole step are left out.

    Args:
        order: gives the epoch's order; None for any order of all images.
    """
    n, workers = cfg.SOLVER.IMS_PER_WORKER, cfg.SOLVER.WORKERS
    generator = torch.Generator().manual_seed(seed_of(cfg.SEED, epoch))
    indices = order(cfg, generator) if order else torch.randperm(num, generator=generator)
    indices = indices.tolist()
    own = range(rank * workers // world_size, (rank + 1) * workers // world_size)
    for step in range(num // (n * workers)):
        for worker in own:
            first = (step * workers + worker) * n
            yield indices[first : first + n]


def val_batches(num: int, batch_size: int, rank: int, world_size: int) -> Iterator[list[int]]:
    """The indices of a process's share of all `num` images."""
    own = range(rank, num, world_size)
    for first in range(0, len(own), batch_size):
        yield list(own[first : first + batch_size])


def seed_of(*parts: int) -> int:
    """Mix parts into a seed below 2^63, so that nearby parts give unrelated seeds."""
    return mix(*parts) >> 1
