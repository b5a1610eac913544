"""Statistics of a few images of a batch, against workers that take turns, as in tables 2 and 3."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from evonorm_classifier.trainer import share_statistics
from evonorm_search.anchors import build_anchor
from evonorm_search.slices import slice_batches

NORM_ACTS = (
    *("BN-ReLU", "EvoNormB0", "max(x - mean_b(x), 0) / rms_b(x)"),
    "x / std_b(abs(x - v0 * mean_b(x))) + mean_g(v1 * rms_b(x)) * mean_b(tanh(x))",
)


@pytest.mark.parametrize("norm_act", NORM_ACTS)
def test_a_sliced_batch_is_that_of_several_workers(norm_act):
    """Against tables 2 and 3's way: a worker after the other, their gradients' mean."""
    torch.manual_seed(0)
    x, y = torch.randn(6, 3, 16, 16), torch.arange(6)

    def network():
        torch.manual_seed(1)
        return build_anchor("MobileNetV2-small", norm_act).double()

    mine, right = network(), network()
    slice_batches(mine, 2)
    loss = nn.functional.cross_entropy
    loss(mine(x.double()), y).backward()
    layers = [(m, m.momentum) for m in right.modules() if getattr(m, "batch_dependent", False)]
    assert len(layers) > 5
    for i in range(3):
        share_statistics(layers, i, 3)
        own = slice(2 * i, 2 * i + 2)
        (loss(right(x[own].double()), y[own]) / 3).backward()
    for a, b in zip(mine.parameters(), right.parameters()):
        torch.testing.assert_close(a.grad, b.grad)
    for a, b in zip(mine.buffers(), right.buffers()):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(mine.eval()(x.double()), right.eval()(x.double()))
    whole = network()
    loss(whole(x.double()), y).backward()
    grads = [(a.grad, b.grad) for a, b in zip(mine.parameters(), whole.parameters())]
    assert not all(torch.allclose(a, b) for a, b in grads)
