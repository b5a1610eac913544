"""The sign that a generator draws one picture for each class, on results with known samples."""

import json
from pathlib import Path

import pytest

from evonorm_gan.evaluation.alike import alike

REAL = "{} (not comparable with Inception)"
DEMO = json.loads((Path(__file__).parents[3] / "docs/results/demo.json").read_text())["gan"]


@pytest.mark.parametrize(
    "results, expected",
    [
        ({"precision": 0.77, "recall": 0.016}, True),  # EvoNorm-S0 at the digits' first rates
        ({"precision": 0.79, "recall": 0.28}, False),  # at those of today
        ({REAL.format("precision-digits"): 0.656, REAL.format("recall-digits"): 0.013}, True),
        ({"precision": 0.002, "recall": 0.0025}, False),  # an untrained generator
        ({"precision_recall_images": 2000, "recall": 0.001, "FID": 3.0}, False),
        ({"loss_d": 1.0}, False),
    ],
)
def test_recall_far_below_precision(results, expected):
    assert alike(results) is expected


def test_real_images_are_not_alike():
    assert alike(DEMO["real validation scans"]) is False
