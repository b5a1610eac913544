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


def r1_penalty(scores: Tensor, images: Tensor) -> Tensor:
    """mean(|dD/dx|^2) / 2 over real images (Mescheder et al. 2018, arXiv:1801.04406, equation 9).

    Args:
        scores: (n,), of the first n images; each depends on its own image only.
        images: (N, C, H, W), N >= n, that require a gradient.
    """
    (gradient,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    return gradient[: len(scores)].float().square().sum((1, 2, 3)).mean() / 2


def lecam(real: Tensor, fake: Tensor, average_real: float, average_fake: float) -> Tensor:
    """mean(max(0, D(x) - a_F)^2) + mean(max(0, a_R - D(G(z)))^2) (Tseng et al. 2021).

    As the authors' code and PyTorch-StudioGAN have it. Equation 4 of arXiv:2104.03310 is without
    the maxima, which is the same while D's scores of real images lie above those of others.

    Args:
        real, fake: scores (N,).
        average_real, average_fake: a_R and a_F, moving averages of their means.
    """
    above, below = torch.relu(real - average_fake), torch.relu(average_real - fake)
    return above.square().mean() + below.square().mean()


def consistency(scores: Tensor, changed: Tensor) -> Tensor:
    """mean((D(x) - D(T(x)))^2) (Zhang et al. 2020, arXiv:1910.12027, equation 3), scores (N,)."""
    return (scores - changed).square().mean()


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
