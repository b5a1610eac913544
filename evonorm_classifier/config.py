"""The config of a classifier's run: fvcore's CfgNode; loading one runs no code."""

from __future__ import annotations

from collections.abc import Sequence

from fvcore.common.config import CfgNode

from evonorm import check_linear, check_norm_act
from evonorm_runs.config import (
    check_fraction,
    check_more_than_zero,
    check_not_negative,
    finish,
    merge,
    value,
)
from evonorm_runs.errors import UserError, user_errors

MODELS = (
    *("preact_resnet8", "preact_resnet50", "preact_resnet101"),
    *("mobilenet_v2", "mnasnet_b1", "efficientnet_b0", "efficientnet_b5"),
    *("resnet18", "resnet34", "resnet50", "resnet101"),  # in Detectron2's layout
)


def get_cfg() -> CfgNode:
    """The defaults: ResNet-50 on ImageNet, as in section 5.1 of the paper."""
    c = CfgNode()
    c.SEED = 0  # of every random draw of the run
    c.DEVICE = ""  # cuda if PyTorch sees a GPU, else cpu
    c.OUTPUT_DIR = "output/classification"
    c.WANDB_PROJECT = ""  # if not empty, the run is logged to this project of Weights & Biases too

    c.MODEL = CfgNode()
    c.MODEL.NAME = "preact_resnet50"  # one of MODELS
    c.MODEL.NORM = "BN-ReLU"  # the norm-act of all sites: a name or a formula
    c.MODEL.LINEAR = ""  # where no activation follows: see evonorm.build_norm_act
    c.MODEL.NUM_GROUPS = 0  # 0: the layer's own default, 32 as in the paper
    # Options of the norm-acts named BN-..., and of all others: see evonorm.build_norm_act. None, or
    # 0 for GROUP_SIZE, is the layer's own default.
    c.MODEL.BN = CfgNode({"EPS": None, "MOMENTUM": None})
    c.MODEL.EVONORM = CfgNode({"EPS": None, "MOMENTUM": None, "GROUP_SIZE": 0})
    c.MODEL.WIDTH = 1.0  # multiplies the numbers of channels
    c.MODEL.ZERO_INIT_LAST = False  # of resnet18 to 101: the weight of each block's last norm is 0
    # How depthwise convolutions begin: as "torchvision" has it, or "tensorflow", whose weights are
    # larger by the root of the number of channels.
    c.MODEL.DEPTHWISE_INIT = "torchvision"
    c.MODEL.DROPOUT = None  # before the last layer; None: the model's own
    # EfficientNet's: the last of n blocks drops its residual branch for this share of the images,
    # times (n - 1) / n, and the first for none; None: 0.2 for B0 and B5.
    c.MODEL.DROP_CONNECT = None
    c.MODEL.RECOMPUTE = False  # outputs of EvoNorms again in the backward pass, for less memory

    c.DATA = CfgNode()
    # "folder": ROOT/train and ROOT/val, a folder per class; "shards": WebDataset's tar files in
    # these two and ROOT/classes.txt, a name in each line; "digits"; "garments".
    c.DATA.NAME = "folder"
    c.DATA.ROOT = "datasets/imagenet"
    c.DATA.VARIANTS = 1  # how many of the digits' 8 training images per scan are used
    c.DATA.NUM_WORKERS = 8  # processes that decode a folder's or shards' images
    # Of shards: how many images there are, where all shards but the last hold equally many; 0: they
    # are counted at each start, which reads the shards' headers.
    c.DATA.TRAIN_IMAGES = 0
    c.DATA.VAL_IMAGES = 0
    c.DATA.SHUFFLE = 8192  # a worker's consecutive images that are shuffled with one another

    c.INPUT = CfgNode()
    c.INPUT.SIZE = 224  # pixels of a side
    # The next three are of a folder's and shards' images.
    c.INPUT.INTERPOLATION = "bilinear"  # or "bicubic"
    c.INPUT.AUGMENT = ""  # after crop and flip: "autoaugment" or "randaugment"
    # An evaluation takes the inner SIZE / (SIZE + CROP_PADDING) of the centre; 0: the inner 7/8.
    c.INPUT.CROP_PADDING = 0

    c.SOLVER = CfgNode()
    c.SOLVER.IMS_PER_WORKER = 128  # the images that a batch statistic is taken over
    c.SOLVER.WORKERS = 8  # spread over the processes; a process takes its workers in turn
    c.SOLVER.BASE_LR = 0.1  # for REFERENCE_BATCH images per step; scaled linearly for others
    c.SOLVER.REFERENCE_BATCH = 256
    c.SOLVER.EPOCHS = 90
    c.SOLVER.WARMUP_EPOCHS = 5.0  # the learning rate rises linearly from 0
    c.SOLVER.SCHEDULE = "multistep"  # or "cosine" or "staircase"
    c.SOLVER.MILESTONES = (30.0, 60.0, 80.0)  # epochs after which multistep divides it by 10
    c.SOLVER.STAIR_EPOCHS = 2.4  # epochs, also parts of one, after which staircase multiplies by
    c.SOLVER.STAIR_FACTOR = 0.97
    c.SOLVER.OPTIMIZER = "sgd"  # with Nesterov's momentum; or "rmsprop", as TensorFlow's, by timm
    c.SOLVER.MOMENTUM = 0.9
    c.SOLVER.RMSPROP_RHO = 0.9  # of the mean of squared gradients
    c.SOLVER.RMSPROP_EPS = 1e-3  # under the root
    c.SOLVER.WEIGHT_DECAY = 1e-4  # of the kernels; norm-acts have none
    c.SOLVER.DECAY_BIASES = False  # whether the biases of layers decay too
    c.SOLVER.EMA = 0.0  # decay of the averages of weights and statistics to evaluate; 0: none
    c.SOLVER.LABEL_SMOOTHING = 0.0
    c.SOLVER.AMP = False  # autocast to bfloat16
    c.SOLVER.CHANNELS_LAST = False
    c.SOLVER.LOG_PERIOD = 50  # steps; 0: only at an epoch's end

    c.TEST = CfgNode()
    c.TEST.BATCH_SIZE = 256  # per process
    c.TEST.SPLIT = "val"  # what a run is evaluated on; or "test", which all but the digits can have
    return c


def load_config(file: str, overrides: Sequence[str] = ()) -> CfgNode:
    """The defaults, a yaml file with its _BASE_s, then KEY VALUE KEY VALUE ...; frozen.

    Raises:
        UserError: a wrong key, value or file, or anything that could run code.
    """
    return finish(merge(get_cfg(), file, overrides), _check)


def _check(cfg: CfgNode) -> None:
    choices = {
        "MODEL.NAME": MODELS,
        "MODEL.DEPTHWISE_INIT": ("torchvision", "tensorflow"),
        "DATA.NAME": ("digits", "garments", "folder", "shards"),
        "INPUT.INTERPOLATION": ("bilinear", "bicubic"),
        "INPUT.AUGMENT": ("", "autoaugment", "randaugment"),
        "SOLVER.SCHEDULE": ("multistep", "cosine", "staircase"),
        "SOLVER.OPTIMIZER": ("sgd", "rmsprop"),
        "TEST.SPLIT": ("val", "test"),
    }
    for key, known in choices.items():
        if value(cfg, key) not in known:
            names = ", ".join(name or '""' for name in known)
            raise UserError(f"{key} is {value(cfg, key)!r}; known are {names}")
    check_fraction(cfg, *_given(cfg, "MODEL.DROPOUT", "MODEL.DROP_CONNECT"))
    options = [f"MODEL.{node}.{key}" for node in ("BN", "EVONORM") for key in ("EPS", "MOMENTUM")]
    check_more_than_zero(cfg, *_given(cfg, *options))
    with user_errors(ValueError, prefix="MODEL.NORM: "):
        check_norm_act(cfg.MODEL.NORM)
    with user_errors(ValueError, prefix="MODEL.LINEAR: "):
        check_linear(cfg.MODEL.LINEAR)
    counts = ("IMS_PER_WORKER", "WORKERS", "REFERENCE_BATCH", "BASE_LR", "EPOCHS")
    recipe = ("STAIR_EPOCHS", "STAIR_FACTOR", "RMSPROP_EPS")
    positive = [f"SOLVER.{key}" for key in (*counts, *recipe)]
    check_more_than_zero(cfg, *positive, "MODEL.WIDTH", "INPUT.SIZE", "TEST.BATCH_SIZE")
    check_more_than_zero(cfg, "DATA.SHUFFLE")
    check_not_negative(cfg, "DATA.TRAIN_IMAGES", "DATA.VAL_IMAGES")
    check_not_negative(cfg, "SEED", "MODEL.NUM_GROUPS", "MODEL.EVONORM.GROUP_SIZE")
    zero = ("WARMUP_EPOCHS", "WEIGHT_DECAY", "LOG_PERIOD")
    check_not_negative(cfg, "DATA.NUM_WORKERS", *(f"SOLVER.{key}" for key in zero))
    check_not_negative(cfg, "INPUT.CROP_PADDING")
    fractions = ("MOMENTUM", "LABEL_SMOOTHING", "EMA", "RMSPROP_RHO")
    check_fraction(cfg, *(f"SOLVER.{key}" for key in fractions))
    if not 1 <= cfg.DATA.VARIANTS <= 8:
        raise UserError(f"DATA.VARIANTS is {cfg.DATA.VARIANTS}, but should be 1 to 8")
    if cfg.MODEL.NUM_GROUPS and cfg.MODEL.EVONORM.GROUP_SIZE:
        raise UserError("MODEL.NUM_GROUPS and MODEL.EVONORM.GROUP_SIZE are set: set one of them")


def _given(cfg: CfgNode, *keys: str) -> list[str]:
    """Those of the keys whose values are not None.

    Raises:
        UserError: a value is neither None nor a number.
    """
    given = [key for key in keys if value(cfg, key) is not None]
    for key in given:
        if isinstance(value(cfg, key), bool) or not isinstance(value(cfg, key), (int, float)):
            raise UserError(f"{key} is {value(cfg, key)!r}, but should be a number or None")
    return given
