"""Latents, standing statistics, and images: against scipy, NumPy and statistics by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from evonorm_gan import sampling
from evonorm_gan.config import get_cfg
from evonorm_gan.models import Generator
from evonorm_runs.errors import UserError

SIDE, GAP = 32, 2


def generator(norm="EvoNormS0", seed=0):
    torch.manual_seed(seed)
    return Generator(SIDE, 8, 10, norm).eval()


def new(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("t", [None, 5.0, 2.0, 0.5, 0.02])
def test_truncated_normal_is_scipys(t):
    z = sampling.truncated_normal(1000, 100, t, new())
    assert z.shape == (1000, 100) and z.dtype == torch.float32
    assert t is None or (z.abs() <= np.float32(t)).all()
    distribution = stats.norm if t is None else stats.truncnorm(-t, t)
    assert stats.kstest(z.double().flatten().numpy(), distribution.cdf).pvalue > 0.01
    # Columns and neighbours are independent.
    assert abs(np.corrcoef(z[:, 0], z[:, 1])[0, 1]) < 0.1
    assert abs(np.corrcoef(z.flatten()[1:], z.flatten()[:-1])[0, 1]) < 0.01


def test_one_seed_gives_the_same_quantiles_for_all_truncations():
    narrow, wide, whole = (sampling.truncated_normal(7, 9, t, new()) for t in (0.5, 1.5, None))
    assert torch.equal(narrow.argsort(), wide.argsort())
    assert torch.equal(narrow.argsort(), whole.argsort())
    expected = stats.truncnorm(-0.5, 0.5).ppf(stats.norm.cdf(whole.double().numpy()))
    np.testing.assert_allclose(narrow, expected, atol=1e-5)


@pytest.mark.parametrize("t", [0.02, 0.5, 1.0])
def test_both_ways_of_truncation_have_scipys_moments(t):
    """The widths differ by half: 0.284 and 0.440 at t = 0.5."""
    expected = {
        "resample": stats.truncnorm(-t, t).moment,
        "scale": lambda order: t**order * stats.truncnorm(-2, 2).moment(order),
    }
    assert list(expected) == list(sampling.TRUNCATE_BY)
    widths = {}
    for by, moment in expected.items():
        z = sampling.latents(4000, 128, 10, 0, t, truncate_by=by)[0].double()
        assert abs(z.mean()) < 0.005 * t
        for order in (2, 4):
            assert (z**order).mean().item() == pytest.approx(moment(order), rel=0.02), (by, order)
        widths[by] = z.std().item()
    assert 1.5 < widths["scale"] / widths["resample"] < 1.65
    assert z.abs().max() <= np.float32(2 * t)


def test_scaled_z_is_distributed_as_that_of_the_port():
    port = pytest.importorskip("pytorch_pretrained_biggan.utils")
    for t in (0.2, 0.5, 1.0):
        theirs = port.truncated_noise_sample(2000, 128, t, seed=0).flatten()
        ours = sampling.truncated_normal(2000, 128, t, new(), "scale").flatten().numpy()
        assert ours.std() == pytest.approx(theirs.std(), rel=0.01)
        assert stats.ks_2samp(ours, theirs).pvalue > 0.01
        other = sampling.truncated_normal(2000, 128, t, new()).flatten().numpy()
        assert theirs.std() > 1.5 * other.std()


def test_without_a_truncation_both_ways_are_one():
    plain, scaled = (
        sampling.truncated_normal(9, 9, None, new(), by) for by in ("resample", "scale")
    )
    assert torch.equal(plain, scaled)
    with pytest.raises(UserError, match="by 'clip'; known are resample and scale"):
        sampling.truncated_normal(1, 1, 0.5, new(), "clip")


@pytest.mark.parametrize("t", [0.0, -1.0, float("nan")])
def test_truncation_out_of_range(t):
    with pytest.raises(UserError, match="should be more than 0"):
        sampling.truncated_normal(1, 1, t, new())


def test_latents():
    state = torch.get_rng_state()
    z, y = sampling.latents(5000, 16, 10, seed=3)
    assert torch.equal(torch.get_rng_state(), state), "the global generator is not touched"
    assert z.shape == (5000, 16) and y.shape == (5000,) and y.dtype == torch.int64
    assert stats.chisquare(torch.bincount(y, minlength=10)).pvalue > 0.001
    few, sevens = sampling.latents(3, 16, 10, seed=3, class_index=7)
    assert torch.equal(few, z[:3]) and sevens.tolist() == [7, 7, 7]
    assert not torch.equal(sampling.latents(3, 16, 10, seed=4)[0], few)
    assert (sampling.latents(9, 16, 10, 3, truncation=0.1)[0].abs() <= 0.1).all()


def test_to_uint8():
    levels = torch.arange(256)
    assert torch.equal(sampling.to_uint8(levels / 127.5 - 1), levels.to(torch.uint8))
    near = torch.tensor([-1.5, -1.0, -0.0001, 0.0001, 0.996, 1.0, 1.5])
    assert sampling.to_uint8(near).tolist() == [0, 0, 127, 128, 254, 255, 255]
    assert sampling.to_uint8(torch.tensor([-1.0, 1.0], dtype=torch.bfloat16)).tolist() == [0, 255]


@pytest.mark.parametrize("mode", [True, False])
def test_generate(mode):
    G = generator("BN-ReLU")
    z, y = sampling.latents(5, 128, 10, seed=0)
    with torch.no_grad():
        expected = np.rint((G(z, y).double().numpy() + 1) * 127.5)
        embedding = G.embed(y)
    before = {k: v.clone() for k, v in G.state_dict().items()}
    G.train(mode)
    batches = list(sampling.generate(G, z, y, batch_size=2))
    assert G.training is mode
    assert [len(b) for b in batches] == [2, 2, 1] and batches[0].dtype == torch.uint8
    images = torch.cat(batches)
    assert np.abs(images.numpy() - expected).max() <= 1  # a rounding of another batch's sums
    assert images.float().std() > 1, "not one colour"
    by_embedding = torch.cat(list(sampling.generate(G, z, embedding, batch_size=2)))
    assert torch.equal(by_embedding, images)
    for key, value in G.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_generate_keeps_the_mode_when_it_fails():
    G = generator().train()
    with pytest.raises(UserError):
        next(sampling.generate(G, torch.zeros(1, 3), torch.zeros(1, dtype=torch.int64)))
    assert G.training


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("norm", ["EvoNormB0", "BN-ReLU"])
def test_standing_statistics(norm, mode):
    """They are the mean of the batches' own, and nothing else of G changes."""
    G = generator(norm).train(mode)
    before = {k: v.clone() for k, v in G.state_dict().items()}
    layers = {k: m for k, m in G.named_modules() if hasattr(m, "running_var")}
    assert len(layers) == 25
    seen = {k: [] for k in layers}
    drawn = []
    hooks = [G.register_forward_pre_hook(lambda _, args: drawn.append(args))]
    for name, layer in layers.items():
        record = lambda _, args, kwargs, name=name: seen[name].append(args[0].double())  # noqa: E731
        hooks.append(layer.register_forward_pre_hook(record, with_kwargs=True))
    assert sampling.standing_statistics(G, 3, 4, seed=1, truncation=0.7) == 3
    for hook in hooks:
        hook.remove()
    assert G.training is mode

    zs = torch.stack([z for z, _ in drawn])
    assert zs.shape == (3, 4, 128) and zs.unique().numel() == zs.numel()
    assert 0.65 < zs.abs().max() <= 0.7
    changed = set()
    for name, layer in layers.items():
        batches = seen[name]
        means = torch.stack([x.mean((0, 2, 3)) for x in batches])
        # torch's BatchNorm keeps the unbiased variance, an EvoNorm the biased one.
        unbiased = norm == "BN-ReLU"
        variances = torch.stack([x.var((0, 2, 3), correction=int(unbiased)) for x in batches])
        torch.testing.assert_close(layer.running_var.double(), variances.mean(0), rtol=1e-4, atol=0)
        changed.add(f"{name}.running_var")
        if unbiased:
            torch.testing.assert_close(
                layer.running_mean.double(), means.mean(0), rtol=1e-4, atol=1e-6
            )
            changed.add(f"{name}.running_mean")
        assert layer.momentum == 0.1
    for key, value in G.state_dict().items():
        assert torch.equal(value, before[key]) is (key not in changed), key


def test_standing_statistics_by_seed():
    G = generator("BN-ReLU")
    results = []
    for seed in (0, 0, 1):
        sampling.standing_statistics(G, 1, 2, seed)
        results.append(G.last_norm.running_var.clone())
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


@pytest.mark.parametrize("norm", ["EvoNormS0", "GN-ReLU", "LN-ReLU", "PixelNorm-ReLU"])
def test_batch_independent_norms_need_no_statistics(norm):
    G = generator(norm).train()
    G.register_forward_pre_hook(lambda *_: pytest.fail("G was run"))
    before = {k: v.clone() for k, v in G.state_dict().items()}
    assert sampling.standing_statistics(G, 3, 4, seed=0) == 0
    assert G.training
    assert all(torch.equal(v, before[k]) for k, v in G.state_dict().items())


def pictures(grid, columns):
    """The pictures in (3, H, W), row by row; the pixels between them are white."""
    step = SIDE + GAP
    assert (grid.shape[2] - GAP) / step == columns
    corners = [
        (y, x) for y in range(GAP, grid.shape[1], step) for x in range(GAP, grid.shape[2], step)
    ]
    found = torch.stack([grid[:, y : y + SIDE, x : x + SIDE] for y, x in corners])
    total = found.long().sum() + 255 * (grid.numel() - found.numel())
    assert grid.long().sum() == total
    return found


def near(images, expected):
    return (images.int() - expected.int()).abs().max() <= 1


def test_class_grid():
    G = generator()
    grid = sampling.class_grid(G, [4, 9], 3, seed=5, truncation=0.5, batch_size=4)
    z, _ = sampling.latents(3, 128, 10, 5, 0.5)
    found = pictures(grid, 3)
    for row, y in enumerate((4, 9)):
        expected = next(sampling.generate(G, z, torch.full((3,), y)))
        assert near(found[3 * row : 3 * row + 3], expected)
    assert not near(found[:3], found[3:])


@pytest.mark.parametrize("along", ["z", "y", "both"])
def test_interpolate(along):
    G = generator()
    z = sampling.latents(4, 128, 10, seed=0)[0].split(2)
    z = (z[0], z[0] if along == "y" else z[1])
    y = (3, 3 if along == "z" else 8)
    found = pictures(sampling.interpolate(G, z, y, 5), 5)
    for row in range(2):
        ends = [(z[i][row : row + 1], torch.tensor([y[i]])) for i in (0, 1)]
        middle = (ends[0][0] + ends[1][0]) / 2, (G.embed(ends[0][1]) + G.embed(ends[1][1])) / 2
        for column, (z_, y_) in zip((0, 2, 4), (ends[0], middle, ends[1])):
            expected = next(sampling.generate(G, z_, y_.detach()))[0]
            assert near(found[5 * row + column], expected), (row, column)
        assert not near(found[5 * row], found[5 * row + 4])


def test_write_png(tmp_path):
    image = torch.randint(256, (3, 5, 7), generator=new()).to(torch.uint8)
    path = tmp_path / "a" / "b.png"
    sampling.write_png(path, image)
    with Image.open(path) as opened:
        assert opened.format == "PNG"
        assert np.array_equal(np.asarray(opened), image.permute(1, 2, 0))
    assert [p.name for p in path.parent.iterdir()] == ["b.png"]


def test_find_class():
    classes = ["10", "cat", "dog"]
    assert [sampling.find_class(classes, name) for name in ("dog", "1", "10")] == [2, 1, 0]
    for name in ("dig", "3", "-1", "Cat"):
        with pytest.raises(UserError, match=f"no class {name!r}; .* 0 to 2"):
            sampling.find_class(classes, name)
    with pytest.raises(UserError, match="the closest is 'dog'"):
        sampling.find_class(classes, "dig")


def test_statistics_of_another_truncation_are_refused():
    cfg = get_cfg()
    cfg.TEST.STANDING_BATCHES, cfg.TEST.TRUNCATION = 0, 1.0
    G, free = (Generator(32, 8, 10, norm=norm, dim_z=8) for norm in ("BN-ReLU", "EvoNormS0"))
    with pytest.raises(UserError, match="are of truncation 1.0, not 0.5"):
        sampling.check_statistics(G, cfg, 0, 0.5)
    sampling.check_statistics(G, cfg, 0, 1.0)
    with pytest.raises(UserError, match="are of truncation 1.0 by resample, not 1.0 by scale"):
        sampling.check_statistics(G, cfg, 0, 1.0, "scale")
    sampling.check_statistics(G, cfg, 16, 0.5)
    sampling.check_statistics(free, cfg, 0, 0.5)


def test_images_of_nan_are_refused():
    G = Generator(32, 8, 10, dim_z=8)
    torch.nn.init.constant_(G.last.bias, torch.nan)
    with pytest.raises(UserError, match="NaN"):
        next(sampling.generate(G, *sampling.latents(2, 8, 10, 0)))
