"""DiffAugment's changes against plain references, image by image."""

from __future__ import annotations

import pytest
import torch

from evonorm_gan import augment
from evonorm_gan.augment import diff_augment
from evonorm_runs.errors import UserError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images():
    return torch.rand(64, 3, 16, 24, dtype=torch.float64, generator=generator(1)) * 2 - 1


@pytest.mark.parametrize("policy", ["color", "translation", "cutout", "color,translation,cutout"])
def test_gradient(policy):
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64, generator=generator(1), requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: diff_augment(x, policy, generator()), images)


def test_brightness(images):
    shift = (augment.brightness(images, generator()) - images).flatten(1)
    assert (shift - shift[:, :1]).abs().max() < 1e-12
    assert shift.min() >= -0.5 and shift.max() < 0.5
    assert shift[:, 0].std() == pytest.approx(12**-0.5, rel=0.2)  # uniform, and per image


def test_saturation(images):
    changed = augment.saturation(images, generator())
    torch.testing.assert_close(changed.mean(1), images.mean(1))  # the grey image stays
    factor = (changed - changed.mean(1, True)) / (images - images.mean(1, True))
    factor = factor.flatten(1)
    torch.testing.assert_close(factor, factor[:, :1].expand_as(factor), rtol=1e-6, atol=1e-6)
    assert 0 <= factor.min() < 0.2 and 1.8 < factor.max() < 2


def test_contrast(images):
    changed = augment.contrast(images, generator()).flatten(1)
    images = images.flatten(1)
    torch.testing.assert_close(changed.mean(1), images.mean(1))
    factor = changed.std(1) / images.std(1)
    assert 0.5 <= factor.min() < 0.6 and 1.4 < factor.max() < 1.5
    expected = images.mean(1, True) + factor[:, None] * (images - images.mean(1, True))
    torch.testing.assert_close(changed, expected)


def shifted(image, down, right):
    """By slices: the image moved by whole pixels, zeros where nothing comes from."""
    height, width = image.shape[1:]
    out = torch.zeros_like(image)
    out[:, max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)] = image[
        :, max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)
    ]
    return out


def test_translation(images):
    found = set()
    for image, moved in zip(images, augment.translation(images, generator())):
        shifts = [
            (down, right)
            for down in range(-2, 3)  # 16 / 8
            for right in range(-3, 4)  # 24 / 8
            if torch.equal(shifted(image, down, right), moved)
        ]
        assert len(shifts) == 1
        found.update(shifts)
    assert {down for down, _ in found} == set(range(-2, 3))
    assert {right for _, right in found} == set(range(-3, 4))


def test_cutout(images):
    changed = augment.cutout(images, generator())
    cut = changed == 0
    assert torch.equal(changed[~cut], images[~cut])
    assert torch.equal(cut[:, :1].expand_as(cut), cut)  # the same in all channels
    heights, widths = cut[:, 0].any(2).sum(1), cut[:, 0].any(1).sum(1)
    assert torch.equal(cut[:, 0].sum((1, 2)), heights * widths)  # a full rectangle
    # A half, less what lies outside of the image, which is at most half of it.
    assert heights.min() >= 4 and heights.max() == 8
    assert widths.min() >= 6 and widths.max() == 12


def test_cutout_of_an_odd_length():
    cut = augment.cutout(torch.ones(500, 1, 6, 10), generator())[:, 0] == 0
    heights, widths = cut.any(2).sum(1), cut.any(1).sum(1)
    # 3 and 5 pixels; at the border the one in the middle is still inside.
    assert (heights.min(), heights.max(), widths.min(), widths.max()) == (2, 3, 3, 5)


def test_odd_sizes_and_half_precision():
    images = torch.rand(5, 3, 7, 9, generator=generator(1)).bfloat16()
    changed = diff_augment(images, "color, translation, cutout", generator())
    assert changed.shape == images.shape and changed.dtype == torch.bfloat16


def test_draws_come_from_the_generator_alone(images):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    policy = "color,translation,cutout"
    first, second = (diff_augment(images, policy, generator(s)) for s in (3, 3))
    assert torch.equal(first, second)
    assert not torch.equal(first, diff_augment(images, policy, generator(4)))
    assert torch.equal(torch.get_rng_state(), before)


def test_policy(images):
    assert diff_augment(images, "", generator()) is images
    with pytest.raises(UserError, match="'colour' is not known; known are color, translation"):
        diff_augment(images, "translation,colour", generator())
    with pytest.raises(UserError, match="'' is not known"):
        diff_augment(images, "color,", generator())
