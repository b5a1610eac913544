"""What the two networks minimise."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def discriminator_hinge(real: Tensor, fake: Tensor) -> Tensor:
    """mean(max(0, 1 - D(real))) + mean(max(0, 1 + D(fake))) (Lim & Ye 2017, arXiv:1705.02894).

    Args:
        real, fake: scores (N,) of the discriminator.
    """
    return torch.relu(1 - real).mean() + torch.relu(1 + fake).mean()


def generator_hinge(fake: Tensor) -> Tensor:
    """-mean(D(fake)), for scores (N,)."""
    return -fake.mean()


def orthogonal_penalty(network: nn.Module) -> Tensor:
    """Sum over the weights W (rows: outputs) of |W W^T * (1 - I)|^2 (BigGAN, equation 3).

    All matrices and convolutions take part, embeddings do not. A weight under spectral norm is
    taken as it is stored, before it is divided by its norm.
    """
    embeddings = [m for m in network.modules() if isinstance(m, nn.Embedding)]
    left_out = {id(p) for m in embeddings for p in m.parameters()}
    weights = [p for p in network.parameters() if p.dim() > 1 and id(p) not in left_out]
    penalties = []
    for weight in weights:
        rows = weight.flatten(1)
        gram = rows @ rows.T
        penalties.append(gram.square().sum() - gram.diagonal().square().sum())
    return torch.stack(penalties).sum()
