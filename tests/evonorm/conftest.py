"""What several tests of the layers need."""

from __future__ import annotations

import pytest
import torch

from evonorm import build_norm_act


@pytest.fixture
def random_layer():
    """build_norm_act with random parameters and running statistics."""

    def build(name: str, num_features: int, activation: bool = True, seed: int = 0, **options):
        layer = build_norm_act(name, num_features, activation, **options)
        generator = torch.Generator().manual_seed(seed)
        for key, value in layer.state_dict().items():
            new = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            value.copy_(new.abs() + 0.5 if key in ("running_var", "running_rest") else new)
        return layer

    return build


@pytest.fixture(scope="module")
def one_thread():
    """For thousands of tiny calls, in which threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
