"""DiffAugment: Zhao et al., Differentiable Augmentation for Data-Efficient GAN Training, 2020.

The discriminator sees real and generated images through the same kind of random changes, and the
generator's gradient passes through them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from evonorm_runs.errors import UserError


def diff_augment(images: Tensor, policy: str, generator: torch.Generator) -> Tensor:
    """Change each image at random, differentiably.

    Args:
        images: (N, 3, H, W), floating point.
        policy: comma-separated, in order: "color" (brightness, saturation, contrast),
            "translation" (up to 1/8 of the size), "cutout" (half the height and width); "" is none.
        generator: of the draws, on the images' device.

    Raises:
        UserError: an unknown name in the policy.
    """
    for change in changes(policy):
        images = change(images, generator)
    return images


def brightness(images: Tensor, generator: torch.Generator) -> Tensor:
    """Add a number in [-0.5, 0.5) to each image."""
    return images + (_rand(images, generator) - 0.5)


def saturation(images: Tensor, generator: torch.Generator) -> Tensor:
    """Scale the distance from grey, each pixel's mean over channels, by a number in [0, 2)."""
    mean = images.mean(1, keepdim=True)
    return mean + (images - mean) * (_rand(images, generator) * 2)


def contrast(images: Tensor, generator: torch.Generator) -> Tensor:
    """Scale the distance from each image's mean by a number in [0.5, 1.5)."""
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (images - mean) * (_rand(images, generator) + 0.5)


def translation(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image by whole pixels, up to 1/8 of its size; zeros come in."""
    sources = []
    for axis, size in ((2, images.shape[2]), (3, images.shape[3])):
        limit = int(size / 8 + 0.5)
        shift = _randint(images, -limit, limit + 1, generator)
        sources.append((_positions(images, axis) - shift, size))
    (rows, height), (columns, width) = sources
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    index = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)
    index = index.expand(-1, images.shape[1], -1, -1)
    moved = images.flatten(2).gather(2, index.flatten(2)).view_as(images)
    return moved * inside


def cutout(images: Tensor, generator: torch.Generator) -> Tensor:
    """Set a rectangle of half the height and width, in part outside the image, to zero."""
    hit = torch.ones((), dtype=torch.bool, device=images.device)
    for axis, size in ((2, images.shape[2]), (3, images.shape[3])):
        cut = int(size / 2 + 0.5)
        centre = _randint(images, 0, size + (1 - cut % 2), generator)
        offset = _positions(images, axis) - (centre - cut // 2)
        hit = hit & (offset >= 0) & (offset < cut)
    return images * ~hit


_POLICIES = {
    "color": (brightness, saturation, contrast),
    "translation": (translation,),
    "cutout": (cutout,),
}


def changes(policy: str) -> list:
    names = [name.strip() for name in policy.split(",")] if policy.strip() else []
    for name in names:
        if name not in _POLICIES:
            raise UserError(
                f"SOLVER.DIFF_AUGMENT: {name!r} is not known; known are {', '.join(_POLICIES)}"
            )
    return [change for name in names for change in _POLICIES[name]]


def _rand(images: Tensor, generator: torch.Generator) -> Tensor:
    """A number in [0, 1) for each image: (N, 1, 1, 1)."""
    shape = (len(images), 1, 1, 1)
    return torch.rand(shape, dtype=images.dtype, device=images.device, generator=generator)


def _randint(images: Tensor, low: int, high: int, generator: torch.Generator) -> Tensor:
    """A whole number in [low, high) for each image: (N, 1, 1, 1)."""
    shape = (len(images), 1, 1, 1)
    return torch.randint(low, high, shape, device=images.device, generator=generator)


def _positions(images: Tensor, axis: int) -> Tensor:
    """0, 1, 2, ... along one axis, in a shape that broadcasts with the images'."""
    shape = [-1 if a == axis else 1 for a in range(4)]
    return torch.arange(images.shape[axis], device=images.device).view(shape)
