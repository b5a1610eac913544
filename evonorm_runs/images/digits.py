"""Scikit-learn's scans of handwritten digits as a coloured data set, made in memory in a second.

The scans: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine
Learning Repository, 1998, doi 10.24432/C50P49 (CC BY 4.0); 1797 of 8x8 pixels, 16 levels of grey.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import UserError

Range = tuple[float, float]

RESOLUTIONS = (32, 64)
VARIANTS = {"train": 8, "val": 4}  # images per scan
SEEDS = {"train": 0, "val": 1}


def load_scans(split: str) -> tuple[Tensor, Tensor]:
    """The scans of a split: ink float64 (n, 1, 8, 8) in [0, 1], and the digits int64 (n,).

    "train" has four fifths of each digit's scans and "val" the rest, so no scan is in both.
    """
    from sklearn.datasets import load_digits  # slow to import
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    parts = train_test_split(
        digits.images, digits.target, stratify=digits.target, test_size=0.2, random_state=0
    )
    images, labels = parts[0::2] if split == "train" else parts[1::2]
    return torch.from_numpy(images).unsqueeze(1) / 16, torch.from_numpy(labels).long()


def make_digits(split: str, resolution: int) -> tuple[Tensor, Tensor]:
    """The data set: images uint8 (n, 3, resolution, resolution) and digits int64 (n,).

    Each scan of the split gives several images: enlarged, slightly turned, sheared, scaled and
    shifted, in a bright colour on a dark one. Always the same, as the seed is fixed.

    Raises:
        UserError: there is no such split or resolution.
    """
    if split not in VARIANTS:
        raise UserError(f"the digits have no split {split!r}; they have {', '.join(VARIANTS)}")
    if resolution not in RESOLUTIONS:
        known = " or ".join(map(str, RESOLUTIONS))
        raise UserError(f"the digits come in a resolution of {known}, not {resolution}")
    scans, labels = (x.repeat_interleave(VARIANTS[split], 0) for x in load_scans(split))
    generator = torch.Generator().manual_seed(SEEDS[split])
    size = (len(scans), 1, resolution, resolution)
    grid = F.affine_grid(_random_affine(len(scans), generator), size, align_corners=False)
    ink = F.grid_sample(scans, grid, mode="bicubic", padding_mode="zeros", align_corners=False)
    ink = ((ink - 0.2) / 0.5).clamp(0, 1).float()  # a pen's edge, not the enlargement's blur
    dark = _random_colours(len(scans), (0.3, 0.6), (0.1, 0.3), generator)
    bright = _random_colours(len(scans), (0.2, 0.6), (0.8, 1.0), generator)
    images = torch.lerp(dark[:, :, None, None], bright[:, :, None, None], ink)
    return images.mul_(255).round_().to(torch.uint8), labels


def _uniform(num: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(num, dtype=torch.float64, generator=generator)


def _random_affine(num: int, generator: torch.Generator) -> Tensor:
    """Matrices (num, 2, 3) from an image's coordinates in [-1, 1] to a scan's."""
    angle = _uniform(num, -math.pi / 18, math.pi / 18, generator)
    shear = _uniform(num, -0.15, 0.15, generator)
    scale_x, scale_y = (_uniform(num, 1.05, 1.3, generator) for _ in range(2))  # > 1: smaller
    shift_x, shift_y = (_uniform(num, -0.1, 0.1, generator) for _ in range(2))
    cos, sin = angle.cos(), angle.sin()
    row_x = torch.stack([scale_x * cos, scale_x * (shear * cos - sin), shift_x], 1)
    row_y = torch.stack([scale_y * sin, scale_y * (shear * sin + cos), shift_y], 1)
    return torch.stack([row_x, row_y], 1)


def _random_colours(
    num: int, saturation: Range, value: Range, generator: torch.Generator
) -> Tensor:
    """RGB colours (num, 3) in [0, 1] of any hue, with HSV's saturation and value in ranges."""
    hue = _uniform(num, 0, 6, generator)
    s, v = _uniform(num, *saturation, generator), _uniform(num, *value, generator)
    k = (torch.tensor([5.0, 3.0, 1.0], dtype=torch.float64) + hue[:, None]) % 6
    return (v[:, None] * (1 - s[:, None] * torch.minimum(k, 4 - k).clamp(0, 1))).float()
