"""ADA: Karras et al., Training Generative Adversarial Networks with Limited Data, 2020.

The discriminator sees real and generated images through random changes, as with DiffAugment, but
each change of each image happens only with a probability p. p grows while D is sure of the real
images, which says that it knows them by heart, and falls otherwise. So p stays low enough that the
generator does not learn the changes.

The changes and their distributions are those of the paper's appendix B, but for its filters, noise
and cutout, which brought it little. All moves of an image make one affine map, which PyTorch's
`grid_sample` applies at once, bilinearly; the authors' code filters with a wavelet there.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor
from torch.nn import functional as F

from evonorm_runs.errors import UserError

KINDS = ("blit", "geometry", "color")
EVERY = 4  # updates of D between two changes of p
SHIFT = 1 / 8  # of the size: the largest whole shift, and the standard deviation of the other one


class AdaptiveProbability:
    """The p of a run; the same in all processes.

    Attributes:
        p: 0 at the start, and always without SOLVER.ADA.
        signs: of each update of D since p was changed, the mean sign of the scores of real images.
    """

    def __init__(self, cfg: CfgNode) -> None:
        solver = cfg.SOLVER
        self.target = solver.ADA
        self.size = EVERY * solver.BATCH_SIZE / solver.ADA_IMAGES  # of a change
        self.p, self.signs = 0.0, []

    def update(self, sign: float) -> None:
        """Take the mean sign of an update, over all ranks; every fourth time, move p."""
        if not self.target:
            return
        self.signs.append(sign)
        if len(self.signs) == EVERY:
            mean = sum(self.signs) / EVERY
            p = self.p + self.size * ((mean > self.target) - (mean < self.target))
            self.p, self.signs = min(max(p, 0.0), 1.0), []

    def state(self) -> dict[str, Any]:
        return {"p": self.p, "signs": list(self.signs)}

    def load(self, state: dict[str, Any] | None) -> None:
        """None: of a checkpoint that is older than ADA here."""
        if state is None:
            return
        self.p, self.signs = state["p"] + 0.0, [sign + 0.0 for sign in state["signs"]]
        if not 0 <= self.p <= 1 or len(self.signs) >= EVERY:
            raise ValueError(f"ada has p {self.p} and {len(self.signs)} signs")


def ada_augment(images: Tensor, p: float, policy: str, generator: torch.Generator) -> Tensor:
    """Change each image at random, differentiably; with p = 0 the images themselves.

    Args:
        images: (N, 3, R, R), floating point, around [-1, 1].
        p: the probability of each change.
        policy: comma-separated, of "blit" (mirroring, quarter turns, whole shifts), "geometry"
            (scaling, rotation, stretching, any shifts) and "color" (brightness, contrast, inverted
            brightness, hue, saturation).
        generator: of the draws, on the images' device.

    Raises:
        UserError: an unknown name in the policy.
    """
    chosen = kinds(policy)
    if p == 0:
        return images
    draws = _Draws(images, p, generator)
    inverse = torch.eye(3, dtype=images.dtype, device=images.device).expand(len(images), 3, 3)
    if "blit" in chosen:
        inverse = inverse @ blit(draws, images.shape[-1])
    if "geometry" in chosen:
        inverse = inverse @ geometry(draws)
    if chosen != ["color"]:
        grid = F.affine_grid(inverse[:, :2], list(images.shape), align_corners=False)
        images = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    return recolour(images, *color(draws)) if "color" in chosen else images


def kinds(policy: str) -> list[str]:
    """The names in a policy, in the order in which they are applied."""
    names = [name.strip() for name in policy.split(",")]
    for name in names:
        if name not in KINDS:
            raise UserError(
                f"SOLVER.ADA_AUGMENT: {name!r} is not known; known are {', '.join(KINDS)}"
            )
    return [kind for kind in KINDS if kind in names]


# Maps (N, 3, 3) from a place in the result to the place that it shows; an image is -1 to 1 wide.
# Their factors stand in the order of the changes. Each factor is drawn like its own inverse.


def blit(draws: _Draws, size: int) -> Tensor:
    """Mirroring, a number of quarter turns, and a shift by whole pixels of `size` per side."""
    (mirrored,) = draws(draws.whole(1, 0, 2))
    (turns,) = draws(draws.whole(1, 0, 4))
    pixels = (draws.uniform(2, SHIFT) * size).round()
    x, y = draws(pixels * (2 / size))
    return _scaling(1 - 2 * mirrored, 1) @ _rotation(turns * (math.pi / 2)) @ _shift(x, y)


def geometry(draws: _Draws) -> Tensor:
    """Scaling, rotation, stretching between two rotations, and a shift."""
    (scale,) = draws(draws.normal(1, 0.2)).exp2()
    # So that at least one of the two rotations happens with probability p.
    rotated = 1 - math.sqrt(1 - draws.p)
    (before,), (after,) = (draws(draws.uniform(1, math.pi), rotated) for _ in range(2))
    (stretch,) = draws(draws.normal(1, 0.2)).exp2()
    x, y = draws(draws.normal(2, 2 * SHIFT))
    return (
        _scaling(scale, scale)
        @ _rotation(before)
        @ _scaling(stretch, 1 / stretch)
        @ _rotation(after)
        @ _shift(x, y)
    )


def color(draws: _Draws) -> list[Tensor]:
    """What :func:`recolour` takes."""
    (brightness,) = draws(draws.normal(1, 0.2))
    (contrast,) = draws(draws.normal(1, 0.5)).exp2()
    (inverted,) = draws(draws.whole(1, 0, 2))
    (hue,) = draws(draws.uniform(1, math.pi))
    (saturation,) = draws(draws.normal(1, 1.0)).exp2()
    return [x[:, None, None, None] for x in (brightness, contrast, inverted, hue, saturation)]


def recolour(
    images: Tensor,
    brightness: Tensor,
    contrast: Tensor,
    inverted: Tensor,
    hue: Tensor,
    saturation: Tensor,
) -> Tensor:
    """Affine maps of colours, which leave the axis of greys where it is.

    Args:
        images: (N, 3, H, W); the others (N, 1, 1, 1): `brightness` is added, `contrast` multiplies,
            `inverted` (0 or 1) turns light into dark, `hue` is the angle of a rotation around the
            greys, and `saturation` multiplies the distance from them.
    """
    grey = images.mean(1, keepdim=True)
    colour = images - grey
    across = (colour.roll(1, 1) - colour.roll(-1, 1)) / math.sqrt(3)  # turned by 90 degrees
    turned = hue.cos() * colour + hue.sin() * across
    return contrast * ((1 - 2 * inverted) * (grey + brightness) + saturation * turned)


class _Draws:
    """Random numbers for N images, as rows of (k, N); 0 stands for no change."""

    def __init__(self, images: Tensor, p: float, generator: torch.Generator) -> None:
        self.p, self.num = p, len(images)
        self.options = {"dtype": images.dtype, "device": images.device, "generator": generator}

    def __call__(self, x: Tensor, p: float | None = None) -> Tensor:
        """x (k, N), in which an image's numbers become 0 but with probability p."""
        happens = torch.rand(self.num, **self.options) < (self.p if p is None else p)
        return x * happens

    def uniform(self, k: int, limit: float) -> Tensor:
        """In [-limit, limit)."""
        return (torch.rand(k, self.num, **self.options) * 2 - 1) * limit

    def normal(self, k: int, deviation: float) -> Tensor:
        return torch.randn(k, self.num, **self.options) * deviation

    def whole(self, k: int, low: int, high: int) -> Tensor:
        """Whole numbers in [low, high)."""
        return torch.randint(low, high, (k, self.num), **self.options)


def _rotation(angle: Tensor) -> Tensor:
    cos, sin = angle.cos(), angle.sin()
    return _matrix((cos, -sin, 0.0), (sin, cos, 0.0))


def _scaling(x: Tensor, y: Tensor | float) -> Tensor:
    return _matrix((x, 0.0, 0.0), (0.0, y, 0.0))


def _shift(x: Tensor, y: Tensor) -> Tensor:
    return _matrix((1.0, 0.0, x), (0.0, 1.0, y))


def _matrix(*rows: tuple[Tensor | float, ...]) -> Tensor:
    """(N, 3, 3), its last row (0, 0, 1), from two rows of numbers (N,) or for all images."""
    given = [x for row in (*rows, (0.0, 0.0, 1.0)) for x in row]
    like = next(x for x in given if isinstance(x, Tensor))
    return torch.stack([torch.zeros_like(like) + x for x in given], 1).view(-1, 3, 3)
