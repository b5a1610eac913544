"""R1, LeCam and consistency in a training step, and what they need of the discriminator."""

from __future__ import annotations

import copy

import pytest
import torch

from evonorm_gan import steps
from evonorm_gan.data import to_float
from evonorm_gan.losses import r1_penalty
from evonorm_gan.models import Discriminator
from evonorm_gan.regularise import Regularisers
from evonorm_gan.run import GanRun

ALL = ("SOLVER.R1_GAMMA", 3.0, "SOLVER.R1_PERIOD", 2, "SOLVER.LECAM", 0.5)
ALL += ("SOLVER.CR_REAL", 10.0, "SOLVER.CR_FAKE", 5.0)
CPU = torch.device("cpu")


def test_a_step_has_the_gradient_of_all_terms(tiny_cfg, tiny_set):
    """Against plain autograd on a copy of D, image by image where it is R1's."""
    run = GanRun(tiny_cfg(*ALL), CPU, tiny_set.classes, len(tiny_set))
    run.regularisers.averages = [0.5, -1.0]
    G, D = copy.deepcopy(run.G.network), copy.deepcopy(run.D.network)
    images, labels = tiny_set.images[:4], tiny_set.labels[:4]
    seen = []
    run.D.network.register_forward_pre_hook(lambda _, args: seen.append(args))
    run.update = lambda player, step, losses: losses.tolist()
    steps.discriminator_step(run, 1, 0, images, labels)

    ((z, y),) = steps.draw(run, 1, 0)
    x, classes = (part.detach() for part in seen[0])
    torch.testing.assert_close(x[:8], torch.cat([to_float(images), G(z, y).detach()]))
    assert torch.equal(classes, torch.cat([labels, y, labels, y])) and len(x) == 16
    for changed, original in zip(x[8:], x[:8]):  # shifted by 4 pixels at most, not flipped
        shifts = [(i, j) for i in range(-4, 5) for j in range(-4, 5)]
        assert any(torch.equal(shifted(original, *shift), changed) for shift in shifts)

    x.requires_grad_()
    real, fake, real_changed, fake_changed = D(x, classes).chunk(4)  # a power iteration
    slopes = [torch.autograd.grad(s, x, create_graph=True)[0].square().sum() for s in real]
    terms = {
        "loss_d": (1 - real).clamp(min=0).mean() + (1 + fake).clamp(min=0).mean(),
        "r1": 2 * 3 / 2 * torch.stack(slopes).mean(),  # every second time, twice as strong
        "lecam": (real + 1).clamp(min=0).square().mean() * 0.5
        + (0.5 - fake).clamp(min=0).square().mean() * 0.5,
        "consistency": 10 * (real - real_changed).square().mean()
        + 5 * (fake - fake_changed).square().mean(),
    }
    logged = run.pop_means()
    for name, term in terms.items():
        assert logged[name] == pytest.approx(term.item(), rel=1e-4), name
    expected = torch.autograd.grad(sum(terms.values()), list(D.parameters()))
    for p, g in zip(run.D.network.parameters(), expected):
        torch.testing.assert_close(p.grad, g, rtol=1e-3, atol=1e-3)
    averages = 0.99 * 0.5 + 0.01 * logged["d_real"], -0.99 + 0.01 * logged["d_fake"]
    assert run.regularisers.averages == pytest.approx(averages)


def shifted(image, rows, columns):
    """Moved by so many pixels; zeros come in."""
    moved = torch.zeros_like(image)
    h, w = image.shape[1:]
    to = slice(max(rows, 0), h + min(rows, 0)), slice(max(columns, 0), w + min(columns, 0))
    of = slice(max(-rows, 0), h - max(rows, 0)), slice(max(-columns, 0), w - max(columns, 0))
    moved[:, to[0], to[1]] = image[:, of[0], of[1]]
    return moved


def test_they_are_off_without_their_keys_and_r1_comes_in_its_turn(tiny_cfg):
    images, labels = torch.zeros(4, 3, 32, 32), torch.arange(4)
    off = Regularisers(tiny_cfg(), CPU)
    assert off.inputs(images, labels, (1, 0, 1)) == (images, labels) and not images.requires_grad
    assert off.penalties(images, torch.zeros(4), 1, 0) == {}
    off.update(1.0, 2.0)
    assert off.averages is None
    cfg = tiny_cfg("SOLVER.R1_GAMMA", 1.0, "SOLVER.R1_PERIOD", 3, "SOLVER.D_STEPS", 2)
    due = [Regularisers(cfg, CPU).r1_is_due(step, i) for step in (1, 2, 3) for i in (0, 1)]
    assert due == [True, False, False, True, False, False]


def test_lecam_begins_with_the_first_updates_means(tiny_cfg):
    lecam = Regularisers(tiny_cfg("SOLVER.LECAM", 1.0), CPU)
    assert lecam.penalties(torch.zeros(2), torch.zeros(2), 1, 0) == {}
    lecam.update(0.5, -0.25)
    assert lecam.averages == pytest.approx([0.5, -0.25])
    (term,) = lecam.penalties(torch.zeros(2), torch.tensor([1.0, -1.0]), 1, 1).values()
    assert term.item() == pytest.approx(1.25**2 + 1.5**2)


def test_r1_passes_the_attention(tiny_cfg):
    """Whose fused kernels have no second derivatives."""
    D = Discriminator(32, 8, 3, attention=16)
    torch.nn.init.ones_(D.attention.gain)
    regularisers = Regularisers(tiny_cfg("SOLVER.R1_GAMMA", 1.0), CPU)
    x, y = regularisers.inputs(torch.randn(2, 3, 32, 32), torch.zeros(2).long(), (1, 0, 1))
    with regularisers.forward_pass(1, 0):
        scores = D(x, y)
    r1_penalty(scores[:1], x).backward()
    assert D.attention.theta.parametrizations.weight.original.grad.abs().max() > 0
