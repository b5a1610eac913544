"""The config of a GAN run: fvcore's CfgNode, as Detectron2's; loading one runs no code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fvcore.common.config import CfgNode

from evonorm import check_norm_act
from evonorm_runs.config import (
    check_fraction,
    check_more_than_zero,
    check_not_negative,
    finish,
    merge,
    value,
)
from evonorm_runs.errors import UserError, user_errors

INCEPTIONS = ("inception-v3-compat", "inception-v3-clean")
EMBEDDED = ("digits", "garments")  # data sets, and extractors that were trained on them
# Far above what anybody has trained; more of it would only fill the memory.
MOST = {
    "MODEL.NUM_CLASSES": 10**6,
    "MODEL.DIM_Z": 2**14,
    "MODEL.G_CH": 1024,
    "MODEL.D_CH": 1024,
    "MODEL.BLOCKS": 16,
    "SOLVER.BATCH_SIZE": 2**20,
    "SOLVER.D_STEPS": 1000,
    "DATA.NUM_WORKERS": 256,
    "TEST.BATCH_SIZE": 2**16,
    "TEST.NUM_SAMPLES": 10**7,
    "TEST.STANDING_BATCHES": 10**6,
}


def get_cfg() -> CfgNode:
    """The defaults: BigGAN-deep at 128x128 on ImageNet, as in section 5.5 of the paper."""
    c = CfgNode()
    c.SEED = 0  # of every random draw of the run
    c.DEVICE = ""  # cuda if PyTorch sees a GPU, else cpu
    c.OUTPUT_DIR = "output/gan"
    c.WANDB_PROJECT = ""  # if not empty, the run is logged to this project of Weights & Biases too

    c.MODEL = CfgNode()
    c.MODEL.RESOLUTION = 128  # 32, 64, 96, 128, 256 or 512
    c.MODEL.NUM_CLASSES = 1000
    c.MODEL.DIM_Z = 128
    c.MODEL.G_CH = 128
    c.MODEL.D_CH = 128
    # The size of the maps that both networks have self-attention at; 0: none. By default 64, in the
    # networks with a stage that ends there.
    c.MODEL.ATTENTION = None
    c.MODEL.BLOCKS = 2  # of each stage of both networks
    # The size of D's last maps at 32x32: 8 as in BigGAN-PyTorch and PyTorch-StudioGAN, or 4. By
    # default 8 for a new run, and what it has been for one that goes on.
    c.MODEL.D_32_ENDS_AT = None
    c.MODEL.NORM = "EvoNormS0"  # the norm-act of all sites in the generator, the tail's included
    c.MODEL.NUM_GROUPS = None  # by default 16 for GN (paper, section 5.5), 32 for the EvoNorms
    c.MODEL.EPS = None  # by default 1e-4 for BN, each layer's own for the others
    c.MODEL.MOMENTUM = 0.1
    c.MODEL.SYNC = False  # batch statistics over all processes
    c.MODEL.INIT = ""  # a checkpoint, or an import, whose weights a new run starts from
    c.MODEL.RECOMPUTE = False  # outputs of EvoNorms again in the backward pass, for less memory

    c.DATA = CfgNode()
    # "digits" or "garments", which are embedded; the name of a torchvision data set; or "" for the
    # folder, .h5 or .zip at ROOT.
    c.DATA.NAME = ""
    c.DATA.ROOT = "datasets/imagenet/train"
    c.DATA.DOWNLOAD = False  # a set of torchvision's to ROOT, if it is not there
    c.DATA.IN_MEMORY = False  # all images decoded at the start, in each process
    c.DATA.FLIP = True
    # The side of the random square of an image that is trained on, as a share of its short side; 0:
    # the middle square of the short side.
    c.DATA.RANDOM_CROP = 0.0
    c.DATA.SKIP_CORRUPT = False
    c.DATA.NUM_WORKERS = 4

    c.SOLVER = CfgNode()
    c.SOLVER.MAX_ITER = 250_000  # steps of the generator
    c.SOLVER.BATCH_SIZE = 2048  # images per step of a network, over all processes
    c.SOLVER.ACCUMULATE = 1  # the number of parts that the batch of a step is taken in
    c.SOLVER.D_STEPS = 2  # per step of the generator
    c.SOLVER.LR_G = 5e-5
    c.SOLVER.LR_D = 2e-4
    c.SOLVER.BETAS = (0.0, 0.999)
    c.SOLVER.EPS = 1e-6
    c.SOLVER.FREEZE_D = 0  # how many of D's first blocks stay as MODEL.INIT has them
    c.SOLVER.ORTHO_REG = 0.0  # strength of G's orthogonal regularisation; BigGAN's is 1e-4
    # What D's loss has besides the hinge, each by its strength; 0: nothing.
    c.SOLVER.R1_GAMMA = 0.0  # gamma / 2 of the squared gradients at real images
    c.SOLVER.R1_PERIOD = 1  # updates of D from one R1 to the next, which is as many times as strong
    c.SOLVER.LECAM = 0.0
    c.SOLVER.CR_REAL = (
        0.0  # consistency under shifts and, with DATA.FLIP, mirroring: CR-GAN's is 10
    )
    c.SOLVER.CR_FAKE = 0.0  # of generated images too: bCR-GAN
    c.SOLVER.EMA_DECAY = 0.9999
    c.SOLVER.EMA_START = 20_000
    c.SOLVER.AMP = ""  # "", "bf16" or "fp16"
    c.SOLVER.CHANNELS_LAST = False
    c.SOLVER.COMPILE = False
    c.SOLVER.DIFF_AUGMENT = ""  # such as "color,translation,cutout"
    # Adaptive augmentation (ADA): the mean sign of D's scores of real images that it aims at, 0.6
    # in its paper; 0: none.
    c.SOLVER.ADA = 0.0
    c.SOLVER.ADA_AUGMENT = "blit,geometry,color"
    c.SOLVER.ADA_IMAGES = 500_000  # in which its probability can grow from 0 to 1
    # A period of 0: only at the end.
    c.SOLVER.LOG_PERIOD = 50
    c.SOLVER.SAMPLE_PERIOD = 1000  # a grid of fixed z
    c.SOLVER.CHECKPOINT_PERIOD = 1000
    c.SOLVER.KEEP = 2  # how many of the last checkpoints stay, besides those of the best FID and IS

    c.TEST = CfgNode()
    c.TEST.EVAL_PERIOD = 5000  # 0: only at the end; -1: never
    c.TEST.NUM_SAMPLES = 50_000
    c.TEST.BATCH_SIZE = 64  # per process
    c.TEST.TRUNCATION = None  # of z
    c.TEST.TRUNCATE_BY = "resample"  # as Brock et al. 2019; or "scale", as their released models
    c.TEST.STANDING_BATCHES = 16  # for batch-dependent norms, of BATCH_SIZE samples each
    # What images are compared with: "train" or "val" of DATA; a folder, .zip or .h5 as DATA.ROOT
    # may be; or an .npz with mu and sigma (for FID), images as arr_0, or both.
    c.TEST.REFERENCE = "train"
    # Images that all but IS and FID look at, at most; by default 10,000, with an EXTRACTOR of an
    # embedded set 2,000. 50,000 take minutes.
    c.TEST.SUBSET = None
    # Of features: or "inception-v3-clean", which has images resized as clean-fid does; "digits" or
    # "garments", a small classifier; or a model of timm, such as
    # "timm/vit_small_patch14_dinov2.lvd142m".
    c.TEST.EXTRACTOR = "inception-v3-compat"
    c.TEST.EXTRACTOR_WEIGHTS = ""  # a file for timm's model; by default timm downloads it
    c.TEST.INCEPTION_WEIGHTS = ""  # a file; by default where torch-fidelity keeps its own
    c.TEST.CACHE_DIR = "output/cache"  # of statistics of real images
    c.TEST.STOP_ON_COLLAPSE = False
    return c


def load_config(file: str, overrides: Sequence[str] = ()) -> CfgNode:
    """The defaults, a yaml file with its _BASE_s, then KEY VALUE KEY VALUE ...; frozen.

    Raises:
        UserError: a wrong key, value or file, or anything that could run code.
    """
    return finish_config(merge(get_cfg(), file), overrides)


def finish_config(cfg: CfgNode, overrides: Sequence[str] = ()) -> CfgNode:
    """Take KEY VALUE overrides, choose the device, check the values; freezes and returns `cfg`.

    Raises:
        UserError: as :func:`load_config`.
    """
    return finish(merge(cfg, None, overrides), _check)


def norm_options(cfg: CfgNode) -> dict[str, Any]:
    """The options of the generator's norm-act, for :func:`evonorm.build_norm_act`."""
    options = {"momentum": cfg.MODEL.MOMENTUM, "sync": cfg.MODEL.SYNC}
    kind = cfg.MODEL.NORM.split("-")[0]
    groups = cfg.MODEL.NUM_GROUPS
    options["num_groups"] = (16 if kind == "GN" else 32) if groups is None else groups
    eps = cfg.MODEL.EPS if cfg.MODEL.EPS is not None else {"BN": 1e-4}.get(kind)
    return options if eps is None else {**options, "eps": eps}


def _check(cfg: CfgNode) -> None:
    choices: dict[str, tuple] = {
        "MODEL.RESOLUTION": (32, 64, 96, 128, 256, 512),
        "SOLVER.AMP": ("", "bf16", "fp16"),
        "TEST.TRUNCATE_BY": ("resample", "scale"),
        "MODEL.D_32_ENDS_AT": (None, 4, 8),
    }
    if not cfg.TEST.EXTRACTOR.startswith("timm/"):
        choices["TEST.EXTRACTOR"] = (*INCEPTIONS, *EMBEDDED, "timm/NAME")
    for key, known in choices.items():
        if value(cfg, key) not in known:
            raise UserError(
                f"{key} is {value(cfg, key)!r}; known are {', '.join(map(repr, known))}"
            )
    if cfg.MODEL.ATTENTION is not None and not isinstance(cfg.MODEL.ATTENTION, int):
        raise UserError(f"MODEL.ATTENTION is {cfg.MODEL.ATTENTION!r}, but should be a whole number")
    with user_errors(ValueError, prefix="MODEL.NORM: "):
        check_norm_act(cfg.MODEL.NORM)
    counts = ("MAX_ITER", "BATCH_SIZE", "ACCUMULATE", "D_STEPS", "KEEP")
    positive = [f"SOLVER.{key}" for key in (*counts, "R1_PERIOD", "ADA_IMAGES", "LR_G", "LR_D")]
    positive += [f"MODEL.{key}" for key in ("NUM_CLASSES", "DIM_Z", "G_CH", "D_CH", "BLOCKS")]
    optional = ("MODEL.NUM_GROUPS", "MODEL.EPS", "TEST.TRUNCATION", "TEST.SUBSET")
    for key in optional:
        if not isinstance(value(cfg, key), (int, float, type(None))):
            raise UserError(f"{key} is {value(cfg, key)!r}, but should be a number, or None")
    given = [key for key in optional if value(cfg, key) is not None]
    check_more_than_zero(cfg, *positive, "TEST.BATCH_SIZE", *given)
    for key, most in MOST.items():
        if value(cfg, key) > most:
            raise UserError(f"{key} is {value(cfg, key):,}, but should be at most {most:,}")
    zero = ("SEED", "SOLVER.EMA_START", "SOLVER.ORTHO_REG", "SOLVER.EPS", "DATA.NUM_WORKERS")
    check_not_negative(cfg, *zero, "SOLVER.FREEZE_D", "TEST.STANDING_BATCHES")
    check_not_negative(
        cfg, *(f"SOLVER.{key}" for key in ("R1_GAMMA", "LECAM", "CR_REAL", "CR_FAKE"))
    )
    if cfg.SOLVER.R1_GAMMA and (cfg.SOLVER.AMP == "fp16" or cfg.SOLVER.COMPILE):
        wrong = "COMPILE True" if cfg.SOLVER.COMPILE else "AMP fp16"
        raise UserError(
            f"SOLVER.R1_GAMMA takes gradients of gradients, which SOLVER.{wrong} can't: set "
            "SOLVER.AMP bf16 or '', and SOLVER.COMPILE False"
        )
    if cfg.TEST.NUM_SAMPLES < 10:
        raise UserError(f"TEST.NUM_SAMPLES is {cfg.TEST.NUM_SAMPLES}, but IS takes 10 splits of it")
    few = cfg.TEST.SUBSET
    if few is not None and (few < 10 or not isinstance(few, int)):
        raise UserError(f"TEST.SUBSET is {few}, but should be 10 or more images, or None")
    betas = cfg.SOLVER.BETAS
    numbers = [isinstance(beta, (int, float)) for beta in betas]
    if numbers != [True, True] or not all(0 <= beta < 1 for beta in betas):
        raise UserError(f"SOLVER.BETAS is {betas}, but should be two numbers in [0, 1)")
    check_fraction(cfg, "SOLVER.EMA_DECAY", "SOLVER.ADA")
    if not 0 <= cfg.DATA.RANDOM_CROP <= 1:
        raise UserError(f"DATA.RANDOM_CROP is {cfg.DATA.RANDOM_CROP}, but should be in [0, 1]")
    if cfg.DATA.RANDOM_CROP and cfg.DATA.IN_MEMORY:
        raise UserError("DATA.RANDOM_CROP needs whole images: set it to 0, or DATA.IN_MEMORY False")
    if cfg.SOLVER.ADA and cfg.SOLVER.DIFF_AUGMENT:
        raise UserError(
            "SOLVER.ADA and SOLVER.DIFF_AUGMENT both augment what the discriminator sees: set one"
        )
