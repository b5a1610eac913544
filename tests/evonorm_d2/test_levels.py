"""Heads shared over feature levels: statistics per level if the norm depends on the batch."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec

from evonorm import build_norm_act, list_norm_acts, register_norm_act, registry
from evonorm_d2.heads import NormActRetinaNetHead, NormActRPNHead

BATCH_DEPENDENT = [n for n in list_norm_acts() if build_norm_act(n, 1).batch_dependent]
INDEPENDENT = [n for n in list_norm_acts() if n not in BATCH_DEPENDENT]
SIZES = (8, 4, 2)


def rpn_head(norm):
    return NormActRPNHead(in_channels=8, num_anchors=3, norm=norm, num_levels=len(SIZES))


def retinanet_head(norm):
    shapes = [ShapeSpec(channels=8)] * len(SIZES)
    return NormActRetinaNetHead(
        input_shape=shapes, num_classes=2, num_anchors=1, conv_dims=[8, 8], norm=norm
    )


HEADS = {"rpn": rpn_head, "retinanet": retinanet_head}


def levels(seed=0):
    """Features whose scale differs from level to level."""
    generator = torch.Generator().manual_seed(seed)
    return [10.0**i * torch.randn(2, 8, s, s, generator=generator) for i, s in enumerate(SIZES)]


def norm_acts(head):
    return [m for m in head.modules() if getattr(m, "norm_act", "")]


@pytest.mark.parametrize("norm", BATCH_DEPENDENT)
@pytest.mark.parametrize("head, sites", [("rpn", 1), ("retinanet", 4)])
def test_batch_dependent_norms_have_one_set_of_statistics_per_level(head, sites, norm):
    model = HEADS[head](norm)
    layers = norm_acts(model)
    assert len(layers) == sites * len(SIZES)
    parameters = {id(p) for layer in layers for p in layer.parameters()}
    assert len(parameters) == sites * len(list(layers[0].parameters()))
    assert len({id(b) for layer in layers for b in layer.buffers()}) == len(layers) * len(
        list(layers[0].buffers())
    )


@pytest.mark.parametrize("norm", INDEPENDENT)
@pytest.mark.parametrize("head, sites", [("rpn", 1), ("retinanet", 4)])
def test_other_norms_have_one_layer(head, sites, norm):
    assert len(norm_acts(HEADS[head](norm))) == sites


def test_statistics_of_each_level_in_the_rpn():
    head = rpn_head("EvoNormB0").train()
    features = levels()
    head(features)
    wanted = []
    for layer, x in zip(norm_acts(head), features):
        y = F.conv2d(x, head.conv.weight, head.conv.bias, padding=1)
        var = y.transpose(0, 1).reshape(8, -1).double().var(1, unbiased=False)
        wanted.append((0.9 + 0.1 * var).float())
        torch.testing.assert_close(layer.running_var, wanted[-1])
    assert (wanted[2] > 1.5 * wanted[0]).all()  # so that a mix-up would show

    head.eval()
    for level in range(len(SIZES)):  # evaluation reads each level's own
        with torch.no_grad():
            logits = head(levels(1))[0][level]
        x = F.conv2d(levels(1)[level], head.conv.weight, head.conv.bias, padding=1)
        std_i = torch.sqrt(x.var((2, 3), unbiased=False, keepdim=True) + 1e-5)
        std_b = torch.sqrt(wanted[level] + 1e-5)[:, None, None]
        y = x / torch.maximum(std_b, x + std_i)
        weight = head.objectness_logits.weight
        torch.testing.assert_close(logits, F.conv2d(y, weight, head.objectness_logits.bias))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("norm", ["EvoNormB0", "BN-ReLU"])
def test_statistics_stay_with_their_level_over_many_calls(head, norm):
    model = HEADS[head](norm).train()
    for _ in range(3):
        model(levels())
    first = norm_acts(model)[: len(SIZES)]
    means = [float(layer.running_var.mean()) for layer in first]
    assert means[0] < means[1] < means[2]


@pytest.mark.parametrize("head", HEADS)
def test_gradients_of_the_levels_add_up(head):
    """Shared parameters: the gradient over all levels is the sum of each level's own."""

    def gradient(chosen):
        torch.manual_seed(0)
        model = HEADS[head]("EvoNormB0").train()
        outputs = model(levels())[0]
        sum(outputs[i].sum() for i in chosen).backward()
        return norm_acts(model)[0].v.grad.clone()

    each = sum(gradient([i]) for i in range(len(SIZES)))
    torch.testing.assert_close(gradient(range(len(SIZES))), each)


@pytest.mark.parametrize("head", HEADS)
def test_a_state_dict_loads_back(head):
    model = HEADS[head]("EvoNormB0").train()
    model(levels())
    copy = HEADS[head]("EvoNormB0")
    copy.load_state_dict(model.state_dict())
    with torch.no_grad():
        for a, b in zip(model.eval()(levels(1)), copy.eval()(levels(1))):
            assert all(torch.equal(x, y) for x, y in zip(a, b))


def test_a_third_partys_layer_may_have_its_parameters_in_modules_of_its_own():
    class Nested(torch.nn.Module):
        batch_dependent, momentum = True, 0.1

        def __init__(self, num_features, activation=True, **options):
            super().__init__()
            self.inner = torch.nn.BatchNorm2d(num_features)

        def forward(self, x):
            return self.inner(x)

    register_norm_act("Nested")(Nested)
    try:
        head = rpn_head("Nested").train()
    finally:
        del registry._FACTORIES["Nested"]
    head(levels())
    inner = [m for m in head.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(inner) == len(SIZES) and len({id(m.weight) for m in inner}) == 1
    assert inner[2].running_var.mean() > 2 * inner[0].running_var.mean()


def test_stock_batch_norm_in_the_rpn_has_statistics_per_level_as_well():
    head = rpn_head("BN").train()
    head(levels())
    norms = [m for m in head.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(norms) == len(SIZES) and len({id(m.weight) for m in norms}) == 1
    assert norms[2].running_var.mean() > 2 * norms[0].running_var.mean()
