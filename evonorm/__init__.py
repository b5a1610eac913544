"""EvoNorms: normalization and activation as one layer (arXiv:2004.02967)."""

from . import baselines, functional
from .convert import convert
from .layers import EvoNorm, EvoNorm2D, NormAct
from .registry import build_norm_act, list_norm_acts, register_norm_act
from .statistics import update_running_statistics

__all__ = [
    "EvoNorm",
    "EvoNorm2D",
    "NormAct",
    "baselines",
    "build_norm_act",
    "convert",
    "functional",
    "list_norm_acts",
    "register_norm_act",
    "update_running_statistics",
]
