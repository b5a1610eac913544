"""The garments data set: garments pasted over photographs, made when it is first used.

Harder than the digits: 10 classes, some of them alike; 2 to 5 garments of 24 to 64 pixels in an
image, which cover each other and have the photograph's own colours. All arithmetic is in whole
numbers, so that the pixels are the same on every machine; a hash checks it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from evonorm_runs.images.garments import CLASSES, PARTS, load_garments

from .drawn import DrawnSet, Scene, default_root, register, write
from .overlap import Item, Limits, place

GARMENTS = DrawnSet(
    name="garments",
    description="Garments pasted over photographs",
    license={
        "id": 1,
        "name": "MIT: the garments, Fashion-MNIST, Zalando SE. CC BY 2.0: the photographs of "
        "scikit-learn, flickr.com/photos/danielbuechele/6061409035 (china.jpg) and "
        "flickr.com/photos/vultilion/6056698931 (flower.jpg), cropped and changed in colour",
        "url": "https://creativecommons.org/licenses/by/2.0/",
    },
    splits=tuple(PARTS),
    classes=CLASSES,
    supercategory="garment",
    source="garment",
)
DIGEST = "e624d4e860bfb8ef095f4012cb46a5704a7105f2d230f5f227e99759aa144bf0"  # see write()
COUNTS = {"train": 2000, "val": 200, "test": 300}  # images
SIZE = 128  # pixels, of the side of an image, and of a photograph's tile
PHOTOGRAPHS = ("china.jpg", "flower.jpg")
TILES = (3, 5)  # rows and columns of a photograph, of 427 x 640 pixels
CROPS = (64, 128)  # pixels of a tile that become an image: the least, the most
MOST = 5  # garments in an image; the least is 2
SIDES = (24, 28, 34, 40, 48, 56, 64)  # of a garment, in pixels
LIMITS = Limits(max_box_iou=0.5, min_visible=0.5)
GRAIN = 4  # of 255, the largest noise


def write_garments(folder: str | os.PathLike | None = None) -> bool:
    """Write the data set: 2000 scenes to train with, 200 to choose by and 300 to report, 128x128.

    Parts share no garment and no part of a photograph. It takes some ten seconds.

    Args:
        folder: by default `garments` in the folder of Detectron2's data sets.

    Returns:
        False if the data set is there already, in which case nothing is done.

    Raises:
        FileExistsError: the folder holds anything else.
        UserError: its hash is another one.
    """
    folder = default_root() / GARMENTS.name if folder is None else Path(folder)
    return write(folder, GARMENTS, {"digest": DIGEST}, _scenes, DIGEST)


def register_garments(root: str | os.PathLike | None = None) -> None:
    """Register `garments_train`, `garments_val` and `garments_test` with Detectron2.

    The data are made when they are first loaded. Otherwise as :func:`register_digits`.
    """
    register(GARMENTS, root, write_garments)


def _scenes(part: str) -> Iterator[Scene]:
    garments, labels = (x.numpy() for x in load_garments(part))
    tiles = photograph_tiles(part)
    for index in range(COUNTS[part]):
        entropy = np.random.SeedSequence((GARMENTS.splits.index(part), index))
        yield draw_scene(np.random.Generator(np.random.PCG64(entropy)), tiles, garments, labels)


def photograph_tiles(part: str) -> list[np.ndarray]:
    """The tiles of the photographs that the backgrounds of a part are cropped from: uint8 RGB.

    Of the five tiles in a row "val" and "test" have one each, in each row other ones.
    """
    from sklearn.datasets import load_sample_image  # slow to import, and needed only here

    tiles = []
    for name in PHOTOGRAPHS:
        photograph = load_sample_image(name)
        height, width = (n // k for n, k in zip(photograph.shape, TILES))
        for row, column in np.ndindex(TILES):
            if ["val", "test", "train", "train", "train"][(column + 2 * row) % 5] == part:
                y, x = row * height, column * width
                tiles.append(photograph[y : y + height, x : x + width])
    return tiles


def draw_scene(
    rng: np.random.Generator, tiles: list[np.ndarray], garments: np.ndarray, labels: np.ndarray
) -> Scene:
    """One scene.

    Args:
        tiles: see :func:`photograph_tiles`.
        garments: uint8 (n, 1, 28, 28), on black.
        labels: their classes (n,).

    Returns:
        the image (128, 128, 3) uint8 RGB and its garments in the order they were pasted.
    """
    image = _background(rng, tiles)
    items: list[Item] = []
    for _ in range(rng.integers(2, MOST + 1)):
        pick = rng.integers(len(garments))
        grey, alpha = _layers(rng, garments[pick, 0])
        colour = _colour(rng, image)
        placed = place(rng, alpha[..., 0] > 127, SIZE, items, LIMITS)
        if placed is None:  # it is left out whole, as all that is pasted has an annotation
            continue
        window, mask = placed
        items.append(Item(int(labels[pick]), int(pick), mask, int(mask.sum())))
        # 0.4 to 2 times the colour, from a garment's darkest to its lightest
        pasted = (colour * (64 + grey) // 160).clip(0, 255)
        image[window] += (pasted - image[window]) * alpha // 255
    image += rng.integers(-GRAIN, GRAIN + 1, (SIZE, SIZE, 1))
    return image.clip(0, 255).astype(np.uint8), items


def _background(rng: np.random.Generator, tiles: list[np.ndarray]) -> np.ndarray:
    """A square of a tile, enlarged to (SIZE, SIZE, 3) int64, some mirrored, darker or lighter."""
    tile = tiles[rng.integers(len(tiles))]
    side = rng.integers(CROPS[0], CROPS[1] + 1)
    y, x = (rng.integers(length - side + 1) for length in tile.shape[:2])
    image = resize(tile[y : y + side, x : x + side], SIZE, SIZE)
    image = image[:, :: 1 - 2 * int(rng.integers(2))]
    return (image * rng.integers(160, 321) // 256).clip(0, 255)


def _layers(rng: np.random.Generator, garment: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A garment, some mirrored, of a random size, cropped to where it can be seen: its grey and its
    opacity, int64 (height, width, 1) in [0, 255]."""
    garment = garment[:, :: 1 - 2 * int(rng.integers(2))]
    height = int(rng.choice(SIDES))
    width = height * int(rng.integers(85, 116)) // 100
    grey, alpha = (resize(x, height, width) for x in (garment, 255 * (garment > 8)))
    ys, xs = np.nonzero(alpha)
    window = np.s_[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1, None]
    return grey[window], alpha[window]


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear, without antialiasing, of integers (H, W) or (H, W, C): int64.

    Pillow's versions round differently.
    """
    for axis, length in enumerate((height, width)):
        image = np.moveaxis(image.astype(np.int64), axis, -1)
        # The place of each new pixel's centre, in parts of which one old pixel has `unit`.
        unit = 2 * length
        centre = (2 * np.arange(length) + 1) * image.shape[-1] - length
        low, part = np.divmod(centre.clip(0, (image.shape[-1] - 1) * unit), unit)
        high = (low + 1).clip(max=image.shape[-1] - 1)
        image = (image[..., low] * (unit - part) + image[..., high] * part + length) // unit
        image = np.moveaxis(image, -1, axis)
    return image


def _colour(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Halfway between a random pixel's colour and a random one: int64 (3,)."""
    y, x = rng.integers(SIZE, size=2)
    return (image[y, x] + rng.integers(32, 256, 3)) // 2
