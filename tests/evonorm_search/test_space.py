"""The search space: graphs written by hand against the layers, and what is drawn."""

from __future__ import annotations

import math
from collections import Counter
from random import Random

import pytest
import torch

from evonorm import build_norm_act
from evonorm.formula import read_formula
from evonorm.formulas import FORMULAS
from evonorm_search.space import (
    ELEMENTWISE,
    OPS,
    Space,
    depends_on_input,
    dump,
    formula,
    load,
    used,
)

X, ZERO, V0, V1 = range(4)
MINUS_MEAN_B = (("mean_b", (X,)), ("neg", (4,)), ("add", (X, 5)))  # 4, 5, 6
MINUS_MEAN_G = (("mean_g", (X,)), ("neg", (4,)), ("add", (X, 5)))
GRAPHS = {
    "BN-ReLU": (*MINUS_MEAN_B, ("std_b", (X,)), ("div", (6, 7)), ("max", (8, ZERO))),
    "GN-ReLU": (*MINUS_MEAN_G, ("std_g", (X,)), ("div", (6, 7)), ("max", (8, ZERO))),
    "EvoNormS0": (
        *(("mul", (V1, X)), ("sigmoid", (4,)), ("mul", (X, 5)), ("std_g", (X,))),
        ("div", (6, 7)),
    ),
    "EvoNormS1": (("sigmoid", (X,)), ("mul", (X, 4)), ("std_g", (X,)), ("div", (5, 6))),
    "EvoNormS2": (("sigmoid", (X,)), ("mul", (X, 4)), ("rms_g", (X,)), ("div", (5, 6))),
    "EvoNormB0": (
        *(("std_b", (X,)), ("mul", (V1, X)), ("std_i", (X,)), ("add", (5, 6)), ("max", (4, 7))),
        ("div", (X, 8)),
    ),
    "EvoNormB1": (  # table 1 has no 1; exp of the zero tensor is one
        *(("exp", (ZERO,)), ("add", (X, 4)), ("rms_i", (X,)), ("mul", (5, 6)), ("std_b", (X,))),
        *(("max", (8, 7)), ("div", (X, 9))),
    ),
    "EvoNormB2": (
        *(("neg", (X,)), ("rms_i", (X,)), ("add", (5, 4)), ("std_b", (X,)), ("max", (7, 6))),
        ("div", (X, 8)),
    ),
    "RS+rej": (("max", (X, ZERO)), ("rms_b", (X,)), ("div", (4, 5))),
}


def test_the_primitives_are_those_of_table_1():
    assert len(ELEMENTWISE) == 12 and len(OPS) == 24
    assert sorted(op for op, inputs in OPS.items() if inputs == 2) == ["add", "div", "max", "mul"]
    assert {op for op in OPS if op not in ELEMENTWISE} == {
        f"{kind}_{over}" for kind in ("mean", "std", "rms") for over in "bcig"
    }
    assert len(Space(batch=True).ops) == 24 and len(Space(batch=False).ops) == 21


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_written_by_hand_are_the_layers(name):
    """Output, gradients, and evaluation after a batch."""
    graph = GRAPHS[name]
    Space(len(graph), batch="b" in "".join(op[-2:] for op, _ in graph)).check(graph)
    if name in FORMULAS:
        assert formula(graph) == read_formula(FORMULAS[name])
    options = {"num_groups": 4, "eps": 1e-5, "momentum": 1.0, "dtype": torch.float64}
    layer = build_norm_act(name, 8, **options)
    found = build_norm_act(str(formula(graph)), 8, **options)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 8, 5, 5, generator=generator, dtype=torch.float64) * 3 + 1
    dy = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    results = []
    for module in (layer, found):
        of_x = x.clone().requires_grad_()
        y = module(of_x)
        y.backward(dy)
        results.append([y, of_x.grad, module.weight.grad])
        if not name.endswith("ReLU"):  # whose bias comes before its ReLU
            results[-1].append(module.bias.grad)
    for mine, right in zip(*results):
        torch.testing.assert_close(mine, right)
    if name == "BN-ReLU":  # PyTorch's BatchNorm keeps an unbiased variance
        layer.running_var *= 1 - 1 / (4 * 5 * 5)
    torch.testing.assert_close(found.eval()(x), layer.eval()(x))


def test_random_graphs_are_drawn_uniformly():
    space, rng = Space(nodes=10), Random(0)
    graphs = [space.random(rng) for _ in range(4000)]
    for graph in graphs:
        space.check(graph)
    ops = Counter(op for graph in graphs for op, _ in graph)
    assert ops.keys() == OPS.keys()
    expected = 4000 * 10 / 24
    assert all(abs(n - expected) < 5 * math.sqrt(expected) for n in ops.values())
    last = Counter(i for graph in graphs for i in graph[-1][1])  # of 13 values, for the last node
    total = sum(last.values())
    assert last.keys() == set(range(13))
    assert all(abs(n - total / 13) < 5 * math.sqrt(total / 13) for n in last.values())


def test_most_random_graphs_do_not_use_the_input():
    """By a way of their own: nodes visited from the output."""
    space, rng = Space(nodes=10), Random(1)
    count = 0
    for _ in range(2000):
        graph = space.random(rng)
        reached, todo = set(), [4 + len(graph) - 1]
        while todo:
            value = todo.pop()
            reached.add(value)
            if value >= 4:
                todo += graph[value - 4][1]
        assert depends_on_input(graph) == (0 in reached)
        assert used(graph) == sorted(value - 4 for value in reached if value >= 4)
        count += 0 not in reached
    assert 0.65 < count / 2000 < 0.73


def test_the_s_space_has_no_statistic_of_the_batch():
    space, rng = Space(batch=False), Random(2)
    for _ in range(500):
        graph = space.mutate(space.random(rng), rng, 3)
        assert not any(op.endswith("_b") for op, _ in graph)
        found = formula(graph)
        assert found is None or not found.batch


def test_a_mutation_draws_one_node_anew():
    space, rng = Space(nodes=8), Random(3)
    graph = space.random(rng)
    places, unchanged = Counter(), 0
    for _ in range(4000):
        other = space.mutate(graph, rng)
        space.check(other)
        differing = [i for i, (a, b) in enumerate(zip(graph, other)) if a != b]
        assert len(differing) <= 1
        places.update(differing)
        unchanged += not differing
    assert places.keys() == set(range(8)) and min(places.values()) > 350
    assert unchanged < 4000 / 24  # the same op and inputs, by chance
    twice = [space.mutate(graph, rng, times=2) for _ in range(500)]
    assert max(sum(a != b for a, b in zip(graph, other)) for other in twice) == 2


def test_unused_nodes_are_kept_and_may_be_taken_up():
    unused = (("tanh", (X,)), ("sigmoid", (X,)))
    assert str(formula(unused)) == "sigmoid(x)" and used(unused) == [1]
    taken_up = (unused[0], ("sigmoid", (4,)))
    assert str(formula(taken_up)) == "sigmoid(tanh(x))"


def test_the_same_seed_draws_the_same_graphs():
    space = Space()
    one, two = ([space.random(Random(7)) for _ in range(5)] for _ in range(2))
    assert one == two


def test_graphs_as_text():
    rng = Random(4)
    for _ in range(20):
        graph = Space().random(rng)
        assert load(dump(graph)) == graph and "\n" not in dump(graph)


def test_a_constant_that_overflows_stays_as_it_is_written():
    huge = (("exp", (ZERO,)), *((("exp", (4 + i,))) for i in range(6)), ("mul", (10, X)))
    assert str(formula(huge)).startswith("x * exp(exp(exp(3814279.1047")
    assert read_formula(str(formula(huge))) == formula(huge)


def test_what_would_be_too_long_has_no_formula():
    """Each three nodes double the text."""
    graph, last = [], X
    for _ in range(14):
        first = 4 + len(graph)
        graph += [("sigmoid", (last,)), ("tanh", (last,)), ("max", (first, first + 1))]
        last = first + 2
    assert formula(tuple(graph[:9])) is not None
    assert formula(tuple(graph)) is None


@pytest.mark.parametrize(
    "graph, line",
    [
        ((("tanh", (X,)),), "a graph has 1 operation nodes, not 2"),
        ((("tanh", (X,)), ("mean_b", (X,))), "operation node 1 has the op 'mean_b'"),
        ((("tanh", (X,)), ("relu", (X,))), "operation node 1 has the op 'relu'"),
        ((("tanh", (X,)), ("add", (X,))), "operation node 1 (add) has the inputs [0]"),
        ((("tanh", (4,)), ("neg", (X,))), "operation node 0 (tanh) has the inputs [4]"),
    ],
)
def test_graphs_of_another_space_are_refused(graph, line):
    with pytest.raises(ValueError) as error:
        Space(nodes=2, batch=False).check(graph)
    assert str(error.value).startswith(line)
    with pytest.raises(ValueError, match="needs at least 1"):
        Space(nodes=0)
