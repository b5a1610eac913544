"""The order of layers over the training, on curves that were written down."""

from __future__ import annotations

import json

from evonorm_repro.settling import average, changes, evaluations, order

CURVES = {
    "A": {0.25: 1.0, 0.5: 2.0, 0.75: 6.0, 1.0: 9.0},
    "B": {0.25: 3.0, 0.5: 4.0, 0.75: 5.0, 1.0: 8.0},
    "C": {0.25: 9.0, 0.5: 7.0, 0.75: 7.0, 1.0: 7.0},
}


def test_layers_that_change_places_late():
    assert order(CURVES, higher=True) == {
        0.25: ["C", "B", "A"],
        0.5: ["C", "B", "A"],
        0.75: ["C", "A", "B"],
        1.0: ["A", "B", "C"],
    }
    assert changes(order(CURVES, higher=True)) == [("A", "C"), ("B", "C")]
    assert changes(order(CURVES, higher=False)) == [("C", "B"), ("C", "A")]
    del CURVES["A"][0.75]  # then C's lead over B in the last third has one value
    assert changes(order(CURVES, higher=True)) is None
    assert changes({}) is None


def test_changes_before_the_last_third_do_not_count():
    early = {
        "A": {0.3: 0.0, 0.6: 2.0, 0.7: 3.0, 1.0: 4.0},
        "B": {0.3: 1.0, 0.6: 2.5, 0.7: 2.0, 1.0: 1},
    }
    assert changes(order(early, higher=True)) == []


def test_a_mean_has_the_evaluations_that_all_runs_have():
    found = average([{0.5: 1.0, 1.0: 2.0}, {0.25: 9.0, 0.5: 3.0, 1.0: 5.0}])
    assert found == {0.5: 2.0, 1.0: 3.5} and average([]) == {}


def test_a_runs_evaluations(tmp_path):
    lines = [{"iteration": 9, "loss": 1.0}, {"iteration": 9, "bbox/AP": 3.0}, {"iteration": 15}]
    lines += [{"iteration": 19, "loss": 0.5, "bbox/AP": 7.0}, {"bbox/AP": 8.0}]
    (tmp_path / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert evaluations(tmp_path, "iteration", "bbox/AP") == {round(9 / 19, 4): 3.0, 1.0: 7.0}
    assert evaluations(tmp_path, "epoch", "bbox/AP") == {}
