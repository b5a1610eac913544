"""Parts of one's own: an op, a network, a score, and formulas to start from."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
import torch

from evonorm import build_norm_act, formula_of, register_function
from evonorm.formulas import FORMULAS
from evonorm_runs.errors import UserError
from evonorm_search import plugins
from evonorm_search.anchors import build_anchor, register_anchor
from evonorm_search.config import load_config
from evonorm_search.replay import replay
from evonorm_search.scores import register_score, scored
from evonorm_search.search import run
from evonorm_search.space import Space, formula
from evonorm_search.store import Store
from evonorm_search.warm_start import graph_for

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs/search/small_s.yaml")
SHORT = (
    "DEVICE cpu CANDIDATES 4 PROXY.STEPS 2 PROXY.QUALITY_STEPS 1 PROXY.QUALITY 0.0 "
    "PROXY.STABILITY_STEPS 1 ANCHORS ('Tiny',)"
).split()


def test_a_function_of_ones_own(own):
    """In values, first and second derivatives, text, LaTeX and other processes' formulas."""
    layer = build_norm_act("lower(softsign(2 * x), x) / std_g(x)", 8, num_groups=2).double()
    x = torch.randn(3, 8, 4, 4, dtype=torch.float64, requires_grad=True)
    groups = x.reshape(3, 2, -1)
    std = (groups.var(2, correction=0) + 1e-5).sqrt().repeat_interleave(4, 1)[:, :, None, None]
    right = torch.minimum(2 * x / (1 + (2 * x).abs()), x) / std
    torch.testing.assert_close(layer(x), right)
    assert torch.autograd.gradcheck(layer, (x,))
    (mine,), (theirs,) = (
        torch.autograd.grad(y.square().sum(), x, create_graph=True) for y in (layer(x), right)
    )
    for a, b in zip(*(torch.autograd.grad(d.square().sum(), x) for d in (mine, theirs))):
        torch.testing.assert_close(a, b)
    found = formula_of("lower(softsign(x), 0)")
    assert str(found) == "lower(softsign(x), 0)" and pickle.loads(pickle.dumps(found)) == found
    assert r"\operatorname{lower}(\operatorname{softsign}(x), 0)" == found.latex
    with pytest.raises(ValueError, match="'softsign' takes 1 argument"):
        formula_of("softsign(x, x)")


def test_what_is_registered_twice_is_refused(own):
    for again in (
        lambda: register_function("softsign", torch.sign),
        lambda: register_function("max", torch.sign),
        lambda: register_function("v0", torch.sign),
        lambda: register_function("sign_b", torch.sign),
        lambda: register_function("std_x", torch.sign),
        lambda: register_anchor("ResNet-small")(torch.nn.Identity),
        lambda: register_score("accuracy")(print),
    ):
        with pytest.raises(ValueError, match="choose another name"):
            again()
    with pytest.raises(ValueError, match="should be an identifier"):
        register_function("soft sign", torch.sign)


def test_an_op_of_ones_own_is_drawn_only_where_the_space_has_it(own):
    for space, has in ((Space(10, False), False), (Space(10, False, ("lower",)), True)):
        drawn = {op for i in range(300) for op, _ in space.random(Random(i))}
        assert ("lower" in drawn) == has and "softsign" not in drawn
        assert ("own=('lower',)" in repr(space)) == has
        for i in range(50):
            space.check(space.mutate(space.random(Random(i)), Random(i), 3))
    with pytest.raises(UserError, match="no function 'upper' is registered; registered are soft"):
        load_config(CONFIG, ["SPACE.OWN", "('upper',)"])


def test_a_network_of_ones_own(own):
    model = build_anchor("Tiny", "EvoNormS1", num_classes=4)
    assert type(model[1]).__name__ == "EvoNorm" and model(torch.randn(2, 3, 9, 9)).shape == (2, 4)


@pytest.mark.parametrize(
    "name, line",
    [
        ("NoNorm", "ANCHORS: NoNorm: found none of BatchNorm2d"),
        ("Wrong", "ANCHORS: Wrong: it gives .2, 1568. for 2 images and 10 classes, not .2, 10."),
    ],
)
def test_a_network_that_does_not_do_is_one_line(own, tmp_path, name, line):
    settings = [*SHORT[:-1], f"('{name}',)", "OUTPUT_DIR", str(tmp_path / "run")]
    with pytest.raises(UserError, match=line) as error:
        run(load_config(CONFIG, settings))
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_a_score_of_ones_own(own):
    result = {"stage": "trained", "scores": [0.5, 0.7]}
    found = scored("cheap", "x * tanh(x)", result)
    assert found["scores"] == pytest.approx([0.48, 0.68]) and found["accuracies"] == [0.5, 0.7]
    assert scored("accuracy", "x", result) is result
    rejected = {"stage": "quality", "scores": []}
    assert scored("cheap", "x", rejected) is rejected
    with pytest.raises(UserError, match="EVOLUTION.SCORE: cheap gives .nan. for x"):
        scored("cheap", "x", {"stage": "trained", "scores": [float("nan")]})
    with pytest.raises(UserError, match="EVOLUTION.SCORE is 'best'; known are accuracy, cheap"):
        load_config(CONFIG, ["EVOLUTION.SCORE", "best"])


@pytest.mark.parametrize("name", FORMULAS)
def test_a_graph_of_each_layer_of_the_paper(name):
    space = Space(12, batch=True)
    graph = graph_for(name, space, Random(0))
    space.check(graph)
    assert formula(graph) == formula_of(name)
    assert graph_for(name, space, Random(1)) != graph  # of its unused nodes


@pytest.mark.parametrize(
    "overrides, line",
    [
        ("('BN-ReLU',)", "WARM_START: 'BN-ReLU' is no formula, nor a name that stands for one"),
        ("('EvoNormB0',)", "WARM_START: 'EvoNormB0' needs std_b, which the space does not have"),
        ("('tanh(0.3 * x)',)", "WARM_START: the number 0.3 has no graph"),
        ("('tanh(y)',)", "WARM_START: .* unknown name 'y'"),
        ("('x',)", "WARM_START: 'x' needs no operation"),
        ("('EvoNormS0',) SPACE.NODES 4", "'EvoNormS0' needs 5 operation nodes, SPACE.NODES is 4"),
        ("('EvoNormS0',) SIEVE.DUPLICATES False", "WARM_START is not the paper's"),
    ],
)
def test_a_start_that_there_is_not_is_one_line(overrides, line):
    first, *more = overrides.rsplit(" ", 2) if ") " in overrides else [overrides]
    with pytest.raises(UserError, match=line) as error:
        load_config(CONFIG, ["EVOLUTION.WARM_START", first, *more])
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_search_with_parts_of_ones_own(own, tmp_path):
    """Each process that evaluates knows them, by the command's --import."""
    more = {
        "SPACE.OWN": "('softsign', 'lower')",
        "EVOLUTION.SCORE": "cheap",
        "EVOLUTION.WARM_START": "('EvoNormS0', 'softsign(x) / rms_g(x)')",
        "OUTPUT_DIR": str(tmp_path / "run"),
    }
    settings = [*SHORT, *(word for pair in more.items() for word in pair)]
    command = [sys.executable, str(ROOT / "tools/search_layers.py"), "--import", "own_parts", "run"]
    done = subprocess.run(
        [*command, "--config-file", CONFIG, *settings], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = list(Store(tmp_path / "run").candidates())
    assert [c.formula for c, _ in found[:2]] == [
        FORMULAS["EvoNormS0"],
        "softsign(x) / rms_g(x)",
    ]
    (_, result), *_ = found
    assert result["scores"] == pytest.approx([result["accuracies"][0] - 5 / 100])
    assert "4 candidates" in replay(Store(tmp_path / "run"))


def test_a_module_that_there_is_not_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="^--import no_parts: No module named 'no_parts'$"):
        plugins.load(["no_parts"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("bad_parts.py").write_text("1 / 0")
    with pytest.raises(UserError, match="^--import bad_parts: division by zero$"):
        plugins.load(["bad_parts"])
    assert "bad_parts" not in plugins.MODULES
