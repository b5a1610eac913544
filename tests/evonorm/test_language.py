"""The language of formulas: canonical forms, errors, code, against a plain reading of the text."""

from __future__ import annotations

import copy
import pickle
import random
import re
from functools import partial

import pytest
import torch

from evonorm import FORMULAS, Formula, build_norm_act, formula_of
from evonorm.expression import AGGREGATIONS, FUNCTIONS

pytestmark = pytest.mark.usefixtures("one_thread")

GROUPS, EPS = (
    2,
    1e-12,
)  # an eps so small that it does not tell table 1's division from the plain one


def over(kind, x):
    """The mean over what an aggregation's letter says, in the shape of x (N, C, H, W)."""
    n, c, h, w = x.shape
    if kind == "g":
        parts = x.reshape(n, GROUPS, -1)
        return parts.mean(2)[:, :, None].expand(parts.shape).reshape(x.shape)
    dims = {"b": (0, 2, 3), "c": (1, 2, 3), "i": (2, 3)}[kind]
    return x.mean(dims, keepdim=True).expand(x.shape)


def aggregation(name, shape):
    kind, letter = name.split("_")

    def compute(a):
        a = full(a, shape)
        mean = over(letter, a)
        if kind == "mean":
            return mean
        square = over(letter, (a - mean) ** 2 if kind == "std" else a**2)
        return (square + EPS) ** 0.5

    return compute


def full(a, shape):
    return torch.as_tensor(a, dtype=torch.float64).expand(shape)


def plain_reading(text, x, v0, v1):
    """The text as Python reads it, with PyTorch's functions, and the largest value on the way."""
    seen = []

    def noted(function):
        def compute(*inputs):
            result = function(*(full(a, x.shape) for a in inputs))
            seen.append(result.detach().abs().max().item())
            return result

        return compute

    names = {
        "max": torch.maximum,
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "exp": torch.exp,
        "log": lambda a: torch.sign(a) * torch.log(a.abs().clamp(min=1e-300)),
        "abs": torch.abs,
        "square": lambda a: a * a,
        "sqrt": lambda a: torch.sign(a) * a.abs().sqrt(),
        **{name: aggregation(name, x.shape) for name in AGGREGATIONS},
    }
    scope = {name: noted(function) for name, function in names.items()}
    scope |= {"x": x, "v0": v0, "v1": v1, "tensor": lambda value: full(value, x.shape)}
    # Python's numbers know no division by zero.
    y = full(eval(re.sub(r"(?<![\w.])[\d.]+", r"tensor(\g<0>)", text), scope), x.shape)
    return y, max([*seen, y.detach().abs().max().item()])


def statistics_of(formula, x, v0, v1):
    """The batch's statistics that a formula's function takes, each (C, 1, 1)."""
    found = []
    for node, inner in zip(formula.batch, formula.inner_functions):
        a = x if inner is None else inner(x, v0, v1, found, GROUPS, EPS)
        mean, square = a.mean((0, 2, 3)), a.square().mean((0, 2, 3))
        var = (a - mean[:, None, None]).square().mean((0, 2, 3))
        found.append({"mean_b": mean, "std_b": var, "rms_b": square}[node.op][:, None, None])
    return found


def apply(formula, x, v0, v1):
    statistics = statistics_of(formula, x, v0, v1)
    return formula.function(x, v0, v1, statistics, GROUPS, EPS)


def inputs():
    generator = torch.Generator().manual_seed(0)

    def new(*shape):
        values = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return values.requires_grad_()

    return new(3, 4, 2, 3), new(4, 1, 1), new(4, 1, 1)


def random_text(rng, operations):
    """A random graph of the paper's kind, as the text of its last node."""
    nodes = ["x", "x", "0", "v0", "v1", "1", "2", "-0.5"]
    binary = ["({} + {})", "({} - {})", "({} * {})", "({} / {})", "max({}, {})"]
    unary = ["-{}", *(f"{name}({{}})" for name, n in FUNCTIONS.items() if n == 1)]
    aggregations = [f"{name}({{}})" for name in AGGREGATIONS]
    for _ in range(operations):
        kind = rng.choice((binary, binary, unary, aggregations))
        # Lately made nodes first, so that the last one is made of many.
        picked = [nodes[-rng.randint(1, 4)] if rng.random() < 0.6 else rng.choice(nodes)]
        picked.append(rng.choice(nodes))
        nodes.append(f"({rng.choice(kind).format(*rng.sample(picked, 2))})")
    return nodes[-1]


@pytest.mark.parametrize("seed", range(8))
def test_canonical_forms_compute_what_they_came_from(seed):
    """Random formulas: output and gradients in float64; the canonical form is a fixed point."""
    rng = random.Random(seed)
    compared = shorter = 0
    for _ in range(400):
        text = random_text(rng, rng.randint(1, 8))
        formula = Formula(text)
        again = Formula(str(formula))
        assert again == formula and str(again) == str(formula), text
        leaves = inputs()
        expected, largest = plain_reading(text, *leaves)
        if not expected.isfinite().all() or largest > 1e4:
            continue  # a zero denominator, or too few digits left to compare
        weight = torch.linspace(-1, 1, expected.numel(), dtype=torch.float64).view(expected.shape)
        if not expected.requires_grad:
            y = apply(formula, *leaves)
            torch.testing.assert_close(y, expected, rtol=1e-7, atol=1e-7, msg=text)
            continue
        wanted = torch.autograd.grad((expected * weight).sum(), leaves, allow_unused=True)
        if not all(g is None or (g.isfinite().all() and g.abs().max() < 1e4) for g in wanted):
            continue  # at a kink, such as sqrt(x - x)
        y = apply(formula, *leaves)
        where = partial("{}: {}".format, text)
        torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-6, msg=where)
        found = [None] * 3
        if y.requires_grad:
            found = torch.autograd.grad((y * weight).sum(), leaves, allow_unused=True)
        for ours, theirs in zip(found, wanted):
            ours, theirs = (torch.zeros(()) if g is None else g for g in (ours, theirs))
            torch.testing.assert_close(
                ours.double().expand(theirs.shape) if ours.dim() == 0 else ours,
                theirs.double().expand(ours.shape) if theirs.dim() == 0 else theirs,
                rtol=1e-5,
                atol=1e-5,
                msg=where,
            )
        compared += 1
        shorter += len(str(formula)) < len(text.replace("(", "").replace(")", ""))
    assert compared > 150 and shorter > 20


SAME = [  # each line is one formula
    [
        "x * sigmoid(v1 * x) / std_g(x)",
        "x / std_g(x) * sigmoid(x * v1)",
        "--x*(sigmoid(v1*x)/std_g(x))",
    ],
    [
        "x",
        "+x",
        "x + 0",
        "0 + x",
        "1 * x",
        "x / 1",
        "-(-x)",
        "max(x, x)",
        "x + x - x",
        "mean_i(x) * 0 + x",
    ],
    ["2 * x", "x + x", "x * 2", "x / 0.5", "4 * x - 2 * x", "-(x * -2)"],
    ["square(x)", "x * x", "abs(square(x))", "square(abs(x))", "square(-x)", "max(square(x), 0)"],
    ["abs(x)", "sqrt(square(x))", "square(sqrt(x))", "abs(-x)"],
    ["0", "x - x", "0 * x", "tanh(0)", "0 / exp(x)", "log(0)"],
    ["1", "exp(x) / exp(x)", "std_g(x) / std_g(x)", "exp(0)"],
    ["exp(x)", "max(exp(x), 0)", "max(-1, exp(x))", "abs(exp(x))"],
    ["mean_i(x)", "mean_i(mean_i(x))", "-mean_i(-x)", "mean_g(mean_i(x)) * 0 + mean_i(x)"],
    ["mean_b(x)", "mean_b(mean_b(x))", "mean_i(mean_b(x))"],
    ["std_i(x)", "std_i(-x)"],
    ["rms_c(x)", "rms_c(-x)", "rms_c(abs(x))"],
    ["v1", "mean_b(v1)", "mean_i(v1)"],
    ["-tanh(x)", "tanh(-x)"],
    ["max(x, tanh(x))", "max(tanh(x), x)", "max(x, max(tanh(x), x))"],
    ["x - v1", "-v1 + x", "-(v1 - x)"],
    ["x / (std_b(x) * std_i(x))", "x / std_b(x) / std_i(x)", "x / std_i(x) / std_b(x)"],
]


@pytest.mark.parametrize("texts", SAME, ids=lambda texts: texts[0])
def test_equal_formulas_have_one_canonical_form(texts):
    assert {str(Formula(text)) for text in texts} == {str(Formula(texts[0]))}
    assert len({Formula(text) for text in texts}) == 1


@pytest.mark.parametrize(
    "one, two",
    [
        ("x / x", "1"),  # table 1's division is not exact: x / (x + eps sign(x))
        ("log(exp(x))", "x"),
        ("std_i(x)", "rms_i(x)"),
        ("mean_g(x)", "mean_c(x)"),
        ("max(x, 0)", "x"),
        ("sqrt(x)", "abs(x)"),
        ("v0", "v1"),
        ("std_g(v1)", "rms_i(0)"),  # v1 differs between the channels of a group
    ],
)
def test_what_is_not_equal_stays_apart(one, two):
    assert Formula(one) != Formula(two)


def test_the_papers_formulas():
    """Operations counted by hand; what takes statistics of the batch."""
    counts = {"EvoNormB0": 6, "EvoNormS0": 5, "EvoNormS1": 4, "RS+rej": 3, "Random+rej": 3}
    for name, text in FORMULAS.items():
        formula = formula_of(name)
        assert str(Formula(str(formula))) == str(formula)
        assert formula.operations == counts.get(name, formula.operations)
        batch = name.startswith(("EvoNormB", "RS"))
        assert bool(formula.batch_statistics) == batch, text
    assert formula_of("EvoNormB0").batch_statistics == ["std_b(x)"]
    assert formula_of("RS+rej").batch_statistics == ["rms_b(x)"]
    assert formula_of("BN-ReLU") is None


def test_a_repeated_part_is_computed_once():
    z = "tanh(v1 * x)"
    formula = Formula(f"{z} * sigmoid({z}) / std_g({z})")
    assert formula.operations == 6
    x, v0, v1 = inputs()
    with torch.profiler.profile() as profile:
        formula.function(x, v0, v1, [], GROUPS, EPS)
    assert [e.count for e in profile.key_averages() if e.key == "aten::tanh"] == [1]


def test_dead_parts_leave_no_trace():
    formula = Formula("x + 0 * std_b(x) + v0 - v0")
    assert (str(formula), formula.operations) == ("x", 0)
    assert formula.batch_statistics == [] and formula.vectors == []


@pytest.mark.parametrize(
    "text, latex",
    [
        ("x * sigmoid(v1 * x) / std_g(x)", r"\frac{x \sigma(v_1 x)}{\sqrt{s^2_{w,h,c/g}(x)}}"),
        (
            "x / max(std_b(x), (x + 1) * rms_i(x))",
            r"\frac{x}{\max(\sqrt{s^2_{b,w,h}(x)}, \left(x + 1\right) \sqrt{\mu_{w,h}(x^2)})}",
        ),
        ("x - mean_b(x) * 2", r"x - 2 \mu_{b,w,h}(x)"),
        ("exp(x) + log(x) - sqrt(exp(x))", r"e^{x} + \mathrm{sign}(x) \ln|x| - \sqrt{e^{x}}"),
        ("2 * 3 * v0 * square(x + 1)", r"6 v_0 \left(x + 1\right)^2"),
        ("x * -2e-7", r"-2 \cdot 10^{-7} x"),
        (
            "sqrt(x * (v0 + v1 * x + 3) * tanh(x))",
            r"\mathrm{sign}(\cdot) \sqrt{|x \tanh(x) \left(v_0 + v_1 x + 3\right)|}",
        ),
    ],
)
def test_latex(text, latex):
    assert Formula(text).latex == latex


def test_latex_of_nested_functions_stays_short():
    for function in ("sqrt", "log"):
        text = f"{function}(x - " * 40 + "x * 3" + ")" * 40
        assert len(Formula(text).latex) < 10 * len(text)


ERRORS = [  # text, what the line says after it
    ("x * sigmod(v1 * x)", "unknown function 'sigmod' at character 5: did you mean 'sigmoid'?"),
    ("x / std(x)", "unknown function 'std' at character 5: did you mean 'std_i'?"),
    ("x * y", "unknown name 'y' at character 5: known are x, v0, v1"),
    ("x * v2", "unknown name 'v2' at character 5: did you mean 'v1'?"),
    ("max(x)", "the function 'max' takes 2 arguments at character 1"),
    ("tanh(x, x)", "the function 'tanh' takes 1 argument at character 1"),
    ("tanh(*x)", "the function 'tanh' takes 1 argument at character 1"),
    ("tanh(x=x)", "the function 'tanh' takes 1 argument at character 1"),
    ("x + tanh", "the function 'tanh' has no brackets at character 5"),
    ("x ** 2", "'x ** 2' can't be used in a formula at character 1: "),
    ("x if x else x", "'x if x else x' can't be used in a formula at character 1: "),
    ("x + (lambda: x)()", "'lambda: x' is not a function at character 6"),
    (
        "__import__('os').system('true')",
        "\"__import__('os').system\" is not a function at character 1",
    ),
    ("x + 'a'", "\"'a'\" is not a number at character 5"),
    ("x + True", "'True' is not a number at character 5"),
    ("x + 1e999", "the number is too large at character 5"),
    ("x * (v1", "'(' was never closed at character 5"),
    ("x +", "the formula ends too early"),
    ("", "the formula is empty"),
    ("x \0", "source code string cannot contain null bytes"),
    ("ä * x", "unknown name 'ä' at character 1: known are x, v0, v1"),
    ("-ä * x + q", "unknown name 'ä' at character 2: known are x, v0, v1"),
]


@pytest.mark.parametrize("text, line", ERRORS)
def test_a_broken_formula_gets_one_line_that_points_at_the_place(text, line):
    with pytest.raises(ValueError) as info:
        Formula(text)
    assert str(info.value).startswith(f'"{text}": {line}') and "\n" not in str(info.value)


def test_endless_formulas_are_refused():
    for text, line in (
        ("-" * 5000 + "x", "the formula is nested too deeply"),
        ("(" * 300, "too many"),
    ):
        with pytest.raises(ValueError, match=line) as info:
            Formula(text)
        assert len(str(info.value)) < 300
    doubling = "x"
    for _ in range(12):
        doubling = f"tanh({doubling}) / {doubling}"
    with pytest.raises(ValueError, match="longer than 20,000 characters"):
        Formula(doubling)


def test_formulas_are_copied_and_pickled():
    formula = formula_of("EvoNormB0")
    for other in (copy.deepcopy(formula), pickle.loads(pickle.dumps(formula))):
        assert other == formula and hash(other) == hash(formula)


@pytest.mark.parametrize("text", ["x / 0", "mean_b(x / 0)", "tanh(x) / (x - x)"])
def test_division_by_the_number_zero_is_infinite(text):
    """Table 1's x / (y + eps sign(y)) at y = 0, as a layer and inside a statistic."""
    layer = build_norm_act(text, 2, dtype=torch.float64)
    with torch.no_grad():
        assert layer(torch.ones(3, 2, 4, 4, dtype=torch.float64)).isinf().all()
