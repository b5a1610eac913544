"""Whether layers differ: Welch's t-test over the seeds, corrected for the number of tests."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

LEVEL = 0.05


def summarise(values: list[float]) -> dict[str, Any] | None:
    """Mean, spread (standard deviation, None for one value) and values; None without values."""
    if not values:
        return None
    spread = stdev(values) if len(values) > 1 else None
    return {"mean": mean(values), "spread": spread, "values": values}


def difference(values: Sequence[float], others: Sequence[float]) -> dict[str, Any] | None:
    """The difference of two means, its interval of 95 % and its p-value, all by Welch's t-test.

    None if one of them has fewer than two values.
    """
    from scipy.stats import ttest_ind  # slow to import

    if len(values) < 2 or len(others) < 2:
        return None
    apart = mean(values) - mean(others)
    if len(set(values)) == len(set(others)) == 1:  # no spread, so no test
        return {"difference": apart, "interval": [apart, apart], "p": float(apart == 0)}
    found = ttest_ind(values, others, equal_var=False)
    interval = found.confidence_interval(1 - LEVEL)
    ends = [float(interval.low), float(interval.high)]
    return {"difference": apart, "interval": ends, "p": float(found.pvalue)}


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number by the step-down procedure of Holm (1979)."""
    corrected, largest = [1.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, (len(p_values) - rank) * p_values[i])
        corrected[i] = min(1.0, largest)
    return corrected


def judge(comparisons: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Comparisons with `p_holm` and a `verdict`: "better", "worse" or "not told apart".

    Args:
        comparisons: all of a table, each with `p`, `difference`, and `higher`, whether higher is
            better, which the returned ones lack.
    """
    judged = []
    for old, p in zip(comparisons, holm([comparison["p"] for comparison in comparisons])):
        comparison = {key: value for key, value in old.items() if key != "higher"}
        better = (old["difference"] > 0) == old["higher"]
        verdict = ("better" if better else "worse") if p < LEVEL else "not told apart"
        judged.append({**comparison, "p_holm": p, "verdict": verdict})
    return judged
