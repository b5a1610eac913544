"""Configs of a classifier's run, and images for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

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


@pytest.fixture
def cfg():
    """cfg(*KEY VALUE): of the digits."""
    return lambda *overrides: load_config(
        str(CONFIGS / "digits.yaml"), ["DEVICE", "cpu", *map(str, overrides)]
    )


@pytest.fixture
def folder(tmp_path):
    """Six training and three validation images of noise in three classes, of differing sizes."""
    generator = torch.Generator().manual_seed(0)
    for split, num in (("train", 6), ("val", 3)):
        for i in range(num):
            noise = torch.randint(256, (40 + i, 50, 3), generator=generator, dtype=torch.uint8)
            path = tmp_path / split / "abc"[i % 3] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise.numpy()).save(path)
    return tmp_path
