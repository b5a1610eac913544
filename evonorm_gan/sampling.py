"""From a generator to images: latents, truncation, standing statistics, grids."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from PIL import Image
from torch import Tensor, nn
from torchvision.utils import make_grid

from evonorm import update_running_statistics
from evonorm_runs.errors import UserError
from evonorm_runs.files import atomic_write

from .models import frozen_spectral_norm

# How z is truncated at t:
# "resample": N(0, 1), drawn again while outside of +-t, as Brock et al. 2019 (section 3.1) and
#     PyTorch-StudioGAN have it;
# "scale": t times N(0, 1) that is drawn again while outside of +-2, as the released BigGANs on
#     TensorFlow Hub and their PyTorch port have it; 1.5 to 1.6 times wider where t is 1 or less.
TRUNCATE_BY = ("resample", "scale")


def truncated_normal(
    num: int,
    dim: int,
    truncation: float | None,
    generator: torch.Generator,
    truncate_by: str = "resample",
) -> Tensor:
    """Draws of N(0, 1), truncated in one of the ways that :data:`TRUNCATE_BY` names.

    They are made through the inverse distribution function, which has the same distribution. So
    one state of the generator gives the same quantiles, and alike images, for every truncation.

    Args:
        truncation: t > 0; None: plain N(0, 1), in both ways.

    Returns:
        (num, dim), float32, on the CPU.

    Raises:
        UserError: truncation is not more than 0, or there is no such way.
    """
    if truncation is not None and not truncation > 0:
        raise UserError(f"truncation is {truncation}, but should be more than 0, or None")
    if truncate_by not in TRUNCATE_BY:
        known = " and ".join(TRUNCATE_BY)
        raise UserError(f"z can't be truncated by {truncate_by!r}; known are {known}")
    limit, scale = truncation or torch.inf, 1.0
    if truncation and truncate_by == "scale":
        limit, scale = 2.0, truncation
    # No float64 uniform draw lies beyond 8.3 standard deviations.
    bound = torch.tensor(min(limit, 9.0), dtype=torch.float64)
    low, high = torch.special.ndtr(-bound), torch.special.ndtr(bound)
    uniform = torch.rand(num, dim, dtype=torch.float64, generator=generator)
    z = torch.special.ndtri(low + (high - low) * uniform)
    return z.clamp(-bound, bound).mul(scale).float()


def latents(
    num: int,
    dim_z: int,
    num_classes: int,
    seed: int,
    truncation: float | None = None,
    class_index: int | None = None,
    truncate_by: str = "resample",
) -> tuple[Tensor, Tensor]:
    """What a generator takes: z (num, dim_z) float32 and y (num,) int64, on the CPU.

    y is uniform over the classes, unless `class_index` is given. z is the same in both cases, and
    its first rows do not depend on `num`. `truncation` and `truncate_by` are those of
    :func:`truncated_normal`.
    """
    generator = torch.Generator().manual_seed(seed)
    z = truncated_normal(num, dim_z, truncation, generator, truncate_by)
    if class_index is not None:
        return z, torch.full((num,), class_index)
    return z, torch.randint(num_classes, (num,), generator=generator)


def to_uint8(images: Tensor) -> Tensor:
    """From floats in [-1, 1] to integers in [0, 255], to the nearest."""
    return images.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def generate(G: nn.Module, z: Tensor, y: Tensor, batch_size: int = 64) -> Iterator[Tensor]:
    """Images of z (N, dim_z) and y, (N,) classes or (N, dim_embed) embeddings, batch by batch.

    G is in evaluation mode during a batch and in its own mode again between batches.

    Yields:
        (n, 3, R, R) uint8, on the CPU, n <= batch_size.

    Raises:
        UserError: G makes NaN or infinity, which as 8-bit images would look like a colour.
    """
    device = next(G.parameters()).device
    for zs, ys in zip(z.split(batch_size), y.split(batch_size)):
        mode = G.training
        G.eval()
        try:
            with torch.no_grad():
                images = G(zs.to(device), ys.to(device))
        finally:
            G.train(mode)
        if not images.isfinite().all():
            raise UserError(
                "the generator's images hold NaN or infinity: its training has diverged"
            )
        yield to_uint8(images).cpu()


def standing_statistics(
    G: nn.Module,
    num_batches: int,
    batch_size: int,
    seed: int,
    truncation: float | None = None,
    truncate_by: str = "resample",
) -> int:
    """Set G's running statistics to the mean over random batches of its batch statistics.

    So Brock et al. 2019 evaluate a generator with BatchNorm: the moving average lags behind the
    weights, and belongs to another truncation and other weights than the average's (EMA). Nothing
    else of G changes. Without a batch-dependent layer nothing is run.

    Returns:
        the number of batches seen.
    """
    device = next(G.parameters()).device
    batches = (
        latents(batch_size, G.dim_z, G.num_classes, batch_seed, truncation, truncate_by=truncate_by)
        for batch_seed in _seeds(num_batches, seed)
    )
    mode = G.training
    G.train()
    try:
        with frozen_spectral_norm(G):
            return update_running_statistics(
                G, batches, lambda batch: G(*(x.to(device) for x in batch))
            )
    finally:
        G.train(mode)


def check_statistics(
    G: nn.Module,
    own: CfgNode,
    num_batches: int,
    truncation: float | None,
    truncate_by: str = "resample",
) -> None:
    """Refuse the statistics that G has for another truncation than they were taken at.

    Args:
        own: the config of G's checkpoint. With TEST.STANDING_BATCHES 0 its statistics are those of
            TEST.TRUNCATION and TEST.TRUNCATE_BY, as in imported weights.
        num_batches: for :func:`standing_statistics`; 0 keeps G's.
        truncation, truncate_by: that images are to be drawn with.

    Raises:
        UserError: they differ.
    """
    dependent = any(getattr(module, "batch_dependent", False) for module in G.modules())
    taken = (own.TEST.TRUNCATION, own.TEST.TRUNCATE_BY)
    asked = (truncation, truncate_by)
    if dependent and num_batches == own.TEST.STANDING_BATCHES == 0 and asked != taken:
        was, now = (f"{t} by {by}" if taken[1] != truncate_by else t for t, by in (taken, asked))
        raise UserError(
            f"the statistics in the checkpoint are of truncation {was}, not {now}: import "
            "the weights for that one, or take 16 batches of statistics (--standing-batches 16, or "
            "TEST.STANDING_BATCHES 16)"
        )


def _seeds(num: int, seed: int) -> list[int]:
    """Seeds for `num` sets of latents, apart from `seed` itself, that images are drawn with."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2**31, 2**62, (num,), generator=generator).tolist()


def class_grid(
    G: nn.Module,
    classes: Sequence[int],
    per_class: int,
    seed: int,
    truncation: float | None = None,
    truncate_by: str = "resample",
    **options: Any,
) -> Tensor:
    """One row per class and one z per column: (3, H, W) uint8. `options` as :func:`generate`."""
    z, _ = latents(per_class, G.dim_z, G.num_classes, seed, truncation, truncate_by=truncate_by)
    y = torch.tensor(list(classes)).repeat_interleave(per_class)
    images = torch.cat(list(generate(G, z.repeat(len(classes), 1), y, **options)))
    return tile(images, per_class)


def interpolate(
    G: nn.Module,
    z: tuple[Tensor, Tensor],
    y: tuple[int, int],
    steps: int,
    **options: Any,
) -> Tensor:
    """Images on the straight line from the first z and class embedding to the second.

    Args:
        z: two of (rows, dim_z); the same twice to move in y only.
        y: two classes; the same twice to move in z only.
        steps: images per row, the two ends included.
        options: as :func:`generate`.

    Returns:
        (3, H, W) uint8, `rows` rows of `steps` images.
    """
    weight = torch.linspace(0, 1, steps)[:, None]
    with torch.no_grad():
        embedding = G.embed(torch.tensor(y, device=next(G.parameters()).device)).cpu()
    zs = torch.lerp(z[0][:, None], z[1][:, None], weight)
    ys = torch.lerp(embedding[0], embedding[1], weight).repeat(len(zs), 1)
    return tile(torch.cat(list(generate(G, zs.flatten(0, 1), ys, **options))), steps)


def tile(images: Tensor, columns: int) -> Tensor:
    """Images (N, 3, R, R) uint8, row by row, as one (3, H, W) with 2 pixels between them."""
    return make_grid(images, nrow=columns, padding=2, pad_value=255)


def write_png(path: Path, image: Tensor) -> None:
    """Write (3, H, W) uint8 as a PNG that is whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, format="PNG")


def find_class(classes: Sequence[str], name: str) -> int:
    """The index of a class given by its name or, where no class has that name, by its index.

    Raises:
        UserError: there is no such class.
    """
    if name in classes:
        return list(classes).index(name)
    if name.isdecimal() and int(name) < len(classes):
        return int(name)
    close = difflib.get_close_matches(name, classes, n=1, cutoff=0)
    raise UserError(
        f"no class {name!r}; the closest is {close[0]!r}, and indices go from 0 to "
        f"{len(classes) - 1}"
    )
