"""What a search maximizes: a number or several of each trained candidate; more is better.

The Pareto front is over all of them, and the mean of them ranks candidates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Callable

from evonorm_runs.errors import UserError

Score = Callable[[str, dict[str, Any]], Sequence[float]]  # of a formula and its result


def accuracy(norm_act: str, result: dict[str, Any]) -> list[float]:
    """The accuracies on the anchors: the paper's."""
    return result["scores"]


SCORES: dict[str, Score] = {"accuracy": accuracy}


def register_score(name: str) -> Callable[[Score], Score]:
    """Decorator: makes a score of your own available as EVOLUTION.SCORE.

    It is called with a candidate's formula and what :func:`evaluation.evaluate` returned, and gives
    the same number of scores for each candidate.

    Raises:
        ValueError: the name is taken.
    """

    def register(score: Score) -> Score:
        if name in SCORES:
            raise ValueError(f"score {name!r} is registered already: choose another name")
        SCORES[name] = score
        return score

    return register


def scored(name: str, norm_act: str, result: dict[str, Any]) -> dict[str, Any]:
    """A result with the scores of this name; its accuracies are then under "accuracies".

    Raises:
        UserError: a score is not a finite number.
    """
    if name == "accuracy" or result["stage"] != "trained":
        return result
    scores = [float(score) for score in SCORES[name](norm_act, result)]
    if not scores or not all(map(math.isfinite, scores)):
        raise UserError(f"EVOLUTION.SCORE: {name} gives {scores} for {norm_act}, no finite numbers")
    return {**result, "accuracies": result["scores"], "scores": scores}
