"""Statistics of real images and weights of extractors: kept, never stale, never half written."""

from __future__ import annotations

import hashlib
import shutil
import weakref

import numpy as np
import pytest
import torch
from PIL import Image

from evonorm_gan.data import open_dataset
from evonorm_gan.evaluation import embedded_extractor
from evonorm_gan.evaluation import inception as inception_module
from evonorm_gan.evaluation import real_statistics as module
from evonorm_gan.evaluation.extractor import Extractor
from evonorm_gan.evaluation.inception import inception_weights
from evonorm_gan.evaluation.real_statistics import real_statistics, subset
from evonorm_runs.images.sets import FolderSet, MemorySet


def as_set(images):
    return MemorySet(images, torch.arange(len(images)) % 10, [str(i) for i in range(10)])


def noise(num, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (num, 3, 32, 32), generator=generator, dtype=torch.uint8)


@pytest.fixture
def computed(tiny_set, monkeypatch):
    """The number of images of each pass through an extractor; the digits' is barely trained."""
    monkeypatch.setattr(embedded_extractor, "STEPS", {"digits": 2})
    monkeypatch.setattr(embedded_extractor, "open_dataset", lambda cfg, split: tiny_set)
    passes = []
    original = Extractor.stream

    def counted(self, batches, total, what):
        passes.append(total)
        return original(self, batches, total, what)

    monkeypatch.setattr(Extractor, "stream", counted)
    return passes


@pytest.fixture
def statistics(computed, tiny_cfg):
    """statistics(images): those of the images and the line about them."""
    extractor = Extractor(tiny_cfg(), "cpu")

    def get(images, extractor=extractor):
        return real_statistics(as_set(images), extractor, tiny_cfg())

    return get


def equal(a, b):
    pairs = [(vars(a)[name], vars(b)[name]) for name in ("mu", "sigma", "features")]
    return all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in pairs)


def test_statistics_are_computed_once(statistics, computed, tmp_path):
    first, about = statistics(noise(30))
    again, about_again = statistics(noise(30))
    assert computed == [30] and equal(first, again)
    (file,) = (tmp_path / "cache").glob("real-*")
    assert str(file) in about and str(file) in about_again
    assert np.allclose(first.mu, first.features.mean(0), atol=1e-6)
    assert np.allclose(first.sigma, torch.cov(first.features.double().T), atol=1e-6)


def test_a_stale_reuse_is_impossible(statistics, computed, tiny_cfg, monkeypatch):
    statistics(noise(30))

    changed = noise(30)
    changed[17, 2, 5, 5] ^= 1
    statistics(changed)
    assert computed == [30, 30]

    statistics(noise(31))
    assert computed == [30, 30, 31]

    monkeypatch.setattr(embedded_extractor, "STEPS", {"digits": 3})
    other = Extractor(tiny_cfg(), "cpu")
    statistics(noise(30), other)
    assert computed == [30, 30, 31, 30]

    # The file's name stays the same here, and its contents do not.
    shutil.copy(other.weights, other.weights.with_name("kept"))
    content = torch.load(other.weights)
    content["model"]["0.weight"][0, 0, 0, 0] += 1
    torch.save(content, other.weights)
    statistics(noise(30), Extractor(tiny_cfg(), "cpu"))
    assert computed == [30, 30, 31, 30, 30]

    monkeypatch.setitem(module.SUBSET, "digits", 12)
    assert len(statistics(noise(30))[0].features) == 12
    monkeypatch.setattr(module.torch_fidelity, "__version__", "0.5.0")
    statistics(noise(30))
    assert computed == [30, 30, 31, 30, 30, 30, 30]


def test_a_changed_file_is_noticed(statistics, computed, tiny_cfg, tmp_path):
    root = tmp_path / "images"
    for i, image in enumerate(noise(20)):
        (root / str(i % 10)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(root / str(i % 10) / f"{i}.png")
    cfg = tiny_cfg("DATA.NAME", "", "DATA.ROOT", root)

    def get():
        return real_statistics(open_dataset(cfg), Extractor(cfg, "cpu"), cfg)[0]

    first = get()
    assert equal(first, get()) and computed == [20]
    Image.new("RGB", (32, 32)).save(root / "3" / "3.png")
    assert not equal(first, get()) and computed == [20, 20]
    (root / "3" / "3.png").unlink()
    changed = get()
    assert computed == [20, 20, 19]
    # A copy, with other inodes and times, has the same statistics.
    shutil.copytree(root, tmp_path / "copy")
    there = tiny_cfg("DATA.NAME", "", "DATA.ROOT", tmp_path / "copy")
    again = real_statistics(open_dataset(there), Extractor(there, "cpu"), there)[0]
    assert equal(changed, again) and computed == [20, 20, 19]


def test_files_are_read_once_to_know_them_again(
    statistics, computed, tiny_cfg, tmp_path, monkeypatch
):
    for i in range(10):
        (tmp_path / "images" / str(i)).mkdir(parents=True)
        Image.new("RGB", (32, 32), (i, 0, 0)).save(tmp_path / "images" / str(i) / "1.png")
    cfg = tiny_cfg("DATA.NAME", "", "DATA.ROOT", tmp_path / "images")
    extractor = Extractor(cfg, "cpu")
    first = real_statistics(open_dataset(cfg), extractor, cfg)[0]
    monkeypatch.setattr(FolderSet, "fingerprint", lambda self: pytest.fail("read again"))
    assert equal(first, real_statistics(open_dataset(cfg), extractor, cfg)[0])
    (known,) = (tmp_path / "cache").glob("content-*.txt")
    monkeypatch.undo()
    known.write_text("cut")
    assert equal(first, real_statistics(open_dataset(cfg), extractor, cfg)[0])
    assert len(known.read_text()) == 64


def flip_a_bit(data):
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-100], lambda data: b"", lambda data: b"junk" * 99, flip_a_bit],
    ids=["cut", "empty", "junk", "a bit"],
)
def test_a_damaged_file_is_computed_again(statistics, computed, tmp_path, caplog, damage):
    first, _ = statistics(noise(30))
    (file,) = (tmp_path / "cache").glob("real-*")
    file.write_bytes(damage(file.read_bytes()))
    again, _ = statistics(noise(30))
    assert computed == [30, 30] and equal(first, again)
    (record,) = caplog.records
    assert str(file) in record.getMessage() and "damaged" in record.getMessage()
    statistics(noise(30))
    assert computed == [30, 30]


def test_a_file_of_another_key_is_not_taken(statistics, computed, tmp_path):
    statistics(noise(30))
    (first,) = (tmp_path / "cache").glob("real-*")
    statistics(noise(30, seed=1))
    (second,) = set((tmp_path / "cache").glob("real-*")) - {first}
    shutil.copy(first, second)
    statistics(noise(30, seed=1))
    assert computed == [30, 30, 30]


def test_a_folder_that_cannot_be_made_is_named(computed, tiny_cfg, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file") as caught:
        Extractor(tiny_cfg("TEST.CACHE_DIR", tmp_path / "file"), "cpu")
    assert "\n" not in str(caught.value)


def test_moments_are_numpys_in_float64_and_keep_no_batch():
    """With a mean of 1000 and deviations of 0.01, which float32 sums would lose."""
    x = torch.randn(1000, 5, generator=torch.Generator().manual_seed(0))
    x = 1000 + 0.01 * x * torch.arange(1, 6)
    alive = []

    def batches():
        for part in x.split(64):
            batch = part.clone()
            alive.append(weakref.ref(batch))
            yield batch
            del batch
            assert sum(ref() is not None for ref in alive) <= 1

    mu, sigma = module.moments(batches())
    np.testing.assert_allclose(mu, x.double().mean(0), rtol=1e-12)
    np.testing.assert_allclose(sigma, np.cov(x.double().numpy().T), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("limit", [10, 30, 100])
def test_the_rows_of_a_subset_are_picked_from_batches(statistics, tiny_cfg, limit):
    extractor, images = Extractor(tiny_cfg(), "cpu"), noise(30)
    whole = extractor.features([(images, 30)], 30, "images")[0]
    cfg = tiny_cfg("TEST.SUBSET", limit, "TEST.BATCH_SIZE", 4)
    found = real_statistics(as_set(images), extractor, cfg)[0]
    expected = whole[subset(30, limit)]
    torch.testing.assert_close(found.features, expected, rtol=1e-4, atol=1e-5)


def test_a_subset_is_fixed_spread_and_in_order():
    chosen = subset(1000, 100)
    assert torch.equal(chosen, subset(1000, 100)) and len(chosen.unique()) == 100
    assert (chosen.diff() > 0).all() and chosen[0] < 100 and chosen[-1] > 900
    assert torch.equal(subset(7, 100), torch.arange(7))


# Inception's weights


@pytest.fixture
def inception(tiny_cfg, monkeypatch, tmp_path):
    """inception(*KEY VALUE): a config with Inception; nothing on this machine is looked at."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(
        inception_module, "URL_INCEPTION_V3", "http://127.0.0.1:9/weights-6726825d.pth"
    )
    return lambda *opts: tiny_cfg("TEST.EXTRACTOR", "inception-v3-compat", *opts)


def failure(call, *args):
    with pytest.raises(ValueError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_weights_and_network_one_line_says_where_they_go(inception, tmp_path):
    line = failure(Extractor, inception(), "cpu")
    path = tmp_path / "home" / "hub" / "checkpoints" / "weights-6726825d.pth"
    assert str(path) in line and inception_module.URL_INCEPTION_V3 in line
    assert "--inception-weights" in line
    named = failure(Extractor, inception("TEST.INCEPTION_WEIGHTS", tmp_path / "none.pth"), "cpu")
    assert str(tmp_path / "none.pth") in named


def test_a_download_is_checked(inception, tmp_path, monkeypatch):
    source = tmp_path / "weights-6726825d.pth"
    source.write_bytes(b"weights")
    monkeypatch.setattr(inception_module, "URL_INCEPTION_V3", source.as_uri())
    path = tmp_path / "home" / "hub" / "checkpoints" / source.name
    assert "sha256" in failure(inception_weights, inception())
    assert not path.exists()
    digest = hashlib.sha256(b"weights").hexdigest()
    monkeypatch.setattr(inception_module, "PUBLISHED", digest[:8])
    assert inception_weights(inception()) == path and path.read_bytes() == b"weights"
    source.unlink()
    assert inception_weights(inception()) == path  # is there


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("kind", ["junk", "code", "other"])
def test_weights_that_are_none_are_refused_and_run_no_code(inception, tmp_path, kind):
    path = tmp_path / "weights.pth"
    content = {"code": Harmful(str(tmp_path / "ran")), "other": {"conv.weight": torch.ones(1)}}
    if kind == "junk":
        path.write_bytes(b"junk")
    else:
        torch.save(content[kind], path)
    line = failure(Extractor, inception("TEST.INCEPTION_WEIGHTS", path), "cpu")
    assert str(path) in line and not (tmp_path / "ran").exists()
    assert len(line) < 300
