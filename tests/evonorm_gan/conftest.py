"""A data set and networks small enough to train in a test."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

CONFIGS = Path(__file__).parents[2] / "configs" / "gan"


@pytest.fixture
def tiny_cfg(tmp_path):
    """tiny_cfg(*KEY VALUE): the config of a run of seconds, in the folder `run` of tmp_path."""
    from evonorm_gan.config import load_config

    def make(*overrides):
        settings = {
            "DEVICE": "cpu",
            "OUTPUT_DIR": tmp_path / "run",
            "MODEL.DIM_Z": 8,
            "MODEL.G_CH": 8,
            "MODEL.D_CH": 8,
            "SOLVER.BATCH_SIZE": 4,
            "SOLVER.D_STEPS": 1,
            "SOLVER.LR_G": 1e-3,
            "SOLVER.LR_D": 1e-3,
            "SOLVER.CHANNELS_LAST": False,
            "SOLVER.MAX_ITER": 4,
            "SOLVER.EMA_START": 1,
            "SOLVER.LOG_PERIOD": 1,
            "SOLVER.SAMPLE_PERIOD": 0,
            "SOLVER.CHECKPOINT_PERIOD": 2,
            "TEST.EVAL_PERIOD": -1,
            "TEST.NUM_SAMPLES": 20,
            "TEST.BATCH_SIZE": 10,
            "TEST.STANDING_BATCHES": 2,
            "TEST.CACHE_DIR": tmp_path / "cache",
        }
        values = [str(x) for pair in settings.items() for x in pair]
        return load_config(str(CONFIGS / "digits.yaml"), [*values, *map(str, overrides)])

    return make


@pytest.fixture
def tiny_set():
    """22 images of noise in ten classes: no multiple of a batch."""
    from evonorm_runs.images.sets import MemorySet

    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (22, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return MemorySet(images, torch.arange(22) % 10, [f"class {i}" for i in range(10)])
