"""What is measured of a layer, against closed forms; the picture of a graph; the text."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from random import Random

import pytest

from evonorm.formula import Formula
from evonorm_runs.errors import UserError
from evonorm_search.drawing import layout, svg
from evonorm_search.show import describe, measure, operations
from evonorm_search.space import INITIAL, Space, used
from evonorm_search.store import Candidate


@pytest.mark.parametrize(
    "norm_act, change, off_centre, batch",
    [
        ("x", 3.0, None, False),  # |4x - x| / |x|
        ("square(x)", 15.0, None, False),
        ("(x - mean_b(x)) / std_b(x)", 0.0, 0.0, True),
        ("(x - mean_i(x)) / std_i(x)", 0.0, 0.0, False),
        ("x - mean_b(x)", 3.0, 0.0, True),
        # Of the positive part of a standard normal: mean 1/sqrt(2 pi), mean square 1/2.
        ("BN-ReLU", 0.0, 1 / math.sqrt(math.pi - 1), True),
        ("sigmoid(0 * x)", 0.0, math.inf, False),
    ],
)
def test_scale_and_centre(norm_act, change, off_centre, batch):
    found = measure(norm_act)
    assert found.batch_dependent == batch
    assert found.scale_change == pytest.approx(change, abs=1e-6)
    if off_centre is not None:
        assert found.off_centre == pytest.approx(off_centre, rel=0.02, abs=1e-9)


def test_saved_bytes():
    assert measure("tanh(x) * x").saved_bytes == 4.0  # the input, and nothing else
    assert measure("BN-ReLU").saved_bytes == pytest.approx(8.0, abs=0.1)


@pytest.mark.parametrize(
    "text, count",
    [
        ("x", 0),
        ("x * sigmoid(v1 * x) / std_g(x)", 5),
        ("x / (std_g(x) + square(v1))", 2),  # what is the same for all pixels counts nothing
        ("max(x, 0) + max(x, 0) * x", 3),  # a repeated part is computed once
        ("mean_i(std_g(x)) * x", 2),
    ],
)
def test_operations_over_all_values(text, count):
    assert operations(Formula(text)) == count


def test_each_value_is_right_of_its_inputs_and_nothing_lies_on_another():
    rng = Random(0)
    for _ in range(50):
        graph = Space(12).random(rng)
        inputs = {i: () for i in range(len(INITIAL))}
        inputs |= {len(INITIAL) + place: sources for place, (_, sources) in enumerate(graph)}
        columns, rows = layout(inputs)
        for value, sources in inputs.items():
            for source in sources:
                assert columns[source] < columns[value]
                # Its line has a row of its own all the way.
                assert all(source in rows[c] for c in range(columns[source], columns[value]))
        for column in rows:
            assert sorted(column.values()) == list(range(len(column)))


def test_the_picture_has_each_node_once():
    graph = (
        *(("mul", (3, 0)), ("sigmoid", (4,)), ("mul", (0, 5))),
        *(("std_g", (0,)), ("tanh", (6,)), ("div", (6, 7))),
    )
    root = ElementTree.fromstring(svg(graph))
    space = "{http://www.w3.org/2000/svg}"
    texts = [text.text for text in root.iter(f"{space}text")]
    assert sorted(texts) == sorted(["x", "v1", *(op for op, _ in graph)])
    dashed = [rect for rect in root.iter(f"{space}rect") if rect.get("stroke-dasharray")]
    assert len(dashed) == len(graph) - len(used(graph)) == 1
    assert len(list(root.iter(f"{space}path"))) == sum(len(sources) for _, sources in graph)


def test_the_text():
    result = {"stage": "trained", "quality": [0.3], "worst": [2.5], "scores": [0.75]}
    result["curves"] = [[2.3, None]]
    parent = Candidate(3, (("abs", (0,)),), "abs(x)", b"", 0)
    child = Candidate(8, (("tanh", (0,)),), "tanh(x)", b"", 1, parent=3)
    rejected = {"stage": "quality", "quality": [0.1], "worst": [], "scores": [], "curves": [[2.3]]}
    text = describe([(parent, rejected), (child, result)], 8, ["ResNet-small"])
    lines = text.splitlines()
    assert r"LaTeX          \tanh(x)" in lines
    assert "ResNet-small: 30.0 % early, worst gradient norm 2.5, 75.0 % at the end" in lines
    assert "  loss 2.30 -" in lines
    assert [line.split() for line in lines[-2:]] == [
        ["3", "quality", "abs(x)"],
        ["8", "75.0", "%", "tanh(x)"],
    ]
    with pytest.raises(UserError, match="no candidate has the key 5"):
        describe([(parent, result)], 5, ["ResNet-small"])
