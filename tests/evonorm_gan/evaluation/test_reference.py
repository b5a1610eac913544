"""What images are compared with: splits, folders, and files of statistics of TTUR and ADM."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from evonorm_gan.evaluation import embedded_extractor, reference
from evonorm_gan.evaluation.metrics import Evaluator, metric_key
from evonorm_runs.errors import UserError
from evonorm_runs.images.sets import MemorySet

FID, KID, COVERAGE = (metric_key(name, "digits") for name in ("FID", "KID", "coverage"))


@pytest.fixture(autouse=True)
def digits(tiny_set, monkeypatch):
    """A classifier of two steps for the digits."""
    monkeypatch.setattr(embedded_extractor, "STEPS", {"digits": 2})
    monkeypatch.setattr(embedded_extractor, "open_dataset", lambda cfg, split: tiny_set)


def noise(num, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (num, 3, 32, 32), generator=generator, dtype=torch.uint8)


def as_set(images):
    return MemorySet(images, torch.arange(len(images)) % 10, [str(i) for i in range(10)])


def as_arrays(images):
    return images.permute(0, 2, 3, 1).numpy()


@pytest.fixture
def evaluate(tiny_cfg):
    """evaluate(reference): the metrics of the same images."""

    def call(given="train", train=None):
        evaluator = Evaluator(tiny_cfg("TEST.REFERENCE", given), train, "cpu")
        return evaluator.evaluate_images([noise(20, 1)]), evaluator

    return call


def test_each_form_of_the_same_images_gives_the_same(evaluate, tmp_path):
    real = noise(30, 0)
    expected, evaluator = evaluate(train=as_set(real))
    assert len(expected) == 10
    for i, image in enumerate(real):
        path = tmp_path / "folder" / str(i % 10) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    np.savez(tmp_path / "images.npz", as_arrays(real))
    moments = {"mu": evaluator.real.mu, "sigma": evaluator.real.sigma}
    np.savez(tmp_path / "ttur.npz", **moments)
    np.savez(tmp_path / "adm.npz", arr_0=as_arrays(real), mu_s=0, sigma_s=0, **moments)
    for name in ("folder", "images.npz", "adm.npz"):
        found, _ = evaluate(tmp_path / name)
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-6), name
    found, evaluator = evaluate(tmp_path / "ttur.npz")
    assert found == {key: pytest.approx(expected[key]) for key in list(expected)[:3]}
    assert evaluator.about[1] == f"{tmp_path / 'ttur.npz'}: its mu and sigma, for FID"


def test_a_files_statistics_take_the_place_of_its_images_own(evaluate, tmp_path):
    real = noise(30, 0)
    expected, evaluator = evaluate(train=as_set(real))
    moments = {"mu": evaluator.real.mu + 1, "sigma": evaluator.real.sigma}
    np.savez(tmp_path / "adm.npz", arr_0=as_arrays(real), **moments)
    found, _ = evaluate(tmp_path / "adm.npz")
    assert found[KID] == pytest.approx(expected[KID]) and found[COVERAGE] == expected[COVERAGE]
    assert found[FID] > expected[FID] + 50  # 128 features, each 1 away


def test_the_split_is_the_configs(evaluate, monkeypatch):
    opened = []
    monkeypatch.setattr(
        reference, "open_dataset", lambda cfg, split: opened.append(split) or as_set(noise(30, 0))
    )
    with_val, _ = evaluate("val", as_set(noise(30, 5)))
    assert with_val == evaluate()[0] and opened == ["val", "train"]


def test_what_is_no_reference_is_one_line(evaluate, tmp_path):
    width = 128
    cases = {
        "absent.npz": (None, "TEST.REFERENCE: there is no file"),
        "absent": (None, "TEST.REFERENCE: .*absent does not exist"),
        "junk.npz": (b"junk", "not an .npz, or damaged"),
        "other.npz": ({"x": np.zeros(3)}, "holds x, but should hold mu and sigma, or images"),
        "half.npz": ({"mu": np.zeros(width)}, "holds mu, but should hold mu and sigma"),
        "wide.npz": ({"mu": np.zeros(2048), "sigma": np.eye(2048)}, r"\(2048,\) .*\(128, 128\)"),
        "nan.npz": ({"mu": np.full(width, np.nan), "sigma": np.eye(width)}, "should be finite"),
    }
    for name, (content, line) in cases.items():
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content:
            np.savez(path, **content)
        with pytest.raises(UserError, match=line) as error:
            evaluate(path)
        assert "\n" not in str(error.value)
