"""Generator and discriminator against published counts, and formulas in float64."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from evonorm import list_norm_acts, registry
from evonorm_gan.config import finish_config, get_cfg
from evonorm_gan.models import (
    Discriminator,
    Generator,
    build_discriminator,
    build_generator,
    discriminator,
    frozen_spectral_norm,
    layers,
    singular_values,
)
from evonorm_gan.models.discriminator import DiscriminatorBlock
from evonorm_gan.models.generator import GeneratorBlock
from evonorm_gan.models.layers import SelfAttention
from evonorm_runs.errors import UserError

RESOLUTIONS = (32, 64, 96, 128, 256, 512)


def count(model):
    return sum(p.numel() for p in model.parameters())


def inputs(num=3, num_classes=10):
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(num, 128, generator=generator)
    return z, torch.randint(num_classes, (num,), generator=generator)


# Counts


@pytest.fixture
def no_spectral_norm(monkeypatch):
    """It has no parameters, but its power iterations are slow on the meta device."""
    for module in (layers, discriminator):
        monkeypatch.setattr(module, "spectral_norm", lambda m: m)
    with torch.device("meta"):
        yield


def test_published_counts(no_spectral_norm):
    expected = {
        32: (7_561_987, 3_088_129),
        64: (49_583_876, 20_869_633),
        128: (50_244_484, 34_590_210),
        256: (55_736_708, 38_247_426),
    }
    for r, counts in expected.items():
        assert (count(Generator(r, 128, 1000, "BN-ReLU")), count(Discriminator(r, 128, 1000))) == (
            counts
        )
    with_v = Generator(128, 128, 1000, "EvoNormS0")
    assert count(with_v) == expected[128][0] + 20_736


# The reference's tables, block by block, in units of ch.
G_CHANNELS = {
    32: (4, 4, 4, 4, 4, 4, 4),
    64: (16, 16, 16, 16, 8, 8, 4, 4, 2),
    96: (16, 16, 16, 16, 8, 8, 4, 4, 2),
    128: (16, 16, 16, 16, 8, 8, 4, 4, 2, 2, 1),
    256: (16, 16, 16, 16, 8, 8, 8, 8, 4, 4, 2, 2, 1),
    512: (16, 16, 16, 16, 8, 8, 8, 8, 4, 4, 2, 2, 1, 1, 1),
}
D_CHANNELS = {
    32: (4, 4, 4, 4, 4, 4, 4),
    64: (1, 2, 2, 4, 4, 8, 8, 16, 16),
    96: (1, 2, 2, 4, 4, 8, 8, 16, 16),
    128: (1, 2, 2, 4, 4, 8, 8, 16, 16, 16, 16),
    256: (1, 2, 2, 4, 4, 8, 8, 8, 8, 16, 16, 16, 16),
    512: (1, 1, 1, 2, 2, 4, 4, 8, 8, 8, 8, 16, 16, 16, 16),
}
ATTENTION = {  # channels where the maps are 64x64, in units of ch
    "G": {64: 2, 128: 2, 256: 4, 512: 4},
    "D": {128: 2, 256: 4, 512: 4},
}


def attention_count(c):
    return c * (c // 8) * 2 + c * (c // 2) * 2 + 1 if c else 0


def bottleneck_count(before, mid, after):
    return (before + 1) * mid + 2 * (9 * mid + 1) * mid + (mid + 1) * after


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_counts_at_another_width(resolution):
    ch, classes, dim_z, dim_embed = 8, 7, 24, 16
    c = [k * ch for k in G_CHANNELS[resolution]]
    dim_c = dim_z + dim_embed
    first = {96: 6}.get(resolution, 4)
    expected = classes * dim_embed + (dim_c + 1) * first**2 * c[0]
    for before, after in zip(c, c[1:]):
        mid = before // 4
        expected += bottleneck_count(before, mid, after) + 2 * dim_c * (before + 3 * mid)
        expected += before + 3 * mid  # v
    expected += attention_count(ch * ATTENTION["G"].get(resolution, 0))
    expected += 3 * c[-1] + (9 * c[-1] + 1) * 3
    G = Generator(resolution, ch, classes, dim_z=dim_z, dim_embed=dim_embed)
    assert count(G) == expected

    c = [k * ch for k in D_CHANNELS[resolution]]
    expected = (27 + 1) * c[0]
    for before, after in zip(c, c[1:]):
        expected += bottleneck_count(before, after // 4, after)
        expected += (before + 1) * (after - before) if after > before else 0
    expected += attention_count(ch * ATTENTION["D"].get(resolution, 0))
    expected += c[-1] + 1 + classes * c[-1]
    D = Discriminator(resolution, ch, classes)
    assert count(D) == expected

    seen = []  # sizes of the maps that attention gets
    for model in (G, D):
        if model.attention is not None:
            model.attention.register_forward_hook(lambda m, args, out: seen.append(args[0].shape))
    with torch.no_grad():
        z, y = torch.randn(1, dim_z), torch.tensor([6])
        images = G.eval()(z, y)
        logits = D.eval()(images, y)
    assert images.shape == (1, 3, resolution, resolution) and images.abs().max() <= 1
    assert logits.shape == (1,)
    wanted = [(1, ch * ATTENTION[name].get(resolution, 0), 64, 64) for name in "GD"]
    assert [tuple(shape) for shape in seen] == [shape for shape in wanted if shape[1]]


@pytest.mark.parametrize("depth, attention", [(1, 0), (3, 16), (2, 8)])
def test_blocks_and_attention_have_their_places(depth, attention):
    """At 32x32: three stages of `depth` blocks, in which a map has the same number of channels."""
    G = Generator(32, 8, 3, attention=attention, depth=depth, dim_z=8).eval()
    D = Discriminator(32, 8, 3, attention=attention, depth=depth).eval()
    seen = {}

    def record(at):
        def hook(module, args, out):
            seen[at] = len(seen), *out.shape[1:3]

        return hook

    for name, model in (("G", G), ("D", D)):
        assert len(model.blocks) == 3 * depth
        for i, block in enumerate(model.blocks):
            block.register_forward_hook(record((name, i)))
        if attention:
            model.attention.register_forward_hook(record(name))
        assert (model.attention is None) == (attention == 0)
    with torch.no_grad():
        D(G(torch.randn(1, 8), torch.tensor([1])), torch.tensor([1]))
    sizes = [[seen[name, i][2] for i in range(3 * depth)] for name in "GD"]
    up = [size for before in (4, 8, 16) for size in [before] * (depth - 1) + [2 * before]]
    assert sizes == [up, [size for size in (16, 8, 8) for _ in range(depth)]]
    if attention:  # behind the last block of the stage, in the order of execution
        stage = {"G": {8: 0, 16: 1}, "D": {16: 0, 8: 1}}
        for name in "GD":
            order, *shape = seen[name]
            assert order == seen[name, depth * (stage[name][attention] + 1) - 1][0] + 1
            assert shape == [32, attention]


# The generator's blocks


def effective(layer):
    """The weight in evaluation, by the definition of spectral norm."""
    weight = layer.parametrizations.weight
    matrix = weight.original.flatten(1)
    return weight.original / (weight[0]._u @ matrix @ weight[0]._v)


def site(name, x, v, gamma, beta, groups=4, eps=1e-3):
    """A norm-act from its formula in the paper, gamma and beta (N, C)."""
    n, c, h, w = x.shape
    gamma, beta = gamma[:, :, None, None], beta[:, :, None, None]
    v = None if v is None else v[None, :, None, None]
    grouped = x.reshape(n, groups, -1)
    group_var = grouped.var(2, correction=0).repeat_interleave(c // groups, 1)[:, :, None, None]
    group_mean = grouped.mean(2).repeat_interleave(c // groups, 1)[:, :, None, None]
    batch_var = x.var((0, 2, 3), correction=0)[None, :, None, None]
    batch_mean = x.mean((0, 2, 3))[None, :, None, None]
    if name == "EvoNormS0":
        return x * torch.sigmoid(v * x) / (group_var + eps).sqrt() * gamma + beta
    if name == "EvoNormB0":
        instance_std = (x.var((2, 3), correction=0) + eps).sqrt()[:, :, None, None]
        return x / torch.maximum((batch_var + eps).sqrt(), v * x + instance_std) * gamma + beta
    if name == "BN-ReLU":
        return ((x - batch_mean) / (batch_var + eps).sqrt() * gamma + beta).clamp(min=0)
    assert name == "GN-ReLU"
    return ((x - group_mean) / (group_var + eps).sqrt() * gamma + beta).clamp(min=0)


@pytest.mark.parametrize("up", [False, True])
@pytest.mark.parametrize("name", ["EvoNormS0", "EvoNormB0", "BN-ReLU", "GN-ReLU"])
@torch.no_grad()
def test_block_equals_its_formula(name, up):
    torch.manual_seed(0)
    options = {"num_groups": 4, "eps": 1e-3}
    block = GeneratorBlock(32, 16, 6, up, name, options).double()
    for key, parameter in block.named_parameters():
        parameter.normal_(1 if key.endswith(".v") else 0, 0.5)
    x, c = torch.randn(3, 32, 6, 4).double(), torch.randn(3, 6).double()
    h = x
    for i, (norm, conv) in enumerate(zip(block.norms, block.convs)):
        gamma = 1 + c @ effective(norm.gamma).T
        h = site(name, h, norm.norm.v, gamma, c @ effective(norm.beta).T)
        if up and i == 1:
            h = h.repeat_interleave(2, 2).repeat_interleave(2, 3)
        h = F.conv2d(h, effective(conv), conv.bias, padding=(0, 1, 1, 0)[i])
    skip = x[:, :16]
    expected = h + (skip.repeat_interleave(2, 2).repeat_interleave(2, 3) if up else skip)
    with frozen_spectral_norm(block):
        torch.testing.assert_close(block(x, c), expected)


@pytest.mark.parametrize("name", list_norm_acts())
def test_every_norm_act_trains(name):
    torch.manual_seed(0)
    G = Generator(32, 4, 10, name)
    affine = [key for key, _ in G.named_parameters() if key.endswith(("norm.weight", "norm.bias"))]
    assert affine == ["last_norm.weight", "last_norm.bias"]
    lows = []
    for block in G.blocks:
        for conv in block.convs:
            conv.register_forward_pre_hook(lambda m, args: lows.append(args[0].min().item()))
    z, y = inputs()
    images = G(z, y)
    images.square().sum().backward()
    for key, parameter in G.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
    assert images.shape == (3, 3, 32, 32) and images.std() > 0.01
    # Were there a ReLU after the layer, nothing negative would come through.
    assert len(lows) == 24
    if name.endswith("ReLU") or name == "FRN":  # PReLU and FRN begin as ReLU
        assert min(lows) >= 0
    elif name != "Random":  # which is a root
        assert max(lows) < 0


@torch.no_grad()
def test_tail_is_unconditional_with_its_own_affine():
    torch.manual_seed(0)
    G = Generator(32, 4, 10, norm_options={"num_groups": 4, "eps": 1e-3}).double().eval()
    G.last_norm.weight.normal_(1, 0.5), G.last_norm.bias.normal_(0, 0.5)
    seen = []
    G.last_norm.register_forward_hook(lambda m, args, out: seen.append((args[0], out)))
    z, y = inputs()
    images = G(z.double(), y)
    ((h, out),) = seen
    affine = (p.expand(3, -1) for p in (G.last_norm.weight, G.last_norm.bias))
    torch.testing.assert_close(out, site("EvoNormS0", h, G.last_norm.v, *affine))
    conv = F.conv2d(out, effective(G.last), G.last.bias, padding=1)
    torch.testing.assert_close(images, torch.tanh(conv))


@pytest.mark.parametrize("name", ["EvoNormS0", "GN-ReLU", "LN-ReLU", "PixelNorm-ReLU"])
@torch.no_grad()
def test_sample_based_norms_train_as_they_evaluate(name):
    torch.manual_seed(0)
    G = Generator(32, 4, 10, name)
    z, y = inputs()
    with frozen_spectral_norm(G):
        train = G(z, y)
    evaluated = G.eval()(z, y)
    torch.testing.assert_close(train, evaluated, rtol=0, atol=0)
    torch.testing.assert_close(G(z[:1], y[:1]), evaluated[:1], rtol=0, atol=1e-5)


@torch.no_grad()
def test_batch_norm_depends_on_the_batch_in_training():
    G = Generator(32, 4, 10, "BN-ReLU")
    z, y = inputs()
    assert (G(z[:1], y[:1]) - G(z, y)[:1]).abs().max() > 0.01


# Spectral norm and initialisation


def buffers(model):
    return {key: b.clone() for key, b in model.named_buffers() if key.endswith(("_u", "_v"))}


def same(a, b):
    return [torch.equal(a[key], b[key]) for key in a]


@pytest.mark.parametrize("build", [Generator, Discriminator])
@torch.no_grad()
def test_u_moves_in_training_only(build):
    torch.manual_seed(0)
    model = build(32, 4, 10)
    for parameter in model.parameters():
        parameter.normal_()
    z, y = inputs()
    args = (z, y) if build is Generator else (torch.rand(3, 3, 32, 32), y)
    start = buffers(model)
    model.eval()(*args)
    with frozen_spectral_norm(model.train()):
        model(*args)
    assert all(same(start, buffers(model)))
    assert all(module.training for module in model.modules())
    model(*args)
    moved = buffers(model)
    assert not any(same({k: b for k, b in start.items() if len(b) > 1}, moved))
    # By one power iteration each.
    for key, u in moved.items():
        if key.endswith("_u"):
            owner = key[: -len(".0._u")]
            w = model.get_parameter(f"{owner}.original").flatten(1)
            u1 = F.normalize(w @ start[f"{owner}.0._v"], dim=0)
            torch.testing.assert_close(u, u1, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(moved[f"{owner}.0._v"], F.normalize(w.T @ u1, dim=0))


@torch.no_grad()
def test_singular_values():
    torch.manual_seed(0)
    D = Discriminator(32, 4, 10)
    assert singular_values(D) == pytest.approx(dict.fromkeys(singular_values(D), 1), abs=1e-5)
    conv = D.blocks[1].convs[2]
    conv.parametrizations.weight.original.normal_()
    for _ in range(200):
        conv.weight  # noqa: B018  takes a power iteration
    values = singular_values(D)
    largest = torch.linalg.matrix_norm(conv.parametrizations.weight.original.flatten(1), 2)
    assert values["blocks.1.convs.2"] == pytest.approx(largest.item(), rel=1e-3)
    # 25 convolutions, the last linear layer, the embedding.
    assert len(values) == 27
    assert singular_values(torch.nn.Linear(2, 2)) == {}


@pytest.mark.parametrize("rows, columns", [(6, 9), (9, 6), (1, 7)])
def test_exact_spectral_norm_divides_by_the_largest_singular_value(rows, columns):
    torch.manual_seed(0)
    layer = layers.linear(columns, rows).eval()
    with torch.no_grad():  # as in a moving average: the estimate is another weight's
        weight = layer.parametrizations.weight.original.normal_()
    expected = weight / torch.linalg.svdvals(weight.double()).max()
    assert (layer.weight - expected).abs().max() > 0.01
    layers.make_spectral_norm_exact(layer)
    torch.testing.assert_close(layer.weight, expected.float(), rtol=1e-6, atol=1e-6)
    before = layer.parametrizations.weight[0]._u.clone()
    layer.train().weight  # noqa: B018  a power iteration changes nothing any more
    torch.testing.assert_close(layer.parametrizations.weight[0]._u, before, rtol=1e-5, atol=1e-5)


def test_everything_but_gs_embedding_is_spectrally_normalised():
    for model, plain in ((Generator(64, 4, 10), {"embedding"}), (Discriminator(32, 4, 10), set())):
        weighted = {
            name
            for name, m in model.named_modules()
            if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear, torch.nn.Embedding))
        }
        assert weighted - set(singular_values(model)) == plain


def test_orthogonal_initialisation():
    for model in (Generator(64, 4, 10), Discriminator(32, 4, 10)):
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                w = parameter.detach().flatten(1)
                gram = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
                torch.testing.assert_close(gram, torch.eye(len(gram)), rtol=0, atol=1e-5)
            elif name.endswith(".bias") and "norm" not in name:
                assert not parameter.any()


# Attention and the discriminator


@torch.no_grad()
def test_attention_equals_its_formula():
    torch.manual_seed(0)
    attention = SelfAttention(16).double().eval()
    x = torch.randn(2, 16, 8, 6).double()
    assert torch.equal(attention(x), x)  # its gain starts at 0
    for parameter in attention.parameters():
        parameter.normal_()
    assert attention.gain.abs() > 0.01

    def project(layer, pool):
        out = torch.einsum("oi,nihw->nohw", effective(layer).flatten(1), x)
        if pool:
            out = out.unflatten(2, (4, 2)).unflatten(4, (3, 2)).amax((3, 5))
        return out.flatten(2)

    theta, phi = project(attention.theta, False), project(attention.phi, True)
    g = project(attention.g, True)
    scores = torch.einsum("ncq,nck->nqk", theta, phi).exp()
    scores = scores / scores.sum(2, keepdim=True)
    mixed = torch.einsum("nqk,nck->ncq", scores, g)
    out = torch.einsum("oi,niq->noq", effective(attention.o).flatten(1), mixed)
    torch.testing.assert_close(attention(x), x + attention.gain * out.unflatten(2, (8, 6)))


@pytest.mark.parametrize(("before", "after", "down"), [(8, 24, True), (8, 8, False)])
@torch.no_grad()
def test_discriminator_block_equals_its_formula(before, after, down):
    torch.manual_seed(0)
    block = DiscriminatorBlock(before, after, down).double().eval()
    for parameter in block.parameters():
        parameter.normal_()
    x = torch.randn(2, before, 8, 6).double()

    def halve(t):
        return t.unflatten(2, (4, 2)).unflatten(4, (3, 2)).mean((3, 5)) if down else t

    h = x
    for conv, padding in zip(block.convs[:3], (0, 1, 1)):
        h = F.conv2d(h.clamp(min=0), effective(conv), conv.bias, padding=padding)
    last = block.convs[3]
    h = F.conv2d(halve(h.clamp(min=0)), effective(last), last.bias)
    skip = halve(x)
    if after > before:
        skip = torch.cat([skip, F.conv2d(skip, effective(block.more), block.more.bias)], 1)
    torch.testing.assert_close(block(x), h + skip)


@torch.no_grad()
def test_logit_is_linear_plus_projection():
    torch.manual_seed(0)
    D = Discriminator(32, 4, 10).double().eval()
    seen = []
    D.blocks[-1].register_forward_hook(lambda m, args, out: seen.append(out))
    _, y = inputs()
    logits = D(torch.rand(3, 3, 32, 32).double() * 2 - 1, y)
    assert seen[0].shape == (3, 16, 8, 8)
    h = seen[0].clamp(min=0).sum((2, 3))
    projection = (effective(D.embedding)[y] * h).sum(1)
    torch.testing.assert_close(logits, h @ effective(D.last)[0] + D.last.bias + projection)
    assert projection.abs().min() > 1e-3


@pytest.mark.parametrize("resolution, sizes", [(32, (16, 8, 8)), (64, (32, 16, 8, 4))])
def test_discriminator_halves_its_maps_as_biggan_pytorch_does(resolution, sizes):
    """Its D_arch: three stages at 32x32, of which two halve; all do at the other resolutions."""
    D = Discriminator(resolution, 4, 10).eval()
    assert [m for block in D.blocks[::2] for m in maps(D, block)] == list(sizes)
    if resolution == 32:
        old = Discriminator(32, 4, 10, ends_at=4).eval()
        assert [m for block in old.blocks[::2] for m in maps(old, block)] == [16, 8, 4]
        old.load_state_dict(D.state_dict())
        x, y = torch.rand(2, 3, 32, 32), torch.tensor([1, 2])
        assert not torch.allclose(old(x, y), D(x, y), rtol=0.1)


@torch.no_grad()
def maps(D, block):
    """The width of the maps that a block makes."""
    seen = []
    hook = block.register_forward_hook(lambda m, args, out: seen.append(out.shape[3]))
    D(torch.zeros(1, 3, D.resolution, D.resolution), torch.tensor([0]))
    hook.remove()
    return seen


# Inputs, configs


def test_embedding_in_place_of_classes():
    G = Generator(32, 4, 10).eval()
    z, y = inputs()
    assert G.embed(y).shape == (3, 128)
    assert torch.equal(G(z, G.embed(y)), G(z, y))
    assert not torch.equal(G(z, G.embed(y) * 0), G(z, y))


def test_wrong_inputs_are_one_line():
    G, D = Generator(32, 4, 10), Discriminator(32, 4, 10)
    z, y = inputs()
    x = torch.rand(3, 3, 32, 32)
    cases = {
        r"z should be of shape \(N, 128\)": [(G, z[:, 1:], y), (G, z[0], y), (G, z.long(), y)],
        r"y should be 3 class indices": [(G, z, y[:2]), (G, z, y.int()), (D, x, y[:, None])],
        r"y, as embeddings, should be of shape \(3, 128\)": [(G, z, z[:2]), (G, z, z[:, 1:])],
        r"y has a class index 10; there are 0 to 9": [(G, z, y * 0 + 10), (D, x, y * 0 + 10)],
        r"y has a class index -1;": [(G, z, y * 0 - 1)],
        r"images should be of shape \(N, 3, 32, 32\)": [
            (D, x[..., 1:], y),
            (D, x[:, :1], y),
            (D, (x * 255).byte(), y),
        ],
    }
    for line, calls in cases.items():
        for model, *args in calls:
            with pytest.raises(UserError, match=line) as caught:
                model(*args)
            assert "\n" not in str(caught.value)


def test_wrong_arguments_are_one_line(monkeypatch):
    def plain(num_features, activation, **options):
        return torch.nn.BatchNorm2d(num_features)

    monkeypatch.setitem(registry._FACTORIES, "Plain", plain)
    cases = {
        "resolution is 48; BigGAN-deep is defined for 32, 64": {"resolution": 48},
        "ch is 6; G at 64x64 needs a multiple of 4": {"ch": 6},
        "ch is 0": {"ch": 0},
        "attention is 24, but G at 64x64 has maps of 8, 16, 32, 64 at": {"attention": 24},
        "unknown norm-act 'EvoNormS00': did you mean 'EvoNormS0'": {"norm": "EvoNormS00"},
        "unknown option group": {"norm_options": {"group": 3}},
        "norm-act 'Plain' cannot be conditional": {"norm": "Plain"},
    }
    for line, arguments in cases.items():
        with pytest.raises(UserError, match=line) as caught:
            Generator(**{"resolution": 64, "ch": 4, "num_classes": 3, **arguments})
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="D at 512x512 needs a multiple of 4"):
        Discriminator(512, 2, 3)


def test_models_of_a_config():
    cfg = get_cfg()
    cfg.DEVICE = "cpu"
    overrides = "MODEL.RESOLUTION 32 MODEL.NUM_CLASSES 5 MODEL.G_CH 4 MODEL.D_CH 8 MODEL.DIM_Z 20"
    finish_config(cfg, [*overrides.split(), "MODEL.NORM", "GN-ReLU"])
    G, D = build_generator(cfg), build_discriminator(cfg)
    assert (G.resolution, G.ch, G.num_classes, G.dim_z, G.norm) == (32, 4, 5, 20, "GN-ReLU")
    assert {m.num_groups for m in G.modules() if hasattr(m, "num_groups")} == {4, 16}
    assert D.resolution == 32 and D.first.out_channels == 32
    twin = build_generator(cfg)
    twin.load_state_dict(G.state_dict())
    z, y = torch.randn(2, 20), torch.tensor([0, 4])
    assert torch.equal(G.eval()(z, y), twin.eval()(z, y))


def test_same_seed_same_model():
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        models.append(Generator(32, 4, 10).state_dict())
    assert all(torch.equal(value, models[1][key]) for key, value in models[0].items())


@pytest.mark.parametrize("build", [Generator, Discriminator])
def test_built_on_meta_and_loaded(build):
    model = build(32, 4, 10).eval()
    with torch.device("meta"):
        twin = build(32, 4, 10).eval()
    assert all(t.is_meta for t in twin.state_dict().values())
    twin.to_empty(device="cpu").load_state_dict(model.state_dict())
    z, y = inputs()
    args = (z, y) if build is Generator else (torch.rand(3, 3, 32, 32), y)
    assert torch.equal(model(*args), twin(*args))


@pytest.mark.parametrize(
    "build",
    [
        lambda: Generator(64, 4, 10, norm="EvoNormB0"),
        lambda: Generator(32, 4, 10, norm="BN-ReLU"),
        lambda: Discriminator(64, 4, 10),
    ],
)
def test_reset_parameters_of_all_modules_gives_a_fresh_model(build):
    with torch.device("meta"):
        model = build()
    model.to_empty(device="cpu")
    for value in model.state_dict().values():
        value.fill_(float("nan"))
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    state = model.state_dict()
    fresh = build().state_dict()
    for key, value in state.items():
        assert value.isfinite().all(), key
        weight = value.flatten(1) if value.dim() > 1 else value
        if key.endswith("original") or key == "embedding.weight":  # of D the former
            short = weight if len(weight) <= weight.shape[1] else weight.T
            torch.testing.assert_close(short @ short.T, torch.eye(len(short)), rtol=0, atol=1e-5)
        elif key.endswith(("_u", "_v")):
            torch.testing.assert_close(value.norm(), torch.ones(()))
        else:
            assert torch.equal(value, fresh[key]), key
    for name, value in singular_values(model).items():
        assert value == pytest.approx(1, abs=1e-3), name


@pytest.mark.parametrize("name", ["EvoNormS0", "EvoNormB0", "BN-ReLU"])
def test_bf16_autocast_is_near_float32(name):
    torch.manual_seed(0)
    G, D = Generator(32, 4, 10, name), Discriminator(32, 4, 10)
    z, y = inputs()
    with frozen_spectral_norm(G), frozen_spectral_norm(D):
        expected = G(z, y)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            images = G(z, y)
            D(images, y).float().sum().backward()
    assert (images - expected).abs().max() < 0.1
    assert all(p.grad.isfinite().all() for p in G.parameters())


def test_compiled_without_a_graph_break():
    torch.manual_seed(0)
    G = Generator(32, 4, 10)
    twin = copy.deepcopy(G)
    z, y = inputs()
    compiled = torch.compile(G, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(z, y), twin(z, y))
    # The power iteration is part of the graph.
    assert all(same(buffers(G), buffers(twin)))


def test_exported_for_any_batch_size():
    G = Generator(64, 4, 10).eval()
    z, y = inputs()
    n = torch.export.Dim("n")
    program = torch.export.export(G, (z, y), dynamic_shapes={"z": {0: n}, "y": {0: n}})
    torch.testing.assert_close(program.module()(z[:2], y[:2]), G(z[:2], y[:2]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="only a GPU's autocast lowers torch.mv")
def test_spectral_norm_keeps_full_precision_under_autocast():
    torch.manual_seed(0)
    layer = layers.conv(8, 16, 3).cuda()
    expected = layer.eval().weight
    with torch.autocast("cuda", torch.bfloat16):
        assert torch.equal(layer.weight, expected)
