"""Losses against the formulas, written out in NumPy and float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from evonorm_gan.losses import discriminator_hinge, generator_hinge, orthogonal_penalty
from evonorm_gan.models import Generator


def test_hinge():
    real, fake = torch.randn(2, 9, generator=torch.Generator().manual_seed(0)).double() * 2
    expected = sum(max(0, 1 - r) for r in real.tolist()) / 9
    expected += sum(max(0, 1 + f) for f in fake.tolist()) / 9
    assert discriminator_hinge(real, fake).item() == pytest.approx(expected, abs=1e-12)
    assert generator_hinge(fake).item() == pytest.approx(-sum(fake.tolist()) / 9, abs=1e-12)


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
