"""What the layers keep for the backward pass."""

from __future__ import annotations

import pytest
import torch

from evonorm import build_norm_act, list_norm_acts
from tests.evonorm.unnamed import UNNAMED

pytestmark = pytest.mark.usefixtures("one_thread")

IN_PLACE_RELU = ("BN-ReLU", "GN-ReLU", "LN-ReLU")  # PyTorch's kernels; the ReLU keeps its output


def saved_inputs(function, x, *args):
    """Bytes of all storages kept for the backward pass, in units of the input's."""
    storages = {}

    def pack(t):
        storage = t.untyped_storage()
        storages[storage.data_ptr()] = storage
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = function(x, *args)
    assert y.requires_grad
    return sum(s.nbytes() for s in storages.values()) / x.untyped_storage().nbytes()


def activations(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 64, 16, 16, generator=generator).to(dtype).requires_grad_()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [*list_norm_acts(), *UNNAMED])
def test_keeps_its_input_only(name, dtype):
    x = activations(dtype)
    output = int(name in IN_PLACE_RELU)
    assert 1 <= saved_inputs(build_norm_act(name, 64), x) < 1.05 + output
    assert 1 <= saved_inputs(build_norm_act(name, 64).eval(), x) < 1.05 + output
    assert 1 <= saved_inputs(build_norm_act(name, 64, activation=False), x) < 1.05


@pytest.mark.parametrize("name", [*list_norm_acts(), *UNNAMED])
def test_conditional_keeps_its_input_only(name):
    affine = (torch.ones(4, 64, requires_grad=True) for _ in range(2))
    # PyTorch's BatchNorm takes no gamma per sample, so its output is kept for gamma's gradient.
    more = 2 if name == "BN-ReLU" else int(name in IN_PLACE_RELU)
    assert 1 <= saved_inputs(build_norm_act(name, 64), activations(), *affine) < 1.05 + more


@pytest.mark.parametrize(
    "name, more",
    [
        ("EvoNormB0", [None, [torch.ones(64)]]),
        ("EvoNormS0", [None, []]),
        ("BN-Swish", [torch.zeros(64), torch.ones(64)]),
        ("GN-Swish", []),
        ("FRN", []),
    ],
)
def test_the_plain_formula_keeps_more(name, more):
    """The measure above sees what a layer without its own backward pass would keep."""
    layer = build_norm_act(name, 64)

    def plain(x):
        return layer.evaluate(x, layer.v, *more, layer.weight, layer.bias)

    assert saved_inputs(plain, activations()) > 2.5


def test_keeps_nothing_without_gradients():
    x = activations().detach()
    layer = build_norm_act("EvoNormB0", 64).requires_grad_(False)
    assert not layer(x).requires_grad
    with torch.no_grad():
        assert not build_norm_act("EvoNormB0", 64)(x).requires_grad
