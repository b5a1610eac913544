"""What is looked at before a run starts: its settings, its data, and what its folder holds."""

from __future__ import annotations

from pathlib import Path

import torch
from detectron2.config import CfgNode, get_cfg

from evonorm_runs.checkpoint import check_same_run
from evonorm_runs.config import merge_saved
from evonorm_runs.errors import UserError, user_errors
from evonorm_runs.folder import CONFIG

from .config import add_evonorm_config
from .data.check import check_data
from .evaluators import check_types
from .loader import check_names
from .settings import check_settings

# What may differ when a run is resumed. Any other key would make it another run or its evaluations
# not comparable, or has its value in the checkpoint, like the learning rate.
MAY_DIFFER = {
    "MODEL.DEVICE",
    "MODEL.EVONORM.RECOMPUTE",
    "SOLVER.MAX_ITER",
    "SOLVER.STEPS",
    "SOLVER.CHECKPOINT_PERIOD",
    "DATALOADER.NUM_WORKERS",
    "TEST.BEST_METRIC",
    "TEST.EVAL_PERIOD",
    "TEST.EXPECTED_RESULTS",
    "TEST.PATIENCE",
    "CUDNN_BENCHMARK",
    "VIS_PERIOD",
}


def check_run(
    cfg: CfgNode, resume: bool, eval_only: bool, num_gpus: int = 1, num_machines: int = 1
) -> None:
    """Raise UserError for what would later go wrong or overwrite something."""
    available = torch.cuda.device_count() if cfg.MODEL.DEVICE.startswith("cuda") else 0
    if num_gpus * num_machines > 1 and num_gpus > available:
        raise UserError(
            f"--num-gpus {num_gpus}: PyTorch sees {available} to use here; several processes need "
            "a GPU each, one process runs on a CPU (MODEL.DEVICE cpu)"
        )
    check_settings(cfg, not eval_only, num_gpus * num_machines)
    train_sets = () if eval_only else cfg.DATASETS.TRAIN
    check_names([*train_sets, *cfg.DATASETS.TEST])
    check_types(train_sets, cfg.DATASETS.TEST)
    held = any(Path(cfg.OUTPUT_DIR).glob("*.pth"))
    if eval_only and not cfg.MODEL.WEIGHTS and not (resume and held):
        raise UserError(
            "--eval-only: nothing to evaluate; name a checkpoint with MODEL.WEIGHTS, "
            "or take the last one in OUTPUT_DIR with --resume"
        )
    config = Path(cfg.OUTPUT_DIR, CONFIG)
    if resume and held and not eval_only and config.exists():
        with user_errors(OSError, ValueError):
            texts = config.read_text(), cfg.dump()  # both as yaml, which has no tuples
        old, new = (merge_saved(add_evonorm_config(get_cfg()), x, str(config)) for x in texts)
        paths = {f"DATASETS.COCO.{name}" for name in cfg.DATASETS.COCO}  # data may be moved
        check_same_run(old, new, config, MAY_DIFFER | paths)
    check_data(cfg, train_sets, cfg.DATASETS.TEST)
