"""Images to be evaluated that lie in a folder, a .zip or an .npz."""

from __future__ import annotations

import logging
import math
import os
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Callable, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.functional import pil_to_tensor

from ..errors import UserError, one_line, user_errors
from .decode import OpenFile, open_image, read_member, to_rgb

log = logging.getLogger(__name__)

LOSSY = (".jpg", ".jpeg")
SUFFIXES = (".png", ".bmp", ".webp", *LOSSY)
KEYS = ("arr_0", "images")
Name = TypeVar("Name", str, Path)


def images_of(path: Path) -> list[Path]:
    """The images of a folder, not of those within it, by their names; or the one that path names.

    Raises:
        UserError: a path that is not there, or a folder without images.
    """
    if path.is_dir():
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
        if not inside:
            raise UserError(f"{path}: no image ({', '.join(SUFFIXES)}) in it")
        return inside
    if not path.is_file():
        raise UserError(f"{path}: there is no such image or folder")
    return [path]


def image_batches(
    path: Path, resolution: int, batch_size: int, num_workers: int = 0
) -> Iterable[Tensor]:
    """The images of a folder (and of those within it), a .zip or an .npz, as (n, 3, R, R) uint8.

    Those of a folder or .zip come in the order of their names. An .npz holds uint8 (N, R, R, 3)
    under "arr_0" or "images".

    Raises:
        UserError: there are no images, or one is damaged or of another size than `resolution`. The
            images of a folder or .zip are only looked at when they are iterated over.
    """
    if path.is_dir():
        return DataLoader(FolderImages(path, resolution), batch_size, num_workers=num_workers)
    if not path.is_file():
        raise UserError(f"{path}: neither a folder nor a regular file")
    if path.suffix == ".zip":
        return DataLoader(ZipImages(path, resolution), batch_size, num_workers=num_workers)
    # Like a folder's in the memory, so that sums in an extractor are rounded alike.
    return map(Tensor.contiguous, read_npz(path, resolution).split(batch_size))


class FolderImages(Dataset):
    """The images in a folder, by name: uint8 (3, R, R)."""

    def __init__(self, folder: Path, resolution: int) -> None:
        self.files, self.resolution = _chosen(sorted(folder.rglob("*")), folder), resolution

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        path = self.files[index]
        return _decode(lambda: open_image(path), path, self.resolution)


class ZipImages(Dataset):
    """The images in a .zip, by name: uint8 (3, R, R)."""

    def __init__(self, path: Path, resolution: int) -> None:
        with user_errors(OSError, ValueError, zipfile.BadZipFile, prefix=f"{path}: "):
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        self.path, self.resolution = path, resolution
        self.names = _chosen(sorted(names, key=Path), path)
        self.archive = OpenFile(zipfile.ZipFile, path)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Tensor:
        name = self.names[index]
        return _decode(lambda: read_member(self.archive(), name), self.path / name, self.resolution)


def _chosen(found: Sequence[Name], where: Path) -> list[Name]:
    """The images among files, by their names."""
    images = [name for name in found if Path(name).suffix.lower() in SUFFIXES]
    if not images:
        raise UserError(f"{where}: no image ({', '.join(SUFFIXES)}) in it")
    lossy = sum(Path(name).suffix.lower() in LOSSY for name in images)
    if lossy:
        log.warning("%s: %d images are JPEGs: compression changes the metrics", where, lossy)
    return images


def _decode(opened: Callable[[], Image.Image], path: Path, resolution: int) -> Tensor:
    try:
        with opened() as file:
            image = pil_to_tensor(to_rgb(file))
    except Exception as error:  # a damaged file may raise anything
        raise UserError(f"{path}: not an image, or damaged ({one_line(error)})") from error
    _check_size(image.shape[1:], resolution, path)
    return image


def read_npz(path: Path, resolution: int) -> Tensor:
    """The images in an .npz: (N, 3, R, R) uint8."""
    try:
        with np.load(path, allow_pickle=False) as file:
            key = next((key for key in KEYS if key in file), None)
            if key is None:
                held = ", ".join(file) or "nothing"
                raise UserError(f"{path}: holds {held}, but no array {' or '.join(KEYS)}")
            _check_header(file.zip, f"{key}.npy")
            images = file[key]
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(f"{path}: too large for this machine's memory") from error
    except (OSError, ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not an .npz, or damaged ({one_line(error)})") from error
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise UserError(
            f"{path}: {key} is {images.dtype} {images.shape}, but should be uint8 (N, height, "
            "width, 3) with values from 0 to 255"
        )
    _check_size(images.shape[1:3], resolution, path)
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def _check_header(archive: zipfile.ZipFile, name: str) -> None:
    """Raise a ValueError if an array's header promises more bytes than the file holds."""
    with archive.open(name) as member:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0
        if version != (1, 0):
            read = np.lib.format.read_array_header_2_0
        shape, _, dtype = read(member)
    promised, held = math.prod(shape) * dtype.itemsize, archive.getinfo(name).file_size
    if promised > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
        raise MemoryError
    if promised > held:
        raise ValueError(f"{name} should be {promised:,} bytes, but is {held:,}")


def _check_size(size: tuple[int, int], resolution: int, path: Path) -> None:
    if tuple(size) != (resolution, resolution):
        raise UserError(
            f"{path}: {size[1]}x{size[0]} pixels, but the real images have "
            f"{resolution}x{resolution} (MODEL.RESOLUTION)"
        )
