"""From a file to the RGB image that a person sees in it."""

from __future__ import annotations

import contextlib
import os
import stat

from PIL import Image, ImageOps

ORIENTATION = 0x0112  # in EXIF
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
