"""Objects of a drawn scene that may cover each other, and where a new one may lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Window = tuple[slice, slice]  # rows and columns of an image


@dataclass
class Item:
    """One object of a scene. `mask` (size, size) bool is what can be seen of it, `full_area` the
    pixels it had before others covered it, `source` the image it was made of."""

    label: int
    source: int
    mask: np.ndarray
    full_area: int


@dataclass(frozen=True)
class Limits:
    """How far objects may overlap."""

    max_box_iou: float  # of an object with each drawn before it
    min_visible: float  # the fraction of each mask that later objects leave uncovered


def place(
    rng: np.random.Generator, shape: np.ndarray, size: int, items: Sequence[Item], limits: Limits
) -> tuple[Window, np.ndarray] | None:
    """A window of the image for the mask `shape` (height, width) bool and the mask (size, size)
    there, which is taken off the masks of `items`; None if in ten tries no place was found that
    leaves enough of them."""
    for _ in range(10):
        y, x = (int(rng.integers(size - side + 1)) for side in shape.shape)
        window = (slice(y, y + shape.shape[0]), slice(x, x + shape.shape[1]))
        mask = np.zeros((size, size), dtype=bool)
        mask[window] = shape
        if all(_compatible(mask, item, limits) for item in items):
            for item in items:
                item.mask &= ~mask
            return window, mask
    return None


def _compatible(mask: np.ndarray, item: Item, limits: Limits) -> bool:
    """Whether `item` may be partly covered by a new one with this mask."""
    box, other = _box(mask), _box(item.mask)
    sides = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
    shared = np.prod(sides.clip(0))
    union = np.prod(box[2:] - box[:2]) + np.prod(other[2:] - other[:2]) - shared
    visible = (item.mask & ~mask).sum()
    return shared <= limits.max_box_iou * union and visible >= limits.min_visible * item.full_area


def _box(mask: np.ndarray) -> np.ndarray:
    """The tight box (y0, x0, y1, x1) of a mask, ends excluded."""
    ys, xs = np.nonzero(mask)
    return np.array([ys.min(), xs.min(), ys.max() + 1, xs.max() + 1])
