"""The config of a search: fvcore's CfgNode; loading one runs no code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from fvcore.common.config import CfgNode

from evonorm_runs.config import (
    check_fraction,
    check_more_than_zero,
    check_not_negative,
    finish,
    merge,
)
from evonorm_runs.errors import UserError, user_errors

from .anchors import ANCHORS
from .data import Source
from .evaluation import SCHEDULES, Proxy
from .evolution import Settings
from .scores import SCORES
from .space import Space
from .warm_start import first_graphs


def get_cfg() -> CfgNode:
    """The defaults: a search for layers without batch statistics, in small."""
    c = CfgNode()
    c.SEED = 0  # of the graphs, the tournaments and the trainings
    c.DEVICE = ""  # cuda if PyTorch sees a GPU, else cpu
    c.OUTPUT_DIR = "output/search"
    c.CANDIDATES = 200  # how many are evaluated: those that pass the sieve

    c.SPACE = CfgNode()
    c.SPACE.NODES = 10  # operation nodes of a graph
    c.SPACE.BATCH = False  # with aggregations over the batch (B search) or without (S search)
    c.SPACE.OWN = ()  # functions beside table 1's; see evonorm.register_function

    c.EVOLUTION = CfgNode()
    c.EVOLUTION.WINDOW = 2500  # the newest members are the population
    c.EVOLUTION.TOURNAMENT = 0.05  # the fraction of it that takes part
    c.EVOLUTION.MUTATIONS = 2  # of a child
    c.EVOLUTION.RANDOM_CHILDREN = 0.5  # probability of a new random graph; 1 is random search
    c.EVOLUTION.WINNER = "pareto"  # or "average"
    c.EVOLUTION.START = 1  # trained members before the first tournament
    c.EVOLUTION.SCORE = "accuracy"  # what is maximized; see evonorm_search/scores.py
    c.EVOLUTION.WARM_START = ()  # names or formulas to begin with, such as ("EvoNormS0",)

    c.ANCHORS = ("MobileNetV2-small", "EfficientNet-small", "ResNet-small")  # the cheapest first

    c.SEARCH = CfgNode()
    c.SEARCH.GPUS_PER_TASK = 0.0  # on Ray; 0.1 lets ten candidates share a GPU, 1.0 is a whole one

    c.SIEVE = CfgNode()
    # Hold back what has a formula or values seen before, or is not finite, constant or without a
    # gradient. False trains all that depends on its input, which is the paper's procedure.
    c.SIEVE.DUPLICATES = True

    c.DATA = CfgNode()
    c.DATA.NAME = "garments"  # or "folder", or one of torchvision's sets, such as "CIFAR10"
    c.DATA.ROOT = ""  # a folder per class, or the folder of torchvision's files
    c.DATA.RESOLUTION = 16  # pixels of a side

    c.PROXY = CfgNode()  # evonorm_search/evaluation.py describes them
    c.PROXY.STEPS = 300
    c.PROXY.BATCH_SIZE = 64
    c.PROXY.LR = 0.05
    c.PROXY.MOMENTUM = 0.9
    c.PROXY.WEIGHT_DECAY = 1e-4
    c.PROXY.SCHEDULE = "cosine"  # or "constant"
    c.PROXY.CROP = 0  # pixels of the random crops that are trained on; 0 for whole images
    c.PROXY.QUALITY_STEPS = 100
    c.PROXY.QUALITY = 0.2
    c.PROXY.STABILITY_STEPS = 20
    c.PROXY.STABILITY_LR = 1.0
    c.PROXY.STABILITY_LIMIT = 1e8
    return c


def load_config(file: str | None, overrides: Sequence[str] = ()) -> CfgNode:
    """The defaults, a yaml file with its _BASE_s, then KEY VALUE KEY VALUE ...; frozen.

    Raises:
        UserError: a wrong key, value or file, or anything that could run code.
    """
    return finish(merge(get_cfg(), file, overrides), _check)


def parts(cfg: CfgNode) -> tuple[Space, Settings, Proxy]:
    """What the config says of the space, the evolution and the proxy task."""
    e, p = cfg.EVOLUTION, cfg.PROXY
    with user_errors(ValueError, prefix="SPACE, EVOLUTION: "):
        space = Space(cfg.SPACE.NODES, cfg.SPACE.BATCH, tuple(cfg.SPACE.OWN))
        settings = Settings(**{f.name: e[f.name.upper()] for f in fields(Settings)})
    return space, settings, Proxy(**{key.lower(): value for key, value in p.items()})


def source(cfg: CfgNode) -> Source:
    """Which images DATA names."""
    return Source(**{key.lower(): value for key, value in cfg.DATA.items()})


def _check(cfg: CfgNode) -> None:
    counts = ("STEPS", "BATCH_SIZE", "LR", "QUALITY_STEPS", "STABILITY_LR", "STABILITY_LIMIT")
    check_more_than_zero(cfg, "CANDIDATES", "DATA.RESOLUTION", *(f"PROXY.{key}" for key in counts))
    check_not_negative(
        cfg, "SEED", "SEARCH.GPUS_PER_TASK", "PROXY.WEIGHT_DECAY", "PROXY.STABILITY_STEPS"
    )
    check_fraction(cfg, "PROXY.MOMENTUM", "PROXY.QUALITY")
    if cfg.DATA.NAME == "garments" and cfg.DATA.ROOT:
        raise UserError(
            f"DATA.ROOT is {cfg.DATA.ROOT}, but DATA.NAME garments reads none: set DATA.NAME folder"
        )
    if not 0 <= cfg.PROXY.CROP <= cfg.DATA.RESOLUTION:
        size = cfg.DATA.RESOLUTION
        raise UserError(
            f"PROXY.CROP is {cfg.PROXY.CROP}, but should be 0 to DATA.RESOLUTION {size}"
        )
    if cfg.PROXY.SCHEDULE not in SCHEDULES:
        known = ", ".join(SCHEDULES)
        raise UserError(f"PROXY.SCHEDULE is {cfg.PROXY.SCHEDULE!r}; known are {known}")
    for name in cfg.ANCHORS:
        if name not in ANCHORS:
            raise UserError(f"ANCHORS: no anchor is named {name!r}; known are {', '.join(ANCHORS)}")
    if not cfg.ANCHORS:
        raise UserError("ANCHORS is empty: name a network or more")
    if cfg.EVOLUTION.SCORE not in SCORES:
        known = ", ".join(SCORES)
        raise UserError(f"EVOLUTION.SCORE is {cfg.EVOLUTION.SCORE!r}; known are {known}")
    space, *_ = parts(cfg)
    if cfg.EVOLUTION.WARM_START and not cfg.SIEVE.DUPLICATES:
        raise UserError(
            "EVOLUTION.WARM_START is not the paper's, which begins with random graphs: empty it, "
            "or set SIEVE.DUPLICATES True"
        )
    with user_errors(ValueError, prefix="EVOLUTION.WARM_START: "):
        first_graphs(cfg.EVOLUTION.WARM_START, space, cfg.SEED)
