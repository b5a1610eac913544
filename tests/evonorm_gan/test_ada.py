"""ADA's changes against plain references, and its probability against a closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from evonorm_gan import ada
from evonorm_gan.ada import AdaptiveProbability, ada_augment
from evonorm_runs.errors import UserError

ALL = "blit,geometry,color"


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(num, size, seed=1):
    return torch.rand(num, 3, size, size, dtype=torch.float64, generator=generator(seed)) * 2 - 1


@pytest.mark.parametrize("policy", ["blit", "geometry", "color", ALL])
def test_gradient(policy):
    images = noise(2, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ada_augment(x, 0.8, policy, generator()), images)


def test_blit_gives_each_of_its_images(size=8):
    """Mirrored or not, turned, then shifted by whole pixels; the border is mirrored in."""
    (image,) = noise(1, size).numpy()
    expected = {}
    for mirrored in (False, True):
        for turns in range(4):
            moved = np.rot90(image[:, :, ::-1] if mirrored else image, turns, (1, 2))
            wide = np.pad(moved, ((0, 0), (1, 1), (1, 1)), mode="symmetric")
            for down in range(3):
                for right in range(3):
                    part = wide[:, down : down + size, right : right + size]
                    expected[mirrored, turns, down, right] = part
    stack = np.stack(list(expected.values()))
    many = torch.from_numpy(image).expand(3000, -1, -1, -1)
    changed = ada_augment(many, 1.0, "blit", generator()).numpy()
    distances = np.stack([np.abs(stack - one).max((1, 2, 3)) for one in changed])
    assert distances.min(1).max() < 1e-12
    found = [list(expected)[i] for i in distances.argmin(1)]
    for place, choices in enumerate((2, 4)):  # uniform
        counts = np.bincount([key[place] for key in found], minlength=choices)
        assert np.abs(counts / 3000 - 1 / choices).max() < 0.03
    # round(8 u) of u in [-1/8, 1/8): half of them are 0.
    counts = np.bincount([key[2] for key in found], minlength=3)
    assert np.abs(counts / 3000 - [0.25, 0.5, 0.25]).max() < 0.03


def draws(p, num=20_000):
    return ada._Draws(torch.empty(num, 1, dtype=torch.float64), p, generator())


def test_geometry_has_the_papers_distributions():
    maps = ada.geometry(draws(1.0))
    linear, shift = maps[:, :2, :2], maps[:, :2, 2:]
    scale = torch.linalg.det(linear).log2() / 2  # the stretching keeps areas
    assert scale.std().item() == pytest.approx(0.2, rel=0.03)
    stretch = torch.linalg.svdvals(linear).log2().diff(dim=1).abs() / 2
    assert stretch.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.03)
    first = linear / (2**scale)[:, None, None]
    turned = torch.atan2(first[:, 1, 0], first[:, 0, 0])
    assert turned.cos().mean().abs() < 0.03 and turned.min() < -3 and turned.max() > 3
    before = -torch.linalg.solve(linear, shift)  # as moved in the result
    assert before.std().item() == pytest.approx(2 / 8, rel=0.03)


@pytest.mark.parametrize("p", [0.2, 0.7])
def test_each_change_happens_with_probability_p(p):
    maps = ada.geometry(draws(p))
    still = (maps == torch.eye(3)).all(2).all(1).double().mean()
    assert still.item() == pytest.approx((1 - p) ** 4, abs=0.01)  # four independent ones
    values = [x.flatten() for x in ada.color(draws(p))]
    neutral = (0, 1, 0, 0, 1)
    for (x, nothing), chance in zip(zip(values, neutral), (p, p, p / 2, p, p)):
        assert (x != nothing).double().mean().item() == pytest.approx(chance, abs=0.015)
    deviations = [values[0].std(), values[1].log2().std(), values[4].log2().std()]
    for found, full in zip(deviations, (0.2, 0.5, 1.0)):
        assert found.item() == pytest.approx(full * math.sqrt(p), rel=0.05)


def test_colours_are_the_products_of_the_papers_matrices():
    """4x4 on homogeneous colours: a shift, a scaling, a reflection, a rotation, a squeeze."""
    images, values = noise(5, 4), torch.rand(5, 5, dtype=torch.float64, generator=generator(2))
    values[:, 2] = values[:, 2].round()
    found = ada.recolour(images, *values.T[:, :, None, None, None])
    v = torch.tensor([1, 1, 1, 0], dtype=torch.float64) / math.sqrt(3)
    eye = torch.eye(4, dtype=torch.float64)
    axis = torch.zeros(4, 4, dtype=torch.float64)
    axis[:3, :3] = torch.tensor([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    for image, changed, (b, c, i, h, s) in zip(images, found, values):
        brightness, contrast = eye.clone(), torch.diag(torch.stack([c, c, c, torch.ones_like(c)]))
        brightness[:3, 3] = b
        matrix = contrast @ brightness
        matrix = (eye - 2 * i * torch.outer(v, v)) @ matrix
        matrix = torch.matrix_exp(h * axis) @ matrix
        grey = torch.outer(v, v)
        grey[3, 3] = 1
        matrix = (grey + s * (eye - grey)) @ matrix
        colours = torch.cat([image.flatten(1), torch.ones(1, 16, dtype=torch.float64)])
        torch.testing.assert_close(changed.flatten(1), (matrix @ colours)[:3])


def test_no_probability_no_change_and_the_generator_alone_decides():
    images = noise(8, 8).float()
    assert ada_augment(images, 0.0, ALL, generator()) is images
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, second, other = (ada_augment(images, 0.5, ALL, generator(s)) for s in (3, 3, 4))
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert first.dtype == torch.float32 and torch.equal(torch.get_rng_state(), before)


def test_p_moves_by_the_images_seen(tiny_cfg):
    """p after k updates is clamp(images of whole fours / ADA_IMAGES), up or down."""
    p = AdaptiveProbability(tiny_cfg("SOLVER.ADA", 0.6, "SOLVER.ADA_IMAGES", 100))
    found = []
    for _ in range(40):
        p.update(0.7)
        found.append(p.p)
    expected = [min((k // 4) * 4 * 4 / 100, 1) for k in range(1, 41)]
    assert found == pytest.approx(expected) and found[-1] == 1.0
    for _ in range(4):
        p.update(0.5)
    assert p.p == pytest.approx(1 - 0.16)
    for sign in (0.9, 0.9, 0.2, 0.2):  # their mean counts, and is 0.55
        p.update(sign)
    assert p.p == pytest.approx(1 - 0.32)
    for _ in range(100):
        p.update(-1.0)
    assert p.p == 0.0


def test_without_its_key_p_stays(tiny_cfg):
    p = AdaptiveProbability(tiny_cfg())
    for _ in range(8):
        p.update(1.0)
    assert p.p == 0.0 and p.state() == {"p": 0.0, "signs": []}


def test_an_unknown_change_is_one_line():
    with pytest.raises(UserError, match="ADA_AUGMENT: 'colour' is not known; known are blit, geom"):
        ada_augment(noise(1, 4), 0.5, "blit,colour", generator())
