"""Losses against the formulas, written out in NumPy and float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from evonorm_gan.losses import (
    discriminator_hinge,
    generator_hinge,
    lecam,
    orthogonal_penalty,
    r1_penalty,
)
from evonorm_gan.models import Generator


def test_hinge():
    real, fake = torch.randn(2, 9, generator=torch.Generator().manual_seed(0)).double() * 2
    expected = sum(max(0, 1 - r) for r in real.tolist()) / 9
    expected += sum(max(0, 1 + f) for f in fake.tolist()) / 9
    assert discriminator_hinge(real, fake).item() == pytest.approx(expected, abs=1e-12)
    assert generator_hinge(fake).item() == pytest.approx(-sum(fake.tolist()) / 9, abs=1e-12)


def test_r1_and_its_gradient_are_the_closed_form():
    """For D(x) = x^T A x / 2 + b^T x, whose gradient is A x + b for a symmetric A."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    half = draw(12, 12) / 4
    A, b = (half + half.T).requires_grad_(), draw(12).requires_grad_()
    images = draw(5, 3, 2, 2).requires_grad_()
    x = images.flatten(1)
    scores = ((x @ A) * x).sum(1) / 2 + x @ b
    found = r1_penalty(scores[:3], images)  # the first three are real
    v = x[:3].detach() @ A + b
    expected = v.square().sum(1).mean() / 2
    torch.testing.assert_close(found, expected)
    by_hand = torch.autograd.grad(expected, b)[0]
    torch.testing.assert_close(torch.autograd.grad(found, b)[0], by_hand)
    torch.testing.assert_close(by_hand, v.mean(0).detach())


def test_lecam_is_the_formula():
    real, fake = torch.randn(2, 9, generator=torch.Generator().manual_seed(1)).double() * 2
    above = [max(0.0, x + 0.25) ** 2 for x in real.tolist()]
    below = [max(0.0, 0.75 - x) ** 2 for x in fake.tolist()]
    assert 0 < above.count(0.0) < 9 and 0 < below.count(0.0) < 9
    expected = sum(above) / 9 + sum(below) / 9
    assert lecam(real, fake, 0.75, -0.25).item() == pytest.approx(expected, abs=1e-12)


def test_orthogonal_penalty_is_biggans():
    """The sum of squares of the off-diagonal of W W^T, filters as rows."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Linear(4, 2), nn.Embedding(6, 3)).double()
    expected = 0.0
    for layer in network[:2]:
        w = layer.weight.detach().numpy().reshape(len(layer.weight), -1)
        expected += ((w @ w.T * (1 - np.eye(len(w)))) ** 2).sum()
    assert orthogonal_penalty(network).item() == pytest.approx(expected, rel=1e-12)


def test_orthogonal_weights_are_not_penalised_and_the_class_embedding_has_no_part_in_it():
    G = Generator(32, 8, 10)  # its initial weights are orthogonal where rows are not more
    for layer in G.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            weight = layer.parametrizations.weight.original
            rows = weight.flatten(1)
            if len(rows) > rows.shape[1]:
                with torch.no_grad():
                    weight.zero_()
    penalty = orthogonal_penalty(G)
    assert penalty.item() < 1e-6
    penalty.backward()
    assert G.embedding.weight.grad is None
