"""The parts of the page. Each part is about the runs of one kind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from . import charts, recorded, results
from .compare import compare, other_differences, over_seeds, seed_figures
from .figures import Chart
from .images import Album
from .kinds import Kind, Result
from .kinds.search import KIND as SEARCH
from .runs import RunFolder
from .searches import Searches, make_searches

MISTAKES = 10  # the most frequent ones, of each run


@dataclass
class Part:
    """All that the page says of the runs of one kind."""

    id: str
    title: str
    runs: list[RunFolder]
    samples_note: str
    seeds_note: str
    figures: results.Figures
    seeds: tuple[list[str], results.Figures] | None
    differences: list[str]
    curves: list[Chart]
    more: list[Chart]
    trade: list[Chart]
    classes: list[tuple[str, Chart | None, dict[str, dict[int, str]]]]
    confusion: dict[int, tuple[Chart | None, list[tuple[str, str, int, int]]]]
    samples: dict[int, Any]
    pictures: dict[int, Any]
    with_config: list[RunFolder]
    differ: dict[str, list[str]]
    alike: dict[str, str]
    searches: Searches | None
    sections: list[tuple[str, str]] = field(default_factory=list)

    @property
    def marked(self) -> bool:
        """Whether any figure is marked as the best of its column."""
        return any(cell.best for row in self.figures.rows.values() for cell in row)

    def all_charts(self) -> Iterator[Chart]:
        yield from (*self.curves, *self.more, *self.trade)
        yield from (chart for _, chart, _ in self.classes if chart)
        yield from (chart for chart, _ in self.confusion.values() if chart)
        if self.searches:
            yield from self.searches.all_charts()


def make_part(kind: Kind, runs: list[RunFolder], album: Album, total: int) -> Part:
    """Make the part of the page that is about the runs of one kind.

    Args:
        album: makes their pictures small, and counts how much space they take.
        total: the number of runs in the page.
    """
    groups = [group for group in over_seeds(runs) if len(group) > 1]
    with_config = [run for run in runs if run.config]
    differ, alike = compare([run.config for run in with_config])
    curves, more = charts.learning_curves(runs, total)
    truncation = {run: found for run in runs if (found := recorded.truncation_curves(run.folder))}
    trade = charts.trade_off(runs)
    for which in range(max(map(len, truncation.values()), default=0)):
        chosen = {run: c[which][1] for run, c in truncation.items() if which < len(c)}
        trade += charts.truncation(chosen)
    classes = [
        (title, charts.class_chart(title, values, runs), _class_texts(values))
        for title, values in results.per_class(runs).items()
    ]
    drawn = {
        run: [f"{name.removesuffix('.json')}.png" for name, _ in truncation.get(run, ())]
        for run in runs
    }
    pictures = {run.index: album.pictures(run, drawn[run]) for run in runs}
    part = Part(
        id=kind.id,
        title=kind.title,
        samples_note=kind.samples_note,
        seeds_note=kind.seeds_note,
        runs=runs,
        figures=results.final_figures(runs),
        seeds=seed_figures(groups) if groups else None,
        differences=other_differences(runs) if len(runs) > 1 else [],
        curves=curves,
        more=more,
        trade=trade,
        classes=classes,
        confusion={
            run.index: (charts.confusion_matrix(run, found), found.most_frequent(MISTAKES))
            for run in runs
            if (found := recorded.confusion(run.folder))
        },
        samples=album.samples(runs),
        pictures={index: found for index, found in pictures.items() if found},
        with_config=with_config,
        differ=differ,
        alike=alike,
        searches=make_searches(runs) if kind is SEARCH else None,
    )
    searches = part.searches
    contents = {
        ("results", "Results"): part.figures.columns,
        ("found", "What was found"): searches and any(searches.best.values()),
        ("funnel", "Funnel"): searches,
        ("progress", "Over time"): searches and [*searches.progress, *searches.ops],
        ("accuracies", "Accuracies"): searches and [*searches.accuracies, *searches.against],
        ("family", "Families of the best"): searches and searches.trees,
        ("curves", "Learning curves"): part.curves or part.more,
        ("trade", kind.against_title): part.trade,
        ("classes", kind.classes_title): part.classes,
        ("confusion", "Mistakes"): part.confusion,
        ("samples", "Samples"): part.samples,
        ("pictures", "Pictures"): part.pictures,
        ("settings", "Settings"): part.with_config,
    }
    part.sections = [section for section, content in contents.items() if content]
    return part


def _class_texts(classes: dict[str, dict[int, float]]) -> dict[str, dict[int, str]]:
    metric = Result("", "", "%", 1, 1)
    return {c: {i: metric.format(v) for i, v in row.items()} for c, row in classes.items()}
