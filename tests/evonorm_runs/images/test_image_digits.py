"""The digits: real scans, split by scan, coloured alike in all classes, always the same."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from torch.nn import functional as F

from evonorm_runs.errors import UserError
from evonorm_runs.images.digits import VARIANTS, load_scans, make_digits


@pytest.fixture(scope="module")
def train():
    return make_digits("train", 32)


@pytest.fixture(scope="module")
def val():
    return make_digits("val", 32)


def test_each_scan_is_in_one_split():
    scans = [load_scans(split) for split in ("train", "val")]
    assert [len(images) for images, _ in scans] == [1437, 360]
    rows = np.concatenate([(images * 16).flatten(1).numpy() for images, _ in scans])
    labels = np.concatenate([labels.numpy() for _, labels in scans])
    ours, theirs = np.c_[rows, labels], np.c_[load_digits().data, load_digits().target]
    share = np.bincount(scans[1][1]) / np.bincount(load_digits().target)
    assert (abs(share - 0.2) < 0.01).all()
    np.testing.assert_array_equal(ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)])


def test_shapes_and_balance(train, val):
    for split, (images, labels) in (("train", train), ("val", val)):
        assert images.shape == (len(labels), 3, 32, 32)
        assert images.dtype == torch.uint8 and labels.dtype == torch.int64
        expected = torch.bincount(load_scans(split)[1]) * VARIANTS[split]
        assert torch.equal(torch.bincount(labels), expected)


def test_always_the_same_and_the_global_generator_stays(val):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    images, labels = make_digits("val", 32)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(images, val[0]) and torch.equal(labels, val[1])


def test_variants_of_a_scan_differ(val):
    images = val[0].view(-1, VARIANTS["val"], 3, 32, 32)
    for i in range(VARIANTS["val"]):
        for j in range(i):
            assert (images[:, i] != images[:, j]).flatten(1).any(1).all()


def test_legible_labels_fit(train, val):
    """Nearest neighbours of another split's grey images name nearly all digits."""

    def features(images):
        grey = images.float().amax(1, keepdim=True)
        grey = F.avg_pool2d(grey, 2).flatten(1)
        return (grey - grey.mean(1, keepdim=True)) / grey.std(1, keepdim=True)

    model = KNeighborsClassifier(1).fit(features(train[0][::4]), train[1][::4])
    assert model.score(features(val[0]), val[1]) > 0.9


def test_bright_ink_on_a_dark_ground_of_any_hue(val):
    images = val[0].double() / 255
    value = images.amax(1).flatten(1)
    darkest = images.flatten(2)[torch.arange(len(images)), :, value.argmin(1)]
    brightest = images.flatten(2)[torch.arange(len(images)), :, value.argmax(1)]
    for colours, s_range, v_range in (
        (darkest, (0.3, 0.6), (0.1, 0.3)),
        (brightest, (0.2, 0.6), (0.8, 1.0)),
    ):
        h, s, v = np.array([colorsys.rgb_to_hsv(*rgb) for rgb in colours.tolist()]).T
        assert v.min() > v_range[0] - 0.005 and v.max() < v_range[1] + 0.005
        assert s.min() > s_range[0] - 0.06 and s.max() < s_range[1] + 0.06  # of rounded colours
        share = np.histogram(h, 6, (0, 1))[0] / len(h)
        assert (abs(share - 1 / 6) < 0.05).all()


def test_colours_tell_nothing_of_the_class(train):
    images, labels = train
    means = torch.stack([images[labels == c].float().amax((2, 3)).mean(0) for c in range(10)])
    assert (means - means.mean(0)).abs().max() < 5  # levels of 255


def test_the_other_resolution_shows_the_same(val):
    images, labels = make_digits("val", 64)
    assert images.shape == (len(val[0]), 3, 64, 64) and torch.equal(labels, val[1])
    smaller = F.avg_pool2d(images.float(), 2)
    assert (smaller - val[0].float()).abs().mean() < 3


@pytest.mark.parametrize(
    ("arguments", "line"),
    [(("train", 128), "32 or 64, not 128"), (("test", 32), "no split 'test'")],
)
def test_bad_arguments(arguments, line):
    with pytest.raises(UserError, match=line):
        make_digits(*arguments)
