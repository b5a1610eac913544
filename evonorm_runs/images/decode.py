"""From a file to the RGB image that a person sees in it."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import zipfile
from pathlib import Path
from typing import Any, Callable

from PIL import Image, ImageOps

ORIENTATION = 0x0112  # in EXIF
LARGEST_MEMBER = 2**28  # bytes of an image in a zip: one that says more is no image
TRANSPARENT = ("RGBA", "RGBa", "LA", "La", "PA")  # modes


def open_image(path: str | os.PathLike) -> Image.Image:
    """An image file, not decoded yet.

    Raises:
        ValueError: not a regular file: a FIFO would never answer.
        OSError, or anything else: not an image.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("not a regular file")
    return Image.open(path)


def read_member(archive: zipfile.ZipFile, name: str) -> Image.Image:
    """An image in a zip, not decoded yet.

    Raises:
        ValueError: it is too large to be an image.
        OSError, or anything else: not an image.
    """
    size = archive.getinfo(name).file_size
    if size > LARGEST_MEMBER:
        raise ValueError(f"{size / 2**20:,.0f} MiB, but at most {LARGEST_MEMBER >> 20} are read")
    return Image.open(io.BytesIO(archive.read(name)))


def to_rgb(image: Image.Image) -> Image.Image:
    """The image upright, as EXIF turns it, and on white where it is transparent; mode RGB.

    Raises:
        ValueError: more than 8 bits per channel, which a conversion to RGB would clip.
        OSError, or anything else: it can't be decoded.
    """
    if image.mode[0] in "IF":
        raise ValueError(f"mode {image.mode}, but only 8 bits per channel are supported")
    image.load()
    with contextlib.suppress(Exception):  # damaged EXIF, which says nothing
        if image.getexif().get(ORIENTATION, 1) != 1:
            image = ImageOps.exif_transpose(image)
    if image.mode in TRANSPARENT or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


class OpenFile:
    """A file that each process, such as a data loader's worker, opens for itself."""

    def __init__(self, kind: Callable[[Path], Any], path: Path) -> None:
        self.kind, self.path = kind, path
        self._file, self._process = None, None

    def __call__(self) -> Any:
        if self._process != os.getpid():
            self._file, self._process = self.kind(self.path), os.getpid()
        return self._file

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_process": None}
