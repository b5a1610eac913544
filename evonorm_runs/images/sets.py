"""Data sets of square RGB images, each of one class: in memory, in many files, in one file."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import inspect
import logging
import os
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Callable, NamedTuple

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import datasets

from ..errors import UserError, one_line, printable, user_errors
from .decode import OpenFile, open_image, read_member, to_rgb
from .tree import files_below, read_files, stat_files

log = logging.getLogger(__name__)

# See resize(). Version 2: EXIF's rotation, and transparency on white.
TRANSFORM = "square of the short side, antialiased bilinear, RGB; version 2"
LAYOUT = "a folder per class with its images inside: cat/1.jpg, cat/2.jpg, dog/1.jpg, ..."
IN_MEMORY = 2**30  # bytes up to which a set that torchvision holds in memory is resized at once
# Base classes, random images, and a set that downloads its files without being asked.
_NOT_BY_NAME = ("DatasetFolder", "FakeData", "ImageFolder", "SBU", "VisionDataset")
# Where torchvision's sets keep their labels, and their files.
_LABELS = ("targets", "labels", "_labels", "y")
_SAMPLES = ("samples", "_samples")  # pairs of both
_FILES = ("_image_files", "_images")


class Crop(NamedTuple):
    """A square of an image.

    Attributes:
        side: as a share of the image's short side, in (0, 1].
        x, y: where it lies, in [0, 1): each place of whole pixels has as much of this range.
    """

    side: float
    x: float
    y: float


class ImageSet(Dataset):
    """What the data sets have in common: `ds[i]` gives (uint8 (3, R, R), int).

    Attributes:
        resolution: R, pixels.
        classes: name of each class.
        labels: int64 (len,), the class of each image.
        images: uint8 (len, 3, R, R) if the whole set lies in memory, else None.
    """

    images: Tensor | None = None

    def __init__(self, resolution: int, labels: Tensor, classes: Sequence[str]) -> None:
        self.resolution, self.labels, self.classes = resolution, labels, list(classes)
        self._digests: dict[Callable, str] = {}

    def __len__(self) -> int:
        return len(self.labels)

    def fingerprint(self) -> str:
        """A hexadecimal digest of everything that the pixels and labels depend on, by content.

        The files are read: a copy of them elsewhere has the same.
        """
        return self._digest(read_files)

    def stamp(self) -> str:
        """A digest that takes no reading: files by size, times and inode. A copy has another."""
        return self._digest(stat_files)

    def _digest(self, of_files: Callable[[Path], Iterable[Any]]) -> str:
        if of_files not in self._digests:
            digest = hashlib.sha256()
            parts = (type(self).__name__, self.resolution, self.classes, *self._identity(of_files))
            for part in parts:
                digest.update(part if isinstance(part, memoryview) else f"{part!r}\n".encode())
            self._digests[of_files] = digest.hexdigest()
        return self._digests[of_files]

    def _identity(self, of_files: Callable[[Path], Iterable[Any]]) -> Iterable[Any]:
        """Memory views of arrays, and objects whose repr tells all about them.

        Args:
            of_files: tells files apart, all those of a folder or one.
        """
        raise NotImplementedError


class MemorySet(ImageSet):
    """Images uint8 (n, 3, R, R) and labels int64 (n,) in memory."""

    def __init__(self, images: Tensor, labels: Tensor, classes: Sequence[str]) -> None:
        super().__init__(images.shape[-1], labels, classes)
        self.images = images

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])

    def _identity(self, of_files: Callable[[Path], Iterable[Any]]) -> Iterable[Any]:
        return (memoryview(x.contiguous().numpy()).cast("B") for x in (self.labels, self.images))


class DecodedSet(ImageSet):
    """Images that are decoded, cropped and resized when they are asked for.

    `skip_corrupt`: where one can't be decoded, warn and give another one, of its class if there is
    one, instead of raising a UserError that names it. Which one depends on the index only.

    Attributes:
        remedy: what a user sets to skip such images, for that error.
    """

    remedy = "set DATA.SKIP_CORRUPT True"

    def __init__(
        self, resolution: int, labels: Tensor, classes: Sequence[str], skip_corrupt: bool
    ) -> None:
        super().__init__(resolution, labels, classes)
        self.skip_corrupt = skip_corrupt

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.cropped(index, None)

    def cropped(self, index: int, crop: Crop | None) -> tuple[Tensor, int]:
        """An image as `ds[index]` gives it, but of the square that `crop` names."""
        if not 0 <= index < len(self):  # which is how an iteration ends
            raise IndexError(f"index {index} of {len(self)} images")
        try:
            return self._decode(index, crop), int(self.labels[index])
        except UserError as error:
            if not self.skip_corrupt:
                raise
            log.warning("%s; another image takes its place", printable(str(error)))
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(index))
        alike = self.labels[order] == self.labels[index]
        for other in [*order[alike].tolist(), *order[~alike].tolist()]:
            with contextlib.suppress(UserError):
                return self._decode(other, crop), int(self.labels[other])
        raise UserError("not one of the images can be decoded")

    def _decode(self, index: int, crop: Crop | None) -> Tensor:
        try:
            with self._load(index) as image:
                return resize(image, self.resolution, crop)
        except Exception as error:  # a damaged file may raise anything
            text = f"{self._name(index)}: can't be decoded ({one_line(error)})"
            hint = "" if self.skip_corrupt else f"; remove it, or {self.remedy}"
            raise UserError(text + hint) from error

    def _load(self, index: int) -> Image.Image:
        raise NotImplementedError

    def _name(self, index: int) -> str:
        """The name of an image, for messages."""
        raise NotImplementedError

    def _identity(self, of_files: Callable[[Path], Iterable[Any]]) -> Iterable[Any]:
        return TRANSFORM, PIL.__version__, self.skip_corrupt


class FolderSet(DecodedSet):
    """Images in a folder per class, found as torchvision's ImageFolder finds them.

    Raises:
        UserError: there is no such layout in `root`, or a class has no images.
    """

    def __init__(self, root: Path, resolution: int, skip_corrupt: bool = False) -> None:
        self.root = root
        with user_errors(OSError):
            files_below(root)  # raises for a link that leads back
        try:
            found = datasets.ImageFolder(root)
        except OSError as error:
            raise UserError(f"{root} should hold {LAYOUT}; {one_line(error)}") from error
        self.files = [file for file, _ in found.samples]
        super().__init__(resolution, torch.tensor(found.targets), found.classes, skip_corrupt)

    def _load(self, index: int) -> Image.Image:
        return open_image(self.files[index])

    def _name(self, index: int) -> str:
        return self.files[index]

    def _identity(self, of_files: Callable[[Path], Iterable[Any]]) -> Iterable[Any]:
        return (*super()._identity(of_files), *of_files(self.root))


class ZipSet(DecodedSet):
    """Images in a zip, with a folder per class at its top.

    Raises:
        UserError: not a zip, or no such layout in it.
    """

    def __init__(self, path: Path, resolution: int, skip_corrupt: bool = False) -> None:
        self.path = path
        with user_errors(OSError, ValueError, zipfile.BadZipFile, prefix=f"{path}: "):
            with zipfile.ZipFile(path) as file:
                names = [n for n in file.namelist() if datasets.folder.is_image_file(n)]
        if not names or any("/" not in name for name in names):
            raise UserError(f"{path}: a zip should hold {LAYOUT}")
        # ImageFolder's order.
        self.files = sorted(names, key=lambda name: (name.split("/")[0], *os.path.split(name)))
        of_files = [name.split("/")[0] for name in self.files]
        classes = sorted(set(of_files))
        index = {name: i for i, name in enumerate(classes)}
        labels = torch.tensor([index[name] for name in of_files])
        super().__init__(resolution, labels, classes, skip_corrupt)
        self._archive = OpenFile(zipfile.ZipFile, path)

    def _load(self, index: int) -> Image.Image:
        return read_member(self._archive(), self.files[index])

    def _name(self, index: int) -> str:
        return f"{self.path}: {self.files[index]}"

    def _identity(self, of_files: Callable[[Path], Iterable[Any]]) -> Iterable[Any]:
        return (*super()._identity(of_files), *of_files(self.path))


class Hdf5Set(ImageSet):
    """`images` uint8 (n, 3, R, R), `labels` integers (n,) and `classes` strings in an HDF5 file.

    Raises:
        UserError: not such a file, or the images are of another resolution.
    """

    def __init__(self, path: Path, resolution: int) -> None:
        import h5py  # slow to import

        self.path = path
        expected = f"{path}: not images, labels and classes, as tools/pack_images.py writes them: "
        with user_errors(OSError, AttributeError, KeyError, TypeError, ValueError, prefix=expected):
            with h5py.File(path) as file:
                images = file["images"]
                shape, dtype = images.shape, images.dtype
                labels = torch.from_numpy(file["labels"][:].astype(np.int64, casting="same_kind"))
                classes = file["classes"].asstr()[:].tolist()
        right = (len(labels), 3, resolution, resolution)
        if not len(labels) or shape != right or dtype != np.uint8:
            raise UserError(
                f"{path}: its images are {dtype} {shape}, but should be uint8 {right}, with "
                f"its {len(labels)} labels and MODEL.RESOLUTION {resolution}"
            )
        if labels.min() < 0 or labels.max() >= len(classes):
            raise UserError(
                f"{path}: its labels are {int(labels.min())} to {int(labels.max())}, "
                f"but should be 0 to {len(classes) - 1}, with its {len(classes)} classes"
            )
        super().__init__(resolution, labels, classes)
        self._file = OpenFile(h5py.File, path)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        label = int(self.labels[index])  # raises IndexError, which ends an iteration
        with user_errors(OSError, prefix=f"{self.path}: image {index}: "):
            return torch.from_numpy(self._file()["images"][index]), label

    def _identity(self, of_files: Callable[[Path], Iterable[Any]]) -> Iterable[Any]:
        return of_files(self.path)


class TorchvisionSet(DecodedSet):
    """One of torchvision's classification sets, by the name of its Python class.

    Its files are in `root`; they are downloaded if `download` is set, and not else. "val" is the
    set's split of that name, or else its test set.

    Raises:
        UserError: no such set or split, it is not for classification, or its files are missing.
    """

    def __init__(
        self,
        name: str,
        root: Path,
        split: str,
        resolution: int,
        skip_corrupt: bool = False,
        download: bool = False,
    ) -> None:
        self.root, self.name, self.split = root, f"torchvision's {name}", split
        self.source = _torchvision_source(name, root, split, download)
        labels = _torchvision_labels(self.source)
        if labels is None:
            raise UserError(
                f"DATA.NAME: {self.name} does not list one class per image; "
                f"use DATA.NAME '' and a DATA.ROOT that holds {LAYOUT}"
            )
        classes = getattr(self.source, "classes", range(int(labels.max()) + 1))
        names = [", ".join(c) if isinstance(c, tuple) else str(c) for c in classes]
        super().__init__(resolution, labels, names, skip_corrupt)

    def _load(self, index: int) -> Image.Image:
        return self.source[index][0]

    def _name(self, index: int) -> str:
        pairs = next((getattr(self.source, x) for x in _SAMPLES if hasattr(self.source, x)), None)
        files = next((getattr(self.source, x) for x in _FILES if hasattr(self.source, x)), None)
        file = pairs[index][0] if pairs else files[index] if files else f"image {index}"
        return f"{self.name}: {file}"

    def _identity(self, of_files: Callable[[Path], Iterable[Any]]) -> Iterable[Any]:
        return (*super()._identity(of_files), self.name, self.split, *of_files(self.root))


def open_torchvision(
    name: str,
    root: Path,
    split: str,
    resolution: int,
    skip_corrupt: bool = False,
    download: bool = False,
) -> ImageSet:
    """A :class:`TorchvisionSet`, in memory if torchvision has it there and it is not too large."""
    ds = TorchvisionSet(name, root, split, resolution, skip_corrupt, download)
    if not hasattr(ds.source, "data") or len(ds) * 3 * resolution**2 > IN_MEMORY:
        return ds
    images = torch.empty(len(ds), 3, resolution, resolution, dtype=torch.uint8)
    for i in range(len(ds)):
        images[i] = ds[i][0]
    return MemorySet(images, ds.labels, ds.classes)


def _torchvision_source(name: str, root: Path, split: str, download: bool) -> Any:
    known = [key for key in dir(datasets) if _opens_by_root(getattr(datasets, key))]
    if name not in known:
        close = difflib.get_close_matches(name, ["digits", "garments", *known], n=3, cutoff=0.5)
        hint = f"; close to it are {', '.join(close)}" if close else ""
        raise UserError(f"DATA.NAME: torchvision has no data set {name!r} to open{hint}")
    parameters = inspect.signature(getattr(datasets, name)).parameters
    options = [{}]  # torchvision's own default is the training set
    if split == "val":
        options = [{"split": "val"}, {"split": "test"}] if "split" in parameters else []
        options = [{"train": False}] if "train" in parameters else options
    if download and "download" not in parameters:
        raise UserError(f"DATA.DOWNLOAD: torchvision can't download {name}; set it to False")
    loading = {"download": True} if download else {}
    for option in options:
        try:
            return getattr(datasets, name)(root, **option, **loading)
        except (OSError, RuntimeError, ValueError) as error:
            if "for argument split" in str(error):  # it has none of this name
                continue
            if download:
                raise UserError(
                    f"DATA.DOWNLOAD: no {name} in {root}, and downloading it failed "
                    f"({one_line(error)})"
                ) from error
            arguments = "".join(f", {key}={value!r}" for key, value in option.items())
            call = f"datasets.{name}({str(root)!r}{arguments}, download=True)"
            hint = f'; to download it: python -c "from torchvision import datasets; {call}"'
            raise UserError(
                f"DATA.ROOT: torchvision finds no {name} in {root} ({one_line(error)})"
                f"{hint if 'download' in parameters else ''}"
            ) from error
    raise UserError(f"DATA.NAME: torchvision's {name} has no split for {split}")


def _opens_by_root(kind: Any) -> bool:
    """Whether it is a data set that needs nothing but `root`."""
    if not inspect.isclass(kind) or kind.__name__ in _NOT_BY_NAME:
        return False
    parameters = inspect.signature(kind).parameters.values()
    named = [p for p in parameters if p.kind is not p.VAR_KEYWORD]
    return [p.name for p in named if p.default is p.empty] == ["root"]


def _torchvision_labels(source: Any) -> Tensor | None:
    """Classes int64 (n,) of a torchvision set's images; None if it does not list them."""
    for key in _LABELS:
        labels = getattr(source, key, None)
        if labels is not None and len(labels) == len(source):
            break
    else:
        pairs = next((getattr(source, key) for key in _SAMPLES if hasattr(source, key)), ())
        labels = [pair[1] for pair in pairs if isinstance(pair, tuple)]
    array = np.asarray(labels)
    if array.dtype.kind not in "iu" or array.shape != (len(source),) or not len(source):
        return None
    return torch.from_numpy(array.astype(np.int64))


def resize(image: Image.Image, resolution: int, crop: Crop | None = None) -> Tensor:
    """A square of an image, resized as BigGAN does, antialiased: uint8 RGB (3, R, R).

    Args:
        crop: None: the square of the short side, in the middle.

    Raises:
        ValueError: as :func:`to_rgb`.
    """
    image = to_rgb(image)
    side = min(image.size)
    if crop is None:
        left, top = ((length - side) // 2 for length in image.size)
    else:
        side = max(round(crop.side * side), 1)
        width, height = image.size
        left, top = int(crop.x * (width - side + 1)), int(crop.y * (height - side + 1))
    image = image.crop((left, top, left + side, top + side))
    if side != resolution:
        image = image.resize((resolution, resolution), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
