"""Runs of tools/search_layers.py. What they found is in a store, not in metrics.json."""

from __future__ import annotations

from .kind import Kind, Result

# The report makes these figures from the store. They have charts of their own, and so no curve.
BEST, TEN_BEST = "best", "ten_best"
_RESULTS = {
    BEST: Result(BEST, "best mean accuracy", "%", 0, 2),
    TEN_BEST: Result(TEN_BEST, "mean of the ten best", "%", 0, 2, rank=("", 1, "")),
}
KIND = Kind(
    id="search",
    title="Layer search",
    tool="search_layers.py",
    config_key="SPACE.NODES",
    metrics_key=TEN_BEST,
    norm_keys=(),
    find_result=_RESULTS.get,
    unit="candidate",
    last_key="CANDIDATES",
)
