"""BigGAN-deep: generator and discriminator, and the import of the released weights."""

from __future__ import annotations

from fvcore.common.config import CfgNode

from evonorm import recompute

from ..config import norm_options
from .discriminator import Discriminator
from .generator import Generator
from .layers import frozen_spectral_norm, make_spectral_norm_exact, singular_values

__all__ = [
    "Discriminator",
    "Generator",
    "build_discriminator",
    "build_generator",
    "frozen_spectral_norm",
    "make_spectral_norm_exact",
    "singular_values",
]


def build_generator(cfg: CfgNode) -> Generator:
    """The generator that a config describes, in training mode, on the CPU.

    Raises:
        UserError: as :class:`Generator`.
    """
    m = cfg.MODEL
    generator = Generator(
        *(m.RESOLUTION, m.G_CH, m.NUM_CLASSES, m.NORM, norm_options(cfg), m.DIM_Z),
        attention=m.ATTENTION,
        depth=m.BLOCKS,
    )
    return recompute(generator) if m.RECOMPUTE else generator


def build_discriminator(cfg: CfgNode) -> Discriminator:
    """The discriminator that a config describes, in training mode, on the CPU.

    Raises:
        UserError: as :class:`Discriminator`.
    """
    m = cfg.MODEL
    ends_at = m.D_32_ENDS_AT if m.RESOLUTION == 32 else None
    return Discriminator(m.RESOLUTION, m.D_CH, m.NUM_CLASSES, ends_at, m.ATTENTION, m.BLOCKS)
