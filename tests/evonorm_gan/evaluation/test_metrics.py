"""The numbers: against closed forms, other libraries and torch-fidelity's own call."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
import torch
import torch_fidelity
from cleanfid.resize import build_resizer
from pytorch_fid.fid_score import calculate_frechet_distance
from sklearn.metrics.pairwise import polynomial_kernel
from sklearn.neighbors import NearestNeighbors
from torch_fidelity.defaults import DEFAULTS
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import fid_features_to_statistics
from torchvision.transforms.functional import to_pil_image

from evonorm_gan import sampling
from evonorm_gan.evaluation import embedded_extractor, metrics
from evonorm_gan.evaluation.clean_inception import clean_resize
from evonorm_gan.evaluation.density import density_and_coverage
from evonorm_gan.evaluation.extractor import Extractor
from evonorm_gan.evaluation.metrics import (
    COUNTS,
    METRICS,
    Evaluator,
    compute_metrics,
    metric_key,
)
from evonorm_gan.evaluation.real_statistics import RealStatistics
from evonorm_gan.models import Generator
from evonorm_runs.images.files import image_batches
from evonorm_runs.images.sets import MemorySet

NO_LIMIT = 10**9


def statistics_of(features):
    made = fid_features_to_statistics(features)
    return RealStatistics(made["mu"], made["sigma"], features)


def draws(num, width, seed=0, dtype=torch.float64):
    return torch.randn(num, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def exactly(mean, covariance, num=50):
    """Features (num, width) float64 whose sample mean and covariance are these."""
    x = draws(num, len(mean))
    x = x - x.mean(0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T
    mean, covariance = (torch.tensor(value).double() for value in (mean, covariance))
    return x @ torch.linalg.cholesky(covariance).T + mean


@pytest.fixture
def small_kid(monkeypatch):
    """KID over subsets of 100: as exact, in a hundredth of the time."""
    monkeypatch.setattr(metrics, "KID_SUBSET", 100)


def test_fid_of_gaussians_is_the_closed_form(small_kid):
    logits = draws(50, 4)
    real = exactly([0.0, 1.0, -2.0], [[4.0, 0, 0], [0, 9.0, 0], [0, 0, 0.25]])
    fake = exactly([1.0, 1.0, -4.0], [[1.0, 0, 0], [0, 16.0, 0], [0, 0, 0.25]])
    fid = compute_metrics(fake, logits, statistics_of(real), NO_LIMIT)["FID"]
    assert fid == pytest.approx(1 + 4 + (2 - 1) ** 2 + (3 - 4) ** 2, rel=1e-9)
    # Two dimensions that do not commute: tr sqrt(AB) = sqrt(tr AB + 2 sqrt(det AB)).
    a, b = [[2.0, 1.0], [1.0, 3.0]], [[1.0, -0.5], [-0.5, 0.5]]
    root = math.sqrt(np.trace(np.array(a) @ b) + 2 * math.sqrt(np.linalg.det(a) * np.linalg.det(b)))
    real, fake = exactly([0.0, 0.0], a), exactly([0.5, 2.0], b)
    fid = compute_metrics(fake, logits, statistics_of(real), NO_LIMIT)["FID"]
    assert fid == pytest.approx(0.25 + 4 + 5 + 1.5 - 2 * root, rel=1e-9)


def polynomial_distance(mean_1, var_1, mean_2, var_2):
    """Squared MMD of two Gaussians, independent per coordinate, under (x.y / d + 1)^3.

    The binomial formula makes it a sum over distances of the moment tensors of order 1, 2 and 3.
    """

    def moments(m, v):
        s = torch.diag(v)
        second = torch.outer(m, m) + s
        third = torch.einsum("i,j,k->ijk", m, m, m)
        for order in ("i,jk->ijk", "j,ik->ijk", "k,ij->ijk"):
            third = third + torch.einsum(order, m, s)
        return m, second, third

    d = len(mean_1)
    pairs = zip(moments(mean_1, var_1), moments(mean_2, var_2))
    return sum(
        math.comb(3, p) / d**p * (a - b).square().sum().item() for p, (a, b) in enumerate(pairs, 1)
    )


def test_kid_of_gaussians_is_the_closed_form(small_kid):
    mean, scale = torch.tensor([1.0, -0.5, 0.0]).double(), torch.tensor([1.0, 2.0, 0.5]).double()
    real, fake = draws(3000, 3), draws(3000, 3, seed=1) * scale + mean
    limit = 3000
    kid = compute_metrics(fake, draws(3000, 4), statistics_of(real), limit)["KID"]
    expected = polynomial_distance(mean, scale**2, torch.zeros(3).double(), torch.ones(3).double())
    assert kid == pytest.approx(expected, rel=0.1)  # 3 standard errors
    same = compute_metrics(draws(3000, 3, 2), draws(3000, 4), statistics_of(real), limit)["KID"]
    assert abs(same) < 0.01 * expected


def test_kid_is_the_unbiased_estimate_with_the_cubic_kernel(small_kid):
    fake, real = draws(130, 5), draws(120, 5, seed=1) + 0.3
    rng = np.random.RandomState(2020)
    values = []
    for _ in range(100):
        x = fake[rng.choice(130, 100, replace=False)]
        y = real[rng.choice(120, 100, replace=False)]
        xx, yy, xy = (
            polynomial_kernel(a, b, degree=3, gamma=1 / 5, coef0=1)
            for a, b in ((x, x), (y, y), (x, y))
        )
        within = (k[~np.eye(100, dtype=bool)].mean() for k in (xx, yy))
        values.append(sum(within) - 2 * xy.mean())
    kid = compute_metrics(fake, draws(130, 4), statistics_of(real), NO_LIMIT)["KID"]
    assert kid == pytest.approx(np.mean(values), rel=1e-9)


# SciPy will remove an argument that pytorch-fid 0.3.0 uses.
@pytest.mark.filterwarnings("ignore:The `disp` argument is deprecated")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fid_is_that_of_pytorch_fid(small_kid, dtype):
    mix = draws(16, 16, seed=2, dtype=dtype)
    real, fake = draws(300, 16, dtype=dtype) @ mix, draws(250, 16, seed=1, dtype=dtype).exp()
    moments = [m for x in (fake, real) for m in (x.numpy().mean(0), np.cov(x.numpy().T))]
    fid = compute_metrics(fake, draws(250, 4), statistics_of(real), NO_LIMIT)["FID"]
    assert fid == pytest.approx(calculate_frechet_distance(*moments), rel=1e-6)


def test_inception_score_is_the_formula(small_kid):
    logits = 3 * draws(203, 7)
    order = np.random.RandomState(2020).permutation(203)
    p = np.exp(logits.numpy()[order])
    p /= p.sum(1, keepdims=True)
    scores = []
    for i in range(10):
        part = p[i * 203 // 10 : (i + 1) * 203 // 10]
        scores.append(np.exp((part * np.log(part / part.mean(0))).sum(1).mean()))
    features = draws(203, 3)
    found = compute_metrics(features, logits, statistics_of(features), NO_LIMIT)
    assert found["IS"] == pytest.approx(np.mean(scores), rel=1e-9)
    assert found["IS_std"] == pytest.approx(np.std(scores), rel=1e-9)


def test_precision_and_recall_are_shares_within_the_others_third_neighbours(small_kid):
    real, fake = draws(120, 2), 0.5 * draws(150, 2, seed=1) + 1

    def share_within(points, others):
        radius = NearestNeighbors(n_neighbors=4).fit(others).kneighbors(others)[0][:, 3]
        return (np.linalg.norm(points[:, None] - others[None], axis=2) <= radius).any(1).mean()

    found = compute_metrics(fake, draws(150, 4), statistics_of(real), NO_LIMIT)
    assert found["precision"] == pytest.approx(share_within(fake.numpy(), real.numpy()), abs=1e-6)
    assert found["recall"] == pytest.approx(share_within(real.numpy(), fake.numpy()), abs=1e-6)
    assert found["precision"] > found["recall"] + 0.2  # so that they can't be mixed up
    assert [found[name] for name in COUNTS] == [150, 120]


def test_density_and_coverage_are_the_definition(small_kid):
    """Of the paper, over all pairs in float64."""
    real, fake = draws(60, 3), 0.7 * draws(90, 3, seed=1) + 0.4
    distances = (real[:, None] - real[None]).square().sum(2).sqrt()
    radius = distances.sort(1).values[:, 5]  # the first one is the image itself
    inside = (real[:, None] - fake[None]).square().sum(2).sqrt() < radius[:, None]
    found = compute_metrics(fake, draws(90, 4), statistics_of(real), NO_LIMIT)
    assert found["density"] == pytest.approx(inside.sum().item() / (5 * 90), abs=1e-12)
    assert found["coverage"] == pytest.approx(inside.any(1).sum().item() / 60, abs=1e-12)
    assert 0.1 < found["coverage"] < 0.9


def test_density_and_coverage_of_what_is_known_by_hand():
    """On a line, 0 to 9: the fifth neighbour is 5 away at the ends, and at least 3 everywhere."""
    real = torch.arange(10.0)[:, None]
    far, near = torch.full((4, 1), 100.0), torch.full((4, 1), 0.5)
    assert density_and_coverage(far, real, 3) == (0.0, 0.0)
    # 0.5 lies in the balls around 0 (radius 5), 1 (4), 2 (3) and 3 (3).
    assert density_and_coverage(near, real, 3) == (pytest.approx(4 / 5), pytest.approx(0.4))


def test_precision_and_recall_in_blocks_are_those_at_once(small_kid, monkeypatch):
    real, fake, logits = draws(230, 8), draws(250, 8, seed=1) + 0.5, draws(250, 4)
    whole = compute_metrics(fake, logits, statistics_of(real), NO_LIMIT)
    monkeypatch.setattr(metrics, "ALL_AT_ONCE", 200)
    monkeypatch.setattr(metrics, "BLOCK", 37)
    shapes = []
    cdist = torch.cdist
    monkeypatch.setattr(torch, "cdist", lambda a, b: shapes.append(len(a)) or cdist(a, b))
    assert compute_metrics(fake, logits, statistics_of(real), NO_LIMIT) == whole
    assert max(shapes) == 37
    few = compute_metrics(fake, logits, statistics_of(real[:100]), 100)
    assert [few[name] for name in COUNTS] == [100, 100] and few["recall"] != whole["recall"]


def test_the_number_of_images_is_the_configs(digits, tiny_cfg):
    real = as_set(noise(40, 0))
    for setting, expected in ((None, [30, 40]), (12, [12, 12]), (50_000, [30, 40])):
        evaluator = Evaluator(tiny_cfg("TEST.SUBSET", setting), real, "cpu")
        found = evaluator.evaluate_images([noise(30, 1)])
        assert [found[name] for name in COUNTS] == expected


def test_no_setting_is_left_to_torch_fidelity(small_kid, monkeypatch):
    fake, real, logits = draws(60, 4), draws(50, 4, 1), draws(60, 3)
    before = compute_metrics(fake, logits, statistics_of(real), NO_LIMIT)
    for name in DEFAULTS:
        monkeypatch.setitem(DEFAULTS, name, "not to be used")
    assert compute_metrics(fake, logits, statistics_of(real), NO_LIMIT) == before
    # It would ignore a name that it does not know.
    assert set(metrics.SETTINGS) <= set(DEFAULTS)


# The evaluator


@pytest.fixture
def digits(tiny_set, monkeypatch):
    """Noise for the digits, and a classifier of one step."""
    monkeypatch.setattr(embedded_extractor, "STEPS", {"digits": 2})
    monkeypatch.setattr(embedded_extractor, "open_dataset", lambda cfg, split: tiny_set)


def noise(num, seed, size=32):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(num, 3, size, size, generator=generator)
    images *= 255 * torch.rand(num, 3, 1, 1, generator=generator)
    return images.to(torch.uint8)


def as_set(images):
    return MemorySet(images, torch.arange(len(images)) % 10, [str(i) for i in range(10)])


def as_folder(images, folder):
    folder.mkdir()
    for i, image in enumerate(images):
        to_pil_image(image).save(folder / f"{i:05d}.png")
    return folder


def by_torch_fidelity(fake, real, evaluator):
    """The metrics of two folders by torch-fidelity alone, which has no density and coverage."""
    found = torch_fidelity.calculate_metrics(
        input1=str(fake),
        input2=str(real),
        **dict.fromkeys(("isc", "fid", "kid", "prc"), True),
        feature_extractor=evaluator.extractor.name,
        feature_extractor_weights_path=str(evaluator.extractor.weights),
        kid_subset_size=min(len(list(fake.iterdir())), len(list(real.iterdir()))),
        cuda=False,
        cache=False,
        save_cpu_ram=True,  # no worker processes
        verbose=False,
    )
    names = ("inception_score_mean", "inception_score_std", "frechet_inception_distance")
    names += ("kernel_inception_distance_mean", "precision", "recall")
    keys = [metric_key(name, evaluator.extractor.name) for name in METRICS[:6]]
    counts = (len(list(folder.iterdir())) for folder in (fake, real))
    return {key: found[name] for key, name in zip(keys, names)} | dict(zip(COUNTS, counts))


def test_torch_fidelitys_own_call_gives_the_same(digits, tiny_cfg, tmp_path):
    real, fake = noise(70, 0), noise(90, 1)
    evaluator = Evaluator(tiny_cfg(), as_set(real), "cpu")
    folders = as_folder(fake, tmp_path / "fake"), as_folder(real, tmp_path / "real")
    found = evaluator.evaluate_images(image_batches(folders[0], 32, 16))
    # What differs is the batch size, and so the order of sums in the classifier.
    assert 0 <= found.pop(metric_key("coverage", "digits")) <= 1
    assert found.pop(metric_key("density", "digits")) >= 0
    assert found == pytest.approx(by_torch_fidelity(*folders, evaluator), rel=1e-3, abs=1e-6)
    assert all(math.isfinite(x) for x in found.values())


@pytest.fixture(scope="session")
def random_inception(tmp_path_factory):
    """A file of Inception weights; the published ones can't be had in a test."""

    class Untrained(FeatureExtractorInceptionV3):
        def load_state_dict(self, state_dict):
            pass

    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save({}, path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Untrained("inception-v3-compat", ["2048"], str(path))
        for name, weight in model.state_dict().items():
            if "conv.weight" in name:  # keeps the signal's size through the layers
                torch.nn.init.kaiming_normal_(weight, nonlinearity="relu")
    torch.save(model.state_dict(), path)
    return path


@pytest.mark.slow
def test_torch_fidelitys_own_call_with_inception_gives_the_same(
    random_inception, tiny_cfg, tmp_path
):
    real, fake = noise(10, 0), noise(12, 1)
    settings = ["TEST.EXTRACTOR", "inception-v3-compat", "TEST.INCEPTION_WEIGHTS"]
    evaluator = Evaluator(tiny_cfg(*settings, random_inception), as_set(real), "cpu")
    assert "NOT the published" in evaluator.about[0]
    folders = as_folder(fake, tmp_path / "fake"), as_folder(real, tmp_path / "real")
    found = evaluator.evaluate_images(image_batches(folders[0], 32, 6))
    assert list(found) == list(METRICS + COUNTS)
    found = {name: x for name, x in found.items() if name not in ("density", "coverage")}
    assert found == pytest.approx(by_torch_fidelity(*folders, evaluator), rel=2e-3, abs=1e-5)


def by_clean_fid(image):
    """An image (3, H, W) uint8 as clean-fid hands it to its networks, (3, 299, 299)."""
    return torch.from_numpy(build_resizer("clean")(image.permute(1, 2, 0).numpy())).permute(2, 0, 1)


@pytest.mark.parametrize("size", [32, 96, 299, 350])
def test_clean_resizing_is_that_of_clean_fid(size):
    images = noise(2, 0, size)
    images[1, :, : size // 2] = 255  # an edge, which bicubic weights overshoot at
    for image, resized in zip(images, clean_resize(images, 299)):
        assert (resized - by_clean_fid(image)).abs().max() < 0.01  # of 255


def test_the_clean_inception_sees_it_and_is_else_the_same(random_inception, tiny_cfg):
    settings = ("TEST.INCEPTION_WEIGHTS", random_inception, "TEST.EXTRACTOR")
    names = ("inception-v3-clean", "inception-v3-compat")
    clean, compat = (Extractor(tiny_cfg(*settings, name), "cpu") for name in names)
    assert "as clean-fid does, bicubic and antialiased" in clean.describe()
    assert "bilinear without antialiasing" in compat.describe()
    seen = []
    clean.model.Conv2d_1a_3x3.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    small, large = noise(1, 0), noise(1, 1, 299)
    with torch.no_grad():
        found = clean.model(small)
        assert (seen[0][0] * 128 + 128 - by_clean_fid(small[0])).abs().max() < 0.01
        assert not torch.allclose(found[0], compat.model(small)[0], rtol=1e-2)
        # Where there is nothing to resize, they agree.
        for one, other in zip(clean.model(large), compat.model(large)):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("norm", ["EvoNormS0", "BN-ReLU"])
def test_a_generator_is_sampled_by_class_and_left_as_it_is(digits, tiny_cfg, norm):
    cfg = tiny_cfg("MODEL.NORM", norm)
    evaluator = Evaluator(cfg, as_set(noise(40, 0)), "cpu")
    G = Generator(32, 4, 10, norm=norm, dim_z=8).train()
    before = {name: x.clone() for name, x in G.state_dict().items()}
    found = evaluator.evaluate(G, seed=5, truncation=0.7)
    assert G.training and not G._forward_hooks
    assert all(torch.equal(x, before[name]) for name, x in G.state_dict().items())

    sampling.standing_statistics(G, 2, 10, seed=5, truncation=0.7)
    moved = any(not torch.equal(x, before[name]) for name, x in G.state_dict().items())
    assert moved == (norm == "BN-ReLU")
    z, y = sampling.latents(20, 8, 10, seed=5, truncation=0.7)
    assert len(y.unique()) > 5
    assert found == evaluator.evaluate_images(sampling.generate(G, z, y, batch_size=10))


def test_truncation_is_the_configs_unless_given(digits, tiny_cfg):
    evaluator = Evaluator(tiny_cfg("TEST.TRUNCATION", 0.5), as_set(noise(40, 0)), "cpu")
    G = Generator(32, 4, 10, dim_z=8)
    default = evaluator.evaluate(G)
    assert default == evaluator.evaluate(G, truncation=0.5)
    assert default != evaluator.evaluate(G, truncation=None)


def test_the_words_are_in_every_key():
    for name in METRICS:
        assert metric_key(name, "inception-v3-compat") == name
        assert metric_key(name, "inception-v3-clean") == f"{name}-clean"
        assert metric_key(name, "digits") == f"{name}-digits (not comparable with Inception)"


# Bad input, and what torch-fidelity would do with it


def one_line(caught):
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_nan_images_and_nan_features_are_named(digits, tiny_cfg):
    evaluator = Evaluator(tiny_cfg(), as_set(noise(40, 0)), "cpu")
    G = Generator(32, 4, 10, dim_z=8)
    with torch.no_grad():
        next(G.parameters()).fill_(math.nan)
    with pytest.raises(ValueError, match="diverged") as caught:
        evaluator.evaluate(G)
    one_line(caught)
    with pytest.raises(ValueError, match="NaN or infinity from number 16 on") as caught:
        evaluator.evaluate_images(at_fault_in_the_second_batch(evaluator.extractor.model))
    one_line(caught)


def at_fault_in_the_second_batch(extractor):
    yield noise(16, 0)
    with torch.no_grad():
        extractor.model[-1].bias[3] = math.nan
    yield noise(16, 1)


def test_too_few_images_are_refused(digits, tiny_cfg):
    for num, what in ((9, "real images: 9"), (0, "real images: 0")):
        with pytest.raises(ValueError, match=what) as caught:
            Evaluator(tiny_cfg(), as_set(noise(num, 0)), "cpu")
        assert "10 splits" in one_line(caught)
    evaluator = Evaluator(tiny_cfg(), as_set(noise(10, 0)), "cpu")
    for call in (
        lambda: evaluator.evaluate_images(noise(9, 0).split(4)),
        lambda: evaluator.evaluate_images([]),
    ):
        with pytest.raises(ValueError, match=r"9 are too few|there is no image") as caught:
            call()
        one_line(caught)


def test_ten_images_give_numbers_and_notes(digits, tiny_cfg, caplog):
    evaluator = Evaluator(tiny_cfg(), as_set(noise(40, 0)), "cpu")
    caplog.clear()
    found = evaluator.evaluate_images([noise(10, 1)])
    assert all(math.isfinite(x) for x in found.values())
    kid, fid = (record.getMessage() for record in caplog.records)
    assert "10 images are few: KID takes subsets of 10" in kid and "features (128)" in fid
    caplog.clear()
    evaluator.evaluate_images([noise(10, 1)])
    assert not caplog.records  # said once


def test_a_gpu_is_not_used_unasked(digits, tiny_cfg, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("moved to a GPU")

    monkeypatch.setattr(torch.nn.Module, "cuda", refuse)
    monkeypatch.setattr(torch.Tensor, "cuda", refuse)
    evaluator = Evaluator(tiny_cfg(), as_set(noise(12, 0)), "cpu")
    evaluator.evaluate_images([noise(10, 1)])


def test_nothing_is_left_in_torch_fidelitys_cache(digits, tiny_cfg, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    Evaluator(tiny_cfg(), as_set(noise(12, 0)), "cpu").evaluate_images([noise(10, 1)])
    assert not (tmp_path / "home").exists()
    assert all("cache" in os.fspath(p) for p in tmp_path.rglob("*.pt"))
