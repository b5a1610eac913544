"""The images of a search: which parts there are, that they share none, and what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evonorm_runs.errors import UserError
from evonorm_runs.images.garments import load_garments
from evonorm_search.config import load_config, parts, source
from evonorm_search.data import Source, count_to_train_on, load_data, load_part
from evonorm_search.evaluation import Proxy
from evonorm_search.evolution import Settings

ROOT = Path(__file__).parents[2]
PARTS = ("train", "val", "test")


def cifar10(root, per_class=(20, 3)):
    """Files as CIFAR-10's, in which an image's first pixel is its number: 5 files and 1."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for number, name in enumerate(names):
        count = 10 * (per_class[1] if name == "test_batch" else per_class[0] // 5)
        data = np.zeros((count, 3072), np.uint8)
        data[:, 0] = np.arange(count)
        data[:, 1024] = number
        file = {"data": data, "labels": [i % 10 for i in range(count)]}
        (folder / name).write_bytes(pickle.dumps(file))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    return root


@pytest.fixture
def own(tmp_path):
    """A folder with two classes of 10 images and one of 3; the colour is the image's number."""
    for name, count in (("a", 10), ("b", 10), ("c", 3)):
        (tmp_path / name).mkdir()
        for i in range(count):
            colour = (20 * i, "abc".index(name), 0)
            Image.new("RGB", (9, 7), colour).save(tmp_path / name / f"{i}.png")
    return tmp_path


def test_the_garments_are_the_default():
    data = load_data(Source())
    for found, part in ((data.train, "train"), (data.val, "val")):
        assert all(map(torch.equal, found, load_garments(part, 16)))
    assert count_to_train_on(Source()) == 8000


def test_a_folder_of_ones_own(own):
    where = Source("folder", str(own), 8)
    found = {part: load_part(where, part) for part in PARTS}
    seen = []
    for images, labels in found.values():
        assert images.shape[1:] == (3, 8, 8) and images.dtype == torch.uint8
        assert torch.equal(images[:, 1, 0, 0].long(), labels)
        seen += images[:, :2, 0, 0].tolist()
    assert len(seen) == 23 and len(set(map(tuple, seen))) == 23
    counts = {part: torch.bincount(labels).tolist() for part, (_, labels) in found.items()}
    assert counts == {"train": [8, 8, 1], "val": [1, 1, 1], "test": [1, 1, 1]}
    assert count_to_train_on(where) == 17
    again = load_part(where, "train")
    assert torch.equal(again[0], found["train"][0])


def test_cifar10(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)
    where = Source("CIFAR10", str(cifar10(tmp_path)), 32)
    found = {part: load_part(where, part) for part in PARTS}
    ids = {part: set(map(tuple, x[:, :2, 0, 0].tolist())) for part, (x, _) in found.items()}
    assert [len(ids[part]) for part in PARTS] == [180, 20, 30]
    assert len(set.union(*ids.values())) == 230
    assert {file for _, file in ids["test"]} == {5}  # the test file, and nothing else of it
    for part, count in zip(PARTS, (18, 2, 3)):
        images, labels = found[part]
        assert torch.equal(images[:, 0, 0, 0].long() % 10, labels)
        assert torch.bincount(labels).tolist() == [count] * 10


@pytest.mark.parametrize(
    "where, line",
    [
        (("folder", "nowhere", 8), "DATA.ROOT: there is no folder nowhere"),
        (("folder", ".", 8), "should hold a folder per class"),
        (("CIFAR10", "nowhere", 32), "DATA.ROOT: torchvision finds no CIFAR10 in nowhere"),
        (("CIFAR11", "nowhere", 32), "DATA.NAME: torchvision has no data set 'CIFAR11' to open"),
        (("garments", "", 24), "the garments come in a resolution of 16 or 28 or 32, not 24"),
    ],
)
def test_images_that_are_not_there_are_one_line(tmp_path, monkeypatch, where, line):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        count_to_train_on(Source(*where))
    assert line in str(error.value) and "\n" not in str(error.value)


def test_images_that_are_no_good_are_one_line(own, monkeypatch):
    where = Source("folder", str(own), 8)
    (own / "c/2.png").unlink()
    with pytest.raises(UserError, match="the class 'c' of .* has 2 images, too few"):
        count_to_train_on(where)
    (own / "c/2.png").write_text("no image")
    with pytest.raises(UserError, match="c/2.png: can't be decoded .* name another DATA.ROOT"):
        for part in PARTS:
            load_part(where, part)
    monkeypatch.setattr("evonorm_search.data.IN_MEMORY", 1000)
    with pytest.raises(UserError, match="17 images of 8x8 take .* GiB"):
        load_part(where, "train")


def test_the_papers_settings():
    """Those of sections 4.3, 4.4 and 5.1; the defaults of the code are the B search's."""
    for name, batch, steps, schedule in (
        ("paper_b", True, 2000, "constant"),
        ("paper_s", False, 5000, "cosine"),
    ):
        cfg = load_config(str(ROOT / f"configs/search/{name}.yaml"), ["DEVICE", "cpu"])
        space, settings, proxy = parts(cfg)
        assert space.batch == batch and settings == Settings()
        assert proxy == Proxy(steps=steps, schedule=schedule)
        assert proxy.batch_size == 128 and proxy.crop == 24 and proxy.lr == 0.1
        assert source(cfg) == Source("CIFAR10", "datasets/cifar10", 32)
        assert not cfg.SIEVE.DUPLICATES
        assert set(cfg.ANCHORS) == {"ResNet50-CIFAR", "MobileNetV2-CIFAR", "EfficientNet-CIFAR"}
