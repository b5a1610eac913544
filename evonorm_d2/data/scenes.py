"""Scenes of handwritten digits: real 8x8 scans, enlarged and laid over a textured background."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from .overlap import Item, Limits, place

SPLITS = ("train", "val")
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


@dataclass(frozen=True)
class Style:
    """How varied the scenes are, and so how hard. A pair is the range of a uniform draw."""

    digits: tuple[int, int] = (1, 4)  # per image, both ends included
    height: tuple[float, float] = (0.28, 0.5)  # of the scan, in image sides, before rotation
    stretch: tuple[float, float] = (0.85, 1.15)  # width over height
    rotation: tuple[float, float] = (-20.0, 20.0)  # degrees: a 6 never turns into a 9
    shear: tuple[float, float] = (-0.15, 0.15)
    background: tuple[float, float] = (0.1, 0.4)  # luminance
    contrast: tuple[float, float] = (0.35, 0.55)  # by how much ink is lighter than the background
    tint: float = 0.2  # of ink and background; 0 is grey
    texture: float = 0.1  # largest deviation of the background from its colour
    grain: float = 0.015  # largest standard deviation of the pixel noise
    max_box_iou: float = 0.2  # see Limits
    min_visible: float = 0.7


STYLE = Style()


def load_scans(split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The scans that the scenes of a split are made of: images (n, 8, 8) in [0, 1] with ink at 1,
    labels (n,) and rows in scikit-learn's data set (n,). Every fifth scan of each class is kept
    for "val", whatever the seed, so no training set ever holds a validation digit."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    from sklearn.datasets import load_digits  # slow to import, and needed only to make the data

    digits = load_digits()
    rank = np.empty(len(digits.target), dtype=int)  # of each scan within its class
    for label in range(10):
        rows = np.flatnonzero(digits.target == label)
        rank[rows] = np.arange(len(rows))
    rows = np.flatnonzero((rank % 5 == 0) == (split == "val"))
    return digits.images[rows] / 16, digits.target[rows], rows


def draw_scene(
    rng: np.random.Generator,
    size: int,
    scans: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> tuple[np.ndarray, list[Item]]:
    """One scene of random digits out of `scans`, in the form that `load_scans` returns.

    Returns the image (size, size, 3) uint8 RGB and its digits in the order they were drawn.
    """
    images, labels, rows = scans
    limits = Limits(STYLE.max_box_iou, STYLE.min_visible)
    luminance = rng.uniform(*STYLE.background)
    image = _background(rng, size, luminance)
    digits: list[Item] = []
    for _ in range(rng.integers(STYLE.digits[0], STYLE.digits[1] + 1)):
        pick = rng.integers(len(images))
        alpha = _warp(rng, images[pick], size)
        ink = _colour(rng, luminance + rng.uniform(*STYLE.contrast), STYLE.tint)
        placed = place(rng, alpha > 0.5, size, digits, limits)
        if placed is None:  # the digit is left out whole, as all ink has an annotation
            continue
        window, mask = placed
        digits.append(Item(int(labels[pick]), int(rows[pick]), mask, int(mask.sum())))
        image[window] += alpha[..., None] * (ink - image[window])
    image += rng.uniform(0, STYLE.grain) * rng.standard_normal((size, size, 1))
    return np.round(255 * image.clip(0, 1)).astype(np.uint8), digits


def _warp(rng: np.random.Generator, scan: np.ndarray, size: int) -> np.ndarray:
    """The scan under one random affine map: its opacity, (height, width) in [0, 1], cropped."""
    low, high = np.log(STYLE.height)
    pixels = np.exp(rng.uniform(low, high)) * size / 8  # of the image per pixel of the scan
    angle = np.deg2rad(rng.uniform(*STYLE.rotation))
    cos, sin = np.cos(angle), np.sin(angle)
    shear = np.array([[1, 0], [rng.uniform(*STYLE.shear), 1]])
    scale = np.diag([pixels, pixels * rng.uniform(*STYLE.stretch)])
    forward = np.array([[cos, -sin], [sin, cos]]) @ shear @ scale  # (y, x) of scan to image

    scan = np.pad(scan, 1)  # so that ink at the rim fades out
    side = int(np.ceil(2 * np.abs(forward @ [[5, 5], [5, -5]]).max()))
    backward = np.linalg.inv(forward)
    offset = (np.array(scan.shape) - 1) / 2 - backward @ np.full(2, (side - 1) / 2)
    ink = ndimage.affine_transform(scan, backward, offset, output_shape=(side, side), order=3)
    # The contour is where the ink is 0.4. It is steeper in larger digits, so that the edge of every
    # digit is soft over two or three pixels.
    alpha = (0.5 + (ink - 0.4) * pixels / 2).clip(0, 1)
    ys, xs = np.nonzero(alpha)
    return alpha[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]


def _background(rng: np.random.Generator, size: int, luminance: float) -> np.ndarray:
    """A gradient, stripes or smooth noise between two close colours: (size, size, 3) float."""
    kind = rng.integers(3)
    if kind == 2:
        cells = rng.uniform(-1, 1, (rng.integers(4, 13),) * 2)
        pattern = ndimage.zoom(cells, size / len(cells), order=3, mode="nearest", grid_mode=True)
    else:
        angle, phase = rng.uniform(0, 2 * np.pi, 2)
        y, x = np.mgrid[:size, :size] / size - 0.5
        pattern = (np.cos(angle) * x + np.sin(angle) * y) * 2**0.5
        if kind == 1:
            pattern = np.sin(2 * np.pi * rng.uniform(2, 10) * pattern + phase)
    base = _colour(rng, luminance, STYLE.tint)
    swing = STYLE.texture * rng.uniform(0.3, 1) * rng.choice([-1, 1], 3)
    return base + swing * pattern.clip(-1, 1)[..., None]


def _colour(rng: np.random.Generator, luminance: float, tint: float) -> np.ndarray:
    """A random RGB colour (3,) in [0, 1] of about this luminance."""
    colour = rng.uniform(-tint, tint, 3)
    return (luminance + colour - LUMA @ colour).clip(0, 1)
