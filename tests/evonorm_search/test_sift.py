"""The cheap stages: which formulas they let through, and that equal values are equal."""

from __future__ import annotations

import gc
import linecache
from random import Random

import pytest
import torch

from evonorm import build_norm_act
from evonorm.formulas import FORMULAS
from evonorm_search import sift
from evonorm_search.sift import Sieve, probe
from evonorm_search.space import Space, formula

X, ZERO, V0, V1 = range(4)


@pytest.mark.parametrize("name", FORMULAS)
def test_no_layer_of_the_paper_is_held_back(name):
    # But for the one that the paper drew at random: all values of a map are alike.
    assert probe(FORMULAS[name])[0] == (sift.CONSTANT if name == "Random" else sift.NEW)


@pytest.mark.parametrize(
    "text, stage",
    [
        ("x / 0", sift.NOT_FINITE),
        ("exp(exp(exp(exp(x))))", sift.NOT_FINITE),
        ("sqrt(x - x * exp(0))", sift.CONSTANT),
        ("v0 * x", sift.CONSTANT),
        ("std_b(x)", sift.CONSTANT),
        ("tanh(rms_i(x) + v0 * mean_c(x))", sift.CONSTANT),  # one value a map
        ("std_i(x)", sift.CONSTANT),
        ("std_i(x) + v0 * x", sift.NEW),  # only as it starts
        ("max(v1, x)", sift.NEW),
    ],
)
def test_stages(text, stage):
    assert probe(text)[0] == stage


def test_equal_values_have_equal_fingerprints():
    same = ("tanh(x)", "(exp(x) - exp(-x)) / (exp(x) + exp(-x))")
    assert probe(same[0]) == probe(same[1])
    # Equal as they start, but not once they have learnt.
    assert probe("x") != probe("v1 * x")
    assert probe("x * sigmoid(v1)") != probe("x * sigmoid(x)")
    assert probe("x * 1.00000000000001") == probe("x")
    assert probe("x * 1.001") != probe("x")


def test_a_sieve_remembers_what_it_let_through():
    sieve = Sieve()
    graphs = {
        0: (("tanh", (X,)), ("sigmoid", (X,))),
        1: (("neg", (X,)), ("sigmoid", (X,))),  # the same, with another unused node
        2: (("tanh", (X,)), ("tanh", (V1,))),
        3: (("neg", (X,)), ("add", (X, 4))),
        4: (("sigmoid", (X,)), ("abs", (4,))),
        5: (("square", (X,)), ("sigmoid", (4,))),
    }
    results = {key: sieve(graph, key)[:2] for key, graph in graphs.items()}
    assert results == {
        0: (sift.NEW, None),
        1: (sift.SEEN_FORMULA, 0),
        2: (sift.IGNORES_INPUT, None),
        3: (sift.IGNORES_INPUT, None),  # x - x
        4: (sift.SEEN_FORMULA, 0),  # a sigmoid is positive
        5: (sift.NEW, None),
    }
    assert sum(sieve.counts.values()) == 6 and sieve.counts[sift.NEW] == 2


def test_what_is_taken_for_equal_is_equal_elsewhere():
    """On another input, of another size, with other vectors and statistics."""
    space, rng, sieve = Space(nodes=8), Random(5), Sieve()
    graphs, pairs = {}, []
    for key in range(20_000):
        graphs[key] = space.random(rng)
        stage, equal, _ = sieve(graphs[key], key)
        if stage == sift.SEEN_VALUES:
            pairs.append((key, equal))
    assert len(pairs) > 30
    assert sum(sieve.counts.values()) == 20_000
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 12, 4, 7, generator=generator, dtype=torch.float64)
    vectors = torch.randn(2, 12, generator=generator, dtype=torch.float64)
    for pair in pairs:
        outputs = []
        for key in pair:
            text = str(formula(graphs[key]))
            layer = build_norm_act(text, 12, num_groups=3, dtype=torch.float64)
            with torch.no_grad():
                for name, values in zip(("v0", "v"), vectors):
                    if getattr(layer, name) is not None:
                        getattr(layer, name).copy_(values)
                outputs += [layer(x)]
        torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-6)


def test_the_code_of_formulas_that_are_gone_is_not_kept():
    def sources():
        gc.collect()
        return sum(file.startswith("<formula ") for file in linecache.cache)

    from evonorm.formula import Formula

    before = sources()
    for i in range(50):
        assert Formula(f"x * {i + 2}.125").function is not None
    assert sources() <= before + 1


def test_without_the_sieve_for_duplicates_all_that_takes_its_input_is_new():
    sieve = Sieve(duplicates=False)
    tanh, constant, other = (("tanh", (0,)),), (("div", (0, 0)),), (("tanh", (1,)),)
    assert [sieve(graph, 0)[0] for graph in (tanh, tanh, constant, other)] == [
        *(sift.NEW, sift.NEW, sift.NEW),
        sift.IGNORES_INPUT,
    ]
