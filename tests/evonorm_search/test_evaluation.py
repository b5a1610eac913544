"""Trainings and the stress test: against plain PyTorch, and on layers whose outcome is known."""

from __future__ import annotations

import math
from itertools import islice

import pytest
import torch
from torch import nn

from evonorm_runs.images.garments import load_garments
from evonorm_search.anchors import build_anchor
from evonorm_search.evaluation import (
    Data,
    Proxy,
    Training,
    accuracy,
    batches,
    crops,
    curve,
    to_float,
    worst_gradient_norm,
)

SMALL = Proxy(batch_size=32, crop=0, stability_lr=1.0, stability_steps=60)


@pytest.fixture(scope="module")
def garments():
    return Data(load_garments("train", 16), load_garments("val", 16))


@pytest.fixture
def tiny():
    """30 images of 8x8 whose class is their brightness, 10 of them to score with."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(30) % 3
    noise = torch.randint(0, 40, (30, 1, 8, 8), generator=generator)
    images = (noise + 100 * labels[:, None, None, None]).to(torch.uint8)
    return Data((images[:20], labels[:20]), (images[20:], labels[20:]))


def network(classes=3):
    torch.manual_seed(0)
    pool = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), *pool, nn.Linear(4, classes))


def trained(model, data, proxy, steps, seed):
    training = Training(model, data, proxy, seed)
    training.run(steps)
    return training.losses


def test_batches(tiny):
    proxy = Proxy(batch_size=6, crop=0)
    one, two = ([x.clone() for x, _ in islice(batches(tiny, proxy, 7), 7)] for _ in range(2))
    assert all(map(torch.equal, one, two))
    assert not torch.equal(one[0], next(batches(tiny, proxy, 8))[0])
    for epoch in (one[:3], one[3:6]):  # 18 of the 20 images, none of them twice
        images = [image.numpy().tobytes() for batch in epoch for image in batch]
        assert len(images) == len(set(images)) == 18
    images, labels = next(batches(tiny, proxy, 0))
    assert images.shape == (6, 3, 8, 8) and images.dtype == torch.float32
    brightness = (images.mean((1, 2, 3)) + 1) * 127.5
    assert torch.equal((brightness / 100).floor().long(), labels)


def test_crops():
    images = torch.arange(5 * 9 * 9).reshape(5, 1, 9, 9)
    found = [crops(images, 6, torch.Generator().manual_seed(seed)) for seed in range(40)]
    corners = set()
    for cut in found:
        for image, crop in zip(images, cut):
            top, left = divmod(int(crop[0, 0, 0] - image[0, 0, 0]), 9)
            assert torch.equal(crop, image[:, top : top + 6, left : left + 6])
            corners.add((top, left))
    assert corners == {(i, j) for i in range(4) for j in range(4)}
    assert crops(images, 0, torch.Generator()) is images


def test_training_is_plain_sgd(tiny):
    proxy = Proxy(steps=6, batch_size=5, lr=0.2, crop=0, schedule="cosine")
    mine, right = network(), network()
    losses = trained(mine, tiny, proxy, 6, seed=3)
    velocity = [torch.zeros_like(p) for p in right.parameters()]
    for step, (images, labels) in enumerate(islice(batches(tiny, proxy, 3), 6)):
        loss = nn.functional.cross_entropy(right(images), labels)
        assert losses[step] == pytest.approx(loss.item(), rel=1e-5)
        gradients = torch.autograd.grad(loss, list(right.parameters()))
        rate = 0.1 * (1 + math.cos(math.pi * step / 6))
        with torch.no_grad():
            for p, v, g in zip(right.parameters(), velocity, gradients):
                g = g + 1e-4 * p
                v.mul_(0.9).add_(g)
                p -= rate * (g + 0.9 * v)
    for a, b in zip(mine.parameters(), right.parameters()):
        torch.testing.assert_close(a, b)
    assert trained(network(), tiny, proxy, 9, seed=3) == losses  # it ends with the proxy's steps
    parted = Training(network(), tiny, proxy, 3)
    parted.run(2)
    assert parted.losses == losses[:2]
    parted.run(6)
    assert parted.losses == losses
    for a, b in zip(mine.parameters(), parted.model.parameters()):
        assert torch.equal(a, b)


def test_curve():
    proxy = Proxy(steps=60)  # a point for three steps
    assert curve([1.0, 2.0, 3.0, 4.0], proxy) == [2.0, 4.0]
    assert curve([1.0, math.inf], proxy) == [None]
    assert len(curve([0.5] * 60, proxy)) == 20


def test_a_training_that_diverges_ends(tiny):
    model = network()
    with torch.no_grad():
        model[0].weight.fill_(math.inf)
    assert len(trained(model, tiny, Proxy(batch_size=5, crop=0), 9, 0)) == 1
    assert accuracy(model, tiny.val) == 0.0


def test_accuracy(tiny):
    model = network()
    images, labels = tiny.val
    right = (model(to_float(images)).argmax(1) == labels).double().mean().item()
    assert accuracy(model, tiny.val, batch_size=3) == accuracy(model, tiny.val) == right


def test_the_ascent_is_that_of_equation_1(tiny):
    proxy = Proxy(batch_size=5, crop=0, stability_steps=4, stability_lr=0.05)
    weight = network()[0].weight.detach().clone().requires_grad_()
    right, norms = network(), []
    for images, labels in islice(batches(tiny, proxy, 0), 4):
        y = nn.functional.conv2d(images, weight, right[0].bias)
        loss = nn.functional.cross_entropy(right[1:](y), labels)
        norm = torch.autograd.grad(loss, weight, create_graph=True)[0].norm()
        norms.append(norm.item())
        step = torch.autograd.grad(norm, weight)[0]
        weight = (weight + 0.05 * step).detach().requires_grad_()
    model = network()
    assert worst_gradient_norm(model, tiny, proxy, 0) == pytest.approx(max(norms), rel=1e-5)
    torch.testing.assert_close(model[0].weight, weight)


@pytest.mark.slow
@pytest.mark.parametrize(
    "norm_act, stable",
    [
        ("BN-ReLU", True),
        ("tanh(x) - mean_b(max(x, 0))", False),
        ("0 * x", True),
    ],
)
def test_layers_whose_stability_the_paper_names(garments, norm_act, stable):
    torch.manual_seed(0)
    model = build_anchor("ResNet-small", norm_act)
    worst = worst_gradient_norm(model, garments, SMALL, 0)
    assert (worst < SMALL.stability_limit) == stable


@pytest.mark.slow
@pytest.mark.parametrize("norm_act, good", [("BN-ReLU", True), ("0 * x", False)])
def test_the_zero_layer_fails_for_its_quality(garments, norm_act, good):
    torch.manual_seed(0)
    model = build_anchor("ResNet-small", norm_act)
    trained(model, garments, SMALL, SMALL.quality_steps, 0)
    assert (accuracy(model, garments.val) >= SMALL.quality) == good
