"""What the page says of searches for layers, whose candidates lie in a store."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from markupsafe import Markup

from evonorm_search import sift
from evonorm_search.results import (
    Row,
    evaluated,
    mean_score,
    pareto_rows,
    ten_best_over_time,
    trained,
)
from evonorm_search.space import INITIAL
from evonorm_search.store import Candidate, Store

from . import search_charts as charts
from .figures import Chart
from .kinds.search import BEST, TEN_BEST
from .mathematics import mathml
from .recorded import known_accuracies
from .results import Cell, Figures
from .runs import RunFolder, number

# What is left of the graphs after each stage of the cascade.
PASSED = {
    sift.IGNORES_INPUT: "depend on x",
    sift.SEEN_FORMULA: "formula is new",
    sift.NOT_FINITE: "finite",
    sift.CONSTANT: "not constant",
    sift.NO_GRADIENT: "have a gradient",
    sift.SEEN_VALUES: "values are new",
}
REJECTED = {"quality": "of low quality", "stability": "unstable"}
TRAINED = "trained"
SHOWN = 10  # formulas under each title
LONGEST = 60  # characters of a stage's name


@dataclass
class Formula:
    """A line of a table of formulas: what was found, and how good it is."""

    key: int
    text: str
    set: Markup | None
    scores: list[str]
    on_front: bool


@dataclass
class Searches:
    """What the page says of all searches in it.

    Attributes:
        best, front, line: by run index, the best formulas, those of the Pareto front, and the
            ancestors of the best one, from the random graph to itself.
        anchors: by run index, the names of the networks.
    """

    runs: list[RunFolder]
    anchors: dict[int, list[str]]
    best: dict[int, list[Formula]]
    front: dict[int, list[Formula]]
    line: dict[int, list[Formula]]
    funnel: Figures
    funnel_chart: Chart
    progress: list[Chart]
    ops: dict[int, Chart]
    accuracies: list[Chart]
    against: list[Chart]
    trees: list[Chart]

    def all_charts(self) -> Iterator[Chart]:
        yield self.funnel_chart
        yield from (*self.progress, *self.ops.values())
        yield from (*self.accuracies, *self.against, *self.trees)


def read_search(run: RunFolder) -> None:
    """Read a run's store: its rows and counts, and the lines that its state and results come from.

    Raises:
        UserError: the store is damaged.
    """
    store = Store(run.folder, read_only=True)
    counts = store.get("counts", {})
    run.counts.update({str(k)[:LONGEST]: v for k, v in dict(counts).items() if isinstance(v, int)})
    rows = list(store.candidates())
    run.rows.extend(row for row in rows if _is_whole(*row))
    damaged = len(rows) - len(run.rows)
    if damaged:
        run.notes.append(f"{store.path.name}: {damaged} damaged results left out")
    run.known.update(known_accuracies(run.folder))
    best = -math.inf
    means = {count: mean for count, mean, _ in ten_best_over_time(run.rows)}
    for count, (_, result) in enumerate(evaluated(run.rows), 1):
        line = {"step": float(count)}
        if count in means:
            best = max(best, mean_score(result))
            line |= {BEST: 100 * best, TEN_BEST: 100 * means[count]}
        run.lines.append(line)


def _is_whole(candidate: Candidate, result: Any) -> bool:
    """Whether a row can be shown: its nodes take earlier values, its accuracies are fractions."""
    nodes = enumerate(candidate.graph, len(INITIAL))
    if not candidate.graph or not all(0 <= i < place for place, (_, of) in nodes for i in of):
        return False
    if not isinstance(result, dict) or not isinstance(result.get("stage"), str):
        return False
    for name in ("quality", "scores"):
        values = result.get(name)
        if not isinstance(values, list) or not all(map(_is_fraction, values)):
            return False
    return bool(result["scores"]) == (result["stage"] == TRAINED)


def _is_fraction(value: Any) -> bool:
    found = number(value)
    return found is not None and 0 <= found <= 1


def make_searches(runs: list[RunFolder]) -> Searches:
    """All that the page says of these searches."""
    anchors = {run.index: anchor_names(run) for run in runs}
    best, front, line = {}, {}, {}
    for run in runs:
        order = sorted(trained(run.rows), key=lambda row: -mean_score(row[1]))
        on_front = pareto_rows(run.rows)
        keys = {row[0].key for row in on_front}
        best[run.index] = [_formula(row, keys) for row in order[:SHOWN]]
        front[run.index] = [_formula(row, keys) for row in on_front[: 3 * SHOWN]]
        line[run.index] = [_formula(row, keys) for row in charts.line_of_best(run)]
    return Searches(
        runs=runs,
        anchors=anchors,
        best=best,
        front=front,
        line=line,
        funnel=_funnel(runs),
        funnel_chart=charts.funnel(runs, {run.index: stages(run) for run in runs}),
        progress=[chart for chart in [charts.progress(runs)] if chart],
        ops={run.index: chart for run in runs if (chart := charts.ops(run))},
        accuracies=charts.accuracies(runs, anchors),
        against=charts.against(runs, anchors),
        trees=[chart for chart in [charts.tree(runs)] if chart],
    )


def anchor_names(run: RunFolder) -> list[str]:
    """The names of a search's networks, in the order of its scores."""
    count = max((len(result["scores"]) for _, result in trained(run.rows)), default=0)
    names = re.findall(r"'([^']+)'", run.config.get("ANCHORS", ""))
    return names if len(names) >= count else [f"network {i + 1}" for i in range(count)]


def stages(run: RunFolder) -> dict[str, int]:
    """How many graphs are left after each stage of the cascade, by what can be said of them."""
    left = sum(run.counts.values())
    found = {"drawn": left}
    for name, passed in PASSED.items():
        left -= run.counts.get(name, 0)
        found[passed] = left
    ended = [result["stage"] for _, result in evaluated(run.rows)]
    found["evaluated"] = len(ended)
    found["learn at once"] = len(ended) - ended.count("quality")
    found["stable, trained"] = ended.count(TRAINED)
    return found


def _funnel(runs: Sequence[RunFolder]) -> Figures:
    """A column for each stage, with how many graphs ended there."""
    names = dict.fromkeys(name for run in runs for name in run.counts if name != sift.NEW)
    heads = ["graphs drawn", *names, "evaluated", *REJECTED.values(), TRAINED, "shared results"]
    figures = Figures([Cell(head) for head in heads])
    for run in runs:
        own = evaluated(run.rows)
        ended = [result["stage"] for _, result in own]
        counts = [sum(run.counts.values()), *(run.counts.get(name, 0) for name in names)]
        counts += [len(own), *(ended.count(stage) for stage in (*REJECTED, TRAINED))]
        counts.append(len(run.rows) - len(own))
        figures.rows[run.index] = [Cell(f"{count:,}") for count in counts]
    return figures


def _formula(row: Row, front: set[int]) -> Formula:
    candidate, result = row
    scores = result["scores"]
    texts = [f"{100 * value:.1f}" for value in [fmean(scores), *scores]] if scores else []
    text = str(candidate.formula)
    return Formula(candidate.key, text, mathml(text), texts, candidate.key in front)
