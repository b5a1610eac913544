"""The channel tables of BigGAN-deep (Brock et al. 2019, appendix B), as data."""

from __future__ import annotations

import math

from evonorm_runs.errors import UserError

# Channels in units of ch. G's stages begin at 4x4, for 96x96 at 6x6, and double it each;
# D's begin at the image and halve it, at 32x32 only down to 8x8. The first number of each is what
# the first layer makes. 96x96, which the paper does not have, has the channels of 64x64.
STAGES: dict[int, dict[str, tuple[int, ...]]] = {
    32: {"G": (4, 4, 4, 4), "D": (4, 4, 4, 4)},
    64: {"G": (16, 16, 8, 4, 2), "D": (1, 2, 4, 8, 16)},
    96: {"G": (16, 16, 8, 4, 2), "D": (1, 2, 4, 8, 16)},
    128: {"G": (16, 16, 8, 4, 2, 1), "D": (1, 2, 4, 8, 16, 16)},
    256: {"G": (16, 16, 8, 8, 4, 2, 1), "D": (1, 2, 4, 8, 8, 16, 16)},
    512: {"G": (16, 16, 8, 8, 4, 2, 1, 1), "D": (1, 1, 2, 4, 8, 8, 16, 16)},
}
LAST_MAP = {32: 8, 64: 4, 96: 6, 128: 4, 256: 4, 512: 4}  # of D, as in BigGAN-PyTorch
ATTENTION_RESOLUTION = 64  # attention follows the stage that ends there, if there is one


def stage_channels(
    network: str, resolution: int, ch: int, attention: int | None = None
) -> list[int]:
    """Channels after the first layer and after each stage.

    Args:
        network: "G" or "D".
        resolution: of the images, one of STAGES.
        ch: the width, 128 in the paper.
        attention: as :func:`attention_stage`.

    Raises:
        UserError: no such resolution, a width that a bottleneck or the attention cannot divide, or
            no place for the attention.
    """
    if resolution not in STAGES:
        known = ", ".join(map(str, STAGES))
        raise UserError(f"resolution is {resolution!r}; BigGAN-deep is defined for {known}")
    stages = STAGES[resolution][network]
    # A G block's bottleneck has a quarter of its input's channels, a D block's of its output's.
    units = [(k, 4) for k in (stages[:-1] if network == "G" else stages[1:])]
    stage = attention_stage(network, resolution, attention)
    if stage is not None:
        units.append((stages[stage + 1], 8))
    multiple = math.lcm(*(divisor // math.gcd(k, divisor) for k, divisor in units))
    if not isinstance(ch, int) or ch <= 0 or ch % multiple:
        raise UserError(
            f"ch is {ch!r}; {network} at {resolution}x{resolution} needs a multiple of {multiple}"
        )
    return [k * ch for k in stages]


def first_map(resolution: int) -> int:
    """The size of G's first maps."""
    return resolution >> (len(STAGES[resolution]["G"]) - 1)


def attention_stage(network: str, resolution: int, attention: int | None = None) -> int | None:
    """The index of the stage that self-attention follows, None if there is none.

    Args:
        attention: the size of the maps that it is at; 0: none; None: 64, if there are such maps.

    Raises:
        UserError: no stage ends at maps of this size.
    """
    stages = range(len(STAGES[resolution][network]) - 1)
    ends = [
        2 * first_map(resolution) << i if network == "G" else resolution >> (i + 1) for i in stages
    ]
    wanted = ATTENTION_RESOLUTION if attention is None else attention
    if wanted in ends:
        return ends.index(wanted)
    if attention:
        raise UserError(
            f"attention is {attention}, but {network} at {resolution}x{resolution} has maps of "
            f"{', '.join(map(str, ends))} at the ends of its stages"
        )
    return None
