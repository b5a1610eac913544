"""Density and coverage: Naeem et al., Reliable Fidelity and Diversity Metrics, 2020."""

from __future__ import annotations

import torch
from torch import Tensor

NEIGHBOURS = 5  # as in the paper


def density_and_coverage(
    fake: Tensor, real: Tensor, block: int, neighbours: int = NEIGHBOURS
) -> tuple[float, float]:
    """Equations 3 and 4 of arXiv:2002.09797, over features (M, width) and (N, width).

    Each real image has a ball that reaches to its nearest but `neighbours` - 1 other real image.
    Density is the mean number of balls that a generated image lies in, divided by `neighbours`:
    about 1 where the images are as the real ones, and more where they are denser. Coverage is the
    share of balls with a generated image in them.

    Args:
        block: rows whose distances are taken at once.
    """
    # The nearest one is the image itself.
    radii = [torch.cdist(part, real).kthvalue(neighbours + 1).values for part in real.split(block)]
    radius = torch.cat(radii)
    inside, covered = 0, torch.zeros(len(real), dtype=torch.bool)
    for part in fake.split(block):
        within = torch.cdist(part, real) < radius
        inside += int(within.sum())
        covered |= within.any(0)
    return inside / (neighbours * len(fake)), covered.double().mean().item()
