"""EvoNorms: normalization and activation as one layer (arXiv:2004.02967)."""

from . import baselines
from .base import NormAct
from .check import check
from .convert import convert
from .evonorm2d import EvoNorm2D
from .formula import Formula
from .formulas import FORMULAS
from .layers import EvoNorm
from .own_functions import register_function
from .recomputation import recompute, recompute_outputs
from .registry import (
    build_norm_act,
    check_linear,
    check_norm_act,
    formula_of,
    is_norm_act,
    list_norm_acts,
    register_norm_act,
    slug,
)
from .statistics import update_running_statistics

__all__ = [
    "FORMULAS",
    "EvoNorm",
    "EvoNorm2D",
    "Formula",
    "NormAct",
    "baselines",
    "build_norm_act",
    "check",
    "check_linear",
    "check_norm_act",
    "convert",
    "formula_of",
    "is_norm_act",
    "list_norm_acts",
    "recompute",
    "recompute_outputs",
    "register_function",
    "register_norm_act",
    "slug",
    "update_running_statistics",
]
