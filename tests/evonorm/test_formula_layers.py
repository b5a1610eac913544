"""A formula as a layer: its names, statistics and operator, and what stands without activation."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from evonorm import (
    FORMULAS,
    build_norm_act,
    check_norm_act,
    convert,
    formula_of,
    is_norm_act,
    list_norm_acts,
    register_norm_act,
    slug,
    update_running_statistics,
)
from tests.evonorm.unnamed import UNNAMED

pytestmark = pytest.mark.usefixtures("one_thread")


def batches(count, shape=(3, 8, 4, 5)):
    generator = torch.Generator().manual_seed(0)
    return [2 * torch.randn(shape, generator=generator) + i for i in range(count)]


def results(layer, x):
    """Output, gradients, buffers, and the output in evaluation."""
    x = x.clone().requires_grad_()
    y = layer.train()(x)
    (y.sin() * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()
    grads = [x.grad, *(p.grad for p in layer.parameters())]
    return [y.detach(), *grads, *layer.buffers(), layer.eval()(x.detach()).detach()]


@pytest.mark.parametrize("name", FORMULAS)
def test_a_name_and_its_formula_are_one_layer_bit_for_bit(name, random_layer):
    x = batches(1)[0]
    for named, written in zip(*(results(random_layer(n, 8), x) for n in (name, FORMULAS[name]))):
        assert torch.equal(named, written)


@pytest.mark.parametrize(
    "text, kind",
    [
        ("x/(std_g(x))*sigmoid(x*v1)", "S0"),
        ("sigmoid(x) * x / std_g(x)", "S1"),
        ("x * sigmoid(x) / rms_g(-x)", "S2"),
        ("x / max(std_i(x) + x * v1, std_b(x))", "B0"),
        ("x / max((1 + x) * rms_i(x), std_b(x))", "B1"),
        ("x / max(-x + rms_i(x), std_b(x))", "B2"),
        ("x * sigmoid(v0 * x) / std_g(x)", ""),
        ("x * sigmoid(2 * x) / std_g(x)", ""),
    ],
)
def test_the_fused_operator_runs_whoever_wrote_the_formula(text, kind):
    layer = build_norm_act(text, 8)
    assert layer.kind == kind
    with torch.profiler.profile() as profile:
        layer(batches(1)[0])
    assert ("evonorm::forward" in {e.key for e in profile.key_averages()}) == bool(kind)


@pytest.mark.parametrize(
    "text, name",
    [
        ("max((x - mean_b(x)) / std_b(x), 0)", "BN-ReLU"),
        ("(x - mean_b(x)) / std_b(x) * sigmoid((x - mean_b(x)) / std_b(x))", "BN-Swish-1"),
        ("max((x - mean_g(x)) / std_g(x), 0)", "GN-ReLU"),
        ("(x - mean_g(x)) / std_g(x) * sigmoid(v1 * (x - mean_g(x)) / std_g(x))", "GN-Swish"),
        ("max(x / rms_i(x), v0)", "FRN"),
    ],
)
def test_the_baselines_as_formulas(text, name):
    """Output and gradient of x, in training, with gamma 1 and beta 0, which come earlier there."""
    found = []
    for layer in (build_norm_act(text, 8), build_norm_act(name, 8)):
        x = batches(1)[0].requires_grad_()
        y = layer(x)
        y.sin().sum().backward()
        found.append((y.detach(), x.grad))
    for ours, theirs in zip(*found):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_each_statistic_of_the_batch_has_a_running_one():
    layer = build_norm_act("mean_b(x) / std_b(x) + rms_b(tanh(x)) + mean_b(square(x)) + x", 8)
    assert {k: v.shape for k, v in layer.named_buffers()} == {
        "running_var": (8,),
        "running_rest": (3, 8),
    }
    of_batch = {
        "std_b(x)": lambda x: x.var((0, 2, 3), unbiased=False),
        "mean_b(x)": lambda x: x.mean((0, 2, 3)),
        "rms_b(tanh(x))": lambda x: x.tanh().square().mean((0, 2, 3)),
        "mean_b(square(x))": lambda x: x.square().mean((0, 2, 3)),
    }
    order = layer.formula.batch_statistics
    assert set(order) == set(of_batch) and order[0] == "std_b(x)"
    first = {text: torch.zeros(8) if text.startswith("mean") else torch.ones(8) for text in order}
    expected = [first[text] for text in order]
    for x in batches(3):
        layer(x)
        expected = [0.9 * e + 0.1 * of_batch[text](x) for e, text in zip(expected, order)]
        torch.testing.assert_close(layer.running_statistics(), expected)
    update_running_statistics(layer, batches(4))
    precise = [torch.stack([of_batch[text](x) for x in batches(4)]).mean(0) for text in order]
    torch.testing.assert_close(layer.running_statistics(), precise)
    # Evaluation takes them, so that a sample alone is as among others.
    x = batches(1)[0]
    torch.testing.assert_close(layer.eval()(x)[:1], layer(x[:1]))


def test_rms_of_the_batch_is_kept_where_todays_checkpoints_have_it():
    assert list(build_norm_act("tanh(x) / rms_b(x)", 8).state_dict()) == list(
        build_norm_act("RS+rej", 8).state_dict()
    )
    both = build_norm_act("x / (std_b(x) + rms_b(x))", 8)
    assert both.running_var.shape == (8,) and both.running_rest.shape == (1, 8)


def test_parameters_and_their_first_values():
    layer = build_norm_act("x * v1 + v0", 8)
    state = {k: p.unique().item() for k, p in layer.named_parameters()}
    assert state == {"weight": 1.0, "bias": 0.0, "v": 1.0, "v0": 0.0}
    assert set(build_norm_act("x", 8).state_dict()) == {"weight", "bias"}


@pytest.mark.parametrize("text", UNNAMED)
def test_export_by_torch_export(text, random_layer):
    layer, x = random_layer(text, 8, num_groups=4).eval(), batches(1)[0]
    program = torch.export.export(layer, (x,))
    torch.testing.assert_close(program.module()(x), layer(x))


def test_each_formula_has_code_of_its_own():
    """A compiler keeps what it compiled by code object, and gives up after some."""
    codes = {formula_of(name).function.__code__ for name in FORMULAS}
    assert len(codes) == len({formula_of(name) for name in FORMULAS})


def test_names():
    for name in (*list_norm_acts(), *UNNAMED, "x", "0.5 * x", "sigmod(x)"):
        assert is_norm_act(name)
    for name in ("BN", "SyncBN", "FrozenBN", "GN", "LN", "", "naiveSyncBN", None, 3, "EvoNorm-S0"):
        assert not is_norm_act(name)
    check_norm_act("x / std_g(x)")
    with pytest.raises(ValueError, match=r"^\"x \* sigmod\(x\)\": unknown function 'sigmod'"):
        check_norm_act("x * sigmod(x)")
    with pytest.raises(ValueError, match="reads as a formula: choose another name"):
        register_norm_act("x / 2")(nn.Identity)


def test_slugs_never_clash():
    names = [*list_norm_acts(), *UNNAMED, "x", "x + 1", "x - 1", "x * (x + 1)", "x * x + x"]
    slugs = {slug(name) for name in names}
    assert len(slugs) == len(names)
    assert all(len(s) < 50 and not set(s) & set("/\\ *()") for s in slugs)
    assert slug("EvoNormB/1") == "EvoNormB-1" and slug("RS+rej") == "RS+rej"
    assert slug("x*sigmoid( v1*x )/std_g(x)") == slug("x * sigmoid(v1 * x) / std_g(x)")


# What stands where no activation follows.

LINEAR = {  # and the norm that it is, of PyTorch
    "affine": None,
    "BN": nn.BatchNorm2d(8),
    "GN": nn.GroupNorm(4, 8),
    "LN": nn.GroupNorm(1, 8),
    "(x - mean_g(x)) / std_g(x)": nn.GroupNorm(4, 8),
}


@pytest.mark.parametrize("linear", LINEAR)
@pytest.mark.parametrize("name", ["EvoNormS0", "GN-ReLU", "x / std_g(x)"])
def test_linear(name, linear):
    x, norm = batches(1)[0], LINEAR[linear]
    layer = build_norm_act(name, 8, activation=False, linear=linear, num_groups=4)
    torch.testing.assert_close(layer(x), x if norm is None else norm(x), rtol=1e-4, atol=1e-5)
    with_activation = build_norm_act(name, 8, linear=linear, num_groups=4)
    torch.testing.assert_close(with_activation(x), build_norm_act(name, 8, num_groups=4)(x))


def test_linear_is_as_the_paper_has_it_by_default():
    x = batches(1)[0]
    assert torch.equal(build_norm_act("EvoNormS0", 8, activation=False)(x), x)
    normed = build_norm_act("GN-ReLU", 8, activation=False, num_groups=4)(x)
    torch.testing.assert_close(normed, nn.GroupNorm(4, 8)(x))


@pytest.mark.parametrize("linear", ["relu", "EvoNormS0", None, 3, "SyncBN"])
def test_linear_of_another_value_is_refused(linear):
    with pytest.raises(ValueError, match='should be "", affine, BN, GN, LN or a formula'):
        build_norm_act("EvoNormS0", 8, activation=False, linear=linear)


def test_linear_with_a_broken_formula_is_refused():
    with pytest.raises(ValueError, match="unknown function 'std' at character 5"):
        build_norm_act("EvoNormS0", 8, linear="x / std(x)")


def test_convert_takes_formulas_and_linear():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1))
    model.append(nn.BatchNorm2d(8))
    swaps = convert(model, "tanh(x) / std_g(x)", linear="GN", num_groups=4)
    assert [swap.activation for swap in swaps] == [True, False]
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    h = model[0](x)
    groups = h.reshape(2, 4, -1)
    std = (groups.var(2, unbiased=False) + 1e-5).sqrt().repeat_interleave(2, 1)[..., None, None]
    expected = nn.GroupNorm(4, 8)(model[3](h.tanh() / std))
    torch.testing.assert_close(model(x), expected)


# Whose weights a state dict holds.


def load(trained, name):
    layer = build_norm_act(name, 8)
    layer.load_state_dict(build_norm_act(trained, 8).state_dict(), strict=False)


@pytest.mark.parametrize(
    "trained, name",
    [
        ("EvoNormS0", "GN-Swish"),
        ("EvoNormS1", "EvoNormS2"),
        ("EvoNormB1", "EvoNormB2"),
        ("EvoNormS1", "x / std_g(x)"),
        ("EvoNormS1", "GN-ReLU"),
        ("GN-ReLU", "EvoNormS1"),
        ("x * v1", "x + v1"),
        ("FRN", "EvoNormS0"),
        ("PixelNorm-ReLU", "GN-ReLU"),
    ],
)
def test_weights_of_another_norm_are_refused(trained, name):
    with pytest.raises(ValueError, match="another norm's weights here, not those of") as info:
        load(trained, name)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    "trained, name",
    [
        ("EvoNormS/6", "EvoNormS0"),
        ("sigmoid(v1 * x) * x / std_g(x)", "EvoNormS0"),
        ("BN-ReLU", "BN-Swish-1"),
        ("GN-ReLU", "GN-ReLU"),
    ],
)
def test_weights_of_the_same_norm_are_loaded(trained, name):
    load(trained, name)


def test_a_fresh_process_knows_a_formula(tmp_path):
    """Nothing has to be registered first, so that workers and subprocesses take formulas too."""
    layer = build_norm_act("x * tanh(v1 * x) / std_g(x)", 8)
    torch.save(layer, tmp_path / "layer.pt")
    code = f"import torch; print(torch.load({str(tmp_path / 'layer.pt')!r}, weights_only=False))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "x * tanh(v1 * x) / std_g(x), 8" in done.stdout, done.stderr
