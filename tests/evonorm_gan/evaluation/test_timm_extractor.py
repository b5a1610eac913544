"""A model of timm as an extractor, beside timm's own transform and model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from evonorm_gan.evaluation.metrics import COUNTS, METRICS, Evaluator, metric_key
from evonorm_gan.evaluation.timm_extractor import TimmExtractor
from evonorm_runs.errors import UserError
from evonorm_runs.images.sets import MemorySet

timm = pytest.importorskip("timm")
NAME = "test_vit"  # 0.4 M weights, images of 160x160


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of untrained weights, since timm's own can't be had in a test."""
    path = tmp_path_factory.mktemp("weights") / "vit.pth"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(timm.create_model(NAME).state_dict(), path)
    return path


def noise(num, seed, size=32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (num, 3, size, size), generator=generator, dtype=torch.uint8)


@torch.no_grad()
def test_features_are_timms_of_its_own_transform(weights):
    extractor = TimmExtractor(NAME, weights)
    images = noise(2, 0, 160)
    model = timm.create_model(NAME, checkpoint_path=str(weights)).eval()
    model.reset_classifier(0)
    settings = timm.data.resolve_model_data_config(model) | {"crop_pct": 1.0}
    transform = timm.data.create_transform(**settings)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    expected = model(torch.stack([transform(picture) for picture in pictures]))
    (found,) = extractor(images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert extractor.width() == expected.shape[1] == model.num_features
    # Resized as PIL does it, up to its rounding of pixels.
    small = noise(1, 1)
    picture = Image.fromarray(small[0].permute(1, 2, 0).numpy())
    large = np.asarray(picture.resize((160, 160), Image.Resampling.BICUBIC))
    (large,) = extractor(torch.tensor(large).permute(2, 0, 1)[None])
    (small,) = extractor(small)
    assert (small - large).abs().max() < 0.02 * large.std()


def test_all_metrics_but_is_are_of_its_features(weights, tiny_cfg, tmp_path):
    settings = ("TEST.EXTRACTOR", f"timm/{NAME}", "TEST.EXTRACTOR_WEIGHTS", weights)
    real = MemorySet(noise(16, 0), torch.arange(16) % 10, [str(i) for i in range(10)])
    evaluator = Evaluator(tiny_cfg(*settings), real, "cpu")
    assert "a model of timm" in evaluator.about[0] and str(weights) in evaluator.about[0]
    found = evaluator.evaluate_images([noise(12, 1)])
    assert list(found) == [
        *(f"{name}-{NAME} (not comparable with Inception)" for name in METRICS[2:]),
        *COUNTS,
    ]
    same = evaluator.evaluate_images([noise(16, 0)])
    key = metric_key("FID", f"timm/{NAME}")
    assert abs(same[key]) < 1e-3 < found[key]
    assert same[metric_key("coverage", f"timm/{NAME}")] == 1.0
    again = Evaluator(tiny_cfg(*settings), real, "cpu")
    assert "test_vit-" in again.about[1] and "computed" not in again.about[1]


def test_what_is_no_model_is_one_line(weights, tmp_path):
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.pth")
    cases = [
        (("no_such_model", None), "TEST.EXTRACTOR timm/no_such_model: "),
        ((NAME, tmp_path / "absent.pth"), "absent.pth: not of test_vit: "),
        ((NAME, tmp_path / "other.pth"), "other.pth: not of test_vit: "),
    ]
    for arguments, line in cases:
        with pytest.raises(UserError, match=line) as error:
            TimmExtractor(*arguments)
        assert "\n" not in str(error.value)
