"""Corrected p-values and intervals, against their definitions."""

from __future__ import annotations

import random

import pytest

from evonorm_repro.significance import LEVEL, difference, holm, judge


def rejected(p_values, level):
    """Holm's procedure as it is defined: the smallest p first, until one is above its level."""
    found, left = set(), sorted(range(len(p_values)), key=lambda i: p_values[i])
    while left and p_values[left[0]] <= level / len(left):
        found.add(left.pop(0))
    return found


def test_a_corrected_p_is_the_least_level_that_rejects():
    draw = random.Random(0)
    for _ in range(300):
        p_values = [draw.random() ** 3 for _ in range(draw.randint(1, 8))]
        corrected = holm(p_values)
        for level in (0.001, 0.01, 0.05, 0.2, 0.5, 0.9):
            assert {i for i, p in enumerate(corrected) if p <= level} == rejected(p_values, level)
    assert holm([]) == [] and holm([0.9, 0.8]) == [1.0, 1.0]


def test_a_difference_at_the_end_of_the_interval_has_the_levels_p():
    values, others = [5.0, 5.3, 5.9, 5.1], [1.0, 2.5, 1.8]
    found = difference(values, others)
    low, high = found["interval"]
    assert low < found["difference"] < high
    assert found["difference"] == pytest.approx(sum(values) / 4 - sum(others) / 3)
    for end in (low, high):
        shifted = difference([x - end for x in values], others)
        assert shifted["p"] == pytest.approx(LEVEL)


def test_values_without_spread():
    assert difference([1.0], [2.0, 3.0]) is None
    same = difference([97.0, 97.0], [97.0, 97.0])
    assert same == {"difference": 0.0, "interval": [0.0, 0.0], "p": 1.0}
    other = difference([97.0, 97.0], [96.0, 96.0])
    assert other == {"difference": 1.0, "interval": [1.0, 1.0], "p": 0.0}


def test_what_one_test_claims_ten_need_not():
    one = {"p": 0.01, "difference": -1.0, "higher": False}
    (alone,) = judge([one])
    assert alone == {"p": 0.01, "difference": -1.0, "p_holm": 0.01, "verdict": "better"}
    first, *_ = judge([one] + 9 * [{**one, "p": 0.5}])
    assert first["p_holm"] == pytest.approx(0.1) and first["verdict"] == "not told apart"
