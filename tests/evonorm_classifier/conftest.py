"""The config of a classifier's run of a second, and images for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from evonorm_classifier import trainer
from evonorm_classifier.config import load_config
from evonorm_classifier.data import DigitsSet

CONFIGS = Path(__file__).parents[2] / "configs" / "classification"


@pytest.fixture
def tiny_cfg(tmp_path):
    """tiny_cfg(*KEY VALUE): the config of a run of a second, in the folder `run` of tmp_path."""

    def make(*overrides):
        settings = {
            "DEVICE": "cpu",
            "OUTPUT_DIR": tmp_path / "run",
            "MODEL.WIDTH": 0.5,
            "SOLVER.IMS_PER_WORKER": 4,
            "SOLVER.EPOCHS": 3,
            "SOLVER.WARMUP_EPOCHS": 1.0,
            "SOLVER.LOG_PERIOD": 2,
            "TEST.BATCH_SIZE": 8,
        }
        values = [str(x) for pair in settings.items() for x in pair]
        return load_config(str(CONFIGS / "digits.yaml"), [*values, *map(str, overrides)])

    return make


@pytest.fixture
def noise(monkeypatch):
    """22 images to train with, no multiple of a batch, and 18 to validate with."""
    generator = torch.Generator().manual_seed(0)
    sets = tuple(
        DigitsSet(
            torch.randint(256, (n, 3, 32, 32), generator=generator, dtype=torch.uint8),
            torch.arange(n) % 10,
        )
        for n in (22, 18)
    )
    monkeypatch.setattr(trainer, "open_data", lambda cfg: sets)
    return sets
