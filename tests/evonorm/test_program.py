"""Formulas evaluated block by block (evonorm/program.py) against the generated code in PyTorch."""

from __future__ import annotations

import math
import re
from pathlib import Path
from random import Random

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from evonorm import build_norm_act, ops
from evonorm.formula import read_formula
from evonorm.program import LONGEST, OPS, OVER, compile_program
from evonorm_search.space import Space, depends_on_input, formula

pytestmark = pytest.mark.skipif(not ops._formulas, reason="the CPU's operators are not built")
SHAPES = [
    (3, 8, 5, 5),
    (2, 24, 4, 4),
    (2, 16, 1, 1),
    (2, 64, 16, 16),
    (3, 12, 7, 3),
    (1, 4, 70, 70),
]
FORMULAS = [
    *(f"{f}({a})" for f in ("sigmoid", "tanh", "exp", "log", "abs", "square", "sqrt")
      for a in ("x", "v1 * x", "square(x) + 1")),
    *(f"{kind}_{over}(tanh(x)) * x + {kind}_{over}(v1)" for kind in ("mean", "std", "rms")
      for over in "bcig"),
    *("x + v0", "v1 - x", "x * v1 * 3", "x / v1", "1 / x", "x / std_g(x)", "-x", "2", "v1"),
    *("max(x, 0)", "max(x, -1)", "max(x, v0)", "max(x, rms_c(x))", "max(v0, mean_i(x)) + x"),
    *("mean_i(x)", "std_c(mean_i(x)) * x", "rms_g(std_i(x)) - x", "rms_i(2) * x"),
    "x / max(std_b(x), v1 * x + std_i(x))",
    "x * mean_b(square(x)) / rms_b(x + mean_b(x))",
]  # fmt: skip


def both(text, shape, dtype, last, training=True, seed=0):
    """Output and gradients, first those of the generated code, then those of the operators."""
    layer = build_norm_act(text, shape[1], num_groups=4, dtype=dtype).train(training)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    x, dy = (2 * torch.randn(shape, generator=generator, dtype=dtype) for _ in range(2))
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_()

    def run():
        y = layer(x)
        wanted = [x, *layer.parameters()]
        return [y, *torch.autograd.grad(y, wanted, dy, allow_unused=True, materialize_grads=True)]

    with ops.reference_only():
        expected = run()
    found = run()
    return expected, found


def check_equal(text, shape, dtype, last, tolerance, **options):
    expected, found = both(text, shape, dtype, last, **options)
    for one, two in zip(expected, found):
        scale = one[one.isfinite()].abs().max().item() if one.isfinite().any() else 1
        torch.testing.assert_close(
            two, one, rtol=tolerance, atol=tolerance * max(scale, 1e-3), equal_nan=True, msg=text
        )
    assert found[0].stride() == expected[0].stride()


@pytest.mark.parametrize("text", FORMULAS)
def test_each_operation_and_its_gradient(text):
    for number, shape in enumerate(SHAPES):
        check_equal(text, shape, torch.float64, last=number % 2 == 0, tolerance=1e-11)
    for last in (False, True):
        check_equal(text, (3, 16, 9, 9), torch.float32, last, tolerance=2e-4)


def test_random_graphs_of_the_search():
    rng = Random(0)
    for number in range(150):
        space = Space(batch=number % 2 == 1)
        graph = space.random(rng)
        while not depends_on_input(graph) or formula(graph) is None:
            graph = space.random(rng)
        options = {"last": number % 3 == 0, "training": number % 5 > 0, "seed": number}
        shape = SHAPES[number % len(SHAPES)]
        check_equal(str(formula(graph)), shape, torch.float64, tolerance=1e-7, **options)


def test_first_and_second_derivatives_agree_with_finite_differences():
    for text in ("x * sigmoid(v1 * x) / std_g(x)", "tanh(v1 / rms_c(x)) * log(square(x) + 1) + v0"):
        layer = build_norm_act(text, 4, num_groups=2, dtype=torch.float64)
        x = torch.randn(2, 4, 3, 2, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(layer, x)
        assert torch.autograd.gradgradcheck(layer, x)


@pytest.mark.parametrize("name", ["exp", "log", "tanh", "sigmoid"])
def test_functions_are_right_to_the_last_bits(name):
    generator = torch.Generator().manual_seed(0)
    size = torch.linspace(-38, 38, 20_000).double()
    signs = torch.randint(2, size.shape, generator=generator) * 2 - 1
    x = (signs * 10**size).float()
    x = torch.cat([x, torch.linspace(-110, 110, 20_000), torch.tensor([0.0, math.inf, -math.inf])])
    text = "log(exp(x))" if name == "log" else f"{name}(x)"
    if name == "log":  # of a node that is above 0, table 1's is the plain one
        x = x[x.abs() < 87]
    layer = build_norm_act(text, 1, affine=False)
    y = layer(x.reshape(1, 1, 1, -1)).flatten()
    expected = x.double() if name == "log" else getattr(torch, name)(x.double())
    infinite = expected.float().isinf()
    assert torch.equal(y[infinite], expected.float()[infinite])
    usual = ~infinite & (expected.abs() > 2.0**-126)  # smaller ones have fewer bits
    error = (y.double() - expected)[usual].abs()
    error /= expected[usual].abs().clamp(min=1) if name == "log" else expected[usual].abs()
    assert error.max() < 2e-7
    assert y[~infinite & ~usual].abs().max() <= 2.0**-126
    assert layer(torch.full((1, 1, 1, 3), math.nan)).isnan().all()


def test_gradients_at_ties_and_zeros_are_pytorchs():
    x = torch.tensor([0.0, 1.0, -1.0, math.nan, 2.0, math.inf]).reshape(1, 1, 1, -1)
    for text in ("max(x, 0)", "max(x, 3)", "max(x, v1 * x)", "max(x, abs(x))", "sqrt(x)", "log(x)",
                 "abs(x)", "1 / x", "x / x"):  # fmt: skip
        layer, found = build_norm_act(text, 1), []
        for use in (ops.reference_only, torch.enable_grad):
            with use():
                given = x.clone().requires_grad_()
                y = layer(given)
                found.append([y, torch.autograd.grad(y, given, torch.ones_like(y))[0]])
        for one, two in zip(*found):
            torch.testing.assert_close(two, one, equal_nan=True, msg=text)


def names_of(y):
    return type(y.grad_fn).__name__


def test_where_it_runs():
    layer = build_norm_act("x * tanh(v1 * x) / std_g(x)", 4, num_groups=2)
    x = torch.randn(2, 4, 3, 3, requires_grad=True)
    assert names_of(layer(x)) == "_EvaluateBackward"
    assert names_of(layer(x.bfloat16())) != "_EvaluateBackward"
    assert names_of(layer(x, torch.ones(2, 4), torch.zeros(2, 4))) == "KeepInputsOnlyBackward"
    with ops.reference_only():
        assert names_of(layer(x)) == "KeepInputsOnlyBackward"

    class Recorder(TorchDispatchMode):
        seen: list = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with Recorder() as recorder, torch.no_grad():  # such as a counter of operations
        layer(x)
    assert any("tanh" in name for name in recorder.seen)
    no_samples = layer(torch.empty(0, 4, 3, 3, requires_grad=True))
    assert torch.autograd.grad(no_samples.sum(), layer.v)[0].tolist() == [0.0] * 4


def test_results_do_not_depend_on_the_number_of_threads():
    threads = torch.get_num_threads()
    layer = build_norm_act("x * tanh(v1 * x) / std_g(x) + v0", 32)
    x = torch.randn(16, 32, 16, 16, requires_grad=True)
    found = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            y = layer(x)
            found.append([y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])])
    finally:
        torch.set_num_threads(threads)
    for one, two in zip(*found):
        assert torch.equal(one, two)


def test_both_sides_number_the_operations_alike():
    header = (Path(ops.__file__).parent / "cpu_formula.h").read_text()
    names = re.findall(r"\w+", re.search(r"enum Op : int64_t \{(.*?)OPS", header, re.S)[1])
    assert tuple(name.lower() for name in names) == OPS
    over = re.search(r"enum Over : int64_t \{(.*?)\}", header)[1]
    assert dict(zip(("i", "g", "c"), range(3))) == OVER
    assert re.findall(r"\w+", over) == ["IMAGE", "GROUP", "SAMPLE"]


def test_what_is_too_long_or_broken():
    text = "x"
    for number in range(LONGEST):
        text = f"sigmoid({text} + {number + 1})"
    parsed = read_formula(text)
    assert compile_program(parsed.root, parsed.batch) is None
    x = torch.randn(1, 1, 2, 2)
    assert build_norm_act(text, 1)(x).shape == x.shape
    for steps, message in ([6, 0, 1, 1], "step 0 is broken"), ([0, 0, 0, 0], "should be full"):
        with pytest.raises(RuntimeError, match=message):
            torch.ops.evonorm.formula_forward(x, *[None] * 5, steps, [0.0], 1, 1e-5)
    with pytest.raises(RuntimeError, match="a vector that is missing"):
        program = read_formula("v1 * x").program
        torch.ops.evonorm.formula_forward(x, *[None] * 5, *program, 1, 1e-5)
